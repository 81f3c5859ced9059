"""Records are what a second implementation makes of the sidecar's NDJSON: same rows, every shared column equal."""

import pytest
from independent_records import IndependentRecord, records_of
from services import SECRET, running_sidecar, shared_data, simulate
from solders.pubkey import Pubkey
from solders.signature import Signature

from uho_pipelines.archive import ArchiveClient, Checkpoint, Done
from uho_pipelines.settings import NetworkSettings, Settings

REAL_PROGRAMS = [
    "pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA",
    "6EF8rrecthR5Dkzon8Nwu78hRvfCKubJ14M5uBEwF6P",
    "whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc",
    "LBUZKhRxPF3XUpBCjp4YzTKgLccjZhTSDM9YuVaPwxo",
    "LanMV9sAd7wArD4vJFi2qDdfnVhFxYSUg6eADduJ3uj",
    "SW1TCH7qEPTdLsDHRgPuMQjbQxKdH2aBStViMFnt64f",
    "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA",
]


class Served:
    """An archive behind a sidecar: the range of it that is read, and by which programs' ids."""

    def __init__(self, sidecar, settings, network, programs, start, end):
        self.sidecar = sidecar
        self.settings = settings
        self.network = network
        self.programs = programs
        self.start = start
        self.end = end

    def arrow(self, programs):
        """Return the Arrow stream's records in its order, and the certificate that ends it."""
        records, certificate = [], None
        client = ArchiveClient(self.settings)
        with client.stream(self.network, programs, self.start, self.end) as stream:
            for item in stream:
                if isinstance(item, Done):
                    certificate = item.certificate
                elif not isinstance(item, Checkpoint):
                    records += [shared_columns(row) for row in item.to_pylist()]
        assert certificate is not None
        return records, certificate

    def ndjson(self, program):
        """Return the transactions of the NDJSON stream, and the certificate that ends it."""
        lines = self.sidecar.lines(self.network, program, self.start, self.end, 1_000)
        assert (lines[0]["type"], lines[-1]["type"]) == ("started", "done")
        return [line for line in lines if line["type"] == "transaction"], lines[-1]["certificate"]


def shared_columns(row):
    """Return an Arrow row as the other implementation writes records."""
    return IndependentRecord(
        slot=row["slot"],
        tx_index=row["tx_index"],
        event_index=row["event_index"],
        signature=str(Signature(row["signature"])),
        block_time=row["block_time"],
        program=str(Pubkey(row["program"])),
        source="cpi" if row["source"] else "log",
        instruction_path=tuple(row["instruction_path"]),
        payload=row["payload"],
        failed=row["failed"],
        truncated=row["truncated"],
        epoch=row["epoch"],
        archive_offset=row["archive_offset"],
    )


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = simulate(tmp_path_factory.mktemp("sim"), first_slot=1_294_650, last_slot=1_297_099)
    programs = sorted(
        line.split()[1]
        for file in folder.glob("programs/*/program.yaml")
        for line in file.read_text().splitlines()
        if line.startswith("program_id:")
    )
    with running_sidecar({"sim": str(folder)}, folder / "sidecar.log") as sidecar:
        settings = Settings(
            home=folder,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            networks={"sim": NetworkSettings(chunk_slots=1_000)},
        )
        yield Served(sidecar, settings, "sim", programs, 1_294_650, 1_297_100)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    archive, home = shared_data() / "archive", tmp_path_factory.mktemp("real")
    with running_sidecar({"mainnet": str(archive)}, home / "sidecar.log") as sidecar:
        settings = Settings(home=home, sidecar_url=sidecar.url, sidecar_secret=SECRET)
        yield Served(sidecar, settings, "mainnet", REAL_PROGRAMS, 345_600_000, 345_900_000)


@pytest.fixture(params=["simulated", "real"])
def served(request):
    return request.getfixturevalue(request.param)


def test_both_implementations_find_the_same_records(served):
    for program in served.programs:
        transactions, certificate = served.ndjson(program)
        expected = [record for transaction in transactions for record in records_of(transaction, program)]
        records, arrow_certificate = served.arrow([program])
        assert records == expected
        counts = certificate["programs"][program]
        assert counts == arrow_certificate["programs"][program]
        assert counts["matched"] == len(transactions)
        assert counts["records"] == len(records)
        assert counts["withRecords"] == len({(record.slot, record.tx_index) for record in records})
        assert counts["failed"] == sum(transaction["err"] is not None for transaction in transactions)


def test_programs_that_share_a_stream_have_the_records_they_have_alone(served):
    together, _ = served.arrow(served.programs)
    assert [(record.slot, record.tx_index) for record in together] == sorted(
        (record.slot, record.tx_index) for record in together
    )
    for program in served.programs:
        assert [record for record in together if record.program == program] == served.arrow([program])[0]


def test_the_comparison_meets_everything_that_the_simulator_hides(simulated):
    records = [record for program in simulated.programs for record in simulated.arrow([program])[0]]
    assert len(records) > 5_000
    assert {record.source for record in records} == {"log", "cpi"}
    assert any(record.failed for record in records)
    assert any(record.truncated for record in records)
    assert any(record.block_time is None for record in records)
    assert any(len(record.instruction_path) > 1 for record in records)
    assert {record.epoch for record in records} == {2, 3}


def test_lines_that_no_program_said_are_records_of_nobody(simulated):
    """The simulator has programs print what looks like another's events; neither implementation believes it."""
    program = simulated.programs[0]
    transactions, _ = simulated.ndjson(program)
    lines = sum(line.startswith("Program data: ") for item in transactions for line in item["logs"] or [])
    logs = sum(record.source == "log" for record in simulated.arrow([program])[0])
    assert logs < lines

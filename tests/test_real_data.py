"""Real transactions through the whole path: what Anchor's own decoder found is what Postgres holds.

The pieces of epoch 0, bare files without an index, are read by the Rust tests of old-faithful: the sidecar serves whole
epochs only.
"""

import json
import re
import subprocess
from collections import Counter
from decimal import Decimal

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row
from services import SECRET, built, fresh_warehouse, running_sidecar, shared_data
from solders.signature import Signature

from uho_pipelines.checks import completeness
from uho_pipelines.chunks import Chunk
from uho_pipelines.lake import Lake
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.warehouse import connect, read_plan

PUMP_AMM = "pAMMBay6oceH9fJKBRHGP5D4bD4sWpmSwMn52FMfXEA"
WHIRLPOOL = "whirLbMiicVdio4qvUfM5KAg6Ct8VwpYzGff3uctyCc"
LB_CLMM = "LBUZKhRxPF3XUpBCjp4YzTKgLccjZhTSDM9YuVaPwxo"
TOKEN = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"

PROGRAMS = {
    "pump_amm": (PUMP_AMM, "pump_amm__*__f3e83176.json"),
    "pump": ("6EF8rrecthR5Dkzon8Nwu78hRvfCKubJ14M5uBEwF6P", "pump__*__312051ac.json"),
    "whirlpool": (WHIRLPOOL, "whirlpool__*__d611acdb.json"),
    "lb_clmm": (LB_CLMM, "lb_clmm__*__25e174ba.json"),
    "raydium_launchpad": ("LanMV9sAd7wArD4vJFi2qDdfnVhFxYSUg6eADduJ3uj", "raydium_launchpad__*__665eb2dd.json"),
    "switchboard": ("SW1TCH7qEPTdLsDHRgPuMQjbQxKdH2aBStViMFnt64f", "switchboard_v2__*__333a4fed.json"),
    # Its transactions matter here, not its events: it has none, so any IDL will do.
    "token": (TOKEN, "pump__*__312051ac.json"),
}
"""Folder name to program id and the IDL by which the oracle decodes every event exactly."""

EPOCH_SLOTS = 432_000
CHUNK_SLOTS = 100_000
EPOCH_800 = [Chunk(start, CHUNK_SLOTS) for start in (345_600_000, 345_700_000, 345_800_000)]
EMPTY = Chunk(345_900_000, CHUNK_SLOTS)
STRADDLING = Chunk(346_000_000, CHUNK_SLOTS)
EPOCH_801 = [STRADDLING, *(Chunk(start, CHUNK_SLOTS) for start in (346_100_000, 346_200_000))]


@pytest.fixture(scope="module")
def data():
    return shared_data()


@pytest.fixture(scope="module")
def oracle(data):
    """The 65 events; what the oracle calls an older IDL's fields in camel case is in snake case here."""
    events = [json.loads(line) for line in (data / "oracle" / "events-800.jsonl").read_text().splitlines()]
    for event in events:
        # Where the oracle tried several IDLs, each used every byte; ours decodes all of a program's events.
        event["name"], event["fields"] = event["decodes"][0]["name"], snake_keys(event["decodes"][0]["data"])
    return events


@pytest.fixture(scope="module")
def settings(data, postgres, tmp_path_factory):
    """Settings with a sidecar and a warehouse that run, and seven real programs in one scan group."""
    home = tmp_path_factory.mktemp("real")
    for name, (program_id, pattern) in PROGRAMS.items():
        folder = home / "programs" / name
        folder.mkdir(parents=True)
        idl = next(data.glob(f"idl/{pattern}"))
        (folder / idl.name).write_bytes(idl.read_bytes())
        fields = {
            "program_id": program_id,
            "network": "mainnet",
            "owner": "test",
            "first_slot": EPOCH_800[0].start,
            "scan_group": "real",
            "idls": [{"from_slot": 0, "file": idl.name}],
        }
        (folder / "program.yaml").write_text(yaml.safe_dump(fields))
    archive = str(data / "archive")
    with running_sidecar({"mainnet": archive}, home / "sidecar.log") as sidecar:
        yield Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "real_data"),
            programs_dir=home / "programs",
            networks={
                "mainnet": NetworkSettings(archive_url=archive, chunk_slots=CHUNK_SLOTS, checkpoint_slots=10_000)
            },
        )


@pytest.fixture(scope="module")
def programs(settings):
    registry = load_registry(settings)
    assert not registry.faults
    return {program.name: program for program in registry.programs}


@pytest.fixture(scope="module")
def manifests(settings, programs):
    """Every chunk of both epochs read and loaded, all programs in one stream; `{(program, chunk start): manifest}`."""
    found = {}
    for chunk in [*EPOCH_800, EMPTY, *EPOCH_801]:
        for outcome in read_records(settings, list(programs.values()), chunk, Reporter()):
            assert outcome.error is None, outcome.error
            found[outcome.program.name, chunk.start] = outcome.manifest
            assert load_events(settings, outcome.program, chunk, Reporter()).verdict.text == ""
    return found


def snake_keys(value):
    """Return JSON with its field names in snake case; the names of enum variants stay."""
    if isinstance(value, dict):
        return {snake(key): snake_keys(item) for key, item in value.items()}
    return [snake_keys(item) for item in value] if isinstance(value, list) else value


def snake(name):
    if name[0].isupper():
        return name
    return re.sub(r"(?<=[a-z0-9])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])", lambda found: f"_{found[0]}", name).lower()


def records(settings, programs, chunks):
    """Return the records in the lake as the oracle writes events: program, source, signature, payload."""
    found = Counter()
    for program in programs.values():
        for chunk in chunks:
            for batch in Lake(settings).chunk(program, chunk).batches():
                for row in batch.to_pylist():
                    assert row["epoch"] == row["slot"] // EPOCH_SLOTS
                    key = (program.program_id, "cpi" if row["source"] else "log", str(Signature(row["signature"])))
                    found[*key, row["payload"].hex()] += 1
    return found


def rows(settings, programs, first_slot, end_slot):
    """Return the rows in Postgres as `{program: [(event, row)]}`, ascending."""
    found = {}
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        for program in programs.values():
            found[program.name] = []
            for event, table in read_plan(connection, program).tables.items():
                query = psycopg.sql.SQL("SELECT * FROM {} WHERE slot >= %s AND slot < %s").format(
                    psycopg.sql.Identifier(table.schema, table.name)
                )
                with connection.cursor(row_factory=dict_row) as cursor:
                    found[program.name] += [(event, row) for row in cursor.execute(query, [first_slot, end_slot])]
            found[program.name].sort(key=lambda row: (row[1]["slot"], row[1]["tx_index"], row[1]["event_index"]))
    return found


def expected_rows(oracle):
    """Return the oracle's events with twins folded: within a transaction, one log and one CPI of equal payload are one.

    As `{(program, signature, payload): [source, …]}`.
    """
    sources = {}
    for event in oracle:
        sources.setdefault((event["program"], event["sig"], event["hex"]), Counter())[event["source"]] += 1
    return {
        key: ["cpi"] * count["cpi"] + ["log"] * max(0, count["log"] - count["cpi"]) for key, count in sources.items()
    }


def equal(actual, expected):
    """Return whether a value of Postgres is the oracle's, which writes integers of 64 bits and wider as text."""
    if isinstance(actual, bool) or actual is None:
        return actual is expected
    if isinstance(actual, (int, Decimal)):
        return Decimal(actual) == Decimal(expected)
    return actual == expected


def test_the_oracle_has_what_its_description_says(oracle):
    assert len(oracle) == 65
    folded = expected_rows(oracle)
    assert sum(len(sources) for sources in folded.values()) == 39
    assert {event["program"] for event in oracle} <= {program_id for program_id, _ in PROGRAMS.values()}


def test_every_event_of_the_oracle_is_among_the_records(settings, programs, manifests, oracle):
    found = records(settings, programs, EPOCH_800)
    wanted = Counter((event["program"], event["source"], event["sig"], event["hex"]) for event in oracle)
    assert not wanted - found
    assert found == wanted


def test_every_event_is_in_postgres_with_equal_values(settings, programs, manifests, oracle):
    found = rows(settings, programs, EPOCH_800[0].start, EPOCH_800[-1].end)
    assert sum(map(len, found.values())) == 39
    ids = {program_id: name for name, (program_id, _) in PROGRAMS.items()}
    decoded = {(event["program"], event["sig"], event["hex"]): event for event in oracle}
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        plans = {name: read_plan(connection, program) for name, program in programs.items()}
    for (program_id, signature, payload), sources in expected_rows(oracle).items():
        name, wanted = ids[program_id], decoded[program_id, signature, payload]
        columns = plans[name].tables[wanted["name"]].field_columns
        fields = {snake(field): column for field, column in columns.items()}
        assert set(fields) == set(wanted["fields"])
        matching = [
            row
            for event, row in found[name]
            if (event, row["signature"]) == (wanted["name"], signature)
            and all(equal(row[column], wanted["fields"][field]) for field, column in fields.items())
        ]
        assert sorted(row["source"] for row in matching) == sorted(sources), (name, signature, wanted["name"])


def test_positions_and_times_are_those_that_an_rpc_node_gives(settings, programs, manifests, data):
    answers = [json.loads(line) for line in (data / "rpc" / "transactions-800.jsonl").read_text().splitlines()]
    positions = {answer["signature"]: (answer["slot"], answer["transactionIndex"]) for answer in answers}
    times = {answer["signature"]: answer["blockTime"] for answer in answers}
    for found in rows(settings, programs, EPOCH_800[0].start, EPOCH_800[-1].end).values():
        for _, row in found:
            assert (row["slot"], row["tx_index"]) == positions[row["signature"]]
            assert int(row["block_time"].timestamp()) == times[row["signature"]]


def test_the_certificates_count_what_is_there(manifests):
    def total(chunks, name):
        return sum(manifests["pump_amm", chunk.start].certificate[name] for chunk in chunks)

    for chunks in (EPOCH_800, EPOCH_801):
        assert (total(chunks, "blocks"), total(chunks, "transactions"), total(chunks, "votes")) == (66, 786, 94)
    for (_, start), manifest in manifests.items():
        certificate = manifest.certificate
        verdict = completeness(certificate, Chunk(start, CHUNK_SLOTS))
        # After the last block of epoch 801 nothing is published that could prove it the last.
        last = start == EPOCH_801[-1].start
        assert certificate["tail"] == ("unproven" if last else "proven")
        assert not verdict.errors
        assert bool(verdict.warnings) == last


@pytest.mark.parametrize("chunks", [EPOCH_800, EPOCH_801], ids=["epoch 800", "epoch 801"])
@pytest.mark.parametrize(
    ("name", "matched", "by_lookup_only"),
    [("pump_amm", 22, 1), ("whirlpool", 46, 0), ("lb_clmm", 2, 0), ("token", 88, 1)],
)
def test_as_many_transactions_match_as_others_counted(manifests, programs, chunks, name, matched, by_lookup_only):
    counts = [manifests[name, chunk.start].certificate["programs"][programs[name].program_id] for chunk in chunks]
    assert sum(count["matched"] for count in counts) == matched
    assert sum(count["matchedByLookupOnly"] for count in counts) == by_lookup_only


def test_the_next_epoch_holds_the_same_rows_an_epoch_later(settings, programs, manifests):
    before = rows(settings, programs, EPOCH_800[0].start, EPOCH_800[-1].end)
    after = rows(settings, programs, EPOCH_801[0].start, EPOCH_801[-1].end)
    for found in before.values():
        for _, row in found:
            row["slot"] += EPOCH_SLOTS
    assert after == before
    assert sum(map(len, after.values())) == 39


def test_a_chunk_that_straddles_epochs_reads_both(settings, programs, manifests):
    assert list(STRADDLING.epochs) == [800, 801]
    certificate = manifests["pump_amm", STRADDLING.start].certificate
    assert certificate["epochs"] == [800, 801]
    # The chunk's first block is epoch 801's: its parent is the last block of epoch 800, two chunks before.
    assert certificate["firstBlock"] == {"slot": 346_032_010, "parentSlot": 345_845_515}
    assert certificate["lastBlockSlot"] < STRADDLING.end < certificate["nextBlock"]["slot"]


def test_a_chunk_without_blocks_is_proved_empty(manifests):
    certificate = manifests["pump_amm", EMPTY.start].certificate
    assert (certificate["blocks"], certificate["tail"], certificate["firstBlock"]) == (0, "proven", None)
    assert certificate["nextBlock"] == {"slot": 346_032_010, "parentSlot": 345_845_515}


def test_what_is_proved_is_one_range_up_to_what_is_published(settings, programs, manifests):
    query = "SELECT program, start_slot, last_slot, chunks, events FROM uho.proven_ranges WHERE network = 'mainnet'"
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        proven = {row[0]: row[1:] for row in connection.execute(query)}
    assert set(proven) == set(programs)
    assert {row[:3] for row in proven.values()} == {(EPOCH_800[0].start, EPOCH_801[-1].start - 1, 6)}


def test_without_anything_else_running_scan_says_the_same(data, manifests):
    command = [built("uho-sidecar", "UHO_SIDECAR_BINARY"), "scan", "--archive", str(data / "archive")]
    command += [
        "--program",
        PUMP_AMM,
        "--from-slot",
        str(EPOCH_800[0].start),
        "--to-slot",
        str(EPOCH_800[0].end - 1),
        "--json",
    ]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    certificate = json.loads(printed)["certificate"]
    kept = manifests["pump_amm", EPOCH_800[0].start].certificate
    assert certificate["programs"][PUMP_AMM] == kept["programs"][PUMP_AMM]
    assert (certificate["blocks"], certificate["transactions"]) == (kept["blocks"], kept["transactions"])

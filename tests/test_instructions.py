"""Instructions of the simulated archive through the whole path: every row is the truth, and nothing is silently half.

Real ones, and what another library reads from them, are `test_real_instructions.py`.
"""

import json
import shutil
from collections import Counter

import pytest
from services import SECRET, fresh_warehouse, running_sidecar, simulate

from uho_pipelines.archive import ArchiveClient, Checkpoint, Done
from uho_pipelines.chunks import program_chunks
from uho_pipelines.estimate import estimate_program
from uho_pipelines.lake import Lake, RecordsMissingError
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.preview import preview_program
from uho_pipelines.quarantine import repair_program
from uho_pipelines.reading import InstructionsMissingError, read_events
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, read_truth, truth_of
from uho_pipelines.verification import verify_chunk
from uho_pipelines.warehouse import connect, read_plan

FIRST_SLOT, LAST_SLOT = 1_295_000, 1_295_699  # two chunks


@pytest.fixture(scope="module", params=["whole", "without metadata"])
def archive(request, tmp_path_factory):
    """A simulated archive, one of them with transactions whose metadata is missing."""
    options = ["--missing-metadata", "20"] if request.param == "without metadata" else []
    folder = tmp_path_factory.mktemp("sim")
    return simulate(folder, first_slot=FIRST_SLOT, last_slot=LAST_SLOT, options=options)


@pytest.fixture(scope="module")
def settings(archive, postgres, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(archive / "programs", home / "programs")
    with running_sidecar({"sim": f"file://{archive}"}, home / "sidecar.log") as sidecar:
        yield Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "instructions"),
            programs_dir=home / "programs",
            disk_reserve_bytes=0,
            networks={"sim": NetworkSettings(archive_url=f"file://{archive}", chunk_slots=350, checkpoint_slots=50)},
        )


@pytest.fixture
def asked(settings):
    """Both demo programs asking for their instructions; what they ask for is theirs again after the test."""
    return {name: asking(settings, name) for name in ("vault", "orderbook")}


def asking(settings, name, records="[events, instructions]"):
    """Have a program ask for `records`; return it."""
    path = settings.programs_dir / name / "program.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("records:")]
    path.write_text("\n".join([*lines, f"records: {records}", ""]))
    return load_registry(settings).program(name)


def read(settings, programs, chunk, said=lambda _: None):
    outcomes = read_records(settings, programs, chunk, Reporter(notice=said))
    assert [outcome.error for outcome in outcomes] == [None] * len(programs)


def assert_true(settings, archive, program, chunks):
    """Every table of the program has the truth's rows, and verification finds nothing wrong with them."""
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        compared = compare_program(connection, program, read_plan(connection, program), truth_of(archive, program))
        for one in compared:
            assert one.equal, (one.event, one.differences[:3])
        connection.commit()
        for chunk in chunks:
            assert not verify_chunk(connection, settings, program, chunk).findings
    return {one.event: one.rows for one in compared}


def truth(archive, program):
    return [line for line in read_truth(archive, "instructions.jsonl") if line["program"] == program.name]


def test_every_row_is_the_truth_and_every_instruction_is_counted(settings, archive, asked):
    chunks = program_chunks(settings, asked["vault"], tip=None)
    counts = {name: Counter() for name in asked}
    for chunk in chunks:
        read(settings, list(asked.values()), chunk)
        for name, program in asked.items():
            outcome = load_events(settings, program, chunk, Reporter())
            # 3 of 32 instructions are spoiled: that warns, and halts nothing.
            assert not outcome.verdict.blocks
            assert "instructions" in outcome.verdict.text
            found = outcome.counts.instructions
            counts[name] += Counter(records=found.records, decoded=found.decoded, undecodable=found.undecodable)
            counts[name] += Counter(failed=found.failed_left_out, unknown=found.unknown_accounts)
            assert found.foreign == found.short_of_accounts == 0
    for name, program in asked.items():
        lines = truth(archive, program)
        loaded = [line for line in lines if not line["failed"]]
        decoded = [line for line in loaded if "instruction" in line]
        expected = {
            "records": len(lines),
            "failed": len(lines) - len(loaded),
            "decoded": len(decoded),
            "undecodable": len(loaded) - len(decoded),
            "unknown": sum(line["given"] is None for line in decoded),
        }
        assert counts[name] == Counter(expected)
        assert min(count for kind, count in expected.items() if kind != "unknown") > 0
        rows = assert_true(settings, archive, program, chunks)
        assert sum(count for event, count in rows.items() if event.startswith("instruction:")) == len(decoded)


def test_what_was_kept_without_instructions_is_never_loaded_half(settings, archive):
    """Asked for later, they need the archive; asked for no more, what is there is loaded without them."""
    program = asking(settings, "vault", "[events]")
    chunk, *_ = program_chunks(settings, program, tip=None)
    said = []
    read(settings, [program], chunk, said.append)
    folder = Lake(settings).chunk(program, chunk)
    assert not folder.manifest().instructions
    # Not a byte of it tells that there could have been any.
    assert b"instructions" not in folder.files.read(f"{folder.folder}/manifest.json")
    alone = folder.manifest().records
    load_events(settings, program, chunk, Reporter())

    program = asking(settings, "vault")
    with pytest.raises(RecordsMissingError, match=r"asks for instructions too.*uho backfill"):
        load_events(settings, program, chunk, Reporter())
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        (finding,) = verify_chunk(connection, settings, program, chunk).findings
    assert "asks for instructions too" in str(finding)
    said.clear()
    read(settings, [program], chunk, said.append)
    assert any("its records are events, and program.yaml asks for events and instructions" in text for text in said)
    records = Lake(settings).chunk(program, chunk).complete_manifest().records
    assert records > alone

    load_events(settings, program, chunk, Reporter())
    read_events("vault", "ix_deposit", chunk.start, chunk.end - 1, settings=settings)
    program = asking(settings, "vault", "[events]")
    counts = load_events(settings, program, chunk, Reporter()).counts
    assert counts.instructions.foreign == counts.instructions.records == records - alone
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        for table in read_plan(connection, program).tables.values():
            if table.is_instruction:
                where = f"{table.schema}.{table.name} WHERE slot >= {chunk.start} AND slot < {chunk.end}"
                assert connection.execute(f"SELECT count(*) FROM {where}").fetchone() == (0,)
    asking(settings, "vault")
    with pytest.raises(InstructionsMissingError, match=chunk.key):
        read_events("vault", "ix_deposit", chunk.start, chunk.end - 1, settings=settings)


def test_a_version_that_is_added_repairs_instructions_with_their_accounts(settings, archive):
    program = asking(settings, "vault")
    chunks = program_chunks(settings, program, tip=None)
    for chunk in chunks:
        read(settings, [program], chunk)
    whole = settings.programs_dir / "vault" / "idl" / "vault.json"
    document = json.loads(whole.read_text())
    lacking = {**document, "instructions": [item for item in document["instructions"] if item["name"] != "deposit"]}
    yaml = settings.programs_dir / "vault" / "program.yaml"
    kept = yaml.read_text()
    (whole.parent / "lacking.json").write_text(json.dumps(lacking))
    yaml.write_text(kept.replace("idl/vault.json", "idl/lacking.json"))
    try:
        program = load_registry(settings).program("vault")
        for chunk in chunks:
            outcome = load_events(settings, program, chunk, Reporter())
            # More than a quarter of the instructions, and the events are none the worse for it.
            assert outcome.counts.instructions.skip_rate > 0.25
            assert outcome.counts.skip_rate < 0.25
            assert not outcome.verdict.blocks
        with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
            kinds = connection.execute(
                "SELECT code, records, least_unexplained_bytes FROM uho.quarantine_kinds WHERE program = 'vault'"
            ).fetchall()
            (quarantined,) = connection.execute(
                "SELECT count(*) FROM uho.quarantine WHERE program = 'vault'"
            ).fetchone()
        assert sum(records for _, records, _ in kinds) == quarantined
        assert all(unexplained is not None for _, _, unexplained in kinds)
        assert {"instruction_unknown_discriminator", "instruction_trailing_bytes"} <= {code for code, _, _ in kinds}
    finally:
        yaml.write_text(kept)
    program = load_registry(settings).program("vault")
    repaired = repair_program(settings, program, None, None)
    assert repaired.decoded["instruction:deposit", "vault.json"] > 0
    assert_true(settings, archive, program, chunks)


def test_a_program_of_the_same_stream_has_the_records_that_it_has_alone(settings, archive):
    ids = [load_registry(settings).program(name).program_id for name in ("orderbook", "vault")]

    def certificate(programs, instructions_of):
        with ArchiveClient(settings).stream(
            "sim", programs, FIRST_SLOT, LAST_SLOT + 1, instructions_of=instructions_of
        ) as stream:
            items = list(stream)
        batches = [item for item in items if not isinstance(item, (Checkpoint, Done))]
        assert all(("accounts" in batch.schema.names) == bool(instructions_of) for batch in batches)
        return items[-1].certificate["programs"]

    alone = {program: certificate([program], [])[program] for program in ids}
    told = {program: certificate([program], [program])[program] for program in ids}
    beside = certificate(ids, [ids[1]])
    assert beside == {ids[0]: alone[ids[0]], ids[1]: told[ids[1]]}
    assert told[ids[1]]["digest"] != alone[ids[1]]["digest"]


def test_a_preview_shows_instructions(settings, archive):
    program = asking(settings, "vault")
    preview = preview_program(settings, program, FIRST_SLOT, 100, 3)
    (row, *_) = preview.events["instruction:deposit"]
    assert {"instruction_index", "accounts_given", "account_user", "amount"} <= row.keys()
    assert any('CREATE TABLE "demo_sim_vault"."ix_deposit"' in statement for statement in preview.ddl)
    assert any("Whose lamports they are" in statement for statement in preview.ddl)


def test_an_estimate_counts_instructions_as_they_would_be_loaded(settings, archive):
    program = asking(settings, "vault")
    estimate = estimate_program(settings, program, None, None)
    loaded = [line for line in truth(archive, program) if not line["failed"]]
    decoded = Counter(f"instruction:{line['instruction']}" for line in loaded if "instruction" in line)
    for event, count in decoded.items():
        rows = estimate.rows_by_event[event]
        assert 0.5 * count < rows.estimate < 2 * count
        assert estimate.row_bytes[event] > 100

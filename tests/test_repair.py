"""Quarantine, halt, repair and replay: an IDL version that is missing, and what happens when it is added."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import empty
from events import CHUNK, discriminator, idl, load, program_of, record, rows
from services import SECRET, fresh_warehouse, running_sidecar, simulate, wait_until
from typer.testing import CliRunner

from uho_pipelines import cli
from uho_pipelines.chunks import program_chunks
from uho_pipelines.decoding import decoder_for
from uho_pipelines.lake import Lake, PartAlteredError
from uho_pipelines.materialization import ProgramHaltedError, Reporter, load_events, read_records
from uho_pipelines.quarantine import repair_program
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.status import program_status
from uho_pipelines.truth import compare_program, read_truth, truth_by_event
from uho_pipelines.verification import verify_program
from uho_pipelines.warehouse import connect, ensure_tables, find_damage, read_plan
from uho_pipelines.warehouse.ledger import AttemptFencedError, begin_attempt
from uho_pipelines.warehouse.redecoding import DIED, AlreadyRunningError, redecoding, redecoding_status
from uho_pipelines.warehouse.repair import QuarantineAlteredError, repair_chunk

FIRST_SLOT, LAST_SLOT = 1_295_000, 1_296_049  # three chunks


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("sim"), first_slot=FIRST_SLOT, last_slot=LAST_SLOT)


@pytest.fixture(scope="module")
def lake(archive, postgres, tmp_path_factory):
    """Settings with the records of one program in the lake and in the ledger, and no sidecar any more."""
    home = tmp_path_factory.mktemp("home")
    network = NetworkSettings(archive_url=f"file://{archive}", chunk_slots=350, checkpoint_slots=50)
    with running_sidecar({"sim": f"file://{archive}"}, home / "sidecar.log") as sidecar:
        made = Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "repair"),
            programs_dir=archive / "programs",
            disk_reserve_bytes=0,
            networks={"sim": network},
        )
        program = load_registry(made).program("orderbook")
        for chunk in program_chunks(made, program, tip=None):
            (outcome,) = read_records(made, [program], chunk, Reporter())
            assert outcome.error is None
    yield made
    empty(made.postgres_url.get_secret_value())


def without(archive, folder, *events):
    """Write the demo program `orderbook` with an IDL that lacks `events`."""
    shutil.copytree(archive / "programs" / "orderbook", folder / "orderbook")
    path = folder / "orderbook" / "idl" / "orderbook.json"
    document = json.loads(path.read_text())
    document["events"] = [event for event in document["events"] if event["name"] not in events]
    path.write_text(json.dumps(document))
    return folder


def add_version(archive, folder):
    """Add the whole IDL as a version from the first slot on."""
    shutil.copy(
        archive / "programs" / "orderbook" / "idl" / "orderbook.json", folder / "orderbook" / "idl" / "new.json"
    )
    path = folder / "orderbook" / "program.yaml"
    path.write_text(path.read_text() + f'  - {{from_slot: {FIRST_SLOT}, file: "idl/new.json"}}\n')


def with_programs(settings, folder):
    made = settings.model_copy(update={"programs_dir": folder})
    program = load_registry(made).program("orderbook")
    return made, program, program_chunks(made, program, tip=None)


@pytest.fixture
def uho(monkeypatch):
    """Run a command of `uho` as the shell would, in this process."""

    def run(settings, *arguments):
        for name, value in settings_environment(settings).items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)

    return run


def query(settings, text, *values):
    return rows(settings.postgres_url.get_secret_value(), text, *values)


def quarantined(settings):
    return {
        bytes(found).hex(): (count, first, last)
        for found, count, first, last in query(
            settings, "SELECT discriminator, count(*), min(slot), max(slot) FROM uho.quarantine GROUP BY discriminator"
        )
    }


def quarantine_of_truth(archive, program, *missing):
    """Return count and slot range by discriminator: what nobody can decode, and events whose version is missing."""
    found = {}
    for line in read_truth(archive, "quarantine.jsonl"):
        if line["program"] == program.name and not line["failed"]:
            found.setdefault(line["discriminator"], []).append(line["slot"])
    for event in missing:
        slots = [key[0] for key in truth_by_event(archive, program)[event]]
        found.setdefault(discriminator(event).hex(), []).extend(slots)
    return {key: (len(slots), min(slots), max(slots)) for key, slots in found.items()}


def assert_true(settings, archive, program):
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        truth = truth_by_event(archive, program)
        for one in compare_program(connection, program, read_plan(connection, program), truth):
            assert one.equal, one.differences[:3]


def test_a_version_that_is_added_later_decodes_only_the_quarantined_records(lake, archive, tmp_path, uho):
    settings, program, chunks = with_programs(lake, without(archive, tmp_path, "Announcement"))
    for chunk in chunks:
        assert load_events(settings, program, chunk, Reporter()).result is not None
    assert quarantined(settings) == quarantine_of_truth(archive, program, "Announcement")
    untouched = "SELECT xmin::text, count(*) FROM demo_sim_orderbook.order_placed GROUP BY 1 ORDER BY 1"
    before = query(settings, untouched)

    add_version(archive, tmp_path)
    settings, program, chunks = with_programs(lake, tmp_path)
    away = settings.home / "lake-away"
    (settings.home / "lake").rename(away)  # neither archive nor lake is there: nothing of them can be read
    try:
        told = uho(settings, "repair", "orderbook")
    finally:
        away.rename(settings.home / "lake")
    assert told.exit_code == 0, told.output
    announcements = len(truth_by_event(archive, program)["Announcement"])
    assert f"{announcements:,} became rows" in told.output
    assert "3 chunks have rows that were decoded by other IDL versions" in " ".join(told.output.split())
    assert query(settings, untouched) == before
    assert quarantined(settings) == quarantine_of_truth(archive, program)
    assert_true(settings, archive, program)
    assert not verify_program(settings, program, None, None).damaged
    digests = "SELECT chunk_start, event, row_count, row_digest FROM uho.chunk_table ORDER BY 1, 2"
    repaired = query(settings, digests)
    counts = "SELECT loaded_counts ->> 'decoded', loaded_counts ->> 'undecodable' FROM uho.chunk ORDER BY chunk_start"
    counted = query(settings, counts)

    for _ in range(2):  # replayed, twice: the same rows
        again = uho(settings, "replay", "orderbook")
        assert again.exit_code == 0, again.output
        assert query(settings, digests) == repaired
    assert query(settings, counts) == counted
    assert_true(settings, archive, program)
    status = json.loads(uho(settings, "status", "orderbook", "--json").stdout)
    records = query(settings, "SELECT sum(record_count)::bigint FROM uho.chunk")[0][0]
    assert status["replay"]["isReplaying"] is False
    assert (status["replay"]["rowsReplayed"], status["replay"]["rowsRemaining"]) == (records, 0)
    assert (status["replay"]["state"], status["chunks"]) == ("complete", {"proven": 3})


def test_a_program_that_does_not_decode_is_halted_until_its_version_is_there(lake, archive, tmp_path, uho):
    settings, program, chunks = with_programs(lake, without(archive, tmp_path, "OrderPlaced"))
    verdict = load_events(settings, program, chunks[0], Reporter()).verdict
    assert verdict.blocks
    with pytest.raises(ProgramHaltedError, match=f"Chunk {chunks[0].key}.*uho clear-halt sim/demo/orderbook --reason"):
        load_events(settings, program, chunks[1], Reporter())
    refused = uho(settings, "replay", "orderbook")
    assert refused.exit_code == 1
    assert refused.output.count("is halted") == 1, "what holds for every chunk is said once"
    assert f"{len(chunks)} of {len(chunks)} chunks failed" in refused.output
    assert "halted" in uho(settings, "status", "orderbook").output

    assert uho(settings, "clear-halt", "orderbook", "--reason", "so it is").exit_code == 0
    assert query(settings, "SELECT action, reason, details -> 'halts' -> 0 ->> 'chunkStart' FROM uho.audit") == [
        ("clear halt", "so it is", str(chunks[0].start))
    ]
    assert load_events(settings, program, chunks[0], Reporter()).verdict.blocks  # halted again
    add_version(archive, tmp_path)
    settings, program, chunks = with_programs(lake, tmp_path)
    told = uho(settings, "replay", "orderbook")
    assert told.exit_code == 0, told.output
    assert_true(settings, archive, program)


def test_a_replay_of_a_damaged_part_names_the_file_and_the_command(lake, archive, uho):
    settings, program, chunks = with_programs(lake, archive / "programs")
    folder = Lake(settings).chunk(program, chunks[1])
    manifest = folder.complete_manifest()
    stretch = next(stretch for stretch in manifest.stretches if stretch.file)
    part = folder.files.local / folder.folder / stretch.file
    content = part.read_bytes()
    part.unlink()
    try:
        for chunk in (chunks[0], chunks[2]):
            load_events(settings, program, chunk, Reporter())
        before = query(settings, "SELECT count(*) FROM demo_sim_orderbook.order_placed")
        told = uho(settings, "replay", "orderbook")
        assert told.exit_code == 1
        assert f"{stretch.file} is not what was written (it is missing)" in told.output
        assert f"uho backfill {program.key} {chunks[1].options}" in told.output
        assert query(settings, "SELECT count(*) FROM demo_sim_orderbook.order_placed") == before
        with pytest.raises(PartAlteredError):  # remembered
            folder.complete_manifest()
    finally:
        part.write_bytes(content)
        folder.write_manifest(manifest)


HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from events import idl, program_of
from uho_pipelines.warehouse.redecoding import redecoding
program = program_of(idl({"Simple": {"amount": "u64"}}))
with redecoding(sys.argv[1], program, "replay", 0, 200, 2, 10) as running:
    running.advance(1, 4)
    print("running", flush=True)
    time.sleep(60)
"""


def test_one_replay_at_a_time_and_a_dead_one_does_not_block(warehouse):
    program = program_of(idl({"Simple": {"amount": "u64"}}))
    load(warehouse, program)
    here = str(Path(__file__).parent)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, warehouse, here], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"running\n"
        with connect(warehouse, application_name="test") as connection:
            status = redecoding_status(connection, program)
            said = status.as_json()
            assert (said["isReplaying"], said["rowsReplayed"], said["rowsRemaining"], said["totalRows"]) == (
                True,
                4,
                6,
                10,
            )
            assert said["startedAt"] < said["estimatedCompletion"]
            with (
                pytest.raises(AlreadyRunningError, match=rf"runs since .*process {holder.pid} on .*1 of 2 chunks"),
                redecoding(warehouse, program, "repair", 0, 100, 1, 1),
            ):
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            status = wait_until(
                lambda: not redecoding_status(connection, program).running and redecoding_status(connection, program),
                "the lock is released",
            )
            assert (status.state, status.error) == ("failed", DIED)
            with redecoding(warehouse, program, "repair", 0, 100, 1, 1) as running:
                running.end(None)
            assert redecoding_status(connection, program).state == "complete"
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert rows(warehouse, "SELECT state, error FROM uho.redecoding ORDER BY started_at") == [
        ("failed", DIED),
        ("complete", None),
    ]


OLD = idl({"Simple": {"amount": "u64"}})
NEW = idl({"Simple": {"amount": "u64"}, "Later": {"amount": "u64", "note": {"option": "u8"}}})


@pytest.fixture
def repairable(warehouse, tmp_path):
    """A chunk with quarantined records of an event that only a later version knows, twins and a spoiled one."""
    payload = (7).to_bytes(8, "little") + b"\0"
    said = [
        record(110, "Simple", (1).to_bytes(8, "little")),
        # Two logs and one CPI of the same payload: one log is the CPI's twin, the other one is a row.
        record(120, "Later", payload, event_index=0, source=0),
        record(120, "Later", payload, event_index=1, source=0),
        record(120, "Later", payload, event_index=2, source=1),
        record(130, "Later", payload, block_time=None),
        record(140, "Later", payload + b"\0"),
        record(150, "Simple", (2).to_bytes(8, "little")),
    ]
    old, new = program_of(OLD), program_of(OLD, (1, NEW))
    load(warehouse, old, *said)
    fix_counts(warehouse, decoded=2, undecodable=4, twins=1)
    return said, new


def fix_counts(url, *, decoded, undecodable, twins):
    """Have the ledger's counts be those of the load, which the helper does not keep."""
    counts = {
        "records": decoded + undecodable + twins,
        "twins_folded": twins,
        "failed_left_out": 0,
        "foreign": 0,
        "decoded": decoded,
        "undecodable": undecodable,
        "decoded_by": [{"event": "Simple", "idl": "from-0.json", "count": decoded}],
        "undecodable_by": [
            {
                "discriminator": "00",
                "reason": "unknown_discriminator",
                "count": undecodable,
                "first_slot": 120,
                "last_slot": 140,
                "least_unexplained": 17,
                "most_unexplained": 18,
            }
        ],
        "fallback": [],
    }
    with connect(url, application_name="test") as connection:
        connection.execute("UPDATE uho.chunk SET loaded_counts = %s", [json.dumps(counts)])


def settings_of(url, home):
    return Settings(
        home=home, postgres_url=url, networks={"sim": NetworkSettings(chunk_slots=100, checkpoint_slots=20)}
    )


LATER = (
    "SELECT slot, tx_index, event_index, signature, source, block_time, amount FROM demo_sim_alpha.later ORDER BY 1, 3"
)


def test_a_repaired_chunk_is_as_a_replayed_one_twins_and_all(warehouse, tmp_path, repairable):
    said, new = repairable
    outcome = repair_program(settings_of(warehouse, tmp_path), new, None, None)
    assert outcome.decoded == Counter({("Later", "from-1.json"): 3})
    assert (outcome.before.total(), outcome.after.total()) == (4, 1)
    repaired = rows(warehouse, LATER)
    assert [(row[0], row[2], row[4]) for row in repaired] == [(120, 1, "log"), (120, 2, "cpi"), (130, 0, "cpi")]
    with connect(warehouse, application_name="test") as connection:
        assert find_damage(connection, new, CHUNK) == []
        assert program_status(connection, settings_of(warehouse, tmp_path), new).quarantined == 1
    columns = "event, row_count, row_digest"
    digests = rows(warehouse, f"SELECT {columns} FROM uho.chunk_table WHERE row_count > 0 ORDER BY 1")
    quarantine = rows(warehouse, "SELECT slot, reason, idl, payload FROM uho.quarantine")
    assert quarantine[0][0] == 140
    assert rows(
        warehouse, "SELECT loaded_idl_hash <> repaired_idl_hash, quarantine_digest IS NOT NULL FROM uho.chunk"
    ) == [(True, True)]
    load(warehouse, new, *said)
    assert rows(warehouse, LATER) == repaired
    assert rows(warehouse, f"SELECT {columns} FROM uho.chunk_table WHERE row_count > 0 ORDER BY 1") == digests
    assert rows(warehouse, "SELECT slot, reason, idl, payload FROM uho.quarantine") == quarantine


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM uho.quarantine WHERE slot = 130",
        "UPDATE uho.quarantine SET payload = payload || '\\x00' WHERE slot = 130",
    ],
)
def test_a_quarantine_that_was_changed_by_hand_is_not_repaired(warehouse, tmp_path, repairable, change):
    _, new = repairable
    with connect(warehouse, application_name="test") as connection:
        connection.execute(change)
    left = rows(warehouse, "SELECT slot, payload FROM uho.quarantine ORDER BY slot, event_index")
    with pytest.raises(QuarantineAlteredError, match="uho replay sim/demo/alpha --from-slot 100 --to-slot 199"):
        repair_program(settings_of(warehouse, tmp_path), new, None, None)
    assert rows(warehouse, "SELECT slot, payload FROM uho.quarantine ORDER BY slot, event_index") == left
    assert rows(warehouse, LATER) == []


def test_a_repair_that_a_later_attempt_overtook_changes_nothing(warehouse, repairable):
    _, new = repairable
    before = rows(warehouse, "SELECT * FROM uho.quarantine ORDER BY slot, event_index")
    with (
        connect(warehouse, application_name="test") as connection,
        connect(warehouse, application_name="test") as other,
    ):
        attempt = begin_attempt(connection, new, CHUNK, "events")
        plan = ensure_tables(connection, new, decoder_for(new).tables())
        begin_attempt(other, new, CHUNK, "events")
        with pytest.raises(AttemptFencedError):
            repair_chunk(connection, plan, new, CHUNK, attempt, lambda _: pytest.fail("nothing may be decoded"))
    assert rows(warehouse, "SELECT * FROM uho.quarantine ORDER BY slot, event_index") == before

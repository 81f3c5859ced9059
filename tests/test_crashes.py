"""What breaks in the middle: whatever dies, whenever, the next attempt ends with the truth and says what happened."""

import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from conftest import empty
from services import (
    SECRET,
    cutting_proxy,
    fresh_warehouse,
    held_archive,
    running_sidecar,
    simulate,
    wait_until,
)

from uho_pipelines import archive as archive_client
from uho_pipelines import materialization, retries
from uho_pipelines.archive import ArchiveStreamError
from uho_pipelines.chunks import Chunk, program_chunks
from uho_pipelines.lake import Lake, LakeTakenError, RecordsMissingError
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, truth_by_event
from uho_pipelines.warehouse import connect, read_plan
from uho_pipelines.warehouse.ledger import AttemptFencedError

CHUNK_SLOTS, CHECKPOINT_SLOTS = 350, 50
FIRST_SLOT, LAST_SLOT = 1_295_000, 1_297_099  # six chunks across the end of epoch 2
SEED = 20_260_301
MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A simulated archive; its folder."""
    return simulate(tmp_path_factory.mktemp("sim"), first_slot=FIRST_SLOT, last_slot=LAST_SLOT)


@pytest.fixture(scope="module")
def held(archive):
    """The archive, behind a server that can hold its bytes back."""
    with held_archive(archive) as server:
        yield server


@pytest.fixture(scope="module")
def sidecar(held, tmp_path_factory):
    """A sidecar that fetches one small segment after another, so that it can be held anywhere."""
    log = tmp_path_factory.mktemp("sidecar") / "sidecar.log"
    options = ["--connections", "1", "--segment-mebibytes", "1", "--max-jobs", "8"]
    with running_sidecar({"sim": held.url}, log, options) as process:
        yield process


@pytest.fixture(scope="module")
def stopping(postgres):
    """A database of this module's own."""
    return fresh_warehouse(postgres, "crashes")


@pytest.fixture
def settings(archive, held, sidecar, stopping, tmp_path):
    """Settings with an empty lake; nothing is held back, and the sidecar runs."""
    held.release()
    if sidecar.process is None:
        sidecar.start()
    empty(stopping)
    return make_settings(tmp_path, sidecar.url, stopping, archive / "programs")


@pytest.fixture
def programs(settings):
    return {program.name: program for program in load_registry(settings).programs}


@pytest.fixture
def chunk(settings, programs):
    """The second chunk: it lies in the middle of epoch 2's car."""
    return program_chunks(settings, programs["orderbook"], tip=None)[1]


@pytest.fixture
def quick(monkeypatch):
    """What cannot be reached now is given up at once."""
    monkeypatch.setattr(archive_client, "CONNECT_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(materialization, "STREAM_ATTEMPTS", 1)


def make_settings(home, sidecar_url, warehouse, programs_dir):
    return Settings(
        home=home,
        sidecar_url=sidecar_url,
        sidecar_secret=SECRET,
        postgres_url=warehouse,
        programs_dir=programs_dir,
        disk_reserve_bytes=0,
        networks={"sim": NetworkSettings(chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS)},
    )


def query(settings, text, *values):
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        return connection.execute(text, values or None).fetchall()


def assert_true(settings, archive, programs, chunks):
    """Assert that the tables hold the truth of these chunks, and nothing of others; that nothing else is left."""
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        for program in programs:
            truth = {
                event: {
                    key: line
                    for key, line in lines.items()
                    if any(chunk.start <= key[0] < chunk.end for chunk in chunks)
                }
                for event, lines in truth_by_event(archive, program).items()
            }
            assert any(truth.values())
            comparisons = compare_program(connection, program, read_plan(connection, program), truth)
            for comparison in comparisons:
                assert comparison.equal, comparison.differences[:3]
            status = connection.execute(
                "SELECT chunk_start, records_state, events_state, status FROM uho.chunk_status WHERE program = %s "
                "ORDER BY chunk_start",
                [program.name],
            ).fetchall()
            assert status == [(chunk.start, "complete", "complete", "proven") for chunk in chunks]
    for program in programs:
        for chunk in chunks:
            assert_no_garbage(settings, program, chunk)


def assert_no_garbage(settings, program, chunk):
    """Assert that the chunk's folder has the manifest, the parts it names, and nothing else."""
    folder = Lake(settings).chunk(program, chunk)
    named = {stretch.file for stretch in folder.complete_manifest().stretches if stretch.file}
    assert set(folder.files.names(folder.folder)) == {"manifest.json", *named}


def materialize(settings, programs, chunk):
    """Do both stages of a chunk; return the outcomes of the first."""
    outcomes = read_records(settings, programs, chunk, Reporter())
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
        assert load_events(settings, outcome.program, chunk, Reporter()).result is not None
    return outcomes


def stalled(settings, program, chunk, held):
    """Wait until some of the chunk is kept and the rest is held back; return the manifest."""
    seen = []

    def stands_still():
        manifest = Lake(settings).chunk(program, chunk).manifest()
        if manifest is None or len(manifest.stretches) < 2 or not held.waiting:
            return None
        seen.append(manifest.position)
        return manifest if seen[-25:] == [manifest.position] * 25 else None

    manifest = wait_until(stands_still, "the stream stands still")
    assert not manifest.complete
    return manifest


class InBackground(threading.Thread):
    """Calls a function beside the test; `result` waits for what it returns or raises."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self.function, self.arguments = function, arguments
        self.returned = self.raised = None
        self.start()

    def run(self):
        try:
            self.returned = self.function(*self.arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            self.raised = error

    def result(self, seconds=60):
        self.join(seconds)
        assert not self.is_alive(), "it never ended"
        if self.raised is not None:
            raise self.raised
        return self.returned


# The sidecar dies


def test_a_killed_sidecar_fails_the_chunk_and_the_next_attempt_resumes(
    settings, programs, archive, held, sidecar, chunk, quick
):
    program = programs["orderbook"]
    held.hold_after(MEBIBYTE + MEBIBYTE // 2)
    reading = InBackground(read_records, settings, [program], chunk, Reporter())
    manifest = stalled(settings, program, chunk, held)
    sidecar.kill()
    with pytest.raises(ArchiveStreamError) as failed:
        reading.result()
    assert failed.value.code in {"unreachable", "stream_cut_short"}
    assert query(settings, "SELECT records_state, records_error, certificate FROM uho.chunk") == [
        ("failed", str(failed.value), None)
    ]
    assert Lake(settings).chunk(program, chunk).manifest().stretches == manifest.stretches
    with pytest.raises(RecordsMissingError, match=f"only up to slot {manifest.position}"):
        load_events(settings, program, chunk, Reporter())
    assert query(settings, "SELECT status FROM uho.chunk_status") == [("no records",)]

    held.release()
    sidecar.start()
    before = len(sidecar.starts())
    materialize(settings, [program], chunk)
    assert sidecar.starts()[before:] == [manifest.stretches[-1].start_slot]
    assert_true(settings, archive, [program], [chunk])


def test_a_sidecar_that_comes_back_is_asked_again_from_the_last_kept_part(
    settings, programs, archive, held, sidecar, chunk
):
    program, notices = programs["vault"], []
    held.hold_after(MEBIBYTE + MEBIBYTE // 2)
    before = len(sidecar.starts())
    reading = InBackground(read_records, settings, [program], chunk, Reporter(notice=notices.append))
    manifest = stalled(settings, program, chunk, held)
    sidecar.kill()
    held.release()
    time.sleep(0.5)
    sidecar.start()
    (outcome,) = reading.result()
    assert outcome.manifest.complete
    assert sidecar.starts()[before:] == [chunk.start, manifest.stretches[-1].start_slot]
    assert any("stream_cut_short" in notice for notice in notices)
    load_events(settings, program, chunk, Reporter())
    assert_true(settings, archive, [program], [chunk])


# The connection dies


def test_streams_cut_at_any_byte_end_with_the_truth(settings, programs, archive, sidecar, monkeypatch):
    monkeypatch.setattr(materialization.time, "sleep", lambda _: None)
    chosen = random.Random(SEED)
    both = list(programs.values())
    chunks = program_chunks(settings, both[0], tip=None)
    with cutting_proxy(sidecar.port) as proxy:
        through = settings.model_copy(update={"sidecar_url": proxy.url})
        for chunk in chunks:
            before = len(sidecar.starts())
            # A chunk's answer has about 300 kB; headers and `started` are in the first hundreds.
            proxy.cuts = [
                *(chosen.choice([chosen.randrange(1, 4_000), chosen.randrange(300_000)]) for _ in "123"),
                None,
            ]
            materialize(through, both, chunk)
            starts = sidecar.starts()[before:]
            assert starts == sorted(starts)
            assert starts[0] == chunk.start
    assert proxy.cut >= 2 * len(chunks)
    assert_true(settings, archive, both, chunks)


# Postgres dies

HELD = """
    CREATE SEQUENCE {schema}.rows_copied;
    CREATE FUNCTION {schema}.held() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN
        IF nextval('{schema}.rows_copied') = 20 THEN PERFORM pg_advisory_xact_lock_shared(20); END IF;
        RETURN NEW;
      END $$;
    CREATE TRIGGER held BEFORE INSERT ON {schema}.order_placed FOR EACH ROW EXECUTE FUNCTION {schema}.held();
"""
"""The 20th row waits for a lock that the test holds, and that is gone with the server's sessions."""

COPYING = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%' AND wait_event = 'advisory'"


@pytest.fixture
def dying(settings, expendable):
    """The same settings, over a Postgres that may be killed."""
    url = fresh_warehouse(expendable, "dying")
    return settings.model_copy(update={"postgres_url": type(settings.postgres_url)(url)})


@contextmanager
def load_held(dying, program, chunk, reporter):
    """Load the chunk once, then again in the background; yield that and its backend, which is held amid a COPY."""
    materialize(dying, [program], chunk)
    holder = connect(dying.postgres_url.get_secret_value(), application_name="test")
    try:
        holder.execute(HELD.format(schema=program.schema_name))
        holder.commit()
        holder.execute("SELECT pg_advisory_lock(20)")
        holder.commit()
        loading = InBackground(load_events, dying, program, chunk, reporter)
        yield loading, wait_until(lambda: query(dying, COPYING), "a COPY is under way")[0][0]
    finally:
        holder.close()


def test_a_backend_killed_amid_a_copy_is_recovered_from_and_the_load_done_again(dying, programs, archive, chunk):
    program, notices = programs["orderbook"], []
    with load_held(dying, program, chunk, Reporter(notice=notices.append)) as (loading, backend):
        os.kill(backend, signal.SIGKILL)  # the server ends every session and recovers from its log
        assert loading.result().result is not None
    assert notices[0].startswith("Postgres ended the load (")
    assert notices[0].endswith("; it is done again, attempt 2 of 6")
    assert_true(dying, archive, [program], [chunk])


def test_a_server_killed_amid_a_copy_keeps_the_rows_that_were_there(
    dying, programs, archive, chunk, expendable, monkeypatch
):
    monkeypatch.setattr(retries, "POSTGRES_ATTEMPTS", 1)
    program = programs["orderbook"]
    with load_held(dying, program, chunk, Reporter()) as (loading, _):
        expendable.process.kill()
        with pytest.raises(psycopg.OperationalError):
            loading.result()
    expendable.start()
    # What was loaded before is whole and still counts; the attempt that died left no trace but its state.
    assert query(dying, "SELECT status, events_state FROM uho.chunk_status") == [("proven", "running")]
    rows = query(dying, f"SELECT count(*) FROM {program.schema_name}.order_placed")
    load_events(dying, program, chunk, Reporter())
    assert query(dying, f"SELECT count(*) FROM {program.schema_name}.order_placed") == rows
    assert_true(dying, archive, [program], [chunk])


# What was kept is altered


def test_a_kept_part_that_was_altered_makes_the_chunk_start_over_and_say_so(
    settings, programs, archive, sidecar, chunk
):
    program, notices = programs["orderbook"], []
    materialize(settings, [program], chunk)
    folder = Lake(settings).chunk(program, chunk)
    part = folder.files.local / folder.folder / folder.complete_manifest().stretches[-1].file
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    before = len(sidecar.starts())
    (outcome,) = read_records(settings, [program], chunk, Reporter(notice=notices.append))
    assert sidecar.starts()[before:] == [chunk.start]
    assert notices == outcome.restarts
    assert len(notices) == 1
    assert f"starting over, {part.name} was altered" in notices[0]
    load_events(settings, program, chunk, Reporter())
    assert_true(settings, archive, [program], [chunk])


# Twice


def test_the_same_chunk_twice_is_the_same_rows(settings, programs, archive, sidecar, chunk):
    both = list(programs.values())
    digests = "SELECT event, row_count, row_digest FROM uho.chunk_table ORDER BY program, event"
    materialize(settings, both, chunk)
    first = query(settings, digests)
    before = len(sidecar.starts())
    materialize(settings, both, chunk)
    assert query(settings, digests) == first
    assert sidecar.starts()[before:] == [chunk.end - CHECKPOINT_SLOTS], "only the last stretch is read again"
    assert_true(settings, archive, both, [chunk])


def attempt(home, sidecar_url, warehouse, programs_dir, start, results):
    """One process's attempt at both stages of a chunk."""
    settings = make_settings(home, sidecar_url, warehouse, programs_dir)
    program = load_registry(settings).program("orderbook")
    chunk = Chunk(start, CHUNK_SLOTS)
    try:
        (outcome,) = read_records(settings, [program], chunk, Reporter())
        if outcome.error is not None:
            raise outcome.error
        load_events(settings, program, chunk, Reporter())
        results.put(("complete", ""))
    except Exception as error:  # noqa: BLE001 - a process cannot raise in the test, which says what it was
        results.put((type(error).__name__, str(error)))


def test_two_processes_at_one_chunk_leave_one_set_of_rows(settings, programs, archive, held, chunk):
    program = programs["orderbook"]
    warehouse = settings.postgres_url.get_secret_value()
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    arguments = (settings.home, settings.sidecar_url, warehouse, settings.programs_dir, chunk.start, results)
    held.hold_after(MEBIBYTE)
    processes = [spawn.Process(target=attempt, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    wait_until(lambda: held.waiting == 2, "both stream")
    held.release()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    # Who began later owns the chunk; the other one ends when it notices, or was done before.
    allowed = {"complete", LakeTakenError.__name__, AttemptFencedError.__name__, ArchiveStreamError.__name__}
    assert "complete" in found, found
    assert set(found) <= allowed, found
    assert_true(settings, archive, [program], [chunk])


def test_two_loads_at_once_leave_one_set_of_rows(settings, programs, archive, chunk):
    both = list(programs.values())
    materialize(settings, both, chunk)
    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load_events, settings, program, chunk, Reporter()) for program in both * 2]
        errors = [load.exception() for load in loads]
    assert {type(error) for error in errors} <= {type(None), AttemptFencedError}
    for place, program in enumerate(both):
        assert None in errors[place :: len(both)], program.key
    assert_true(settings, archive, both, [chunk])

"""What is killed or cancelled while Dagster runs it: found without hands, taken up again, and the rows are the truth.

An archive that can hold its bytes back keeps a run under way for as long as a test needs it. How long each took:
`pytest --log-level=INFO -rP tests/test_vanished.py`.
"""

import json
import logging
import time

import pytest
from conftest import short_home
from services import built, held_archive, simulate, wait_until
from stack import Dagster, command_line, descendants, kill, uho_up

from uho_pipelines.chunks import program_chunks
from uho_pipelines.graphql import ask, backfill_progress
from uho_pipelines.lake import Lake
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, truth_by_event
from uho_pipelines.warehouse import connect, read_plan

log = logging.getLogger(__name__)

CHUNK_SLOTS, CHECKPOINT_SLOTS = 350, 50
FIRST_SLOT, LAST_SLOT = 1_292_200, 1_294_299  # six chunks
MEBIBYTE = 1024 * 1024
FOUND_SECONDS = 600
"""So soon a worker that vanished is found and its chunk taken up; with the settings of this stack it is much sooner."""

CANCEL_RUN = "mutation Cancel($id: String!) { terminateRun(runId: $id) { __typename } }"
CANCEL_BACKFILL = "mutation Cancel($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    built("uho-sidecar", "UHO_SIDECAR_BINARY")
    return simulate(tmp_path_factory.mktemp("sim"), first_slot=FIRST_SLOT, last_slot=LAST_SLOT)


@pytest.fixture(scope="module")
def held(archive):
    with held_archive(archive) as server:
        yield server


@pytest.fixture(scope="module")
def stack(archive, held):
    """`uho up` that looks after its workers every few seconds."""
    networks = {
        "sim": {"archive_url": held.url, "chunk_slots": CHUNK_SLOTS, "checkpoint_slots": CHECKPOINT_SLOTS},
    }
    with (
        short_home() as home,
        uho_up(
            home,
            archive / "programs",
            UHO_NETWORKS=json.dumps(networks),
            UHO_WORKER_CHECK_SECONDS="3",
            UHO_BACKFILL_START_SECONDS="0",
            # One small segment after another, so that a stream can be held anywhere.
            UHO_SIDECAR_CONNECTIONS="1",
            UHO_SIDECAR_SEGMENT_MEBIBYTES="1",
        ) as running,
    ):
        yield running


@pytest.fixture
def under_way(stack, held):
    """Launch a chunk; return its backfill and its run, when the sidecar streams and waits for the archive."""

    def launch(place: int) -> tuple[str, str]:
        key = f"{FIRST_SLOT + place * CHUNK_SLOTS:010d}"
        held.hold_after(MEBIBYTE // 4)
        started = stack.launch("alice", "orderbook", [key])
        assert started["__typename"] == "LaunchBackfillSuccess", started
        backfill = started["backfillId"]
        wait_until(lambda: held.waiting > 0, "the archive is read")
        (run,) = stack.runs(dagster__backfill=backfill)
        assert run["status"] == "STARTED"
        return backfill, run["runId"]

    yield launch
    held.release()


def wait_for_the_end(stack: Dagster, backfill: str) -> None:
    wait_until(
        lambda: backfill_progress(stack.url, backfill).ended, "the backfill ends", seconds=FOUND_SECONDS, pause=0.5
    )


def ends_with_the_truth(stack: Dagster, archive, place: int, backfill: str) -> None:
    """Wait until the backfill has ended by itself, its first run given up; compare the rows with the truth."""
    began = time.monotonic()
    wait_until(
        lambda: len(stack.runs(dagster__backfill=backfill)) == 2,
        "a second run takes the chunk up",
        seconds=FOUND_SECONDS,
        pause=0.5,
    )
    found = time.monotonic()
    wait_for_the_end(stack, backfill)
    log.info("taken up after %.1f s, ended after %.1f s", found - began, time.monotonic() - began)
    runs = stack.runs(dagster__backfill=backfill)
    told = "\n".join(line for run in runs for line in (run["status"], *stack.messages(run["runId"])))
    assert sorted(run["status"] for run in runs) == ["FAILURE", "SUCCESS"], told
    rows_are_true(stack, archive, place)


def rows_are_true(stack: Dagster, archive, place: int) -> None:
    settings = settings_of(stack, archive)
    program = load_registry(settings).program("orderbook")
    chunk = program_chunks(settings, program, tip=None)[place]
    truth = {
        event: {key: line for key, line in lines.items() if chunk.start <= key[0] < chunk.end}
        for event, lines in truth_by_event(archive, program).items()
    }
    everything = f"slot >= {chunk.start} AND slot < {chunk.end}"
    with connect(EmbeddedPostgres(stack.home).url("uho"), application_name="test") as connection:
        plan = read_plan(connection, program)
        for table in plan.tables.values():  # the other chunks of other tests are theirs
            connection.execute(f'DELETE FROM "{table.schema}"."{table.name}" WHERE NOT ({everything})'.encode())
        for comparison in compare_program(connection, program, plan, truth):
            assert comparison.equal, comparison.differences[:3]
        connection.rollback()
    assert stack.query(f"SELECT status FROM uho.chunk_status WHERE chunk_start = {chunk.start}") == [("proven",)]


def settings_of(stack: Dagster, archive) -> Settings:
    return Settings(
        home=stack.home,
        programs_dir=archive / "programs",
        networks={"sim": NetworkSettings(chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS)},
    )


def test_a_killed_worker(stack, archive, held, under_way):
    backfill, run = under_way(0)
    kill(stack.worker(run))
    held.release()
    ends_with_the_truth(stack, archive, 0, backfill)


def test_a_worker_killed_with_its_code_server(stack, archive, held, under_way):
    backfill, run = under_way(1)
    kill(*stack.tree("code-server"), stack.worker(run))
    held.release()
    ends_with_the_truth(stack, archive, 1, backfill)
    assert any("The process that it ran in is gone" in line for line in stack.messages(run)), stack.messages(run)


def test_a_code_server_that_is_gone_when_a_run_is_to_begin_costs_nothing(stack, archive, held):
    """Dagster by itself fails every run whose turn comes meanwhile, and gives up beginning it again."""
    started = stack.launch("alice", "orderbook", [f"{FIRST_SLOT:010d}"])
    backfill = started["backfillId"]
    wait_until(lambda: stack.runs(dagster__backfill=backfill), "a run is queued", pause=0.05)
    kill(*stack.tree("code-server"))
    wait_for_the_end(stack, backfill)
    (run,) = stack.runs(dagster__backfill=backfill)
    told = stack.messages(run["runId"])
    assert run["status"] == "SUCCESS", told
    assert any("re-submitting the run into the queue" in line for line in told), told
    rows_are_true(stack, archive, 0)


def test_a_killed_daemon_costs_nothing(stack, archive, held, under_way):
    backfill, _ = under_way(2)
    kill(*stack.tree("dagster-daemon"))
    began = time.monotonic()
    held.release()
    wait_for_the_end(stack, backfill)
    log.info("ended after %.1f s", time.monotonic() - began)
    assert [run["status"] for run in stack.runs(dagster__backfill=backfill)] == ["SUCCESS"]
    rows_are_true(stack, archive, 2)


def test_everything_killed(stack, archive, held, under_way):
    backfill, _ = under_way(3)
    assert stack.process is not None
    tree = [stack.process.pid, *descendants(stack.process.pid)]
    tree += [process for process in all_of(stack) if process not in tree]
    kill(*tree)
    stack.process.wait(60)
    held.release()
    began = time.monotonic()
    stack.start()
    log.info("uho up took %.1f s", time.monotonic() - began)
    ends_with_the_truth(stack, archive, 3, backfill)


def all_of(stack: Dagster) -> list[int]:
    """Return the processes that have the stack's home in their command, as Postgres has."""
    return [process for process in descendants(1) if str(stack.home) in command_line(process)]


@pytest.mark.parametrize("what", ["run", "backfill"])
def test_cancelled_in_the_ui(stack, archive, held, under_way, what):
    place = {"run": 4, "backfill": 5}[what]
    backfill, run = under_way(place)
    start = FIRST_SLOT + place * CHUNK_SLOTS
    if what == "run":
        ask(stack.url, CANCEL_RUN, {"id": run})
    else:
        ask(stack.url, CANCEL_BACKFILL, {"id": backfill})
    state = f"SELECT records_state FROM uho.chunk WHERE program = 'orderbook' AND chunk_start = {start}"
    wait_until(
        lambda: [each["status"] for each in stack.runs(dagster__backfill=backfill)] == ["CANCELED"],
        "the run is cancelled",
        pause=0.5,
    )
    # The archive still holds its bytes: the sidecar's job ended because its client went.
    wait_until(lambda: stack.sidecar_jobs() == 0, "the sidecar's job ends", pause=0.2)
    assert stack.query(state) == [("pending",)]
    assert stack.query(f"SELECT status FROM uho.chunk_status WHERE chunk_start = {start}") == [("no records",)]
    settings = settings_of(stack, archive)
    program = load_registry(settings).program("orderbook")
    chunk = program_chunks(settings, program, tip=None)[place]
    manifest = Lake(settings).chunk(program, chunk).manifest()
    assert manifest is None or not manifest.complete
    held.release()
    again = stack.launch("alice", "orderbook", [f"{start:010d}"])
    wait_for_the_end(stack, again["backfillId"])
    rows_are_true(stack, archive, place)

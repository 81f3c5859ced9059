"""What is killed while Dagster runs it: found without hands, taken up again, and the rows are the truth.

How long each took: `pytest --log-level=INFO -rP tests/test_vanished.py`.
"""

import logging
import time

import pytest
from held_stack import FOUND_SECONDS, HeldStack, held_stack
from services import wait_until
from stack import command_line, descendants, kill

log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with held_stack(tmp_path_factory.mktemp("sim")) as running:
        yield running


@pytest.fixture(autouse=True)
def _released(stack):
    yield
    stack.archive.release()


def ends_with_the_truth(stack: HeldStack, place: int, backfill: str) -> None:
    """Wait until the backfill has ended by itself, its first run given up; compare the rows with the truth."""
    began = time.monotonic()
    wait_until(
        lambda: len(stack.dagster.runs(dagster__backfill=backfill)) == 2,
        "a second run takes the chunk up",
        seconds=FOUND_SECONDS,
        pause=0.5,
    )
    found = time.monotonic()
    stack.wait_for_the_end(backfill)
    log.info("taken up after %.1f s, ended after %.1f s", found - began, time.monotonic() - began)
    runs = stack.dagster.runs(dagster__backfill=backfill)
    told = "\n".join(line for run in runs for line in (run["status"], *stack.dagster.messages(run["runId"])))
    assert sorted(run["status"] for run in runs) == ["FAILURE", "SUCCESS"], told
    stack.require_true_rows(place)


def test_a_killed_worker(stack):
    backfill, run = stack.launch_held(0)
    kill(stack.dagster.worker(run))
    stack.archive.release()
    ends_with_the_truth(stack, 0, backfill)


def test_a_worker_killed_with_its_code_server(stack):
    backfill, run = stack.launch_held(1)
    kill(*stack.dagster.tree("code-server"), stack.dagster.worker(run))
    stack.archive.release()
    ends_with_the_truth(stack, 1, backfill)
    told = stack.dagster.messages(run)
    assert any("The process that it ran in is gone" in line for line in told), told


def test_a_code_server_that_is_gone_when_a_run_is_to_begin_costs_nothing(stack):
    """Dagster by itself fails every run whose turn comes meanwhile, and gives up beginning it again."""
    backfill = stack.launch(0)
    wait_until(lambda: stack.dagster.runs(dagster__backfill=backfill), "a run is queued", pause=0.05)
    kill(*stack.dagster.tree("code-server"))
    stack.wait_for_the_end(backfill)
    (run,) = stack.dagster.runs(dagster__backfill=backfill)
    told = stack.dagster.messages(run["runId"])
    assert run["status"] == "SUCCESS", told
    assert any("re-submitting the run into the queue" in line for line in told), told
    stack.require_true_rows(0)


def test_a_killed_daemon_costs_nothing(stack):
    backfill, _ = stack.launch_held(2)
    kill(*stack.dagster.tree("dagster-daemon"))
    began = time.monotonic()
    stack.archive.release()
    stack.wait_for_the_end(backfill)
    log.info("ended after %.1f s", time.monotonic() - began)
    assert [run["status"] for run in stack.dagster.runs(dagster__backfill=backfill)] == ["SUCCESS"]
    stack.require_true_rows(2)


def test_everything_killed(stack):
    backfill, _ = stack.launch_held(3)
    up = stack.dagster.process
    assert up is not None
    tree = [up.pid, *descendants(up.pid)]
    # Postgres, too, which is nobody's child: it has the stack's home in its command.
    tree += [each for each in descendants(1) if each not in tree and str(stack.dagster.home) in command_line(each)]
    kill(*tree)
    up.wait(60)
    stack.archive.release()
    began = time.monotonic()
    stack.dagster.start()
    log.info("uho up took %.1f s", time.monotonic() - began)
    ends_with_the_truth(stack, 3, backfill)

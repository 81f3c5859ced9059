"""Whose run is next: Dagster's own queue decides, over runs that our coordinator put in their places."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import dagster as dg
import pytest
import yaml
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.events import DagsterEvent
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.test_utils import instance_for_test
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from services import fresh_database

from uho_pipelines.assets import set_pool_limits
from uho_pipelines.people import USER_TAG
from uho_pipelines.run_queue import CLASS_TAG, PLACE_TAG
from uho_pipelines.runtime.stack import dagster_home
from uho_pipelines.settings import load_settings

ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("uho_pipelines"), "repository"), "chunk")


@dg.op(pool="archive")
def read() -> None:
    """Stands for a chunk."""


@dg.job
def chunk() -> None:
    read()


class Queue:
    """An instance as the project configures it, its daemon's choice, and runs that begin and end as they are told."""

    def __init__(self, instance: DagsterInstance) -> None:
        self.instance = instance
        self.daemon = QueuedRunCoordinatorDaemon(interval_seconds=5)
        self.people: dict[str, str] = {}

    def submit(self, user: str | None, count: int = 1, **tags: str) -> list[str]:
        """Queue runs as a backfill of this person does."""
        submitted: list[str] = []
        for _ in range(count):
            tags = {key.replace("__", "/"): value for key, value in tags.items()}
            run = self.instance.create_run_for_job(
                chunk,
                tags={**tags, **({USER_TAG: user} if user else {})},
                remote_job_origin=ORIGIN,
            )
            context = SubmitRunContext(run, SimpleNamespace(source=None))  # type: ignore[arg-type]
            self.instance.run_coordinator.submit_run(context)
            submitted.append(run.run_id)
            self.people[run.run_id] = user or "nobody"
        return submitted

    def start(self) -> list[str]:
        """Start what Dagster's daemon would start now."""
        chosen = self.daemon._get_runs_to_dequeue(self.instance, self.instance.get_concurrency_config(), None)
        for run in chosen:
            self._report(run.run_id, DagsterEventType.RUN_START)
        return [run.run_id for run in chosen]

    def end_oldest(self) -> None:
        """End the run that has been under way for longest."""
        (run,) = self.instance.get_runs(
            filters=dg.RunsFilter(statuses=[DagsterRunStatus.STARTED]), limit=1, ascending=True
        )
        self._report(run.run_id, DagsterEventType.RUN_SUCCESS)

    def starts(self) -> list[str]:
        """Return whose runs were started, in the order of the event log."""
        changes = self.instance.fetch_run_status_changes(DagsterEventType.RUN_START, limit=1000, ascending=True)
        return [self.people[record.run_id] for record in changes.records]

    def run(self, run_id: str) -> DagsterRun:
        """Return a run as it is."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def _report(self, run_id: str, kind: DagsterEventType) -> None:
        event = DagsterEvent(event_type_value=kind.value, job_name="chunk", message="")
        self.instance.report_dagster_event(event, run_id)


@contextmanager
def queue_of(monkeypatch, tmp_path, postgres) -> Iterator[Queue]:
    """The queue as `uho up` configures it."""
    monkeypatch.setenv("UHO_HOME", str(tmp_path))
    # What started counts for its pool until it claims a slot, but only for so long; the runs here never claim one.
    monkeypatch.setenv("DAGSTER_OP_CONCURRENCY_KEYS_ALLOTTED_FOR_STARTED_RUN_SECONDS", "3600")
    monkeypatch.setenv("UHO_USER_PRIORITIES", '{"chief": 5}')
    monkeypatch.setenv("UHO_PROGRAM_PRIORITIES", '{"sim/demo/vault": 3}')
    configured = yaml.safe_load((dagster_home(load_settings()) / "dagster.yaml").read_text())
    url = fresh_database(postgres, "run_queue").replace("postgresql://", "postgresql+psycopg2://")
    overrides = {
        **{key: configured[key] for key in ("storage", "run_coordinator", "concurrency")},
    }
    monkeypatch.setenv("UHO_DAGSTER_POSTGRES_URL", url)
    with instance_for_test(overrides=overrides) as instance:
        set_pool_limits(instance, load_settings())
        yield Queue(instance)


@pytest.fixture
def queue(monkeypatch, tmp_path, postgres) -> Iterator[Queue]:
    with queue_of(monkeypatch, tmp_path, postgres) as queue:
        yield queue


def rounds(queue: Queue, starts: int) -> Sequence[str]:
    """Let runs end one by one until so many have started."""
    queue.start()
    while len(queue.starts()) < starts:
        queue.end_oldest()
        queue.start()
    return queue.starts()


def test_three_people_take_turns_whoever_came_first_with_however_much(queue: Queue) -> None:
    queue.submit("alice", 14)
    queue.start()
    assert queue.starts() == ["alice"] * 4, "two archive streams, and two that wait for one"
    queue.submit("bob", 5)
    queue.submit("carol", 5)
    order = rounds(queue, 18)
    # They take turns, as long as each has something that waits.
    for end in range(5, len(order)):
        counts = [order[4:end].count(user) for user in ("alice", "bob", "carol")]
        assert max(counts) - min(counts) <= 2, order


def test_who_comes_late_is_next_and_does_not_hold_the_others_up(queue: Queue) -> None:
    queue.submit("alice", 16)
    rounds(queue, 8)
    (late,) = queue.submit("bob", 1)
    queue.submit("carol", 8)
    queue.end_oldest()
    assert queue.start() == [late], "before the eight of alice that wait"
    order = rounds(queue, 18)
    assert abs(order[9:].count("alice") - order[9:].count("carol")) <= 1, "a newcomer begins with the turn being served"


def test_priorities_go_before_turns_and_count_for_person_program_and_run(queue: Queue) -> None:
    queue.submit("alice", 4)
    queue.start()
    plain = queue.submit("alice", 1) + queue.submit(None, 1)
    program = queue.submit("alice", 1, uho__program="sim/demo/vault")
    chief = queue.submit("chief", 1)
    both = queue.submit("chief", 1, uho__program="sim/demo/vault")
    given = queue.submit("bob", 1, dagster__priority="-1")
    wild = queue.submit("bob", 1, dagster__priority="99999999999")
    classes = {run: int(queue.run(run).tags[CLASS_TAG]) for run in (*plain, *program, *chief, *both, *given, *wild)}
    assert list(classes.values()) == [0, 0, 3, 5, 8, -1, 1000]
    started: list[str] = []
    for _ in range(7):
        queue.end_oldest()
        started += queue.start()
    assert started[:4] == [*wild, *both, *chief, *program]
    assert started[-1:] == given


def test_a_run_that_waits_says_what_for(queue: Queue) -> None:
    queue.submit("alice", 6)
    queue.start()
    (waiting,) = queue.submit("alice", 1)
    told = [entry.message for entry in queue.instance.all_logs(waiting) if "Queued with priority" in entry.message]
    assert told == [
        "Queued with priority 0, place 6 in people's turns. It waits for one of alice's 4 to end (a person has at "
        "most 4 at once)."
    ]
    assert queue.run(waiting).tags[PLACE_TAG] == "6"
    (free,) = queue.submit("bob", 1)
    assert any("Nothing holds it up" in entry.message for entry in queue.instance.all_logs(free))


def test_limits_are_settings(monkeypatch, tmp_path, postgres) -> None:
    for name, value in (("RUNS_AT_ONCE", 5), ("RUNS_PER_PERSON", 2), ("ARCHIVE_STREAMS", 3), ("WAREHOUSE_WRITERS", 1)):
        monkeypatch.setenv(f"UHO_{name}", str(value))
    with queue_of(monkeypatch, tmp_path, postgres) as queue:
        for person in ("alice", "bob", "carol"):
            queue.submit(person, 3)
        queue.start()
        assert sorted(queue.starts()) == ["alice", "alice", "bob", "bob", "carol"]
        slots = queue.instance.event_log_storage.get_concurrency_info
        assert {pool: slots(pool).slot_count for pool in ("archive", "warehouse")} == {"archive": 3, "warehouse": 1}

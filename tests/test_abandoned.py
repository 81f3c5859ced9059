"""Runs of processes that are gone are ended, and nobody else's are."""

import subprocess
import sys

import dagster as dg
from dagster import DagsterRunStatus

from uho_pipelines.runtime.abandoned import PROCESS_TAG, end_abandoned_runs, this_process


@dg.op
def nothing() -> None: ...


@dg.job
def empty() -> None:
    nothing()


def started_run(instance: dg.DagsterInstance, process: str | None) -> str:
    """Make a run that is under way in `process` and holds a slot of a pool; return its id."""
    run = instance.create_run_for_job(
        empty,
        tags={} if process is None else {PROCESS_TAG: process},
        status=DagsterRunStatus.STARTED,
    )
    claim = instance.event_log_storage.claim_concurrency_slot("archive", run.run_id, "records")
    assert claim.is_claimed
    return run.run_id


def test_runs_of_processes_that_are_gone_are_ended_and_their_slots_freed():
    host = this_process().split("/")[0]
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    with dg.instance_for_test() as instance:
        instance.event_log_storage.set_concurrency_slots("archive", 5)
        gone = started_run(instance, f"{host}/{ended.pid}/12345")
        reused = started_run(instance, f"{this_process()}0")  # the id is alive, and another process's
        alive = [started_run(instance, process) for process in (this_process(), f"another-{host}/1/1", None)]
        assert sorted(end_abandoned_runs(instance)) == sorted([gone, reused])
        for run_id in (gone, reused):
            run = instance.get_run_by_id(run_id)
            assert run is not None
            assert run.status is DagsterRunStatus.FAILURE
        slots = instance.event_log_storage.get_concurrency_info("archive").claimed_slots
        assert {slot.run_id for slot in slots} == set(alive)
        assert end_abandoned_runs(instance) == []

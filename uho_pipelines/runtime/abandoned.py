"""Runs whose process is gone: found, and ended, so that nothing waits for them.

What belongs here: telling that the process of a run is gone. Runs that Dagster's daemon launches say in the event log
which process they run in; those of `uho backfill` and `uho replay` run in that process, and carry it as a tag. Nobody
else notices when both a worker and what started it are killed: such a run is called running for ever, and keeps its
slot of a pool.
"""

import json
import os
import socket
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import GRPC_INFO_TAG

PROCESS_TAG = "uho/process"
"""The tag on a run that says which process it runs in: host, process id, and when that process began (clock ticks since
the machine did; process ids come again)."""

UNENDED = [
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def this_process() -> str:
    """Return this process, as `PROCESS_TAG` names it."""
    return _name(os.getpid())


def end_abandoned_runs(instance: DagsterInstance) -> list[str]:
    """Mark the runs failed that were in an `uho` of this machine which is gone, and free their slots of pools; return
    their ids.

    Those that Dagster launched are left to its daemon, which begins them again once the code server is there.
    """
    ended: list[str] = []
    for run in instance.get_runs(filters=RunsFilter(statuses=UNENDED)):
        if PROCESS_TAG in run.tags and is_gone(instance, run):
            instance.report_run_failed(run, GONE)
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended.append(run.run_id)
    return ended


GONE = "The process that it ran in is gone. What it kept is taken up by a new run."


def is_gone(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Return whether the process of a run was on this machine and is no more; False where nothing says which it is."""
    process = run.tags.get(PROCESS_TAG, "")
    if process:
        return process.startswith(f"{socket.gethostname()}/") and _name(int(process.split("/")[1])) != process
    server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    if server.get("host") not in ("127.0.0.1", "localhost"):
        return False
    for entry in reversed(instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)):
        event = entry.dagster_event
        said = event.engine_event_data.metadata.get("pid") if event is not None else None
        if said is not None:
            # Process ids come again: what began after the run said this is another process.
            began = _began_at(int(str(said.value)))
            return began is None or began > entry.timestamp + CLOCK_SECONDS
    return False


CLOCK_SECONDS = 2.0
"""A process's beginning, reckoned from the machine's, is no more exact than this."""


def _name(process: int) -> str:
    """Return host, id and beginning of a process; the beginning is empty when there is none of this id."""
    ticks = _ticks(process)
    return f"{socket.gethostname()}/{process}/{'' if ticks is None else ticks}"


def _began_at(process: int) -> float | None:
    """Return when a process began (Unix seconds); None when there is none of this id."""
    ticks = _ticks(process)
    if ticks is None:
        return None
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    machine = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    return machine + ticks / os.sysconf("SC_CLK_TCK")


def _ticks(process: int) -> int | None:
    """Return when a process began (clock ticks since the machine did); None for one that is not there, or a zombie."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field, the command in parentheses, may hold anything; the third is its state, the 22nd when it began.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])

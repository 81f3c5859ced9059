"""Runs that a killed `uho backfill` left behind: ended, so that nothing waits for them.

What belongs here: telling that the process of a run is gone. Runs that Dagster's daemon launches are watched by it;
those of `uho backfill` and `uho replay` run in that process, and nobody notices when it is killed: such a run is called
running for ever, and keeps its slot of a pool.
"""

import os
import socket
from pathlib import Path

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

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
    """Mark the runs failed whose process on this machine is gone, and free their slots of pools; return their ids."""
    ended: list[str] = []
    host = f"{socket.gethostname()}/"
    for run in instance.get_runs(filters=RunsFilter(statuses=UNENDED)):
        process = run.tags.get(PROCESS_TAG, "")
        if process.startswith(host) and _name(int(process.split("/")[1])) != process:
            instance.report_run_failed(
                run, "The process that it ran in is gone. What it kept is taken up by a new run."
            )
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended.append(run.run_id)
    return ended


def _name(process: int) -> str:
    """Return host, id and beginning of a process; the beginning is empty when there is none of this id."""
    try:
        # The second field, the command in parentheses, may hold anything; the 22nd is when it began.
        started = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except OSError:
        started = ""
    return f"{socket.gethostname()}/{process}/{started}"

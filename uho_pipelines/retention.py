"""Keeping Dagster's event log small: old runs are forgotten, and what is kept of the others is thinned.

What belongs here: which runs nothing rests on any more. Dagster calls a partition materialized because of an event of
the run that did it: whoever deletes that run makes the partition missing, and its checks unevaluated. So a run stays
while it is the newest word on any partition, successful or not; of such a run only the lines that tell how it went are
deleted, once it is old. The ledger knows nothing of runs, and loses nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunRecord, RunsFilter
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from pydantic import Field

from uho_pipelines.settings import Settings
from uho_pipelines.upkeep import FIRST

ENDED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]

CURSOR = "uho/retention"
"""Where the last look ended, among Dagster's own cursors."""

PAGE = 200

TOLD_OF = {
    DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.ASSET_CHECK_EVALUATION,
}
"""Events by which a run has a word on a partition."""

THINNED = (
    *("ENGINE_EVENT", "LOGS_CAPTURED", "HANDLED_OUTPUT", "LOADED_INPUT", "STEP_INPUT", "STEP_OUTPUT"),
    *("RESOURCE_INIT_STARTED", "RESOURCE_INIT_SUCCESS", "STEP_WORKER_STARTING", "STEP_WORKER_STARTED"),
)
"""Types of events that an old run does without, beside its log lines, which have no type."""


class RetentionConfig(dg.Config):
    """What can be said when old runs are forgotten."""

    runs: int = Field(default=5_000, ge=1, description="So many runs are looked at, from where the last look ended.")


@dataclass
class Forgotten:
    """What a look came to."""

    looked_at: int = 0
    deleted: int = 0
    thinned: int = 0
    """Runs that stay, without the lines that tell how they went."""
    events: int = 0
    """Events that were deleted of those."""
    again: bool = False
    """Whether the end was reached, so that the next look begins with the oldest run."""
    latest: dict[dg.AssetKey, Mapping[str, int]] = field(default_factory=dict[dg.AssetKey, Mapping[str, int]])
    """Of each asset that was asked for, the newest materialization's event by partition."""


def forget_old_runs(instance: DagsterInstance, days: float, runs: int) -> Forgotten:
    """Delete runs that ended more than `days` ago and that nothing rests on; thin the others. At most `runs`."""
    forgotten = Forgotten()
    before = datetime.now(UTC) - timedelta(days=days)
    for record in _old_runs(instance, before, runs, forgotten):
        run_id = record.dagster_run.run_id
        forgotten.looked_at += 1
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        if is_superseded(instance, run_id, forgotten.latest):
            instance.delete_run(run_id)
            forgotten.deleted += 1
        elif events := _thin(instance, run_id):
            forgotten.thinned += 1
            forgotten.events += events
    return forgotten


def is_superseded(instance: DagsterInstance, run_id: str, latest: dict[dg.AssetKey, Mapping[str, int]]) -> bool:
    """Return whether all that the run had a word on was materialized again since; `latest` is filled as it is asked."""
    newest: dict[tuple[dg.AssetKey, str | None], int] = {}
    for record in instance.get_records_for_run(run_id, of_type=TOLD_OF).records:
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        if event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if evaluation.partition is None:
                continue  # of a whole program: a sensor evaluates it again and again, without a run
            place = (evaluation.asset_key, evaluation.partition)
        elif event.asset_key is not None:
            place = (event.asset_key, event.partition)
        else:
            continue
        newest[place] = max(newest.get(place, 0), record.storage_id)
    for (asset, partition), storage_id in newest.items():
        if partition is None:
            return False
        if asset not in latest:
            latest[asset] = instance.event_log_storage.get_latest_storage_id_by_partition(
                asset, DagsterEventType.ASSET_MATERIALIZATION
            )
        if latest[asset].get(partition, 0) <= storage_id:
            return False
    return True


def retention_job(settings: Settings) -> dg.JobDefinition:
    """Return the job that forgets old runs."""

    @dg.op(description="Deletes old runs that nothing rests on, and the log lines of the others.")
    def forget(context: dg.OpExecutionContext, config: RetentionConfig) -> None:
        found = forget_old_runs(context.instance, settings.run_retention_days, config.runs)
        context.log.info(
            "%d runs of more than %d days ago: %d deleted; %d stay, since a partition rests on each, of %d of them "
            "%d log lines were deleted",
            *(found.looked_at, settings.run_retention_days, found.deleted, found.looked_at - found.deleted),
            *(found.thinned, found.events),
        )
        context.add_output_metadata(
            {
                "runs looked at": found.looked_at,
                "runs deleted": found.deleted,
                "runs thinned": found.thinned,
                "log lines deleted": found.events,
            }
        )

    @dg.job(
        name="forget_old_runs",
        description=f"Keeps the event log small: runs of more than {settings.run_retention_days} days ago.",
        tags=FIRST,
        executor_def=dg.in_process_executor,
    )
    def forget_old_runs_job() -> None:
        forget()

    return forget_old_runs_job


def retention_schedule(job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Return the schedule that runs it every night."""
    return dg.ScheduleDefinition(
        name="forget_old_runs_nightly",
        job=job,
        cron_schedule="40 3 * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night at 3:40 UTC.",
    )


def _old_runs(instance: DagsterInstance, before: datetime, most: int, forgotten: Forgotten) -> Iterator[RunRecord]:
    """Yield old runs that have ended, the oldest first, from where the last look ended."""
    storage = instance.run_storage
    cursor = storage.get_cursor_values({CURSOR}).get(CURSOR) or None
    wanted = RunsFilter(statuses=ENDED, updated_before=before)
    while forgotten.looked_at < most:
        # A cursor whose run was deleted meanwhile finds nothing: it is asked for before, and begins anew if so.
        if cursor is not None and instance.get_run_by_id(cursor) is None:
            cursor = None
        page = instance.get_run_records(
            filters=wanted, limit=min(PAGE, most - forgotten.looked_at), cursor=cursor, ascending=True
        )
        kept: str | None = None
        for record in page:
            yield record
            kept = record.dagster_run.run_id if instance.has_run(record.dagster_run.run_id) else kept
        cursor = kept or cursor
        if len(page) < PAGE:
            forgotten.again = forgotten.looked_at < most
            break
    storage.set_cursor_values({CURSOR: "" if forgotten.again or cursor is None else cursor})


def _thin(instance: DagsterInstance, run_id: str) -> int:
    """Delete a run's log lines; return how many. Dagster has no function for it."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)  # noqa: S101 - dagster.yaml says Postgres
    columns = SqlEventLogStorageTable.c
    with storage.run_connection(run_id) as connection:
        deleted = connection.execute(
            SqlEventLogStorageTable.delete()
            .where(columns.run_id == run_id)
            .where(columns.dagster_event_type.is_(None) | columns.dagster_event_type.in_(THINNED))
        )
    return int(deleted.rowcount)

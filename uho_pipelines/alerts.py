"""Alerts: what went wrong, told once per cause, with a link to the page.

What belongs here: what is an alert, which occurrences have one cause, and the sensor that collects and delivers. It
reads Dagster's event log by a cursor that is kept with the alerts in one transaction, which Dagster's own run failure
sensors cannot: they forget what they were told of when they are killed at the wrong moment, and know no checks.
"""

import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterEventType, DagsterInstance, EventLogRecord, EventRecordsFilter
from rich.console import Console
from rich.table import Table

from uho_pipelines.alert_channels import DeliveryError, channels
from uho_pipelines.assets import BACKFILL_TAG, events_key
from uho_pipelines.checks import SKIP_RATE
from uho_pipelines.errors import UhoError
from uho_pipelines.freshness import FRESHNESS
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.redaction import redact
from uho_pipelines.registry import Program
from uho_pipelines.runtime.stack import running_warehouse
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, connect
from uho_pipelines.warehouse.alerts import (
    Alert,
    Delivery,
    Occurrence,
    close_lifted,
    cursors,
    due_deliveries,
    latest_alerts,
    mark_delivered,
    mark_failed,
    take_occurrences,
)
from uho_pipelines.warehouse.ledger import get_halt
from uho_pipelines.warehouse.stall import get_stall

SENSOR_SECONDS = 30

SETTLED_SECONDS = 3.0
"""Events are read when they are so old: ids of an event log are given before they can be seen, so that a younger event
may be seen before an older one."""

FIRST_LOOK_SECONDS = 3600.0
"""What the first look at an event log goes back; what failed before that is history."""

PAGE = 500
"""So many events are read at a time."""

COLLECTING_SECONDS = 15.0
DELIVERING_SECONDS = 25.0
"""A tick reads and delivers for so long; Dagster gives it a minute. The next one goes on."""

BODY_CHARACTERS = 2_000

WILL_RETRY = "dagster/will_retry"
"""The tag by which Dagster says that a failed run is begun again by itself."""

_NUMBERS = re.compile(
    r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b(?=[0-9a-f]*[0-9])[0-9a-f]{8,}\b|[0-9][0-9,.]*"
)


class AlertsUndeliveredError(UhoError):
    """Deliveries failed; they are tried again."""

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = failures
        shown = "; ".join(failures[:5])
        super().__init__(
            f"{len(failures)} deliveries of alerts failed and are tried again: {shown}. What is waiting: `uho alerts`"
        )


def alerts_sensor(settings: Settings, programs: Sequence[Program]) -> dg.SensorDefinition:
    """Return the sensor that finds what went wrong and tells it by every channel that is set."""

    @dg.sensor(
        name="alerts",
        minimum_interval_seconds=SENSOR_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells of failed runs, failed checks, halts and stalls: once per cause, by webhook, Slack, e-mail.",
    )
    def sense(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        if settings.postgres_url is None:
            return dg.SkipReason("no warehouse is set, so nothing keeps what was told")
        with connect(warehouse_url(settings), application_name="uho alerts") as connection:
            opened = collect(connection, settings, programs, context.instance)
            delivered, failures = deliver(connection, settings)
        if failures:
            # Seen on the sensor's page as a failed tick; nothing is lost by it.
            raise AlertsUndeliveredError(failures)
        by = ", ".join(channels(settings.alerts)) or "no channel (none is set: see UHO_ALERTS in settings.py)"
        return dg.SkipReason(f"{len(opened)} new alerts, {delivered} delivered by {by}")

    return sense


def collect(
    connection: Connection, settings: Settings, programs: Sequence[Program], instance: DagsterInstance
) -> list[int]:
    """Write what went wrong since the last time into the ledger; return the ids of the alerts that are new."""
    names = list(channels(settings.alerts))
    quiet = timedelta(seconds=settings.alerts.quiet_seconds)
    lasting = list(_lasting(connection, settings, programs))
    opened = take_occurrences(connection, lasting, {}, names, quiet)
    close_lifted(connection, [occurrence.cause for occurrence in lasting])
    halted = {events_key(program) for program in programs if get_halt(connection, program) is not None}
    deadline = time.monotonic() + COLLECTING_SECONDS
    readers: list[tuple[DagsterEventType, Callable[[EventLogRecord], Iterator[Occurrence]]]] = [
        (DagsterEventType.ASSET_CHECK_EVALUATION, lambda record: _of_check(settings, record, halted)),
        (DagsterEventType.RUN_FAILURE, lambda record: _of_run(settings, instance, record)),
    ]
    for kind, occurrences_of in readers:
        position = cursors(connection).get(kind.value)
        while time.monotonic() < deadline:
            records = _settled(instance, kind, position)
            if records:
                position = records[-1].storage_id
                found = [occurrence for record in records for occurrence in occurrences_of(record)]
                opened += take_occurrences(connection, found, {kind.value: position}, names, quiet)
            if len(records) < PAGE:
                break
    return opened


def deliver(connection: Connection, settings: Settings) -> tuple[int, list[str]]:
    """Make the deliveries that are due; return how many succeeded, and why the others did not.

    One process at a time; another's is left to it.
    """
    if connection.execute("SELECT pg_try_advisory_lock(hashtextextended('uho deliver', 0))").fetchone() != (True,):
        return 0, []
    try:
        return _deliver(connection, settings)
    finally:
        connection.execute("SELECT pg_advisory_unlock(hashtextextended('uho deliver', 0))")
        connection.commit()


def _deliver(connection: Connection, settings: Settings) -> tuple[int, list[str]]:
    senders = channels(settings.alerts)
    delivered, failures = 0, list[str]()
    deadline = time.monotonic() + DELIVERING_SECONDS
    for delivery in due_deliveries(connection, list(senders)):
        if time.monotonic() > deadline:
            break
        try:
            senders[delivery.channel](delivery.alert)
        except DeliveryError as error:
            mark_failed(connection, delivery, str(error), error.wait_seconds)
            failures.append(f"“{delivery.alert.title}” by {error}")
        else:
            mark_delivered(connection, delivery)
            delivered += 1
    return delivered, failures


def cause_of(kind: str, about: str, text: str) -> str:
    """Return what is the same for all occurrences of one cause: the text without its numbers and identifiers."""
    plain = " ".join(_NUMBERS.sub("#", text.lower()).split())
    return f"{kind} {about} {hashlib.sha256(plain.encode()).hexdigest()[:32]}"


def run_alerts(settings: Settings, console: Console, *, count: int, as_json: bool) -> None:
    """Show the newest alerts and their deliveries."""
    with (
        running_warehouse(settings) as running,
        connect(warehouse_url(running), application_name="uho alerts") as connection,
    ):
        found = latest_alerts(connection, count)
    if as_json:
        console.print_json(data=[_as_json(alert, deliveries) for alert, deliveries in found])
        return
    if not found:
        console.print("no alert yet")
        return
    table = Table(title="alerts, the newest first", title_justify="left")
    for heading in ("since (UTC)", "what", "times", "told"):
        table.add_column(heading, overflow="fold")
    for alert, deliveries in found:
        state = "over" if alert.closed_at else "open"
        told = "\n".join(_sentence(delivery) for delivery in deliveries) or "no channel was set"
        what = f"{alert.title} ({state})\n{alert.body}\n{alert.link}"
        table.add_row(f"{alert.opened_at:%Y-%m-%d %H:%M:%S}", what, f"{alert.occurrences:,}", told)
    console.print(table, markup=False)


def run_alerts_test(settings: Settings, console: Console) -> bool:
    """Send a message by every channel now; return whether all of them took it.

    Raises:
        NoChannelError: none is set.
    """
    senders = channels(settings.alerts)
    if not senders:
        raise NoChannelError
    now = datetime.now().astimezone()
    alert = Alert(
        int(now.timestamp()),
        "test",
        "uho: a test",
        "Alerts reach you. Nothing went wrong.",
        settings.ui_url,
        now,
        now,
        1,
        None,
    )
    taken = True
    for name, send in senders.items():
        try:
            send(alert)
        except DeliveryError as error:
            taken = False
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"{name}: taken")
    return taken


class NoChannelError(UhoError):
    """No channel is set."""

    def __init__(self) -> None:
        super().__init__(
            "no channel is set: set UHO_ALERTS__WEBHOOK_URL, UHO_ALERTS__SLACK_URL or UHO_ALERTS__EMAIL__HOST, "
            "…__SENDER and …__RECIPIENTS"
        )


def _lasting(connection: Connection, settings: Settings, programs: Sequence[Program]) -> Iterator[Occurrence]:
    """Yield the halts and stalls that stand."""
    for program in programs:
        halt = get_halt(connection, program)
        if halt is not None:
            yield Occurrence(
                f"halt {program.key} {program.idl_hash}",
                "halt",
                f"{program.key} is halted",
                _text(
                    f"{halt} Its events are not loaded until the IDL version in force there is in program.yaml, or "
                    f"`uho clear-halt {program.key} --reason …`. Its records are still read and kept."
                ),
                _check_link(settings, program, SKIP_RATE),
            )
        stall = get_stall(connection, program)
        if stall is not None:
            yield Occurrence(
                f"stall {program.key} {stall.since.isoformat()}",
                "stall",
                f"{program.key} is stalled",
                _text(f"{program.key} {stall}. Once it has caught up: `uho stall clear {program.key}`."),
                _check_link(settings, program, FRESHNESS),
            )


def _of_check(settings: Settings, record: EventLogRecord, halted: set[dg.AssetKey]) -> Iterator[Occurrence]:
    """Yield an evaluation that failed; what a halt or a stall tells of is left to it."""
    event = record.event_log_entry.dagster_event
    if event is None:
        return
    evaluation = event.asset_check_evaluation_data
    if evaluation.passed or evaluation.severity is not dg.AssetCheckSeverity.ERROR:
        return
    if evaluation.check_name == FRESHNESS or (evaluation.check_name == SKIP_RATE and evaluation.asset_key in halted):
        return
    asset = "/".join(evaluation.asset_key.path)
    chunk = f" Chunk {evaluation.partition}." if evaluation.partition else ""
    said = evaluation.description or "It says no more."
    yield Occurrence(
        cause_of("check", f"{asset} {evaluation.check_name}", said),
        "check failed",
        f"{evaluation.check_name} of {asset} failed",
        _text(f"{said}{chunk} More chunks that fail for this reason are counted, and not told one by one."),
        f"{settings.ui_url}/assets/{asset}?view=checks&checkDetail={evaluation.check_name}",
    )


def _of_run(settings: Settings, instance: DagsterInstance, record: EventLogRecord) -> Iterator[Occurrence]:
    """Yield why a run failed; what its checks or a halt tell of is left to them, what is retried to the retry."""
    run = instance.get_run_by_id(record.event_log_entry.run_id)
    if run is None or run.tags.get(WILL_RETRY) == "true":
        return
    for reason in _new_reasons(instance, record):
        backfill = run.tags.get(BACKFILL_TAG)
        page = f"runs/b/{backfill}" if backfill else f"runs/{run.run_id}"
        what = f"runs of backfill {backfill}" if backfill else f"run {run.run_id[:8]} of {_job(run)}"
        yield Occurrence(
            cause_of("run", "", reason),
            "run failed",
            f"{what} failed: {reason[:100]}",
            _text(
                f"{reason} First in run {run.run_id[:8]} of {_job(run)}. More runs that fail for this reason are "
                "counted, and not told one by one."
            ),
            f"{settings.ui_url}/{page}",
        )


def _new_reasons(instance: DagsterInstance, record: EventLogRecord) -> Iterator[str]:
    run_id = record.event_log_entry.run_id
    checks: list[str] = []
    reasons: list[str] = []
    of_type = {DagsterEventType.STEP_FAILURE, DagsterEventType.ASSET_CHECK_EVALUATION}
    for found in instance.get_records_for_run(run_id, of_type=of_type).records:
        event = found.event_log_entry.dagster_event
        if event is None:
            continue
        if event.is_step_failure:
            reasons.append(_reason(event.step_failure_data))
        elif event.asset_check_evaluation_data.severity is dg.AssetCheckSeverity.ERROR:
            checks.append(event.asset_check_evaluation_data.description or "")
    if not reasons:
        event = record.event_log_entry.dagster_event
        yield redact((event.message if event else None) or "The run failed without a reason.")
    for reason in dict.fromkeys(reasons):
        if " is halted: " not in reason and not any(said and reason.endswith(said) for said in checks):
            yield redact(reason)


def _reason(data: Any) -> str:  # noqa: ANN401 - Dagster's StepFailureData
    """Return why a step failed, without the trace."""
    if data.user_failure_data is not None and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return str(error.message).strip() if error is not None else "A step failed without a reason."


def _job(run: dg.DagsterRun) -> str:
    """Return what a run is of, for people: its assets where it has no job of ours."""
    if not run.job_name.startswith("__"):
        return run.job_name
    return ", ".join(sorted("/".join(key.path) for key in run.asset_selection or ())) or "assets"


def _settled(instance: DagsterInstance, kind: DagsterEventType, position: int | None) -> list[EventLogRecord]:
    """Return the next page of events of a type, oldest first, up to the first that is too young."""
    now = time.time()
    since = now - FIRST_LOOK_SECONDS if position is None else None
    wanted = EventRecordsFilter(event_type=kind, after_cursor=position, after_timestamp=since)
    records = instance.event_log_storage.get_event_records(wanted, limit=PAGE, ascending=True)
    return list(itertools.takewhile(lambda record: record.timestamp < now - SETTLED_SECONDS, records))


def _check_link(settings: Settings, program: Program, check: str) -> str:
    return f"{settings.ui_url}/assets/{'/'.join(events_key(program).path)}?view=checks&checkDetail={check}"


def _text(text: str) -> str:
    text = redact(text)
    return text if len(text) <= BODY_CHARACTERS else f"{text[:BODY_CHARACTERS]}…"


def _sentence(delivery: Delivery) -> str:
    if delivery.delivered_at is not None:
        return f"{delivery.channel}: {delivery.delivered_at:%H:%M:%S}"
    if not delivery.attempts:
        return f"{delivery.channel}: to be sent"
    return f"NOT told, {delivery.attempts} attempts: {delivery.error}; again at {delivery.next_attempt_at:%H:%M:%S}"


def _as_json(alert: Alert, deliveries: Sequence[Delivery]) -> Mapping[str, Any]:
    told = [
        {
            "channel": delivery.channel,
            "deliveredAt": delivery.delivered_at.isoformat() if delivery.delivered_at else None,
            "attempts": delivery.attempts,
            "error": delivery.error,
        }
        for delivery in deliveries
    ]
    document = {"id": alert.id, "kind": alert.kind, "title": alert.title, "text": alert.body, "link": alert.link}
    closed = alert.closed_at.isoformat() if alert.closed_at else None
    times = {"openedAt": alert.opened_at.isoformat(), "closedAt": closed, "occurrences": alert.occurrences}
    return json.loads(json.dumps({**document, **times, "deliveries": told}))

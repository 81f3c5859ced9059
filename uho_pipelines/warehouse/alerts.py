"""Alerts in the ledger: one line per cause, and its deliveries.

What belongs here: the rows. What is an alert is `alerts.py`'s business, how one is sent that of `alert_channels.py`.

An alert is written together with how far Dagster's event log was read, in one transaction: none is lost or counted
twice, wherever the process dies. A delivery is marked after it was made, so it happens at least once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from uho_pipelines.warehouse.connection import Connection

FIRST_WAIT_SECONDS = 30
"""A delivery that failed is tried again after so long, then after twice that, and so on."""

LONGEST_WAIT_SECONDS = 3600

LASTING = ("halt", "stall")
"""Kinds that end when they are lifted; the others when they have not occurred for a while."""


@dataclass(frozen=True)
class Occurrence:
    """Something that people are to be told of. Occurrences of one cause make one alert."""

    cause: str
    kind: str
    title: str
    body: str
    link: str


@dataclass(frozen=True)
class Alert:
    """An alert as it is kept."""

    id: int
    kind: str
    title: str
    body: str
    link: str
    opened_at: datetime
    last_at: datetime
    occurrences: int
    closed_at: datetime | None


@dataclass(frozen=True)
class Delivery:
    """A delivery of an alert by one channel."""

    alert: Alert
    channel: str
    attempts: int
    delivered_at: datetime | None
    error: str | None
    next_attempt_at: datetime


COLUMNS = "a.id, a.kind, a.title, a.body, a.link, a.opened_at, a.last_at, a.occurrences, a.closed_at"


def cursors(connection: Connection) -> dict[str, int]:
    """Return how far the event log was read, by type of event."""
    with connection.transaction():
        return dict(connection.execute("SELECT event, position FROM uho.alert_cursor").fetchall())


def take_occurrences(
    connection: Connection,
    occurrences: Iterable[Occurrence],
    positions: Mapping[str, int],
    channels: Sequence[str],
    quiet: timedelta,
) -> list[int]:
    """Count `occurrences`, open an alert for each new cause with a delivery by each channel; return the opened ones.

    `positions` is how far the event log was read for them. Alerts that have not occurred for `quiet` are closed before:
    the same cause is new again.
    """
    opened: list[int] = []
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('uho alerts', 0))")
        connection.execute(
            "UPDATE uho.alert SET closed_at = now() "
            "WHERE closed_at IS NULL AND kind <> ALL(%s) AND last_at < now() - %s",
            [list(LASTING), quiet],
        )
        for event, position in positions.items():
            connection.execute(
                "INSERT INTO uho.alert_cursor VALUES (%s, %s) ON CONFLICT (event) DO UPDATE "
                "SET position = greatest(alert_cursor.position, excluded.position)",
                [event, position],
            )
        for occurrence in occurrences:
            alert = _count(connection, occurrence, channels)
            if alert is not None:
                opened.append(alert)
    return opened


def _count(connection: Connection, occurrence: Occurrence, channels: Sequence[str]) -> int | None:
    """Count an occurrence; return the alert's id if this opened it. What lasts occurs once."""
    counted = connection.execute(
        "UPDATE uho.alert SET last_at = now(), occurrences = occurrences + (kind <> ALL(%s))::int "
        "WHERE cause = %s AND closed_at IS NULL",
        [list(LASTING), occurrence.cause],
    )
    if counted.rowcount:
        return None
    row = connection.execute(
        "INSERT INTO uho.alert (cause, kind, title, body, link, occurrences) VALUES (%s, %s, %s, %s, %s, 1) "
        "RETURNING id",
        [occurrence.cause, occurrence.kind, occurrence.title, occurrence.body, occurrence.link],
    ).fetchone()
    assert row is not None  # noqa: S101 - RETURNING
    connection.cursor().executemany(
        "INSERT INTO uho.alert_delivery (alert, channel) VALUES (%s, %s)", [(row[0], channel) for channel in channels]
    )
    return int(row[0])


def close_lifted(connection: Connection, lasting: Sequence[str]) -> None:
    """Close the alerts of kinds that last whose cause is none of `lasting` any more."""
    with connection.transaction():
        connection.execute(
            "UPDATE uho.alert SET closed_at = now() WHERE closed_at IS NULL AND kind = ANY(%s) AND cause <> ALL(%s)",
            [list(LASTING), list(lasting)],
        )


def due_deliveries(connection: Connection, channels: Sequence[str]) -> list[Delivery]:
    """Return the deliveries by `channels` that are to be tried now, the oldest alerts first."""
    return _deliveries(
        connection,
        "d.delivered_at IS NULL AND d.next_attempt_at <= now() AND d.channel = ANY(%s) ORDER BY a.id, d.channel",
        [list(channels)],
    )


def undelivered(connection: Connection) -> list[Delivery]:
    """Return the deliveries that were tried and failed so far."""
    return _deliveries(connection, "d.delivered_at IS NULL AND d.attempts > 0 ORDER BY a.id, d.channel", [])


def latest_alerts(connection: Connection, count: int) -> list[tuple[Alert, list[Delivery]]]:
    """Return the newest alerts and their deliveries, the newest first."""
    with connection.transaction():
        rows = connection.execute(f"SELECT {COLUMNS} FROM uho.alert a ORDER BY a.id DESC LIMIT %s", [count]).fetchall()  # noqa: S608 - of constants
    alerts = [Alert(*row) for row in rows]
    deliveries = _deliveries(connection, "a.id = ANY(%s) ORDER BY d.channel", [[alert.id for alert in alerts]])
    return [(alert, [delivery for delivery in deliveries if delivery.alert.id == alert.id]) for alert in alerts]


def mark_delivered(connection: Connection, delivery: Delivery) -> None:
    """Keep that a delivery was made."""
    with connection.transaction():
        connection.execute(
            "UPDATE uho.alert_delivery SET attempts = attempts + 1, delivered_at = now(), error = NULL "
            "WHERE (alert, channel) = (%s, %s)",
            [delivery.alert.id, delivery.channel],
        )


def mark_failed(connection: Connection, delivery: Delivery, error: str, wait_seconds: float = 0.0) -> None:
    """Keep why a delivery failed, and when it is tried again: not before `wait_seconds`."""
    wait = max(wait_seconds, FIRST_WAIT_SECONDS * 2.0 ** min(delivery.attempts, 20))
    with connection.transaction():
        connection.execute(
            "UPDATE uho.alert_delivery SET attempts = attempts + 1, error = %s, next_attempt_at = now() + %s "
            "WHERE (alert, channel) = (%s, %s)",
            [error, timedelta(seconds=min(LONGEST_WAIT_SECONDS, wait)), delivery.alert.id, delivery.channel],
        )


def _deliveries(connection: Connection, condition: str, values: Sequence[Any]) -> list[Delivery]:
    query = (
        f"SELECT {COLUMNS}, d.channel, d.attempts, d.delivered_at, d.error, d.next_attempt_at "  # noqa: S608 - of constants
        f"FROM uho.alert_delivery d JOIN uho.alert a ON a.id = d.alert WHERE {condition}"
    )
    with connection.transaction():
        # Composed of this module's own texts; psycopg asks for a literal to say so.
        rows = connection.execute(query.encode(), values).fetchall()
    return [Delivery(Alert(*row[:9]), *row[9:]) for row in rows]

"""Who started what, and how often a person may start a backfill.

What belongs here: telling a person from a request's header, and the limit of starts. Dagster's open-source webserver
knows nobody; a reverse proxy in front of it does, and says so in a header. The header counts only where an operator
named it (`UHO_USER_HEADER`), and only from the proxies that they named (`UHO_TRUSTED_PROXIES`): from anybody else it
is what a stranger typed. Without those settings there is one person, who needs no limit.
"""

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol

import psycopg

from uho_pipelines.errors import UhoError
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import connect

USER_TAG = "uho/user"
"""The tag on runs and backfills that says who started them."""

ANONYMOUS = "anonymous"
"""Who starts something past the proxy, where people are known by a header."""

USER_CHARACTERS = 100
"""A person's name is cut after so many characters."""


class Source(Protocol):
    """The part of a web request that says who asks: its headers, and the address that it came from."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers; names are found in any case."""
        ...

    @property
    def client(self) -> tuple[str, int] | None:
        """Address and port of the other end."""
        ...


class StartTooSoonError(UhoError):
    """A person started a backfill a moment ago."""

    def __init__(self, user: str, seconds: int, next_start: datetime) -> None:
        self.user = user
        self.next_start = next_start
        wait = max(1, round((next_start - datetime.now(UTC)).total_seconds()))
        super().__init__(
            f"{user} started a backfill less than {seconds} seconds ago; the next start is possible at "
            f"{next_start:%H:%M:%S} UTC, in {wait // 60} min {wait % 60} s. One backfill may have any number of chunks"
        )


def known_by_header(settings: Settings) -> bool:
    """Return whether people are told apart at all."""
    return settings.user_header is not None


def user_of(settings: Settings, source: object | None) -> str | None:
    """Return who sent a web request: the header's value from a trusted proxy, `anonymous` from anybody else.

    None where no header is configured.
    """
    if settings.user_header is None:
        return None
    headers = getattr(source, "headers", None)
    client = getattr(source, "client", None)
    if headers is None or client is None or not _is_trusted(settings, str(client[0])):
        return ANONYMOUS
    name = "".join(character for character in str(headers.get(settings.user_header, "")) if character.isprintable())
    return name.strip()[:USER_CHARACTERS] or ANONYMOUS


def claim_start(settings: Settings, user: str) -> None:
    """Count the start of a backfill by `user` now, or refuse it. Atomic: of two at once one is refused.

    Raises:
        StartTooSoonError: their last one was less than `settings.backfill_start_seconds` ago.
        WarehouseUnreachableError: nobody can tell; the start is refused, not let through.
    """
    if settings.postgres_url is None or settings.backfill_start_seconds == 0:
        return
    interval = timedelta(seconds=settings.backfill_start_seconds)
    with connect(settings.postgres_url.get_secret_value(), application_name="uho webserver") as connection:
        claimed = connection.execute(
            "INSERT INTO uho.backfill_start AS last (person, started_at) VALUES (%(user)s, clock_timestamp()) "
            "ON CONFLICT (person) DO UPDATE SET started_at = clock_timestamp() "
            "WHERE last.started_at <= clock_timestamp() - %(interval)s RETURNING 1",
            {"user": user, "interval": interval},
        ).fetchone()
        if claimed is not None:
            return
        row = connection.execute("SELECT started_at FROM uho.backfill_start WHERE person = %s", [user]).fetchone()
        if row is None:
            raise psycopg.errors.SerializationFailure("the start vanished while it was looked at; start again")
        raise StartTooSoonError(user, settings.backfill_start_seconds, row[0] + interval)


def _is_trusted(settings: Settings, address: str) -> bool:
    try:
        client = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(client in network for network in settings.trusted_proxies)

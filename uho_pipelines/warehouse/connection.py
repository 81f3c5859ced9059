"""Connections to the warehouse.

What belongs here: how a connection is opened, and what a person reads when it cannot be. Nobody else sets its
parameters.
"""

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from uho_pipelines.errors import UhoError
from uho_pipelines.redaction import redact

Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_SECONDS = 10

LOCK_SECONDS = 600
"""A statement waits so long for what another session locks; a chunk's load takes a minute or two."""

IDLE_SECONDS = 600
"""A transaction that says nothing for so long is ended by the server: its process hangs, and holds a chunk."""

_SESSION = (
    *("-c TimeZone=UTC", "-c DateStyle=ISO", "-c extra_float_digits=1", "-c bytea_output=hex"),
    *(f"-c lock_timeout={LOCK_SECONDS}s", f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s"),
    # The server's side of the keep-alives below: locks of a machine that vanished are released within two minutes.
    *("-c tcp_keepalives_idle=60", "-c tcp_keepalives_interval=10", "-c tcp_keepalives_count=6"),
)


class WarehouseUrlError(UhoError):
    """The warehouse's URL is none that Postgres's client library reads as it was meant."""

    def __init__(self, url: str) -> None:
        # Nothing more of it is told: where the password ends is what cannot be read.
        self.scheme = url.split("://", 1)[0] if "://" in url else ""
        super().__init__(
            f"the warehouse's URL ({self.scheme}://…) is no Postgres URL. Write UHO_POSTGRES_URL as "
            "postgresql://user:password@host:5432/database, with /, @, : and % of user and password "
            "percent-encoded (%2F, %40, %3A, %25)"
        )


REFUSALS = ("password authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist")
"""What Postgres says of credentials, roles and databases that it does not take. Its library tells no code of a refused
connection; a server that speaks another language is tried again for half a minute before it is given up."""


class WarehouseUnreachableError(UhoError, psycopg.OperationalError):
    """The warehouse does not answer, or refuses us: `can_pass` says whether trying again is worth while."""

    def __init__(self, url: str, reason: str) -> None:
        self.url = redact(url)
        self.reason = redact(reason)
        self.can_pass = not any(refusal in reason for refusal in REFUSALS)
        what = "cannot be reached" if self.can_pass else "refuses us"
        remedy = "Start Postgres (`uho up` does), or correct" if self.can_pass else "Correct"
        super().__init__(f"the warehouse at {self.url} {what}: {self.reason}. {remedy} UHO_POSTGRES_URL")


def connect(url: str, *, application_name: str) -> Connection:
    """Open a connection to the warehouse at `url`.

    The session's time zone and text formats are fixed, so that nobody's configuration changes what is read as text. A
    server that vanished is noticed within two minutes, waiting for a lock ends after `LOCK_SECONDS`.

    Raises:
        WarehouseUrlError: `url` cannot be read.
        WarehouseUnreachableError: it cannot be reached or refuses us.
    """
    theirs = _options(url)
    try:
        return psycopg.connect(
            url,
            application_name=application_name,
            connect_timeout=CONNECT_SECONDS,
            keepalives_idle=60,
            keepalives_interval=10,
            keepalives_count=6,
            tcp_user_timeout=120_000,
            options=" ".join([theirs, *_SESSION]).strip(),
        )
    except psycopg.OperationalError as error:
        raise WarehouseUnreachableError(url, " ".join(str(error).split()).rstrip("?. ")) from None


def _options(url: str) -> str:
    """Return the URL's own `options`; refuse one that Postgres's library would read, but not as it was meant."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise WarehouseUrlError(url) from None  # its message quotes the URL with the password
    # With an unescaped / or @ in the password, pieces of it become host, port or database, and errors quote those.
    authority, _, path = url.partition("://")[2].partition("?")[0].partition("/")
    port = str(parts.get("port") or "")
    if authority.count("@") > 1 or "@" in path or (not port.replace(",", "").isdigit() and port):
        raise WarehouseUrlError(url)
    return str(parts.get("options") or "")

"""Connections to the warehouse.

What belongs here: how a connection is opened. Nobody else sets its parameters.
"""

from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_SECONDS = 10


def connect(url: str, *, application_name: str) -> Connection:
    """Open a connection to the warehouse at `url`.

    The session's time zone, float digits and bytea output are fixed, since row digests are computed from values as
    text. Keep-alives notice within two minutes a server that vanished.

    Raises:
        psycopg.OperationalError: it cannot be reached or refuses us.
    """
    return psycopg.connect(
        url,
        application_name=application_name,
        connect_timeout=CONNECT_SECONDS,
        keepalives_idle=60,
        keepalives_interval=10,
        keepalives_count=6,
        options="-c TimeZone=UTC -c extra_float_digits=1 -c bytea_output=hex",
    )

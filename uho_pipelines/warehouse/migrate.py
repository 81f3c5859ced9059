"""Bringing the ledger's schema up to date with Alembic.

What belongs here: running migrations, and refusing a Postgres that the warehouse cannot live in. What they change is
in `migrations/versions/`.
"""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine, text

from uho_pipelines.errors import UhoError
from uho_pipelines.warehouse.connection import connect

MIGRATIONS = Path(__file__).parent / "migrations"

OLDEST_POSTGRES = 16


class PostgresUnsuitableError(UhoError):
    """The Postgres of `UHO_POSTGRES_URL` is too old, or its database is not in UTF-8."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the warehouse's Postgres {reason}. It takes version {OLDEST_POSTGRES} or later and a database in UTF-8: "
            "CREATE DATABASE uho ENCODING 'UTF8' TEMPLATE template0"
        )


def migrate(url: str) -> None:
    """Make or migrate schema `uho` at `url`. Processes that start at once wait for each other (an advisory lock).

    Raises:
        PostgresUnsuitableError: it is too old or not in UTF-8.
        WarehouseUrlError, WarehouseUnreachableError: it cannot be connected to.
    """

    def opened() -> Any:  # noqa: ANN401 - psycopg's connection as SQLAlchemy wants it
        connection = connect(url, application_name="uho migrate")
        version, encoding = (
            connection.info.server_version // 10_000,
            connection.info.parameter_status("server_encoding"),
        )
        if version < OLDEST_POSTGRES or encoding != "UTF8":
            connection.close()
            raise PostgresUnsuitableError(f"is of version {version}, its database in {encoding}")
        return connection

    engine = create_engine("postgresql+psycopg://", creator=opened, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('uho migrate', 0))"))
        if connection.scalar(text("SELECT to_regnamespace('uho')")) is None:
            connection.execute(text("CREATE SCHEMA uho"))
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

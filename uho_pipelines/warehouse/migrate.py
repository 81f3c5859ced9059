"""Bringing the ledger's schema up to date with Alembic.

What belongs here: running migrations, and refusing a Postgres that the warehouse cannot live in. What they change is
in `migrations/versions/`.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import StaticPool, create_engine, text

from uho_pipelines.errors import UhoError
from uho_pipelines.warehouse.connection import Connection, connect

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


def newest_revision() -> str:
    """Return the migration that brings the ledger up to date; they are numbered."""
    return max(path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def is_migrated(connection: Connection) -> bool:
    """Return whether the ledger is there and up to date."""
    with connection.transaction():
        if connection.execute("SELECT to_regclass('uho.schema_version')").fetchone() == (None,):
            return False
        return connection.execute("SELECT version_num FROM uho.schema_version").fetchall() == [(newest_revision(),)]


def migrate(url: str) -> None:
    """Make or migrate schema `uho` at `url`. Processes that start at once wait for each other (an advisory lock).

    Raises:
        PostgresUnsuitableError: it is too old or not in UTF-8.
        WarehouseUrlError, WarehouseUnreachableError: it cannot be connected to.
    """

    with connect(url, application_name="uho migrate") as opened:
        version, encoding = opened.info.server_version // 10_000, opened.info.parameter_status("server_encoding")
        if version < OLDEST_POSTGRES or encoding != "UTF8":
            raise PostgresUnsuitableError(f"is of version {version}, its database in {encoding}")
        _upgrade(opened)


def _upgrade(opened: Connection) -> None:
    # Opened before: SQLAlchemy would wrap our errors in its own.
    engine = create_engine("postgresql+psycopg://", creator=lambda: opened, poolclass=StaticPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('uho migrate', 0))"))
        if connection.scalar(text("SELECT to_regnamespace('uho')")) is None:
            connection.execute(text("CREATE SCHEMA uho"))
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

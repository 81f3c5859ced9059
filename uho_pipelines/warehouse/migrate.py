"""Bringing the ledger's schema up to date with Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(url: str) -> None:
    """Make or migrate schema `uho` at `url`. Processes that start at once wait for each other (an advisory lock)."""
    engine = create_engine(f"postgresql+psycopg{url.removeprefix('postgresql').removeprefix('postgres')}")
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('uho migrate', 0))"))
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS uho"))
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()

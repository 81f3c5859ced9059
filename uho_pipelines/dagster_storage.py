"""Dagster's storage on Postgres, with connections that are kept.

What belongs here: one engine a process. Dagster's own storage opens a connection for every event that it writes and
every question that it asks, about 120 a chunk: three quarters of the CPU of both sides went into that
(docs/architecture.md has the figures). Only its webserver keeps them. Several instances of one process, as the code
server makes for every tick of a sensor, share the engine, so that connections do not pile up.
"""

from functools import cache
from typing import Any

from dagster._core.storage.config import PostgresStorageConfig
from dagster._serdes import ConfigurableClassData
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import Engine, create_engine

KEPT_CONNECTIONS = 2
"""A process keeps so many connections; a few more are opened and closed while several threads ask at once."""

MORE_CONNECTIONS = 20

RECYCLE_SECONDS = 3_600


@cache
def engine_of(postgres_url: str) -> Engine:
    """Return this process's engine for a database. A connection that died is replaced before it is used."""
    return create_engine(
        postgres_url,
        isolation_level="AUTOCOMMIT",
        pool_size=KEPT_CONNECTIONS,
        max_overflow=MORE_CONNECTIONS,
        pool_recycle=RECYCLE_SECONDS,
        pool_pre_ping=True,
    )


class KeptConnectionsStorage(DagsterPostgresStorage):
    """Dagster's storage on Postgres over the process's engine."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            # There is no public way to give them one; tests/test_dagster_storage.py fails when this changes.
            storage._engine = engine_of(postgres_url)  # pyright: ignore[reportPrivateUsage]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: PostgresStorageConfig) -> Any:  # noqa: ANN401 - of itself
        """Return the storage for the configuration of `dagster.yaml`."""
        return cls(pg_url_from_config(config_value), inst_data)

"""Servers that several test modules use."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg import sql

from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.warehouse import connect, migrate

# A shell's background job ignores SIGINT; Dagster then makes SIGTERM the same, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest-xdist sets these for its workers, and rich's console would be as narrow for good from when `cli` is imported;
# without them, lines that go nowhere a terminal is are whole.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)


WHOLE_STACKS = ("test_vanished", "test_browser", "test_dagster", "test_cancelled", "test_up", "test_crash_storm")
"""Modules that run all of `uho up`, and mostly wait: minutes each, the longest first."""


def pytest_xdist_auto_num_workers():
    """Run two more processes than there are cores: whole stacks wait for Dagster's ticks most of the time."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(items):
    """Begin with the longest modules, so that where several run, none of them is left to one process at the end."""
    places = {name: place for place, name in enumerate(WHOLE_STACKS)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@contextmanager
def short_home() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's, and that the server's user can pass when we are root."""
    home = Path(tempfile.mkdtemp(prefix="uho-test-", dir="/tmp")).resolve()
    home.chmod(0o711)
    try:
        yield home
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def postgres():
    """A running server with a migrated warehouse, for all tests that leave it as they find it."""
    with short_home() as home, EmbeddedPostgres(home) as server:
        migrate(server.url("uho"))
        yield server


@pytest.fixture(scope="session")
def _expendable():
    with short_home() as home:
        server = EmbeddedPostgres(home)
        yield server
        server.stop()


@pytest.fixture
def expendable(_expendable):
    """A server of its own that tests may stop and kill; it runs when the test begins."""
    _expendable.start()
    return _expendable


@pytest.fixture
def warehouse(postgres):
    """The URL of an empty, migrated warehouse."""
    yield postgres.url("uho")
    empty(postgres.url("uho"))


def empty(url: str) -> None:
    """Remove every program and its tables."""
    with connect(url, application_name="test") as connection:
        for (schema,) in connection.execute("SELECT schema_name FROM uho.program").fetchall():
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
        connection.execute("ALTER TABLE uho.certificate DISABLE TRIGGER appended_only_whole")
        connection.execute("TRUNCATE uho.network CASCADE")
        connection.execute("TRUNCATE uho.alert, uho.alert_delivery, uho.alert_cursor")
        connection.execute("ALTER TABLE uho.certificate ENABLE TRIGGER appended_only_whole")

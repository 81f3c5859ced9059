"""Connections: what the session is told, and what a person reads when there is none. Never a password."""

import psycopg
import pytest
from psycopg import sql

from uho_pipelines.errors import UhoError
from uho_pipelines.warehouse import connect, migrate
from uho_pipelines.warehouse.connection import WarehouseUnreachableError, WarehouseUrlError
from uho_pipelines.warehouse.migrate import PostgresUnsuitableError

PASSWORD = "hunter2/with@signs"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg2://uho:{PASSWORD}@localhost/uho",
        f"postgresql://uho:{PASSWORD}@localhost:port/uho",
        f"postgresql://uho:{PASSWORD}@localhost/uho?no_such_option=1",
        f"mysql://uho:{PASSWORD}@localhost/uho",
        "postgresql://uho:hunter2/x@localhost/uho",
        "postgresql://uho:5/hunter2@localhost/uho",
        "postgresql://uho:x@hunter2@localhost/uho",
    ],
)
def test_a_url_that_cannot_be_read_is_told_without_its_password(url):
    with pytest.raises(WarehouseUrlError, match="Write UHO_POSTGRES_URL as postgresql://") as caught:
        connect(url, application_name="test")
    assert_hidden(caught.value)


def test_a_warehouse_that_does_not_answer_is_told_without_its_password(tmp_path):
    url = f"postgresql://uho:hunter2@/uho?host={tmp_path}"
    with pytest.raises(WarehouseUnreachableError, match="Start Postgres") as caught:
        connect(url, application_name="test")
    assert isinstance(caught.value, psycopg.OperationalError)
    assert caught.value.can_pass, "it is tried again"
    assert isinstance(caught.value, UhoError)
    assert_hidden(caught.value)
    with pytest.raises(WarehouseUnreachableError):
        migrate(url)


def test_a_refused_password_is_told_without_it(postgres):
    from urllib.parse import urlsplit

    password = urlsplit(postgres.url("uho")).password
    with pytest.raises(WarehouseUnreachableError, match=r"refuses us: .*password authentication failed") as caught:
        connect(postgres.url("uho").replace(password, "hunter2"), application_name="test")
    assert_hidden(caught.value)
    assert not caught.value.can_pass
    with pytest.raises(WarehouseUnreachableError, match="Correct UHO_POSTGRES_URL") as caught:
        connect(postgres.url("no_such_database"), application_name="test")
    assert not caught.value.can_pass


def test_a_session_is_told_what_it_needs_and_keeps_the_urls_own_options(warehouse):
    url = f"{warehouse}&options=-c%20work_mem%3D7MB"
    with connect(url, application_name="uho pipelines sim/demo/alpha") as connection:
        shown = {
            name: connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()[0]
            for name in (
                "application_name",
                "TimeZone",
                "lock_timeout",
                "idle_in_transaction_session_timeout",
                "work_mem",
            )
        }
    assert shown == {
        "application_name": "uho pipelines sim/demo/alpha",
        "TimeZone": "UTC",
        "lock_timeout": "10min",
        "idle_in_transaction_session_timeout": "10min",
        "work_mem": "7MB",
    }


def test_a_database_that_is_not_in_utf8_is_refused(postgres):
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
        try:
            with pytest.raises(PostgresUnsuitableError, match="its database in LATIN1"):
                migrate(postgres.url("latin"))
        finally:
            connection.execute("DROP DATABASE latin WITH (FORCE)")


def assert_hidden(error):
    """The password is in neither the message nor in what caused it."""
    while error is not None:
        assert "hunter2" not in str(error)
        assert "signs" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)

"""The embedded Postgres: started, shared, adopted, killed, and kept to its owner."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
from conftest import short_home

from uho_pipelines.runtime.postgres import DATABASES, EmbeddedPostgres, PostgresFailedError
from uho_pipelines.runtime.postgres_files import PostgresFilesError
from uho_pipelines.runtime.process import ChildFailedError
from uho_pipelines.runtime.secrets import read_or_create_secret
from uho_pipelines.runtime.stack import RESTARTS_ALLOWED, Stack
from uho_pipelines.settings import Settings

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

USE = """
import sys
from pathlib import Path
import psycopg
from uho_pipelines.runtime.postgres import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1])) as server:
    with psycopg.connect(server.url("uho")) as connection:
        print(connection.execute("SELECT pg_postmaster_start_time()").fetchone()[0], flush=True)
    sys.stdin.read(1)
"""
"""A process that uses a home's server until its input ends."""


def query(server, text, database="uho"):
    with psycopg.connect(server.url(database), autocommit=True) as connection:
        cursor = connection.execute(text)
        return cursor.fetchone()[0] if cursor.description else None


def answers(server):
    try:
        return query(server, "SELECT true")
    except psycopg.OperationalError:
        return False


def eventually(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def postmaster(server):
    return int((server.files.data / "postmaster.pid").read_text().split("\n", 1)[0])


def kill(server, number):
    os.kill(postmaster(server), number)


def lives(server):
    if server.process is not None:
        server.process.poll()
    try:
        os.kill(postmaster(server), 0)
    except ProcessLookupError:
        return False
    return True


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def user_of(home, *prefix):
    """Another process that uses the home's server; gives it and when the server was started."""
    command = [*prefix, sys.executable, "-c", USE, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            if process.poll() is None:
                process.communicate(timeout=60)


def test_both_databases_are_there(postgres):
    for database in DATABASES:
        assert query(postgres, "SELECT current_database()", database) == database
    assert query(postgres, "SHOW server_encoding") == "UTF8"
    assert query(postgres, "SHOW fsync") == "on"


@on_linux
def test_nothing_listens_on_tcp(postgres):
    assert query(postgres, "SHOW listen_addresses") == ""
    held = {link.readlink().name for link in Path(f"/proc/{postmaster(postgres)}/fd").iterdir()}
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            assert f"socket:[{line.split()[9]}]" not in held


def test_secrets_and_files_are_their_owners_alone(postgres):
    folder = postgres.home / "secrets"
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {"postgres": 0o600}
    assert len((folder / "postgres").read_text()) >= 32
    assert mode(postgres.files.socket_folder) == 0o700
    assert mode(postgres.files.data) == 0o700
    assert postgres.files.data.stat().st_uid == postgres.files.socket.stat().st_uid == postgres.files.owner
    assert postgres.files.owner != 0
    left = [path for path in postgres.files.folder.rglob("*") if path.name in ("password", "making")]
    assert left == [], "the password was told to initdb in a file"


def test_a_secret_is_made_once(tmp_path):
    made = [read_or_create_secret(tmp_path, "one") for _ in range(3)]
    assert len(set(made)) == 1
    assert read_or_create_secret(tmp_path, "two") != made[0]
    assert sorted(path.name for path in (tmp_path / "secrets").iterdir()) == ["one", "two"]


def test_the_password_is_asked_for_on_the_socket_too(postgres):
    password = read_or_create_secret(postgres.home, "postgres")
    assert password in postgres.url("uho")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url("uho").replace(password, "another"))
    assert password not in postgres.files.log.read_text()


def test_the_url_is_read_by_psycopg_and_by_sqlalchemy_with_psycopg2(postgres):
    url = postgres.url("dagster")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("dagster",)
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "dagster"
    engine.dispose()


def test_a_running_server_is_adopted_and_the_last_to_leave_stops_it(expendable):
    started = query(expendable, "SELECT pg_postmaster_start_time()::text")
    with EmbeddedPostgres(expendable.home) as second:
        assert second.process is None
        assert query(second, "SELECT pg_postmaster_start_time()::text") == started
    assert answers(expendable), "the first still uses it"
    second.start()
    expendable.stop()
    assert answers(second), "the second still uses it"
    second.stop()
    assert not answers(second)
    assert not (expendable.files.data / "postmaster.pid").exists(), "it was shut down, not killed"


def test_a_server_whose_starter_was_killed_is_adopted(expendable):
    expendable.stop()
    with user_of(expendable.home) as (process, started):
        process.kill()
        process.wait()
        with EmbeddedPostgres(expendable.home) as next_one:
            assert query(next_one, "SELECT pg_postmaster_start_time()") == psycopg_time(next_one, started)
            assert next_one.process is None
        assert not answers(next_one), "nobody uses it any more"


def psycopg_time(server, text):
    with psycopg.connect(server.url("uho")) as connection:
        return connection.execute("SELECT %s::timestamptz", [text]).fetchone()[0]


def test_a_killed_server_is_started_again_with_everything_that_was_committed(expendable):
    query(expendable, "CREATE TABLE IF NOT EXISTS kept (value int)")
    query(expendable, "INSERT INTO kept VALUES (1)")
    before = query(expendable, "SELECT count(*) FROM kept")
    kill(expendable, signal.SIGKILL)
    eventually(lambda: not lives(expendable))
    assert (expendable.files.data / "postmaster.pid").exists()
    expendable.start()
    assert query(expendable, "SELECT count(*) FROM kept") == before


@pytest.mark.parametrize("adopted", [False, True], ids=["started here", "adopted"])
def test_a_stack_starts_a_killed_server_again_and_says_so(expendable, tmp_path, adopted):
    said = []
    with EmbeddedPostgres(expendable.home) as other:
        stack = Stack(Settings(home=tmp_path), {}, said.append, postgres=other if adopted else expendable)
        for time_killed in (1, 2):
            stack.watch()
            kill(expendable, signal.SIGKILL)
            eventually(stack.postgres.has_ended)
            stack.watch()
            assert answers(expendable)
            assert said[-1] == f"postgres ended; starting it again ({time_killed} of {RESTARTS_ALLOWED})"
        stack.watch()
        assert len(said) == 2
        stack.postgres_ended_at += [time.monotonic()] * (RESTARTS_ALLOWED - 2)
        kill(expendable, signal.SIGKILL)
        eventually(stack.postgres.has_ended)
        with pytest.raises(ChildFailedError, match=f"postgres ended {RESTARTS_ALLOWED + 1} times"):
            stack.watch()


@on_linux
def test_sessions_of_a_killed_server_are_waited_for(expendable):
    busy = psycopg.connect(expendable.url("uho"))
    thread = threading.Thread(target=run_to_its_end, args=(busy, "SELECT count(*) FROM generate_series(1, 10000000)"))
    thread.start()
    eventually(
        lambda: query(expendable, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1%'") > 1
    )
    kill(expendable, signal.SIGKILL)
    eventually(lambda: not lives(expendable))
    expendable.start()
    assert answers(expendable)
    thread.join(20)


def run_to_its_end(connection, text):
    try:
        connection.execute(text)
    except psycopg.OperationalError:
        return


def test_a_server_that_is_shutting_down_is_waited_for(expendable):
    session = psycopg.connect(expendable.url("uho"))
    kill(expendable, signal.SIGTERM)  # "smart": it refuses new sessions and waits for those it has
    eventually(lambda: not answers(expendable))
    closing = threading.Timer(0.5, session.close)
    closing.start()
    with EmbeddedPostgres(expendable.home) as after:
        assert session.closed
        assert answers(after)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root is without its rights")
def test_root_that_may_not_look_into_processes_waits_too(expendable):
    # In a container even root lacks CAP_SYS_PTRACE.
    session = psycopg.connect(expendable.url("uho"))
    kill(expendable, signal.SIGTERM)
    eventually(lambda: not answers(expendable))
    closing = threading.Timer(1.5, session.close)
    closing.start()
    with user_of(expendable.home, "setpriv", "--bounding-set", "-sys_ptrace") as (_, started):
        assert started
        assert session.closed
    assert answers(expendable), "it is still used here"


@on_linux
def test_a_lock_file_that_names_another_process_is_no_obstacle(expendable):
    expendable.stop()
    user = expendable.files.user
    owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    with subprocess.Popen(["sleep", "60"], cwd="/", **owner) as another:
        try:
            lock = f"{another.pid}\n{expendable.files.data}\n1700000000\n5432\n{expendable.files.socket_folder}\n\n"
            for path in (expendable.files.data / "postmaster.pid", Path(f"{expendable.files.socket}.lock")):
                path.write_text(lock)
                os.chown(path, expendable.files.owner, -1)
            expendable.start()
            assert answers(expendable)
            assert another.poll() is None
        finally:
            another.kill()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing_running(expendable):
    expendable.stop()
    configuration = expendable.files.data / "postgresql.auto.conf"
    before = configuration.read_text()
    configuration.write_text("no_such_setting = 1\n")
    try:
        with pytest.raises(PostgresFailedError, match="ended with exit code 1 while starting") as caught:
            expendable.start()
    finally:
        configuration.write_text(before)
    assert 'unrecognized configuration parameter "no_such_setting"' in str(caught.value)
    assert str(expendable.files.log) in str(caught.value)
    expendable.start()
    assert answers(expendable)


def test_a_lost_password_is_told_at_once(expendable):
    secret = expendable.home / "secrets" / "postgres"
    kept = secret.read_text()
    secret.unlink()
    try:
        with pytest.raises(PostgresFailedError, match="refuses the password"):
            EmbeddedPostgres(expendable.home).start()
    finally:
        secret.write_text(kept)
    assert answers(expendable)


def test_another_versions_cluster_is_refused(expendable):
    expendable.stop()
    version = expendable.files.data / "PG_VERSION"
    made = version.read_text()
    version.write_text("15\n")
    try:
        with pytest.raises(PostgresFilesError, match="made by Postgres 15"):
            expendable.start()
    finally:
        version.write_text(made)


def test_two_processes_that_start_a_new_home_at_once_share_a_server_and_its_path_may_be_long():
    with short_home() as base:
        home = base / "/".join(["a-path-too-long-for-a-socket"] * 4)
        with user_of(home) as (_, first), user_of(home) as (_, second):
            assert first == second != ""
        server = EmbeddedPostgres(home)
        assert not answers(server)
        assert server.files.socket_folder.parent == Path("/tmp")
        assert mode(server.files.socket_folder) == 0o700
        server.files.socket_folder.rmdir()


def test_a_home_may_be_called_anything_and_what_a_cut_initdb_left_is_no_cluster():
    with short_home() as base:
        home = base / "a, b:c%2F 'é\"#?@&=;"
        (home / "postgres" / "making" / "data").mkdir(parents=True)
        (home / "postgres" / "making" / "data" / "PG_VERSION").write_text("18\n")
        (home / "postgres").chmod(0o711)
        with EmbeddedPostgres(home) as server:
            test_the_url_is_read_by_psycopg_and_by_sqlalchemy_with_psycopg2(server)
            assert server.files.data == home / "postgres" / "data"
        assert server.files.socket_folder.is_relative_to(home) or not list(server.files.socket_folder.iterdir())

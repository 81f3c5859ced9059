"""Scanning: the sidecar's CPU seconds for a whole archive, against reading the same file and hashing it.

What belongs here: `POST /backfill` as a client makes it, with its answer thrown away, and the two floors. Nobody can
scan without reading; nobody can prove sections without SHA-256 of them.
"""

import hashlib
import json
import os
import resource
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import requests
from solders.pubkey import Pubkey

from benchmarks.measuring import Spent, cpu_seconds
from benchmarks.stage import Archive, Stage, free_port
from uho_pipelines.archive import ARROW_STREAM
from uho_pipelines.registry import Program
from uho_pipelines.runtime.stack import built_program, sidecar_answers

Verify = Literal["full", "matched", "off"]

READ, HASH = "pread", "SHA-256"
BLOCK_BYTES = 4 * 1024 * 1024


class StreamIncompleteError(Exception):
    """The stream was refused, or ended without `done`."""


def scan_name(program: str, verify: str) -> str:
    """Return what a scan is counted as."""
    return f"{program}, verify {verify}"


def run_floors(car: Path) -> Spent:
    """Read the archive's file, and read and hash it, in this process; the page cache is warm after the first."""
    spent = Spent()
    buffer = bytearray(BLOCK_BYTES)
    for name in (READ, HASH):
        digest = hashlib.sha256()
        with car.open("rb", buffering=0) as file, spent.on(name):
            offset = 0
            while length := os.preadv(file.fileno(), [buffer], offset):
                if name == HASH:
                    digest.update(memoryview(buffer)[:length])
                offset += length
    return spent


def run_scan(stage: Stage, program: Program, verify: Verify, spent: Spent) -> int:
    """Have the sidecar scan the whole chunk for `program`; return the records it sent."""
    headers = {"Authorization": f"Bearer {stage.settings.read_sidecar_secret()}"}
    request = backfill(stage.archive, [program.program_id], verify)
    with spent.on(scan_name(program.name, verify), stage.sidecar_cpu):
        return read_stream(stage.settings.sidecar_url, request, headers)


def backfill(archive: Archive, programs: list[str], verify: Verify) -> dict[str, Any]:
    """Return the body of a request for an archive's chunk."""
    return {
        "network": "sim",
        "programIds": programs,
        "startSlot": archive.chunk.start,
        "endSlot": archive.chunk.end,
        "includeFailed": True,
        "verify": verify,
    }


def read_stream(url: str, request: dict[str, Any], headers: dict[str, str]) -> int:
    """Make a request as a client does and throw its answer away; return the records that came."""
    records, done = 0, False
    headers = {"Accept": ARROW_STREAM, **headers}
    with requests.post(f"{url}/backfill", json=request, headers=headers, stream=True, timeout=600) as response:
        if response.status_code != requests.codes.ok:
            raise StreamIncompleteError(response.text)
        for batch in pa.ipc.open_stream(pa.PythonFile(response.raw, mode="r")):
            kind = batch.column(0)[0].as_py()
            records += batch.num_rows if kind == 0 else 0
            done = done or kind == 3
    if not done:
        raise StreamIncompleteError(f"{', '.join(request['programIds'])}: the stream ended without done")
    return records


class Sidecar:
    """A sidecar of its own, with settings that the stage's does not have; it listens without a secret, on loopback."""

    def __init__(self, base: str, *options: str) -> None:
        port = free_port()
        command = [str(built_program("uho-sidecar")), "serve", "--listen", f"127.0.0.1:{port}"]
        command += ["--archive", f"sim={base}", *options]
        environment = {"MALLOC_ARENA_MAX": "2", **os.environ}
        environment.pop("UHO_SIDECAR_SECRET", None)
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not sidecar_answers(self.url):
            if self.process.poll() is not None:
                raise StreamIncompleteError("the sidecar did not start")
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def cpu(self) -> float:
        """Return the CPU seconds that it has used."""
        return cpu_seconds(self.process.pid)

    def pin(self, cores: int) -> None:
        """Let it run on so many cores."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), range(cores))

    def scan(self, archive: Archive, programs: list[str], verify: Verify) -> tuple[float, float, int]:
        """Scan the archive's chunk; return CPU seconds, seconds, and records."""
        begun, before = time.monotonic(), self.cpu()
        records = read_stream(self.url, backfill(archive, programs, verify), {})
        return self.cpu() - before, time.monotonic() - begun, records


@contextmanager
def served(folder: Path) -> Generator[str]:
    """Serve an archive over HTTP; yield its address."""
    command = [str(built_program("archive-sim")), "serve", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield f"http://{json.loads(server.stdout.readline())['listening']}"
    finally:
        server.terminate()
        server.wait(30)


def run_curl(url: str) -> float:
    """Fetch a file and throw it away; return the CPU seconds of curl."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["curl", "--silent", "--fail", "--output", "/dev/null", url], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def strangers(count: int) -> list[str]:
    """Return program ids that occur in no archive."""
    digests = (hashlib.sha256(f"stranger {number}".encode()).digest() for number in range(count))
    return [str(Pubkey.from_bytes(digest)) for digest in digests]

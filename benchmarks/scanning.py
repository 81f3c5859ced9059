"""Scanning: the sidecar's CPU seconds for a whole archive, against reading the same file and hashing it.

What belongs here: `POST /backfill` as a client makes it, with its answer thrown away, and the two floors. Nobody can
scan without reading; nobody can prove sections without SHA-256 of them.
"""

import hashlib
import os
from pathlib import Path
from typing import Literal

import pyarrow as pa
import requests

from benchmarks.measuring import Spent
from benchmarks.stage import Stage
from uho_pipelines.archive import ARROW_STREAM
from uho_pipelines.registry import Program

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


def run_scan(stage: Stage, program: Program, verify: Literal["full", "matched"], spent: Spent) -> int:
    """Have the sidecar scan the whole chunk for `program`; return the records it sent."""
    chunk = stage.archive.chunk
    body = {
        "network": program.network,
        "programIds": [program.program_id],
        "startSlot": chunk.start,
        "endSlot": chunk.end,
        "includeFailed": True,
        "verify": verify,
    }
    headers = {"Accept": ARROW_STREAM, "Authorization": f"Bearer {stage.settings.read_sidecar_secret()}"}
    records, done = 0, False
    with (
        spent.on(scan_name(program.name, verify), stage.sidecar_cpu),
        requests.post(
            f"{stage.settings.sidecar_url}/backfill", json=body, headers=headers, stream=True, timeout=600
        ) as response,
    ):
        if response.status_code != requests.codes.ok:
            raise StreamIncompleteError(response.text)
        for batch in pa.ipc.open_stream(pa.PythonFile(response.raw, mode="r")):
            kind = batch.column(0)[0].as_py()
            records += batch.num_rows if kind == 0 else 0
            done = done or kind == 3
    if not done:
        raise StreamIncompleteError(f"{program.key}, verify {verify}")
    return records

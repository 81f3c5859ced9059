"""Resident memory of the sidecar and of a worker while they take a small and a ten times larger chunk.

What belongs here: the worker, a process of its own that takes one chunk through both stages as in production, and the
sampling of both processes from outside. Flat means: what the larger chunk needs more is not ten times as much.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from benchmarks.measuring import resident_bytes
from benchmarks.stage import Stage
from uho_pipelines.runtime.stack import settings_environment

SAMPLE_SECONDS = 0.02
RECORDS, EVENTS, END = "records", "events", "end"


@dataclass
class Resident:
    """Resident bytes of one process in one phase, sampled."""

    samples: list[int] = field(default_factory=list[int])

    @property
    def peak(self) -> int:
        """The most that was seen."""
        return max(self.samples, default=0)

    @property
    def median(self) -> int:
        """What it mostly was."""
        return int(statistics.median(self.samples)) if self.samples else 0

    def quarters(self) -> list[int]:
        """Return the peak of each quarter of the phase: growth shows here."""
        size = max(1, -(-len(self.samples) // 4))
        return [max(self.samples[start : start + size]) for start in range(0, len(self.samples), size)]


@dataclass
class MemoryOfChunk:
    """What one chunk needed; `worker_start` and `sidecar_start` are before it, with everything imported."""

    worker_start: int
    sidecar_start: int
    worker: dict[str, Resident]
    sidecar: dict[str, Resident]
    sidecar_after: int


def run_memory(stage: Stage, program: str) -> MemoryOfChunk:
    """Take the archive's chunk through both stages in a process of its own, watching it and the sidecar."""
    command = [sys.executable, "-m", "benchmarks.worker", program, str(stage.archive.chunk.start)]
    environment = {**os.environ, **settings_environment(stage.settings)}
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment)
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline().strip() == "ready"
        result = MemoryOfChunk(
            resident_bytes(worker.pid)[0],
            resident_bytes(stage.sidecar)[0],
            {RECORDS: Resident(), EVENTS: Resident()},
            {RECORDS: Resident(), EVENTS: Resident()},
            0,
        )
        for phase in (RECORDS, EVENTS):
            with _Sampler(worker.pid, result.worker[phase]), _Sampler(stage.sidecar, result.sidecar[phase]):
                worker.stdin.write(f"{phase}\n")
                worker.stdin.flush()
                if worker.stdout.readline().strip() != phase:
                    raise RuntimeError(f"the worker ended while it did {phase}")
        result.sidecar_after = resident_bytes(stage.sidecar)[0]
    finally:
        worker.stdin.close()
        worker.wait(60)
    return result


class _Sampler:
    """Samples a process until left."""

    def __init__(self, pid: int, into: Resident) -> None:
        self.pid = pid
        self.into = into
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            now = resident_bytes(self.pid)[0]
            if now:
                self.into.samples.append(now)
            time.sleep(SAMPLE_SECONDS)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

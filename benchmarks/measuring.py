"""CPU seconds and resident memory of processes, read from /proc, and medians of a few runs.

What belongs here: numbers of the kernel's. CPU seconds rather than wall-clock wherever possible: neighbours on the same
machine make a process wait, and hardly make it work more.
"""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
"""Ticks of 10 ms, mostly: measure a tenth of a second or more."""


@dataclass(frozen=True)
class _Process:
    parent: int
    own_seconds: float
    reaped_seconds: float


def _process(pid: int) -> _Process:
    # The name in parentheses may hold anything, spaces too.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return _Process(
        int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS, (int(fields[13]) + int(fields[14])) / TICKS
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used, user and system."""
    return _process(pid).own_seconds


def server_cpu_seconds(backend: int) -> float:
    """Return the CPU seconds of a whole Postgres server, ended sessions included; `backend` is one of its sessions."""
    postmaster = _process(backend).parent
    while True:
        before = _children(postmaster)
        process = _process(postmaster)
        after = _children(postmaster)
        # A session that ends is counted by its process first, by its parent then: neither twice nor never.
        if before.keys() == after.keys():
            return process.own_seconds + process.reaped_seconds + sum(after.values())


def _children(parent: int) -> dict[int, float]:
    """Return the CPU seconds of each child process."""
    seconds: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                process = _process(int(entry.name))
            except (OSError, ValueError, IndexError):
                continue  # it ended
            if process.parent == parent:
                seconds[int(entry.name)] = process.own_seconds
    return seconds


def resident_bytes(pid: int) -> tuple[int, int]:
    """Return a process's resident bytes, now and at most so far; (0, 0) once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0, 0
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    return found.get("VmRSS", 0), found.get("VmHWM", 0)


def own_cpu_seconds() -> float:
    """Return the CPU seconds of this process, all threads."""
    return time.process_time()


@dataclass
class Spent:
    """CPU seconds by what they were spent on, of one run."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict[str, float](float))

    @contextmanager
    def on(self, what: str, clock: Callable[[], float] = own_cpu_seconds) -> Generator[None]:
        """Count the seconds of the block, by `clock`."""
        before = clock()
        try:
            yield
        finally:
            self.seconds[what] += clock() - before

    def __getitem__(self, what: str) -> float:
        return self.seconds.get(what, 0.0)


def median_of(runs: list[Spent], what: str) -> float:
    """Return the median of the runs."""
    return statistics.median(run[what] for run in runs)


def spread(runs: list[Spent], what: str) -> float:
    """Return how far apart the runs are: (largest - smallest) ÷ median; 0 for a median of 0."""
    values = [run[what] for run in runs]
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0

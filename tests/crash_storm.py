"""Crashes at random points, by seed: whatever is killed, filled or cut, what is left at the end equals the truth.

What belongs here: the faults, and the comparison afterwards. `make crash` runs it for minutes
(`python tests/crash_storm.py --crashes 200 --minutes 20`), `test_crash_storm.py` for a few crashes.

A round begins with an empty warehouse and an empty lake. `uho backfill` is started as a process of its own; at a random
moment after it began to work something happens: it is killed, the sidecar or Postgres is, the archive's connections
are cut, or its files may grow no further, as on a full disk. Then it is started again, and so on, until it ends by
itself; at last rows, lake, ledger and certificates are compared with the simulator's truth.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from conftest import short_home
from services import RELEASE, SECRET, CuttingProxy, Sidecar, cutting_proxy, fresh_warehouse, running_sidecar, simulate

from uho_pipelines import cli
from uho_pipelines.chunks import Chunk, program_chunks
from uho_pipelines.lake import Lake
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, truth_by_event
from uho_pipelines.verification import verify_program
from uho_pipelines.warehouse import connect, read_plan

CHUNK_SLOTS, CHECKPOINT_SLOTS = 350, 50
FIRST_SLOT = 1_295_000
PROGRAM = "orderbook"
WORK_SECONDS = 3.0
"""A fault comes at most so long after a backfill began to work."""

FAULTS = (
    "kill backfill",
    "kill backfill",
    "kill backfill",
    "kill sidecar",
    "kill postgres",
    "cut connections",
    "full disk",
)
START_SECONDS = 120
FULL_BYTES = (2_000, 30_000)
"""A full disk lets a file grow to so many bytes; a part has about ten thousand."""

PROCESSES = multiprocessing.get_context("forkserver")
"""Every `uho backfill` is a process of its own; that Dagster is imported already lets a hundred crash in minutes."""


def backfill(environment: dict[str, str], limit: int, log: Path) -> None:
    """Be `uho backfill`; with a `limit` no file grows beyond so many bytes, as on a full disk."""
    os.setsid()
    os.environ.update(environment)
    with log.open("ab") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv[:] = ["uho", "backfill", PROGRAM]
    cli.main()


@dataclass
class Storm:
    """What happened."""

    crashes: Counter[str] = field(default_factory=Counter[str])
    rounds: int = 0
    faults: list[str] = field(default_factory=list[str])
    """What differed from the truth."""
    resumed: list[float] = field(default_factory=list[float])
    """Seconds from a restart of `uho backfill` to its first work."""
    rows: int = 0
    """Compared, of all rounds."""


class Stage:
    """Postgres, a sidecar behind a proxy, and the settings that lead to both."""

    def __init__(
        self, folder: Path, archive: Path, server: EmbeddedPostgres, sidecar: Sidecar, proxy: CuttingProxy, chunks: int
    ) -> None:
        self.folder, self.archive, self.server, self.sidecar, self.proxy = folder, archive, server, sidecar, proxy
        self.last_slot = FIRST_SLOT + chunks * CHUNK_SLOTS - 1
        self.rounds = 0
        self.settings: Settings
        self.program: Program
        self.chunks: list[Chunk]

    def begin(self) -> None:
        """Have an empty warehouse and an empty lake."""
        self.rounds += 1
        self.settings = Settings(
            home=self.folder / f"round-{self.rounds}",
            postgres_url=fresh_warehouse(self.server, "storm"),
            sidecar_url=self.proxy.url,
            sidecar_secret=SECRET,
            programs_dir=self.archive / "programs",
            disk_reserve_bytes=0,
            networks={
                "sim": NetworkSettings(
                    archive_url=f"file://{self.archive}", chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS
                )
            },
        )
        self.program = load_registry(self.settings).program(PROGRAM)
        self.chunks = program_chunks(self.settings, self.program, tip=None)

    def backfill(self, limit: int = 0) -> Any:
        """Start `uho backfill`."""
        environment = {**settings_environment(self.settings), "NO_COLOR": "1"}
        process = PROCESSES.Process(target=backfill, args=(environment, limit, self.folder / "backfill.log"))
        process.start()
        return process

    def last_words(self) -> str:
        """Return the end of what the backfills said."""
        return "\n".join((self.folder / "backfill.log").read_text(encoding="utf-8").splitlines()[-30:])

    def worked(self) -> tuple[object, ...]:
        """Return what changes as soon as an attempt of a chunk begins."""
        with suppress(psycopg.Error), connect(self.url, application_name="storm") as connection:
            row = connection.execute("SELECT max(records_started_at), max(events_started_at) FROM uho.chunk").fetchone()
            return tuple(row or ())
        return ()

    @property
    def url(self) -> str:
        assert self.settings.postgres_url is not None
        return self.settings.postgres_url.get_secret_value()

    def repair_world(self) -> None:
        """Have everything run again that a fault ended."""
        self.proxy.cuts = [None]
        if self.sidecar.process is None:
            self.sidecar.start()
        self.server.start()


@contextmanager
def stage(folder: Path, seed: int, chunks: int) -> Iterator[Stage]:
    last_slot = FIRST_SLOT + chunks * CHUNK_SLOTS - 1
    archive = simulate(folder / "archive", seed=seed, first_slot=FIRST_SLOT, last_slot=last_slot)
    with (
        short_home() as home,
        running_sidecar({"sim": f"file://{archive}"}, folder / "sidecar.log") as sidecar,
        cutting_proxy(sidecar.port) as proxy,
    ):
        server = EmbeddedPostgres(home)
        server.start()
        try:
            yield Stage(folder, archive, server, sidecar, proxy, chunks)
        finally:
            server.stop()


def storm(on: Stage, chosen: random.Random, crashes: int, deadline: float) -> Storm:
    """Crash so often, or until the deadline (monotonic seconds); the last round is always brought to its end."""
    PROCESSES.set_forkserver_preload(["__main__", "crash_storm", "uho_pipelines.backfill"])
    result = Storm()
    while result.crashes.total() < crashes and time.monotonic() < deadline:
        on.begin()
        result.rounds += 1
        left = min(crashes - result.crashes.total(), chosen.randint(3, 12))
        while left > 0 and time.monotonic() < deadline:
            fault = chosen.choice(FAULTS)
            if _run(on, chosen, fault, result):
                break  # it was done before the fault came
            left -= 1
        while not _run(on, chosen, None, result):
            result.faults.append(f"failed without a fault; it said: {on.last_words()}")
            if result.crashes["failed without a fault"] > 3:
                result.faults.append("it fails again and again without a fault")
                return result
            result.crashes["failed without a fault"] += 1
        result.rows += _compare(on, result.faults)
    return result


def _run(on: Stage, chosen: random.Random, fault: str | None, result: Storm) -> bool:
    """Run a backfill until it ends, with a fault at a random moment; return whether it ended well by itself."""
    on.repair_world()
    before = on.worked()
    started = time.monotonic()
    process = on.backfill(chosen.randint(*FULL_BYTES) if fault == "full disk" else 0)
    try:
        if fault == "full disk":
            process.join(START_SECONDS)
            result.crashes[fault] += 1
            return False
        while on.worked() == before and process.is_alive() and time.monotonic() - started < START_SECONDS:
            time.sleep(0.05)
        if result.crashes.total():
            result.resumed.append(time.monotonic() - started)
        if fault is not None:
            process.join(chosen.uniform(0, WORK_SECONDS))
            if not process.is_alive():
                return process.exitcode == 0
            result.crashes[fault] += 1
            _strike(on, chosen, fault, process.pid)
            if fault != "kill backfill":
                threading.Timer(0.5, on.repair_world).start()
        # Without a fault, or with one that can pass: it ends by itself, well or not.
        process.join(START_SECONDS)
        return fault is None and process.exitcode == 0
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()


def _strike(on: Stage, chosen: random.Random, fault: str, backfill_pid: int) -> None:
    if fault == "kill backfill":
        os.kill(backfill_pid, signal.SIGKILL)
    elif fault == "kill sidecar":
        on.sidecar.kill()
    elif fault == "kill postgres":
        assert on.server.process is not None
        on.server.process.kill()
        on.server.process.wait()
    elif fault == "cut connections":
        on.proxy.cuts = [*(chosen.randrange(1, 100_000) for _ in range(3)), None]


def _compare(on: Stage, faults: list[str]) -> int:
    """Compare rows, lake, ledger and certificates with the truth; return the rows."""
    rows = 0
    with connect(on.url, application_name="storm") as connection:
        plan = read_plan(connection, on.program)
        for one in compare_program(connection, on.program, plan, truth_by_event(on.archive, on.program)):
            rows += one.rows
            if not one.equal:
                faults.append(f"{one.event}: {one.rows} rows, {one.rows_in_truth} in truth: {one.differences[:2]}")
        proven = connection.execute("SELECT sum(chunks) FROM uho.proven_ranges").fetchone()
        if proven != (len(on.chunks),):
            faults.append(f"{proven} chunks are proven, not {len(on.chunks)}")
        counted = connection.execute("SELECT sum(record_count)::bigint FROM uho.chunk").fetchone()
    lake = sum(Lake(on.settings).chunk(on.program, chunk).complete_manifest().records for chunk in on.chunks)
    said = json.loads((on.archive / "truth" / "summary.json").read_text(encoding="utf-8"))
    expected = _records_of(said, PROGRAM)
    if counted != (lake,) or (expected is not None and lake != expected):
        faults.append(f"the ledger counts {counted} records, the lake has {lake}, the truth {expected}")
    verified = verify_program(on.settings, on.program, None, None)
    faults.extend(f"{chunk.chunk.key}: {finding.text}" for chunk in verified.damaged for finding in chunk.findings)
    faults.extend(verified.scars)
    return rows


def _records_of(summary: dict[str, object], program: str) -> int | None:
    programs = summary.get("programs")
    if isinstance(programs, dict):
        counts = programs.get(program)
        if isinstance(counts, dict) and isinstance(counts.get("records"), int):
            return int(counts["records"])
    return None


def main() -> int:
    """Run from the shell."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--crashes", type=int, default=200)
    arguments.add_argument("--minutes", type=float, default=20)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = arguments.parse_args()
    if not (RELEASE / "uho-sidecar").is_file():
        arguments.error("uho-sidecar is not built: make build")
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="uho-crashes-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with stage(folder, seed=7, chunks=6) as on:
            deadline = time.monotonic() + options.minutes * 60
            result = storm(on, random.Random(options.seed), options.crashes, deadline)
    print(f"{result.crashes.total()} crashes in {result.rounds} rounds: {dict(result.crashes)}")
    if result.resumed:
        resumed = sorted(result.resumed)
        print(
            f"restart to resumed work: median {statistics.median(resumed):.1f} s, "
            f"95% {resumed[int(0.95 * (len(resumed) - 1))]:.1f} s, most {resumed[-1]:.1f} s"
        )
    print(f"{result.rows:,} rows compared with the truth; {len(result.faults)} differences")
    for fault in result.faults:
        print(fault)
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())

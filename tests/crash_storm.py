"""Crashes at random points, by seed: whatever is killed, filled or cut, what is left at the end equals the truth.

What belongs here: the crashes of `uho backfill`, and the command. `make crash` runs it for minutes (`python
tests/crash_storm.py --crashes 180 --through-dagster 20 --minutes 20`), `test_crash_storm.py` for a few crashes. Those
of what Dagster runs are `crash_dagster.py`'s business, the comparison `crash_result.py`'s.

A round begins with an empty warehouse and an empty lake. `uho backfill` is started as a process of its own; at a random
moment after it began to work something happens: it is killed, the sidecar or Postgres is, the connections to the
sidecar are cut, or its files may grow no further, as on a full disk. Then it is started again, and so on; at last it is
left to end by itself, and rows, lake, ledger and certificates are compared with the simulator's truth.
"""

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from conftest import empty, short_home
from crash_result import Storm, compare_with_truth
from services import RELEASE, SECRET, CuttingProxy, Sidecar, cutting_proxy, fresh_warehouse, running_sidecar, simulate

from uho_pipelines import cli
from uho_pipelines.chunks import program_chunks
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.warehouse import Connection, connect

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
FATAL = ("kill backfill", "full disk")
"""The others may pass: more of them come while the same process goes on."""

END_SECONDS = 300
FULL_BYTES = (500, 12_000)
"""A full disk lets a file grow to so many bytes; parts and manifests have up to about ten thousand."""

PROCESSES = multiprocessing.get_context("forkserver")
"""Every `uho backfill` that is crashed is a process of its own, in which Dagster is imported already: starting it from
the shell takes two seconds of a core, which two hundred crashes in minutes do not have. The last one of a round is."""


PRELOADED = [
    *("__main__", "crash_storm", "uho_pipelines.backfill", "uho_pipelines.integrity.check"),
    *("uho_pipelines.dagster_storage", "uho_pipelines.run_queue", "pandas"),
]


def backfill(environment: dict[str, str], output: Any) -> None:
    """Be `uho backfill`, which says what it says to the pipe `output`: a full disk has room for no log either."""
    os.setsid()
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    sys.argv[:] = ["uho", "backfill", PROGRAM]
    cli.main()


class Stage:
    """Postgres, a sidecar behind a proxy, and the settings that lead to both."""

    def __init__(
        self, folder: Path, archive: Path, server: EmbeddedPostgres, sidecar: Sidecar, proxy: CuttingProxy
    ) -> None:
        self.folder, self.archive, self.server, self.sidecar, self.proxy = folder, archive, server, sidecar, proxy
        self.url = fresh_warehouse(server, "storm")
        network = NetworkSettings(
            archive_url=f"file://{archive}", chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS
        )
        self.settings = Settings(
            home=folder / "home",
            postgres_url=self.url,
            sidecar_url=proxy.url,
            sidecar_secret=SECRET,
            programs_dir=archive / "programs",
            disk_reserve_bytes=0,
            networks={"sim": network},
        )
        self.program = load_registry(self.settings).program(PROGRAM)
        self.chunks = program_chunks(self.settings, self.program, tip=None)
        self.environment = {**settings_environment(self.settings), "NO_COLOR": "1"}
        self.log = folder / "backfill.log"
        self._watching: Connection | None = None

    def begin(self) -> None:
        """Have an empty warehouse and an empty lake."""
        self.log.write_bytes(b"")
        empty(self.url)
        shutil.rmtree(self.settings.home / "lake", ignore_errors=True)

    def backfill(self) -> Any:
        """Start `uho backfill` in a process that has Dagster imported."""
        read, write = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=backfill, args=(self.environment, write))
        process.start()
        write.close()
        threading.Thread(target=self._keep, args=(read,), daemon=True).start()
        return process

    def _keep(self, output: Any) -> None:
        with output, self.log.open("ab", buffering=0) as log:
            while said := os.read(output.fileno(), 65_536):
                log.write(said)

    def last_words(self) -> str:
        """Return the end of what the round's backfills said."""
        return "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-30:])

    def ask(self, query: str) -> Sequence[Any]:
        """Return the first row of a query; nothing while Postgres does not answer."""
        for _ in range(2):  # a server that was killed takes the connection with it
            try:
                if self._watching is None:
                    self._watching = connect(self.url, application_name="storm")
                    self._watching.autocommit = True
                return self._watching.execute(query.encode()).fetchone() or ()
            except psycopg.Error:
                if self._watching is not None:
                    self._watching.close()
                self._watching = None
        return ()

    def worked(self) -> Sequence[Any]:
        """Return what changes as soon as an attempt at a chunk begins."""
        return self.ask("SELECT max(records_started_at), max(events_started_at) FROM uho.chunk")

    def amid(self) -> str:
        """Return what is under way."""
        running = self.ask(
            "SELECT bool_or(records_state = 'running'), bool_or(events_state = 'running') FROM uho.chunk"
        )
        return {(True, False): "reading records", (False, True): "loading events"}.get(tuple(running), "in between")

    def repair_world(self) -> None:
        """Have everything run again that a fault ended."""
        if self.sidecar.process is None:
            self.sidecar.start()
        self.server.start()


@contextmanager
def stage(folder: Path, seed: int, chunks: int) -> Iterator[Stage]:
    """Have everything run that a backfill of so many chunks needs."""
    PROCESSES.set_forkserver_preload(PRELOADED)
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
            yield Stage(folder, archive, server, sidecar, proxy)
        finally:
            server.stop()


def storm(
    on: Stage,
    chosen: random.Random,
    crashes: int,
    deadline: float,
    say: Callable[[Storm], None] = lambda _: None,
) -> Storm:
    """Crash so often, or until the deadline (monotonic seconds); the last round is always brought to its end.

    `say` is told after every round.
    """
    result = Storm()
    while result.crashes.total() < crashes and time.monotonic() < deadline:
        on.begin()
        result.rounds += 1
        before = result.crashes.total()
        last = min(crashes, before + chosen.randint(6, 16))
        while result.crashes.total() < last and time.monotonic() < deadline:
            if _ends_well_with_faults(on, chosen, last, result):
                break
        for _ in range(3):
            if _ends_well(on, result, resumes=result.crashes.total() > before):
                break
            result.failed.append(f"round {result.rounds}: failed without a fault; it said:\n{on.last_words()}")
        result.compared.add(compare_with_truth(on.settings, on.archive, on.program, on.chunks))
        say(result)
    return result


def _ends_well_with_faults(on: Stage, chosen: random.Random, last: int, result: Storm) -> bool:
    """Run a backfill with faults at random moments, up to the storm's `last`; return whether it ended well."""
    on.repair_world()
    before, started = on.worked(), time.monotonic()
    process = on.backfill()
    try:
        while on.worked() == before and process.is_alive() and time.monotonic() - started < END_SECONDS:
            time.sleep(0.05)
        if before[0] is not None:
            result.resume("restart to resumed work, Dagster imported already", time.monotonic() - started)
        while result.crashes.total() < last:
            process.join(chosen.uniform(0, WORK_SECONDS))
            fault, amid = chosen.choice(FAULTS), on.amid()
            if not process.is_alive():
                return process.exitcode == 0
            if _strike(on, chosen, fault, process):
                result.crashes[fault] += 1
                result.amid[amid] += 1
            if fault in FATAL:
                break
        process.join(END_SECONDS)
        return process.exitcode == 0
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()


def _strike(on: Stage, chosen: random.Random, fault: str, process: Any) -> bool:
    """Let a fault happen; return whether it met anything. The sidecar and Postgres are back when this returns."""
    if fault == "kill backfill":
        os.kill(process.pid, signal.SIGKILL)
    elif fault == "kill sidecar":
        on.sidecar.kill()
    elif fault == "kill postgres":
        assert on.server.process is not None
        on.server.process.kill()
        on.server.process.wait()
    elif fault == "cut connections":
        on.proxy.cuts = [*(chosen.randrange(1, 100_000) for _ in range(2)), None]
        return on.proxy.cut_all() > 0
    elif fault == "full disk":
        # Python ignores the signal that a file which may not grow sends, so that writing fails as on a full disk.
        limit = chosen.randint(*FULL_BYTES)
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        process.join(END_SECONDS)
        return process.exitcode != 0  # else it wrote nothing more
    if fault not in FATAL:
        time.sleep(chosen.uniform(0, 1))
        on.repair_world()
    return True


def _ends_well(on: Stage, result: Storm, *, resumes: bool) -> bool:
    """Run `uho backfill` as the shell does, and leave it alone; return whether it ended well."""
    on.repair_world()
    on.proxy.cuts = [None]
    before, started = on.worked(), time.monotonic()
    command = [Path(sys.executable).parent / "uho", "backfill", PROGRAM]
    with (
        on.log.open("ab") as output,
        subprocess.Popen(command, env={**os.environ, **on.environment}, stdout=output, stderr=output) as process,
    ):
        while on.worked() == before and process.poll() is None:
            time.sleep(0.05)
        if resumes:
            result.resume("restart from the shell to resumed work", time.monotonic() - started)
        return process.wait() == 0


def main() -> int:
    """Run from the shell."""
    from crash_dagster import storm_through_dagster

    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--crashes", type=int, default=180, help="Of `uho backfill`.")
    arguments.add_argument("--through-dagster", type=int, default=20, help="Of what Dagster runs.")
    arguments.add_argument("--minutes", type=float, default=20, help="Then no further round is begun.")
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = arguments.parse_args()
    if not (RELEASE / "uho-sidecar").is_file():
        arguments.error("uho-sidecar is not built: make build")
    print(f"seed {options.seed}", flush=True)
    began, chosen, is_true = time.monotonic(), random.Random(options.seed), True
    deadline = began + options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="uho-crashes-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        if options.through_dagster:
            found = storm_through_dagster(
                folder, chosen, options.through_dagster, began + options.minutes * 30, _tell_progress
            )
            is_true = _tell("through Dagster", found) and is_true
        if options.crashes:
            with stage(folder, seed=7, chunks=4) as on:
                is_true = (
                    _tell("uho backfill", storm(on, chosen, options.crashes, deadline, _tell_progress)) and is_true
                )
    print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    return 0 if is_true else 1


def _tell_progress(found: Storm) -> None:
    print(
        f"round {found.rounds} compared: {found.crashes.total()} crashes so far, "
        f"{len(found.failed) + len(found.compared.differences)} differences",
        file=sys.stderr,
        flush=True,
    )


def _tell(what: str, found: Storm) -> bool:
    for sentence in found.sentences():
        print(f"{what}: {sentence}", flush=True)
    return found.is_true


if __name__ == "__main__":
    sys.exit(main())

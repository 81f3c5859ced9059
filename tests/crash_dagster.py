"""Crashes of what Dagster runs: workers, its own processes, Postgres, the sidecar, all of it, at random points by seed.

What belongs here: the faults, and what is waited for. `crash_storm.py` is the command, `crash_result.py` compares.

A round begins with an empty warehouse and an empty lake beside a whole `uho up`. A backfill of all chunks is launched
as from the UI; while it is under way something happens again and again. Dagster and the supervisor find what is gone
and begin it again without hands; a chunk that is red at the end, as after a full disk, is materialized again, as its
message says. Then everything is compared with the simulator's truth.
"""

import json
import random
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import requests
from conftest import empty, short_home
from crash_result import Storm, compare_with_truth
from services import CuttingProxy, cutting_proxy, held_archive, simulate, wait_until
from stack import Dagster, command_line, descendants, kill, uho_up

from uho_pipelines.chunks import program_chunks
from uho_pipelines.graphql import DagsterRefusedError, backfill_progress
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.warehouse import connect

CHUNK_SLOTS, CHECKPOINT_SLOTS = 1_050, 50
FIRST_SLOT = 1_293_600
CHUNKS = 6
PROGRAM = "orderbook"
WORK_SECONDS = 4.0
"""A fault comes at most so long after work was seen."""

FAULTS = (
    "kill worker",
    "kill worker and code server",
    "kill daemon",
    "kill sidecar",
    "kill postgres",
    "cut connections",
    "full disk",
    "kill worker",
    "kill everything",
)
FULL_BYTES = (2_000, 60_000)
NO_ANSWER = (requests.RequestException, ValueError, KeyError, IndexError, AssertionError, DagsterRefusedError)
"""What asking Dagster comes to while it, or its Postgres, is gone."""

FAULT_WORDS = re.compile("fail|gone|timed out|retry", re.IGNORECASE)
"""What the event log says where a run did not go as it should."""

END_SECONDS = 600
"""Of a backfill with crashes in it."""


class Stage:
    """A whole `uho up`, and the settings by which its warehouse and its lake are looked at."""

    def __init__(self, stack: Dagster, archive: Path, proxy: CuttingProxy) -> None:
        self.stack, self.archive, self.proxy = stack, archive, proxy
        self.server = EmbeddedPostgres(stack.home)
        self.settings = Settings(
            home=stack.home,
            postgres_url=self.server.url("uho"),
            programs_dir=archive / "programs",
            networks={"sim": NetworkSettings(chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS)},
        )
        self.program = load_registry(self.settings).program(PROGRAM)
        self.chunks = program_chunks(self.settings, self.program, tip=None)

    def begin(self) -> None:
        """Have an empty warehouse and an empty lake."""
        empty(self.server.url("uho"))
        shutil.rmtree(self.stack.home / "lake", ignore_errors=True)

    def query(self, text: str) -> list[Any]:
        """Ask the warehouse; nothing while it does not answer."""
        with suppress(psycopg.Error), connect(self.server.url("uho"), application_name="storm") as connection:
            return connection.execute(text.encode()).fetchall()
        return []

    def worked(self) -> list[Any]:
        """Return what changes as soon as an attempt at a chunk begins."""
        return self.query("SELECT max(records_started_at), max(events_started_at) FROM uho.chunk")

    def amid(self) -> str:
        """Return what is under way."""
        running = self.query(
            "SELECT bool_or(records_state = 'running'), bool_or(events_state = 'running') FROM uho.chunk"
        )
        names = {
            (True, False): "reading records",
            (False, True): "loading events",
            (True, True): "reading records and loading events",
        }
        return names.get(tuple(running[0]), "in between") if running else "in between"

    def launch(self, keys: Sequence[str]) -> str:
        """Launch the backfill of chunks as the UI does; return its id."""
        answer: list[dict[str, Any]] = []

        def launched() -> bool:
            with suppress(*NO_ANSWER):
                answer.append(self.stack.launch("storm", PROGRAM, list(keys)))
            return bool(answer) and answer[-1]["__typename"] == "LaunchBackfillSuccess"

        wait_until(launched, f"a backfill is launched; answered: {answer[-1:]}", pause=0.5)
        return answer[-1]["backfillId"]

    def ended(self, backfill: str) -> bool:
        """Return whether the backfill has ended, as far as Dagster answers."""
        with suppress(*NO_ANSWER):
            return backfill_progress(self.stack.url, backfill).ended
        return False

    def workers(self) -> dict[str, int]:
        """Return the process ids of the runs that are under way."""
        found: dict[str, int] = {}
        with suppress(*NO_ANSWER):
            for run in self.stack.runs():
                if run["status"] == "STARTED":
                    with suppress(*NO_ANSWER):
                        found[run["runId"]] = self.stack.worker(run["runId"])
        return found

    def status(self, run: str) -> str:
        """Return how a run is, once Dagster says."""

        def told() -> str:
            with suppress(*NO_ANSWER):
                return next(each["status"] for each in self.stack.runs() if each["runId"] == run)
            return ""

        return wait_until(told, "Dagster tells of a run", pause=0.5)

    def story(self, backfill: str, key: str) -> str:
        """Return how a chunk came to be red: how its runs ended, and what the ledger says of it, once Dagster says."""

        def told() -> str:
            with suppress(*NO_ANSWER):
                runs = self.stack.runs(dagster__backfill=backfill, dagster__asset_partition_range_start=key)
                lines = [line for run in runs for line in self.stack.messages(run["runId"])]
                words = [line for line in lines if FAULT_WORDS.search(line)]
                return f"{[run['status'] for run in runs]}; {words[-8:]}"
            return ""

        of_runs = wait_until(told, "Dagster tells of a chunk's runs", pause=0.5)
        said = self.query(f"SELECT records_error, events_error FROM uho.chunk WHERE chunk_start = {int(key)}")
        return f"chunk {key}: ledger: {said}; {of_runs}"

    def missing(self) -> list[str]:
        """Return the keys of the chunks that are not proven."""
        proven = {start for (start,) in self.query("SELECT chunk_start FROM uho.chunk_status WHERE status = 'proven'")}
        return [chunk.key for chunk in self.chunks if chunk.start not in proven]


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Have `uho up` run over an archive whose connections can be cut."""
    last_slot = FIRST_SLOT + CHUNKS * CHUNK_SLOTS - 1
    archive = simulate(
        folder / "archive-of-dagster",
        first_slot=FIRST_SLOT,
        last_slot=last_slot,
        options=["--chunk-slots", str(CHUNK_SLOTS)],
    )
    with (
        short_home() as home,
        held_archive(archive) as server,
        cutting_proxy(int(server.url.rpartition(":")[2])) as proxy,
        uho_up(
            home,
            archive / "programs",
            UHO_NETWORKS=json.dumps(
                {
                    "sim": {
                        "archive_url": proxy.url,
                        "chunk_slots": CHUNK_SLOTS,
                        "checkpoint_slots": CHECKPOINT_SLOTS,
                    }
                }
            ),
            UHO_WORKER_CHECK_SECONDS="3",
            UHO_BACKFILL_START_SECONDS="0",
            UHO_SIDECAR_SEGMENT_MEBIBYTES="1",
        ) as stack,
    ):
        yield Stage(stack, archive, proxy)


def storm_through_dagster(
    folder: Path,
    chosen: random.Random,
    crashes: int,
    deadline: float,
    say: Callable[[Storm], None] = lambda _: None,
) -> Storm:
    """Crash so often, or until the deadline (monotonic seconds); the last round is always brought to its end.

    `say` is told after every round.
    """
    result = Storm()
    with stage(folder) as on:
        faults: list[str] = []
        while result.crashes.total() < crashes and time.monotonic() < deadline:
            on.begin()
            result.rounds += 1
            backfill = on.launch([chunk.key for chunk in on.chunks])
            for _ in range(min(crashes - result.crashes.total(), chosen.randint(3, 5))):
                faults = faults or chosen.sample(FAULTS, len(FAULTS))
                if not _crash(on, chosen, faults[-1], backfill, result):
                    break
                faults.pop()
            _bring_to_an_end(on, backfill, result)
            result.compared.add(compare_with_truth(on.settings, on.archive, on.program, on.chunks))
            say(result)
    return result


def _crash(on: Stage, chosen: random.Random, fault: str, backfill: str, result: Storm) -> bool:
    """Let something happen at a random moment of a backfill; return whether it did, before the backfill had ended."""
    while True:
        wait_until(lambda: on.workers() or on.ended(backfill), "a run is under way", seconds=END_SECONDS, pause=0.1)
        time.sleep(chosen.uniform(0, WORK_SECONDS))
        workers, amid, cut = on.workers(), on.amid(), on.proxy.cut
        if workers:
            break
        if on.ended(backfill):
            return False
    before, struck = on.worked(), time.monotonic()
    run = chosen.choice(sorted(workers))
    _strike(on, chosen, fault, workers[run])
    if fault == "full disk":
        ended = {"SUCCESS", "FAILURE", "CANCELED"}
        wait_until(lambda: on.status(run) in ended, "the run ends", seconds=END_SECONDS, pause=0.5)
        if on.status(run) == "SUCCESS":
            return True  # it wrote nothing more
    if fault == "cut connections" and on.proxy.cut == cut:
        return True  # nothing was carried
    result.crashes[fault] += 1
    result.amid[amid] += 1
    wait_until(
        lambda: on.worked() not in ([], before) or on.ended(backfill),
        "work goes on",
        seconds=END_SECONDS,
        pause=0.1,
    )
    result.resume(f"{fault} to the next attempt that began", time.monotonic() - struck)
    return True


def _strike(on: Stage, chosen: random.Random, fault: str, worker: int) -> None:
    if fault == "kill worker":
        kill(worker)
    elif fault == "kill worker and code server":
        kill(*on.stack.tree("code-server"), worker)
    elif fault == "kill daemon":
        kill(*on.stack.tree("dagster-daemon"))
    elif fault == "kill sidecar":
        kill(on.stack.child("uho-sidecar"))
    elif fault == "kill postgres":
        kill(int((on.server.files.data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0]))
    elif fault == "cut connections":
        on.proxy.cuts = [*(chosen.randrange(1, 1_000_000) for _ in range(3)), None]
        on.proxy.cut_all()
    elif fault == "full disk":
        # Python ignores the signal that a file which may not grow sends, so that writing fails as on a full disk.
        limit = chosen.randint(*FULL_BYTES)
        with suppress(ProcessLookupError):
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (limit, limit))
    elif fault == "kill everything":
        assert on.stack.process is not None
        tree = [on.stack.process.pid, *descendants(on.stack.process.pid)]
        home = str(on.stack.home)
        kill(*tree, *(process for process in descendants(1) if process not in tree and home in command_line(process)))
        on.stack.process.wait(30)
        on.stack.start()


def _bring_to_an_end(on: Stage, backfill: str, result: Storm) -> None:
    """Wait for the backfill's end; materialize again what is red, as a person would."""
    for _ in range(4):
        wait_until(lambda backfill=backfill: on.ended(backfill), "the backfill ends", seconds=END_SECONDS, pause=0.5)
        missing = on.missing()
        if not missing:
            return
        result.again += len(missing)
        result.notes += [on.story(backfill, key) for key in missing]
        backfill = on.launch(missing)
    result.failed.append(f"round {result.rounds}: chunks {on.missing()} do not become proven")

"""Many programs of thousands of chunks in one code location: how long Dagster takes to answer, and who waits for whom.

What belongs here: a stack as `uho up` runs it, and clocks around what a person does in the UI. Programs are copies of
the simulator's with ids of their own; the first one has the simulator's id, so that some of its chunks can be read.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from solders.pubkey import Pubkey

from benchmarks.measuring import cpu_seconds, resident_bytes
from uho_pipelines.assets import ARCHIVE_POOL
from uho_pipelines.definitions import build_definitions
from uho_pipelines.graphql import BackfillProgress, ask, backfill_progress
from uho_pipelines.people import USER_TAG
from uho_pipelines.runtime.stack import Stack, built_program, running_stack
from uho_pipelines.sensors import PARTITION_TAGS
from uho_pipelines.settings import Settings

CHUNK_SLOTS = 350
HEADER = "X-Forwarded-User"

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
CANCEL = """
mutation Cancel($id: String!) { cancelPartitionBackfill(backfillId: $id) {
  __typename ... on PythonError { message } } }"""
ASSETS = """{ assetNodes { id groupName isPartitioned kinds assetKey { path } dependencyKeys { path }
  owners { ... on TeamAssetOwner { team } } partitionDefinition { type name }
  assetChecksOrError { ... on AssetChecks { checks { name } } } } }"""
PARTITIONS = """
query Partitions($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  partitionKeys partitionStats { numPartitions numMaterialized numFailed numMaterializing }
  assetPartitionStatuses { ... on DefaultPartitionStatuses {
    materializedPartitions failedPartitions materializingPartitions unmaterializedPartitions } } } } }"""


WAITING_SECONDS = 60.0
"""The processes are watched for so long while thousands of runs wait."""


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a process, now and at most so far."""

    process: str
    now: int
    peak: int


def write_programs(home: Path, programs: int, chunks: int) -> Path:
    """Write the simulated archive and so many programs of so many chunks; return the programs' folder."""
    folder = home / "sim"
    command = [str(built_program("archive-sim")), "write", "--out", str(folder), "--seed", "7"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    source = folder / "programs" / "orderbook"
    document = yaml.safe_load((source / "program.yaml").read_text(encoding="utf-8"))
    for place in range(programs):
        copy = home / "programs" / f"program_{place:02d}"
        for idl in document["idls"]:
            (copy / idl["file"]).parent.mkdir(parents=True, exist_ok=True)
            (copy / idl["file"]).write_bytes((source / idl["file"]).read_bytes())
        identity = str(Pubkey.from_bytes(hashlib.sha256(copy.name.encode()).digest()))
        own = {
            **document,
            "program_id": identity if place else document["program_id"],
            "scan_group": copy.name,
            "first_slot": 0,
            "last_slot": chunks * CHUNK_SLOTS - 1,
        }
        (copy / "program.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    return home / "programs"


@contextmanager
def operating(home: Path, programs: Path, ports: tuple[int, int, int], say: Callable[[str], None]) -> Generator[Stack]:
    """Have the stack run over these programs, with people told apart by a header."""
    webserver, code_server, sidecar = ports
    settings = Settings.model_validate(
        {
            "home": home,
            "programs_dir": programs,
            "webserver_port": webserver,
            "code_server_port": code_server,
            "sidecar_url": f"http://127.0.0.1:{sidecar}",
            "user_header": HEADER,
            "trusted_proxies": ["127.0.0.1/32"],
            "backfill_start_seconds": 0,
            "disk_reserve_bytes": 0,
        }
    )
    with running_stack(settings, say) as stack:
        yield stack


def definitions_seconds(settings: Settings) -> tuple[float, float]:
    """Return the wall and CPU seconds that building all definitions takes, IDLs and decoders included."""
    wall, cpu = time.monotonic(), time.process_time()
    build_definitions(settings).get_repository_def()
    return time.monotonic() - wall, time.process_time() - cpu


def page_seconds(stack: Stack) -> dict[str, float]:
    """Return the seconds that Dagster's webserver takes for what pages ask."""
    seconds: dict[str, float] = {}

    def clock(what: str, step: Callable[[], Any]) -> Any:  # noqa: ANN401 - an answer of GraphQL
        started = time.monotonic()
        answer = step()
        seconds[what] = time.monotonic() - started
        return answer

    clock("the UI's first page (HTML)", lambda: requests.get(f"{stack.url}/assets", timeout=120).raise_for_status())
    nodes = clock("all assets with owners, checks, lineage", lambda: ask(stack.url, ASSETS, {}))["assetNodes"]
    events = [node["assetKey"]["path"] for node in nodes if node["assetKey"]["path"][-1].endswith("_events")]
    clock("all assets, again", lambda: ask(stack.url, ASSETS, {}))
    clock("partition statuses of one asset", lambda: ask(stack.url, PARTITIONS, {"key": {"path": events[0]}}))

    def every() -> None:
        for path in events:
            ask(stack.url, PARTITIONS, {"key": {"path": path}})

    clock(f"partition statuses of {len(events)} assets, one after another", every)
    return seconds


def memory(stack: Stack) -> list[Memory]:
    """Return the resident memory of the stack's processes."""
    return [Memory(service.name, *resident_bytes(service.child.process.pid)) for service in stack.services]


def launch(stack: Stack, user: str, program: str, keys: list[str], **tags: str) -> str:
    """Launch a backfill as the UI's dialog does for this person; return its id."""
    assets = [{"path": ["sim", "demo", f"{program}_{stage}"]} for stage in ("records", "events")]
    shown = [{"key": key.replace("__", "/"), "value": value} for key, value in tags.items()]
    params = {"assetSelection": assets, "partitionNames": keys, "tags": shown}
    answer = requests.post(
        f"{stack.url}/graphql",
        json={"query": LAUNCH, "variables": {"params": params}},
        headers={HEADER: user},
        timeout=300,
    ).json()
    started = answer["data"]["launchPartitionBackfill"]
    if started["__typename"] != "LaunchBackfillSuccess":
        raise RuntimeError(json.dumps(started))
    return str(started["backfillId"])


@dataclass(frozen=True)
class Launched:
    """What launching a large backfill took."""

    answer_seconds: float
    """Until the UI says that it is launched."""
    queued_seconds: float
    """Until all of its runs are in the queue."""
    daemon_cpu_seconds: float
    """Of the daemon, until then, all that it does beside included."""
    runs: int


def launch_large(stack: Stack, instance: DagsterInstance, program: str, keys: list[str]) -> tuple[str, Launched]:
    """Launch a backfill of all chunks, held back by its priority, and wait until they are queued."""
    daemon = service_pid(stack, "daemon")
    started, cpu = time.monotonic(), cpu_seconds(daemon)
    backfill = launch(stack, "alice", program, keys)
    answered = time.monotonic() - started
    filters = RunsFilter(tags={"dagster/backfill": backfill})
    while (runs := instance.get_runs_count(filters)) < len(keys):
        stack.watch()
        time.sleep(1)
    return backfill, Launched(answered, time.monotonic() - started, cpu_seconds(daemon) - cpu, runs)


@dataclass(frozen=True)
class Figures:
    """What was measured. Seconds are of the wall clock where nothing else is said."""

    up_seconds: float
    definitions: tuple[float, float]
    """Wall and CPU seconds."""
    pages: dict[str, float]
    memory: list[Memory]
    launched: Launched
    waiting: dict[str, float]
    """Share of a core that each process uses while all runs wait."""
    memory_launched: list[Memory]
    cancelled_seconds: float
    starts: list[tuple[str, str, str]]
    """Person, priority and chunk of each run of three people, in the order in which they began."""
    ends: list[str]
    daemon_per_chunk: float
    """CPU seconds of the daemon for each of their chunks."""
    seconds: float


def service_pid(stack: Stack, name: str) -> int:
    """Return the process id of a service."""
    return next(service.child.process.pid for service in stack.services if service.name == name)


def cancel(stack: Stack, instance: DagsterInstance, backfill: str) -> float:
    """Cancel a backfill; return the seconds until no run of it is queued or under way."""
    started = time.monotonic()
    ask(stack.url, CANCEL, {"id": backfill})
    unended = [status for status in DagsterRunStatus if status not in ENDED]
    while instance.get_runs_count(RunsFilter(tags={"dagster/backfill": backfill}, statuses=unended)):
        stack.watch()
        time.sleep(1)
    return time.monotonic() - started


ENDED = {DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED}


def wait_for(stack: Stack, backfills: list[str]) -> list[BackfillProgress]:
    """Wait until these backfills have ended; return how."""
    while True:
        progress = [backfill_progress(stack.url, backfill) for backfill in backfills]
        if all(one.ended for one in progress):
            return progress
        stack.watch()
        time.sleep(1)


def order_of_starts(instance: DagsterInstance, since: float) -> list[tuple[str, str, str]]:
    """Return (person, priority, chunk) of the runs that began after `since`, in the order of the event log."""
    found: list[tuple[str, str, str]] = []
    changes = instance.fetch_run_status_changes(DagsterEventType.RUN_START, limit=10_000, ascending=True)
    for record in changes.records:
        run = instance.get_run_by_id(record.run_id)
        if run is not None and record.timestamp >= since and USER_TAG in run.tags:
            chunk = next((run.tags[tag] for tag in PARTITION_TAGS if tag in run.tags), "")
            found.append((run.tags[USER_TAG], run.tags.get("uho/priority", ""), chunk))
    return found


def measure(home: Path, programs: int, chunks: int, ports: tuple[int, int, int], say: Callable[[str], None]) -> Figures:
    """Measure all of it on a stack of its own."""
    folder = write_programs(home, programs, chunks)
    simulated = yaml.safe_load((home / "sim" / "programs" / "orderbook" / "program.yaml").read_text(encoding="utf-8"))
    readable = [f"{slot:010d}" for slot in range(simulated["first_slot"], simulated["last_slot"], CHUNK_SLOTS)]
    started = time.monotonic()
    with operating(home, folder, ports, say) as stack:
        up = time.monotonic() - started
        with DagsterInstance.from_config(stack.environment["DAGSTER_HOME"]) as instance:
            say("definitions and pages")
            definitions = definitions_seconds(stack.settings)
            pages = page_seconds(stack)
            after_pages = memory(stack)
            say(f"a backfill of {chunks:,} chunks, which no archive stream takes up")
            instance.event_log_storage.set_concurrency_slots(ARCHIVE_POOL, 0)
            keys = [f"{start:010d}" for start in range(0, chunks * CHUNK_SLOTS, CHUNK_SLOTS)]
            backfill, launched = launch_large(stack, instance, "program_01", keys)
            waiting = cpu_of(stack, WAITING_SECONDS)
            pages |= {f"{what}, {chunks:,} runs queued": took for what, took in page_seconds(stack).items()}
            after_launch = memory(stack)
            say("cancelling it")
            cancelled = cancel(stack, instance, backfill)
            instance.event_log_storage.set_concurrency_slots(ARCHIVE_POOL, stack.settings.archive_streams)
            say(f"three people, {len(readable)} chunks")
            since, daemon = time.time(), cpu_seconds(service_pid(stack, "daemon"))
            half, quarter = len(readable) // 2, len(readable) // 4
            shares = {
                "alice": readable[:half],
                "bob": readable[half : half + quarter],
                "carol": readable[half + quarter :],
            }
            backfills = [launch(stack, user, "program_00", share) for user, share in shares.items()]
            ends = wait_for(stack, backfills)
            daemon = cpu_seconds(service_pid(stack, "daemon")) - daemon
            took = time.time() - since
            return Figures(
                up,
                definitions,
                pages,
                after_pages,
                launched,
                waiting,
                after_launch,
                cancelled,
                order_of_starts(instance, since),
                [end.status for end in ends],
                daemon / len(readable),
                took,
            )


def cpu_of(stack: Stack, seconds: float) -> dict[str, float]:
    """Return what share of a core each process of the stack used during so many seconds."""
    before = {service.name: cpu_seconds(service.child.process.pid) for service in stack.services}
    time.sleep(seconds)
    return {
        service.name: (cpu_seconds(service.child.process.pid) - before[service.name]) / seconds
        for service in stack.services
    }

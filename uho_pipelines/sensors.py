"""Keeping up with the archive: its tip, and the chunks of programs that follow it.

What belongs here: what happens by itself. A new epoch moves the tip in the ledger; the code location is reloaded, so
that its chunks have partitions; a program with `follow: true` then gets their runs. Each sensor acts on what the ledger
and Dagster's runs say, not on what it remembers: killed at any point, it goes on where things stand.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter

from uho_pipelines.archive import ArchiveStreamError, archive_tip
from uho_pipelines.assets import events_key, records_key
from uho_pipelines.chunks import SLOTS_PER_EPOCH, Chunk
from uho_pipelines.graphql import DagsterRefusedError, reload_location
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, connect
from uho_pipelines.warehouse.ledger import chunk_states, get_halt, get_tip, set_tip

FOLLOW_TAG = "uho/follow"
"""The tag on runs that a program's follow sensor requested; its value is the program's key."""

PARTITION_TAGS = ("dagster/partition", "dagster/asset_partition_range_start")
"""The tags by which a run names its chunk: the second one when a backfill submitted it, as a range of one."""

RUNS_IN_FLIGHT = 8
"""A follow sensor has at most so many runs queued or running: what a person starts never waits behind thousands."""

TRIES = 3
"""So often a follow sensor requests a chunk that fails; then a person must look at it."""

LOOKED_AT = 200
"""So many missing chunks are looked at in one tick, the oldest first."""

PRIORITY = "-1"
"""Runs that follow the tip wait behind those that people start."""

IN_FLIGHT = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.MANAGED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True)
class ChunkRuns:
    """What the runs of one chunk say: how many were requested to follow, and whether any is queued or running."""

    requested: int
    in_flight: bool


def tip_sensor(settings: Settings, network: str, first_slot: int, loaded_tip: int | None) -> dg.SensorDefinition:
    """Return the sensor that watches the archive of `network` for new epochs.

    `loaded_tip` is the tip that the partitions of this code location were made with: while the ledger's is another one,
    the location is asked to reload.
    """

    @dg.sensor(
        name=f"{network}_archive_tip",
        minimum_interval_seconds=settings.archive_tip_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks whether the archive of {network} has a new epoch, and gives its chunks partitions.",
    )
    def sense(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        if settings.postgres_url is None:
            return dg.SkipReason("no warehouse is set, so nothing keeps the tip")
        with connect(settings.postgres_url.get_secret_value(), application_name="uho sensor") as connection:
            known = get_tip(connection, network)
            first_epoch = (first_slot if known is None else known - 1) // SLOTS_PER_EPOCH
            try:
                found = archive_tip(settings, network, first_epoch)
            except ArchiveStreamError as error:
                return dg.SkipReason(f"the archive's tip was not seen: {error}")
            if found is not None:
                set_tip(connection, network, found)
            tip = get_tip(connection, network)
        if tip is None:
            return dg.SkipReason(f"the archive of {network} has no whole epoch from {first_epoch} on yet")
        newest = f"epoch {tip // SLOTS_PER_EPOCH - 1} is the newest, its last slot {tip - 1}"
        if tip == loaded_tip:
            return dg.SkipReason(newest)
        context.log.info("the archive of %s: %s; reloading", network, newest)
        try:
            reload_location(f"http://127.0.0.1:{settings.webserver_port}")
        except (DagsterRefusedError, OSError) as error:
            return dg.SkipReason(f"{newest}; its chunks appear after a reload, which failed: {error}")
        return dg.SkipReason(f"{newest}; reloading, so that its chunks appear")

    return sense


def follow_sensor(settings: Settings, program: Program, chunks: Sequence[Chunk]) -> dg.SensorDefinition:
    """Return the sensor that requests the runs of those of the program's `chunks` that are not complete."""

    @dg.sensor(
        name=f"{program.schema_name}_follow",
        job_name=program.schema_name,
        minimum_interval_seconds=min(60, settings.archive_tip_seconds),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Keeps {program.name} complete up to the archive's tip: requests the chunks that are missing.",
    )
    def follow(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if settings.postgres_url is None:
            return dg.SkipReason("no warehouse is set, so nothing says which chunks are complete")
        with connect(settings.postgres_url.get_secret_value(), application_name="uho sensor") as connection:
            halt = get_halt(connection, program)
            if halt is not None:
                return dg.SkipReason(f"{program.key} is halted: {halt}")
            wanted = wanted_chunks(connection, program, chunks)
        runs = runs_of_chunks(context.instance, program, wanted[:LOOKED_AT])
        room = RUNS_IN_FLIGHT - in_flight(context.instance, program)
        requests: list[dg.RunRequest] = []
        given_up: list[str] = []
        for key in wanted[:LOOKED_AT]:
            chunk = runs.get(key, ChunkRuns(0, in_flight=False))
            if chunk.in_flight:
                continue
            if chunk.requested >= TRIES:
                given_up.append(key)
            elif len(requests) < room:
                requests.append(_request(program, key, chunk.requested + 1))
        told = f"{len(wanted)} of {len(chunks)} chunks are missing; {len(requests)} requested"
        if given_up:
            told += f"; failed {TRIES} times and left to a person: {', '.join(given_up)}"
            context.log.warning("%s: %s", program.key, told)
        return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason(told)

    return follow


def wanted_chunks(connection: Connection, program: Program, chunks: Iterable[Chunk]) -> list[str]:
    """Return the keys of those of `chunks` that are not complete.

    A chunk whose tail could not be proved, since what follows it was not published, is wanted again once that is.
    """
    states = chunk_states(connection, program)
    tip = get_tip(connection, program.network)
    wanted: list[str] = []
    for chunk in chunks:
        state = states.get(chunk.start)
        if state is None or not state.loaded or (state.tail != "proven" and tip is not None and tip > chunk.end):
            wanted.append(chunk.key)
    return wanted


def runs_of_chunks(instance: dg.DagsterInstance, program: Program, keys: Sequence[str]) -> dict[str, ChunkRuns]:
    """Return what the runs of these chunks say, whoever started them."""
    if not keys:
        return {}
    chunks: dict[str, ChunkRuns] = {}
    ours = {records_key(program), events_key(program)}
    for tag in PARTITION_TAGS:
        for run in instance.get_runs(filters=RunsFilter(tags={tag: list(keys)})):
            requested = run.tags.get(FOLLOW_TAG) == program.key
            if requested or ours & (run.asset_selection or frozenset()):
                before = chunks.get(run.tags[tag], ChunkRuns(0, in_flight=False))
                chunks[run.tags[tag]] = ChunkRuns(
                    before.requested + requested, before.in_flight or run.status in IN_FLIGHT
                )
    return chunks


def in_flight(instance: dg.DagsterInstance, program: Program) -> int:
    """Return how many runs that follow `program` are queued or running."""
    return instance.get_runs_count(RunsFilter(statuses=IN_FLIGHT, tags={FOLLOW_TAG: program.key}))


def _request(program: Program, key: str, attempt: int) -> dg.RunRequest:
    return dg.RunRequest(
        # Dagster never launches a run key twice, though the sensor be killed between requesting and remembering.
        run_key=f"{program.key}/{key}/{attempt}",
        partition_key=key,
        tags={FOLLOW_TAG: program.key, "uho/started_by": "follow sensor", "dagster/priority": PRIORITY},
    )

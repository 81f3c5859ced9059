"""The job `backfill_slots`: the backfill of a program's slot range, which Dagster's own dialog cannot name.

What belongs here: from slots to chunks, and launching their backfill as the dialog does. Who started the job's run has
started the backfill, under the same limits.
"""

import time
from collections.abc import Sequence
from enum import Enum

import dagster as dg
from dagster import OpExecutionContext
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.utils import make_new_backfill_id
from pydantic import Field

from uho_pipelines.assets import ScanGroup, events_key, records_key
from uho_pipelines.chunks import Chunk, parse_key, select_chunks
from uho_pipelines.errors import UhoError
from uho_pipelines.people import USER_TAG, claim_start
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.ledger import ChunkState, chunk_states


class Which(Enum):
    """Which chunks of a range."""

    MISSING = "missing"
    FAILED = "failed"
    ALL = "all"


class BackfillSlotsConfig(dg.Config):
    """What is backfilled."""

    program: str = Field(description="The program's folder name, or network/owner/name.")
    from_slot: int | None = Field(default=None, ge=0, description="First slot wanted; default: the program's first.")
    to_slot: int | None = Field(default=None, ge=0, description="Last slot, inclusive; default: the last there is.")
    which: Which = Field(
        default=Which.MISSING,
        description="missing: chunks that are not complete. failed: those whose latest attempt failed. all: every one.",
    )


class NothingToBackfillError(UhoError):
    """No chunk of the range is of the wanted kind."""

    def __init__(self, program: str, which: Which, from_slot: int | None, to_slot: int | None) -> None:
        self.program = program
        kind = "" if which is Which.ALL else f" that is {which.value}"
        super().__init__(
            f"{program} has no chunk{kind} between slots {from_slot} and {to_slot} (inclusive); nothing was launched"
        )


class UnknownPartitionsError(UhoError):
    """A program that this code location does not have."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        super().__init__(f"there is no program {name!r} here; there are {', '.join(known) or 'none'}")


def slots_job(settings: Settings, groups: Sequence[ScanGroup]) -> dg.JobDefinition:
    """Return the job that launches the backfill of a slot range."""

    @dg.op(description="Launches the backfill of a program's chunks in a slot range, rounded outward.")
    def launch(context: OpExecutionContext, config: BackfillSlotsConfig) -> str:
        program, keys = _partitions(groups, config.program)
        slots = settings.network(program.network).chunk_slots
        in_range = select_chunks([parse_key(key, slots) for key in keys], config.from_slot, config.to_slot)
        chunks = chunks_of_kind(settings, program, in_range, config.which)
        if not chunks:
            raise NothingToBackfillError(program.key, config.which, config.from_slot, config.to_slot)
        user = context.run.tags.get(USER_TAG)
        if user is not None:
            claim_start(settings, user)
        reach = f"slots {chunks[0].start} to {chunks[-1].end - 1} (inclusive)"
        # As the dialog's request does in the webserver; there is no public function that launches a backfill.
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id=make_new_backfill_id(),
            asset_graph=context.repository_def.asset_graph,
            partition_names=[chunk.key for chunk in chunks],
            asset_selection=[records_key(program), events_key(program)],
            backfill_timestamp=time.time(),
            tags={USER_TAG: user} if user is not None else {},
            dynamic_partitions_store=context.instance,
            all_partitions=False,
            title=f"{program.name}: {config.which.value} chunks, {reach}",
            description=f"Launched by run {context.run.run_id}.",
            run_config=None,
        )
        context.instance.add_backfill(backfill)
        url = f"http://127.0.0.1:{settings.webserver_port}/runs/b/{backfill.backfill_id}"
        context.add_output_metadata({"backfill": dg.MetadataValue.url(url), "chunks": len(chunks), "slots": reach})
        context.log.info("backfill %s: %d chunks of %s, %s", backfill.backfill_id, len(chunks), program.key, reach)
        return backfill.backfill_id

    @dg.job(
        name="backfill_slots",
        description="Backfills the chunks of a program in a slot range: the missing ones, the failed ones, or all.",
        executor_def=dg.in_process_executor,
    )
    def backfill_slots() -> None:
        launch()

    return backfill_slots


def chunks_of_kind(settings: Settings, program: Program, chunks: Sequence[Chunk], which: Which) -> list[Chunk]:
    """Return those of `chunks` that are of this kind, by the ledger; without a warehouse nothing is known of any."""
    if which is Which.ALL:
        return list(chunks)
    states: dict[int, ChunkState] = {}
    if settings.postgres_url is not None:
        with connect(settings.postgres_url.get_secret_value(), application_name="uho backfill_slots") as connection:
            states = chunk_states(connection, program)
    if which is Which.FAILED:
        return [chunk for chunk in chunks if chunk.start in states and states[chunk.start].failed]
    return [chunk for chunk in chunks if chunk.start not in states or not states[chunk.start].loaded]


def _partitions(groups: Sequence[ScanGroup], name: str) -> tuple[Program, Sequence[str]]:
    for group in groups:
        for program in group.programs:
            if name in {program.name, program.key}:
                return program, group.partitions.get_partition_keys()
    raise UnknownPartitionsError(name, [program.key for group in groups for program in group.programs])

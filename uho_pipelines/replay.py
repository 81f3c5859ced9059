"""`uho replay`: the records of the lake are decoded again and replace the rows, chunk by chunk, in this process.

What belongs here: which chunks, and how far a replay is. Each chunk is the asset `events` alone, with its check, as a
backfill of it in Dagster would be; the archive and the sidecar are not needed.
"""

import time
from dataclasses import dataclass

from rich.console import Console

from uho_pipelines.assets import events_key
from uho_pipelines.backfill import ChunkResult, run_chunks, show_results
from uho_pipelines.chunks import Chunk, select_chunks
from uho_pipelines.errors import UhoError
from uho_pipelines.materialization import Progress, warehouse_url
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import backing_services
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, connect
from uho_pipelines.warehouse.ledger import chunk_key
from uho_pipelines.warehouse.redecoding import Redecoding, redecoding

TELL_SECONDS = 1.0
"""The ledger is told so often how far a chunk is."""


class NothingToReplayError(UhoError):
    """A slot range of which the lake has no whole chunk."""

    def __init__(self, program: str, from_slot: int | None, to_slot: int | None) -> None:
        self.program = program
        where = "" if from_slot is None and to_slot is None else f" between slots {from_slot} and {to_slot} (inclusive)"
        super().__init__(
            f"{program}: the lake has no complete chunk{where}, so there is nothing to replay. "
            f"`uho backfill {program}` reads them from the archive"
        )


@dataclass
class _Telling:
    """Tells the ledger how far a replay is, at most once in `TELL_SECONDS` within a chunk."""

    running: Redecoding
    records: dict[Chunk, int]
    chunks_done: int = 0
    rows_done: int = 0
    told: float = 0.0

    def within(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.told >= TELL_SECONDS:
            self.told = now
            self.running.advance(self.chunks_done, self.rows_done + progress.events_written + progress.events_skipped)

    def done(self, result: ChunkResult) -> None:
        self.chunks_done += 1
        self.rows_done += self.records[result.chunk]
        self.running.advance(self.chunks_done, self.rows_done)


def run_replay(settings: Settings, name: str, from_slot: int | None, to_slot: int | None, console: Console) -> bool:
    """Replay the chunks of the program `name` that the lake has; return whether all succeeded and no check failed.

    Raises:
        UnknownProgramError, NothingToReplayError, AlreadyRunningError, and what starting Postgres can raise.
    """
    program = load_registry(settings).program(name)
    with backing_services(settings, console.print, sidecar=False) as stack:
        url = warehouse_url(stack.settings)
        with connect(url, application_name=f"uho replay {program.key}") as connection:
            records = replayable_chunks(connection, program, from_slot, to_slot)
        if not records:
            raise NothingToReplayError(program.key, from_slot, to_slot)
        chunks = list(records)
        console.print(
            f"{program.key}: {len(chunks)} chunks are decoded again, slots {chunks[0].start} to {chunks[-1].end - 1} "
            "(inclusive)",
            soft_wrap=True,
        )
        total = sum(records.values())
        with redecoding(url, program, "replay", chunks[0].start, chunks[-1].end, len(chunks), total) as running:
            telling = _Telling(running, records)
            results = run_chunks(
                stack,
                program,
                chunks,
                console,
                assets=[events_key(program)],
                started_by="uho replay",
                within=telling.within,
                done=telling.done,
            )
            failed = [result.chunk.key for result in results if not result.succeeded]
            running.end(f"failed: chunks {', '.join(failed[:20])}" if failed else None)
    show_results(program, results, console)
    return not failed


def replayable_chunks(
    connection: Connection, program: Program, from_slot: int | None, to_slot: int | None
) -> dict[Chunk, int]:
    """Return the chunks whose records the ledger says are in the lake, ascending, with their records."""
    with connection.transaction():
        rows = connection.execute(
            "SELECT chunk_start, chunk_end - chunk_start, record_count FROM uho.chunk "
            "WHERE (network, owner, program) = (%s, %s, %s) AND records_digest IS NOT NULL ORDER BY chunk_start",
            chunk_key(program),
        ).fetchall()
    records = {Chunk(start, slots): count for start, slots, count in rows}
    return {chunk: records[chunk] for chunk in select_chunks(list(records), from_slot, to_slot)}

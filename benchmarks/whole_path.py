"""Archive → lake → committed rows of one chunk, and where its CPU seconds go.

What belongs here: clocks around the steps of the path that runs in production; the steps themselves are untouched.
Steps of the load run side by side, so each is counted by its own thread's clock; what Parquet's threads do is in the
rest.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import uho_native
from psycopg import sql

from benchmarks.measuring import Spent
from benchmarks.stage import Stage
from uho_pipelines import materialization
from uho_pipelines.chunks import Chunk
from uho_pipelines.lake import LakeChunk
from uho_pipelines.materialization import EventsOutcome, Reporter, load_events, read_records
from uho_pipelines.registry import Program
from uho_pipelines.warehouse import connect, read_plan
from uho_pipelines.warehouse import load as warehouse_load

WALL_RECORDS, WALL_EVENTS = "wall: archive to lake", "wall: lake to committed rows"
SIDECAR, WORKER_RECORDS, WORKER_EVENTS = "sidecar", "worker: stream and lake", "worker: load"
LAKE_READ, DECODE, ENCODE, DIGEST, COPY = "lake read", "decode", "COPY encode", "row digest", "COPY send"
WALL_AGAIN, WORKER_AGAIN = "wall: replay", "worker: replay"
SERVER, SERVER_COUNT, SERVER_AGAIN = "server", "server: counting rows", "server: replacing"


class UnexpectedRowsError(Exception):
    """The path did not do what it is measured for."""


def run_whole_path(stage: Stage, program: Program, expected_events: int) -> Spent:
    """Read the chunk's records anew and load its events; return the CPU (and wall) seconds by step."""
    spent = Spent()
    chunk = stage.archive.chunk
    clocks = spent.on(WALL_RECORDS, time.monotonic), spent.on(SIDECAR, stage.sidecar_cpu), spent.on(WORKER_RECORDS)
    with clocks[0], clocks[1], clocks[2]:
        outcome = read_records(stage.settings, [program], chunk, Reporter(), start_over=True)[0]
    if outcome.error is not None:
        raise outcome.error
    first = run_load(stage, program, chunk, expected_events, spent)
    with spent.on(SERVER_AGAIN, stage.postgres_cpu), spent.on(WORKER_AGAIN), spent.on(WALL_AGAIN, time.monotonic):
        again = load_events(stage.settings, program, chunk, Reporter())
    if first.result is None or again.result is None or again.result.digests != first.result.digests:
        raise UnexpectedRowsError(f"{program.key}: a replay made other rows than the first load")
    return spent


def run_load(stage: Stage, program: Program, chunk: Chunk, expected_events: int, spent: Spent) -> EventsOutcome:
    """Load the chunk's events from the lake into empty tables."""
    _empty_tables(stage, program)
    with spent.on(WALL_EVENTS, time.monotonic), spent.on(SERVER, stage.postgres_cpu), spent.on(WORKER_EVENTS):
        events = _load_with_clocks(stage, program, chunk, spent)
    rows = sum(events.result.rows.values()) if events.result is not None else 0
    if rows != expected_events:
        raise UnexpectedRowsError(f"{program.key}: {rows:,} rows were loaded, expected were {expected_events:,}")
    return events


def _empty_tables(stage: Stage, program: Program) -> None:
    """Have the load be a first one, as nearly all are: nothing to delete."""
    with connect(stage.url, application_name="benchmarks") as connection:
        for table in read_plan(connection, program).tables.values():
            connection.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table.schema, table.name)))


def _load_with_clocks(stage: Stage, program: Program, chunk: Chunk, spent: Spent) -> EventsOutcome:
    def timed(what: str, function: Callable[..., Any], clock: Callable[[], float] | None = None) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the function takes and returns
            with spent.on(what, clock) if clock else spent.on(what):
                return function(*arguments, **named)

        return call

    @contextmanager
    def clocks() -> Generator[None]:
        batches = LakeChunk.batches
        copy = warehouse_load.ChunkLoad._copy  # pyright: ignore[reportPrivateUsage]

        def timed_batches(folder: LakeChunk) -> Iterator[Any]:
            return _timed_iterator(batches(folder), spent, LAKE_READ)

        require_rows = warehouse_load.ChunkLoad._require_rows  # pyright: ignore[reportPrivateUsage]
        count = timed(SERVER_COUNT, require_rows, stage.postgres_cpu)
        with (
            patch.object(LakeChunk, "batches", timed_batches),
            patch.object(materialization, "decode", timed(DECODE, materialization.decode, time.thread_time)),
            patch.object(uho_native, "encode_copy", timed(ENCODE, uho_native.encode_copy, time.thread_time)),
            patch.object(warehouse_load.ChunkLoad, "_copy", timed(COPY, copy, time.thread_time)),
            patch.object(uho_native, "copy_digest", timed(DIGEST, uho_native.copy_digest, time.thread_time)),
            patch.object(warehouse_load.ChunkLoad, "_require_rows", count),
        ):
            yield

    with clocks():
        return load_events(stage.settings, program, chunk, Reporter())


def _timed_iterator(items: Iterator[Any], spent: Spent, what: str) -> Iterator[Any]:
    while True:
        with spent.on(what, time.thread_time):
            item = next(items, None)
        if item is None:
            return
        yield item

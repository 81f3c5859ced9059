"""What is done for a chunk: reading its records into the lake, loading its events into the warehouse.

What belongs here: the order of steps, what is tried again, and what is left behind when a step fails. Nothing of
Dagster: `assets.py` wraps this for runs, and whoever drives chunks otherwise calls the same two functions.
"""

import json
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg
import uho_native

from uho_pipelines.ahead import made_ahead
from uho_pipelines.archive import ArchiveClient, ArchiveStreamError, Checkpoint, Done
from uho_pipelines.checks import Verdict, skip_rate
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import Counts, decode, decoder_for, events_by_discriminator, whole_blocks
from uho_pipelines.errors import UhoError
from uho_pipelines.lake import (
    ChunkWriter,
    KeptPartsDifferError,
    Lake,
    LakeChunk,
    LakeTakenError,
    Manifest,
    PartAlteredError,
)
from uho_pipelines.parquet import EventFiles, event_files
from uho_pipelines.redaction import redact
from uho_pipelines.registry import Program
from uho_pipelines.retries import GIVEN_UP, NOT_TRIED_AGAIN, postgres_again
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, LoadResult, chunk_load, connect, ensure_tables, read_plan
from uho_pipelines.warehouse.indexes import IndexChanges, ensure_indexes
from uho_pipelines.warehouse.ledger import (
    AttemptFencedError,
    ProgramChangedError,
    Stage,
    begin_attempt,
    fail_attempt,
    finish_records,
    get_halt,
    leave_attempt,
    set_halt,
)
from uho_pipelines.warehouse.load import ChunkLoad, Encoded

APPLICATION = "uho pipelines"

STREAM_ATTEMPTS = 5
"""A stream that fails for a reason that can pass is begun again so many times without a new checkpoint in between."""

RESTARTS = 2
"""A chunk starts over so often because what is read again differs; after that the archive is not to be trusted."""

DECODED_ROWS = 8_192
DECODED_BYTES = 4 * 1024 * 1024
"""Records are decoded in pieces of whole blocks of about so many rows or bytes, so that Postgres has its first rows
soon, and a core's cache is enough for what is decoded."""

DECODED_AHEAD = 3
"""So many pieces are made while Postgres takes one: it takes those of a table together, and is not to wait after it."""

SPACE_MARGIN = 1.25
"""A chunk is estimated at so many times the bytes of the chunk before it."""


class WarehouseMissingError(UhoError):
    """No warehouse is set."""

    def __init__(self) -> None:
        super().__init__("no warehouse is set: start with `uho up`, or set UHO_POSTGRES_URL")


class ProgramHaltedError(UhoError):
    """The program's events are halted: too few of its records decode by these IDL versions."""

    def __init__(self, program: str, reason: str) -> None:
        self.program = program
        self.reason = reason
        super().__init__(
            f"{program} is halted: {reason} Its records are still read and kept. That IDL version in program.yaml "
            "lifts the halt: then materialize the events again (`uho replay` for many chunks). Or, if that is how the "
            f"program is, `uho clear-halt {program} --reason …`"
        )


class ArchiveUnstableError(UhoError):
    """The same slots were read differently again and again."""

    def __init__(self, program: str, chunk: Chunk) -> None:
        self.program = program
        self.chunk = chunk
        super().__init__(
            f"{program} chunk {chunk.key}: each time its slots are read they hold other records. "
            "Look at the archive behind the sidecar before trying again"
        )


PROGRAM_FAULTS = (
    *(OSError, AttemptFencedError, LakeTakenError, PartAlteredError, ProgramChangedError),
    ArchiveUnstableError,
)
"""Faults of one program's chunk: the other programs of its stream go on."""


@dataclass(frozen=True)
class Progress:
    """How far a stage of a chunk is. `current_slot`: records of lower slots are done. `elapsed` is in seconds."""

    job_id: str
    program: str
    chunk: str
    current_slot: int
    events_written: int
    events_skipped: int
    elapsed: float
    stage: Stage
    bytes_read: int = 0
    """Of the archive, by this attempt."""

    def as_json(self) -> str:
        """Return the log line."""
        seen = self.events_written + self.events_skipped
        return json.dumps(
            {
                "jobId": self.job_id,
                "program": self.program,
                "chunk": self.chunk,
                "currentSlot": self.current_slot,
                "eventsWritten": self.events_written,
                "eventsSkipped": self.events_skipped,
                "skipRate": round(self.events_skipped / max(1, seen), 6),
                "elapsed": round(self.elapsed, 3),
            }
        )


_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[Progress], None]) -> Generator[None]:
    """Have `listener` told of every checkpoint that this thread's chunks reach, whoever wraps them."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell_listener(progress: Progress) -> None:
    """Tell the listener of this thread, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(progress)


@dataclass(frozen=True)
class Reporter:
    """Who is told: `progress` of every checkpoint, `notice` of what a person may want to know."""

    progress: Callable[[Progress], None] = lambda _: None
    notice: Callable[[str], None] = lambda _: None


@dataclass
class RecordsOutcome:
    """What reading a chunk's records came to for one program: a complete manifest, or the error that prevented it."""

    program: Program
    manifest: Manifest | None = None
    error: Exception | None = None
    job_id: str = ""
    seconds: float = 0.0
    bytes_read: int = 0
    """Of the archive, by this attempt."""
    restarts: list[str] = field(default_factory=list[str])
    """Why kept parts were given up, if they were."""


@dataclass(frozen=True)
class EventsOutcome:
    """What loading a chunk's events came to; `result` is None when the verdict forbade it and nothing was changed."""

    manifest: Manifest
    counts: Counts
    verdict: Verdict
    result: LoadResult | None
    seconds: float
    indexes: IndexChanges
    parquet_files: int


def warehouse_url(settings: Settings) -> str:
    """Return the warehouse's URL.

    Raises:
        WarehouseMissingError: none is set.
    """
    if settings.postgres_url is None:
        raise WarehouseMissingError
    return settings.postgres_url.get_secret_value()


def read_records(
    settings: Settings, programs: Sequence[Program], chunk: Chunk, reporter: Reporter, *, start_over: bool = False
) -> list[RecordsOutcome]:
    """Read a chunk's records of `programs`, which share a scan group, in one stream, and keep them in the lake.

    Resumes from what an earlier attempt kept, unless `start_over`. A fault of one program leaves the others alone: each
    has an outcome. Leaving by an exception, a cancellation included, closes the stream and keeps what was kept.

    Raises:
        DiskFullError: before anything was begun.
        ArchiveStreamError: the stream failed, for a reason that will not pass or did not.
    """
    reading = _Reading(settings, programs, chunk, reporter)
    try:
        reading.begin(start_over=start_over)
        reading.run()
    except BaseException as error:
        reading.fail_unfinished(error)
        raise
    finally:
        reading.close()
    return list(reading.outcomes.values())


def load_events(
    settings: Settings, program: Program, chunk: Chunk, reporter: Reporter, job_id: str = ""
) -> EventsOutcome:
    """Decode a chunk's records from the lake and replace its rows in the warehouse, in one transaction.

    Faults of Postgres that can pass are tried again. When the verdict blocks, the rows are rolled back and the counts
    are kept in the ledger.

    Raises:
        RecordsMissingError: the chunk's records are not all in the lake.
        PartAlteredError: they are not what was written.
        AttemptFencedError: a later attempt owns the chunk.
        ProgramHaltedError: too few records decoded before, by the same IDL versions; nothing was begun.
    """
    once = partial(_load_events_once, settings, program, chunk, reporter, job_id)
    return postgres_again(once, "the load", reporter.notice)


def _load_events_once(
    settings: Settings, program: Program, chunk: Chunk, reporter: Reporter, job_id: str
) -> EventsOutcome:
    started = time.monotonic()
    url = warehouse_url(settings)
    folder = Lake(settings).chunk(program, chunk)
    manifest = folder.complete_manifest()
    decoder = decoder_for(program)
    counts = Counts()
    result, indexes, written = None, IndexChanges(), 0
    with connect(url, application_name=f"{APPLICATION} {program.key} {chunk.key}") as connection:
        halted = get_halt(connection, program)
        if halted is not None:
            raise ProgramHaltedError(program.key, halted)
        attempt = begin_attempt(connection, program, chunk, "events")
        try:
            plan = ensure_tables(connection, program, decoder.tables())
            tables = plan.tables.values()
            with (
                closing(EventFiles(event_files(settings), program, chunk, tables)) as files,
                chunk_load(connection, plan, program, chunk, attempt) as load,
                closing(made_ahead(_decoded(folder, decoder, program, load, files), DECODED_AHEAD)) as batches,
            ):
                for slot, found, encoded in batches:
                    load.copy(encoded)
                    counts.add(found)
                    if slot is None:
                        continue
                    seconds = time.monotonic() - started
                    reporter.progress(
                        Progress(
                            *(job_id, program.key, chunk.key, slot, counts.decoded, counts.undecodable),
                            elapsed=seconds,
                            stage="events",
                        )
                    )
                verdict = skip_rate(counts, events_by_discriminator(program))
                if not verdict.blocks:
                    origin = {"records_digest": manifest.digest, "idl_hash": program.idl_hash}
                    publish = partial(files.publish, read_plan(connection, program).tables, origin)
                    result = load.commit(counts.as_json(), manifest.digest, before=publish)
                    written = files.published
            if result is not None:
                indexes = ensure_indexes(connection, program, plan, decoder.tables())
                for fault in indexes.faults:
                    reporter.notice(f"{program.key}: the rows are loaded, an index is not as asked for: {fault}")
            else:
                fail_attempt(connection, program, chunk, attempt, "events", verdict.text, counts.as_json())
                set_halt(connection, program, chunk, f"Chunk {chunk.key}: {verdict.text}")
        except BaseException as error:
            end_apart(url, program, chunk, attempt, "events", error, counts.as_json() if counts.records else None)
            raise
    return EventsOutcome(manifest, counts, verdict, result, time.monotonic() - started, indexes, written)


def _decoded(
    folder: LakeChunk, decoder: uho_native.Decoder, program: Program, load: ChunkLoad, files: EventFiles
) -> "Iterator[tuple[int | None, uho_native.DecodeCounts, list[Encoded]]]":
    """Decode what the lake has; yield a piece's counts and its rows ready for COPY.

    With the last piece of a batch comes the first slot that is not done.
    """
    for records in folder.batches():
        left = records.num_rows
        for piece in whole_blocks(records, DECODED_ROWS, DECODED_BYTES):
            decoded = decode(decoder, program, piece)
            files.write(decoded)
            left -= piece.num_rows
            slot = None if left else piece.column("slot")[piece.num_rows - 1].as_py() + 1
            yield slot, decoded.counts, load.encode(decoded)


class _Reading:
    """The state of one `read_records`."""

    def __init__(self, settings: Settings, programs: Sequence[Program], chunk: Chunk, reporter: Reporter) -> None:
        self.settings = settings
        self.chunk = chunk
        self.reporter = reporter
        self.url = warehouse_url(settings)
        self.lake = Lake(settings)
        self.client = ArchiveClient(settings)
        self.outcomes = {program.key: RecordsOutcome(program) for program in programs}
        self.attempts: dict[str, uuid.UUID] = {}
        self.writers: dict[str, ChunkWriter] = {}
        self.started = time.monotonic()
        self.furthest = chunk.start

    def begin(self, *, start_over: bool) -> None:
        """Take over every program's chunk; what cannot be taken over is left to its outcome."""
        self.lake.require_space(self._estimate())
        with self._connected() as connection:
            for key, outcome in self.outcomes.items():
                self._guarded(key, partial(self._begin_attempt, connection, outcome))
        for key, attempt in self.attempts.items():
            outcome = self.outcomes[key]
            writer = self.lake.chunk(outcome.program, self.chunk).writer(
                str(attempt), self.settings, self._teller(outcome)
            )
            self.writers[key] = writer
            self._guarded(key, partial(writer.begin, start_over=start_over))

    def run(self) -> None:
        """Stream until every program is complete or has failed."""
        attempts_left = STREAM_ATTEMPTS
        while self.writers:
            before = self.furthest
            try:
                self._stream()
            except KeptPartsDifferError as error:
                self._guarded(error.program, partial(self._start_over, error))
            except ArchiveStreamError as error:
                attempts_left = STREAM_ATTEMPTS if self.furthest > before else attempts_left - 1
                if not error.can_pass or attempts_left <= 0:
                    error.add_note(GIVEN_UP if error.can_pass else NOT_TRIED_AGAIN)
                    raise
                self.reporter.notice(f"{error}; {attempts_left} more attempts, from slot {self._resume_slot()}")
                time.sleep(min(30, 2 ** (STREAM_ATTEMPTS - attempts_left)))

    def _connected(self) -> Connection:
        """Connect to the ledger, with patience: a stream of an hour is not lost to a server that restarts."""
        once = partial(connect, self.url, application_name=f"{APPLICATION} records {self.chunk.key}")
        return postgres_again(once, "a connection", self.reporter.notice)

    def _begin_attempt(self, connection: Connection, outcome: RecordsOutcome) -> None:
        self.attempts[outcome.program.key] = begin_attempt(connection, outcome.program, self.chunk, "records")

    def _start_over(self, error: KeptPartsDifferError) -> None:
        if len(self.outcomes[error.program].restarts) >= RESTARTS:
            raise ArchiveUnstableError(error.program, self.chunk) from error
        self.writers[error.program].start_over(str(error))

    def close(self) -> None:
        """Remove what is half written; what was kept stays for the next attempt."""
        for writer in self.writers.values():
            writer.close()

    def fail_unfinished(self, error: BaseException) -> None:
        """Tell the ledger of every program that is not complete."""
        for key, outcome in self.outcomes.items():
            if outcome.manifest is None and outcome.error is None and key in self.attempts:
                end_apart(self.url, outcome.program, self.chunk, self.attempts[key], "records", error, None)

    def _stream(self) -> None:
        start = self._resume_slot()
        for writer in self.writers.values():
            writer.restart(start)
        first = next(iter(self.writers.values())).program
        programs = [writer.program for writer in self.writers.values()]
        waiting = self.reporter.notice
        with self.client.stream(
            first.network,
            [program.program_id for program in programs],
            start,
            self.chunk.end,
            instructions_of=[program.program_id for program in programs if program.instructions],
            waiting=lambda error: waiting(f"{error}; asking again"),
        ) as stream:
            for outcome in self.outcomes.values():
                outcome.job_id = stream.job_id
            for item in stream:
                for key in list(self.writers):
                    self._guarded(key, partial(self._take, key, item))
                if not self.writers:
                    return

    def _take(self, key: str, item: Any) -> None:  # noqa: ANN401 - a StreamItem; pyarrow has no types
        writer, outcome = self.writers[key], self.outcomes[key]
        if isinstance(item, Checkpoint):
            writer.checkpoint(item)
            self.furthest = max(self.furthest, item.slot)
            outcome.bytes_read += item.certificate["bytes"]
            elapsed = time.monotonic() - self.started
            written = writer.manifest.records
            self.reporter.progress(
                Progress(
                    *(outcome.job_id, writer.program.key, self.chunk.key, item.slot, written, 0),
                    elapsed=elapsed,
                    stage="records",
                    bytes_read=outcome.bytes_read,
                )
            )
        elif isinstance(item, Done):
            manifest = writer.finish(item)
            certificate = manifest.certificate or {}
            with self._connected() as connection:
                finish_records(connection, writer.program, self.chunk, self.attempts[key], certificate)
            outcome.manifest = manifest
            outcome.seconds = time.monotonic() - self.started
            del self.writers[key]
        else:
            writer.write(item)

    def _guarded(self, key: str, step: Callable[[], None]) -> None:
        """Do a step for one program; a fault of its own ends that program, and the others go on."""
        try:
            step()
        except PROGRAM_FAULTS as error:
            outcome = self.outcomes[key]
            outcome.error = error
            outcome.seconds = time.monotonic() - self.started
            if key in self.writers:
                self.writers.pop(key).close()
            if key in self.attempts:
                end_apart(self.url, outcome.program, self.chunk, self.attempts[key], "records", error, None)

    def _resume_slot(self) -> int:
        return min((writer.resume_slot for writer in self.writers.values()), default=self.chunk.end)

    def _teller(self, outcome: RecordsOutcome) -> Callable[[str], None]:
        def tell(reason: str) -> None:
            outcome.restarts.append(reason)
            self.reporter.notice(reason)

        return tell

    def _estimate(self) -> int:
        """Return the bytes that the chunk is likely to take: those of the chunk before it, with a margin."""
        if self.chunk.start < self.chunk.slots:
            return 0
        before = Chunk(self.chunk.start - self.chunk.slots, self.chunk.slots)
        manifests = [self.lake.chunk(outcome.program, before).manifest() for outcome in self.outcomes.values()]
        return int(SPACE_MARGIN * sum(manifest.bytes for manifest in manifests if manifest is not None))


def end_apart(
    url: str,
    program: Program,
    chunk: Chunk,
    attempt: uuid.UUID,
    stage: Stage,
    error: BaseException,
    counts: dict[str, Any] | None,
) -> None:
    """Tell the ledger how an attempt ended, over a connection of its own; if that fails, the error tells.

    An interruption is no failure: who cancels a run leaves the chunk pending.
    """
    text = redact(str(error) or type(error).__name__)
    try:
        with connect(url, application_name=f"{APPLICATION} {stage} {chunk.key}") as connection:
            if isinstance(error, Exception):
                fail_attempt(connection, program, chunk, attempt, stage, text, counts)
            else:
                leave_attempt(connection, program, chunk, attempt, stage)
    except psycopg.Error:
        return

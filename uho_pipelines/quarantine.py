"""The quarantine, and targeted repair: when an IDL version is added, exactly the quarantined records are decoded again.

What belongs here: which chunks have quarantined records, and what repairing them came to. No archive and no lake is
read. Rows that were decoded before stay as they are, also those that the new version would decode otherwise: a replay
decodes everything.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from uho_pipelines.chunks import Chunk, select_chunks
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.errors import UhoError
from uho_pipelines.materialization import end_apart, warehouse_url
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, connect, ensure_tables
from uho_pipelines.warehouse.ledger import begin_attempt, chunk_key
from uho_pipelines.warehouse.redecoding import redecoding
from uho_pipelines.warehouse.repair import RepairResult, repair_chunk


class ReplayNeededError(UhoError):
    """A program whose quarantined records cannot be decoded again alone."""

    def __init__(self, program: str, chunks: Iterable[Chunk]) -> None:
        self.program = program
        commands = "; ".join(f"`uho replay {program} {chunk.options}`" for chunk in chunks)
        super().__init__(
            f"{program} keeps Parquet files of its events, and those are written whole, a chunk at a time. "
            f"Decode the chunks that have quarantined records again from the lake: {commands}"
        )


@dataclass
class RepairOutcome:
    """What a repair of a program came to."""

    program: Program
    chunks: int = 0
    before: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Quarantined records by discriminator (hexadecimal) and reason."""
    after: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    decoded: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Records that became rows, by event and IDL version."""
    foreign: int = 0
    """Records whose discriminator is ignored by now."""
    failed_left_out: int = 0
    """Records of failed transactions, which the program no longer asks for."""
    other_versions: int = 0
    """Chunks whose other rows were decoded by other IDL versions than the present ones."""

    def add(self, result: RepairResult) -> None:
        """Add a chunk."""
        self.chunks += 1
        self.before += result.before.undecodable_by
        self.after += result.after.undecodable_by
        self.decoded += result.repaired.decoded_by
        self.foreign += result.repaired.foreign
        self.failed_left_out += result.repaired.failed_left_out

    @property
    def sentences(self) -> list[str]:
        """What a person is told."""
        told = [
            f"{self.program.key}: {self.before.total():,} records were quarantined in {self.chunks:,} chunks, "
            f"{self.after.total():,} are; {self.decoded.total():,} became rows. The archive and the lake were not read."
        ]
        if self.foreign:
            told.append(f"{self.foreign:,} are of discriminators that program.yaml ignores, and were dropped.")
        if self.failed_left_out:
            told.append(f"{self.failed_left_out:,} are of failed transactions, which are left out by now.")
        if self.other_versions:
            told.append(
                f"Only quarantined records were touched: {self.other_versions:,} chunks have rows that were decoded by "
                f"other IDL versions than the present ones. If those read some events otherwise, "
                f"`uho replay {self.program.key}` decodes everything again from the lake."
            )
        return told

    def as_json(self) -> dict[str, Any]:
        """Return the outcome for other programs."""
        return {
            "program": self.program.key,
            "chunks": self.chunks,
            "quarantinedBefore": self.before.total(),
            "quarantinedAfter": self.after.total(),
            "decoded": self.decoded.total(),
            "foreign": self.foreign,
            "failedLeftOut": self.failed_left_out,
            "chunksWithRowsOfOtherVersions": self.other_versions,
            "archiveBytesRead": 0,
        }


def repair_program(
    settings: Settings,
    program: Program,
    from_slot: int | None,
    to_slot: int | None,
    done: Callable[[RepairResult], None] = lambda _: None,
) -> RepairOutcome:
    """Decode the program's quarantined records of `from_slot` to `to_slot` (inclusive, rounded outward) again.

    Chunk by chunk, each in a transaction of its own; `done` is told of each.

    Raises:
        AlreadyRunningError: a replay or repair of the program runs.
        ReplayNeededError: the program keeps Parquet files of its events.
        QuarantineAlteredError: a chunk's quarantine is not as the ledger says; the chunks before it are repaired.
    """
    url = warehouse_url(settings)
    outcome = RepairOutcome(program)
    with connect(url, application_name=f"uho repair {program.key}") as connection:
        quarantined = quarantined_chunks(connection, program, from_slot, to_slot)
        outcome.other_versions = _chunks_of_other_versions(connection, program)
        if not quarantined:
            return outcome
        if program.parquet:
            raise ReplayNeededError(program.key, quarantined)
        first, last, total = min(quarantined), max(quarantined), sum(quarantined.values())
        with redecoding(url, program, "repair", first.start, last.end, len(quarantined), total) as running:
            for chunk in quarantined:
                result = _repair(settings, connection, program, chunk)
                outcome.add(result)
                done(result)
                running.advance(outcome.chunks, outcome.before.total())
            running.end(None)
    return outcome


def _repair(settings: Settings, connection: Connection, program: Program, chunk: Chunk) -> RepairResult:
    attempt = begin_attempt(connection, program, chunk, "events")
    try:
        decoder = decoder_for(program)
        plan = ensure_tables(connection, program, decoder.tables())
        return repair_chunk(connection, plan, program, chunk, attempt, partial(decode, decoder, program))
    except BaseException as error:
        end_apart(warehouse_url(settings), program, chunk, attempt, "events", error, None)
        raise


def quarantined_chunks(
    connection: Connection, program: Program, from_slot: int | None, to_slot: int | None
) -> dict[Chunk, int]:
    """Return the chunks that have quarantined records, ascending, with how many."""
    with connection.transaction():
        rows = connection.execute(
            "SELECT chunk_start, chunk_end - chunk_start, (loaded_counts ->> 'undecodable')::bigint FROM uho.chunk "
            "WHERE (network, owner, program) = (%s, %s, %s) AND (loaded_counts ->> 'undecodable')::bigint > 0 "
            "ORDER BY chunk_start",
            chunk_key(program),
        ).fetchall()
    counts = {Chunk(start, slots): count for start, slots, count in rows}
    return {chunk: counts[chunk] for chunk in select_chunks(list(counts), from_slot, to_slot)}


def _chunks_of_other_versions(connection: Connection, program: Program) -> int:
    with connection.transaction():
        row = connection.execute(
            "SELECT count(*) FROM uho.chunk WHERE (network, owner, program) = (%s, %s, %s) AND loaded_idl_hash <> %s",
            [*chunk_key(program), program.idl_hash],
        ).fetchone()
    return row[0] if row else 0

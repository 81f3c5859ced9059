"""Loading a chunk: its rows are replaced whole, in one transaction.

What belongs here: the transaction. Readers see the chunk as it was or as it will be, never half of it; an attempt that
was fenced, or that leaves without `commit`, changes nothing.

A connection runs one COPY at a time and decoded batches interleave tables, so encoded rows are gathered per table and
COPYed a few megabytes at a time. Memory is bounded by `GATHERED_BYTES` and what one decoded batch encodes to.

The digests that the ledger keeps are of the bytes that were sent, computed here. Postgres digests what it stored when
that is verified (`digest.py`): two implementations that share no code, and have to agree.
"""

import uuid
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import uho_native
from psycopg import sql

from uho_pipelines.chunks import Chunk
from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.digest import (
    QUARANTINE_DIGESTED,
    count_quarantine,
    count_rows,
    digest_columns,
    require_known_hashes,
)
from uho_pipelines.warehouse.ledger import AttemptFencedError, as_jsonb, chunk_key
from uho_pipelines.warehouse.tables import WarehousePlan, read_plan

TABLE_BYTES = 2 * 1024 * 1024
"""So many encoded bytes of one table are gathered before they are COPYed."""

GATHERED_BYTES = 32 * 1024 * 1024
"""So many encoded bytes of all tables together; then all are COPYed."""

PIECE_BYTES = 512 * 1024
"""A batch is encoded in pieces of about so many bytes in Arrow; encoded they are at most about three times as large.
Pieces that fit into a core's cache are encoded in three quarters of the CPU of pieces four times as large."""


class RowsMisplacedError(UhoError):
    """The chunk's slots do not hold the rows that were written: some lie outside, or others were there."""

    def __init__(self, program: str, chunk: Chunk, event: str, written: int, found: int) -> None:
        self.program = program
        self.chunk = chunk
        self.event = event
        self.written = written
        self.found = found
        super().__init__(
            f"{program} chunk {chunk.key}: {written:,} rows of {event} were written and {found:,} lie in {chunk}; "
            "nothing was changed. Look for triggers or rules on the table; if there are none, report a defect"
        )


class ConnectionBusyError(UhoError):
    """The connection is in a transaction, which a load would become part of."""

    def __init__(self, program: str, chunk: Chunk) -> None:
        self.program = program
        self.chunk = chunk
        super().__init__(
            f"{program} chunk {chunk.key}: its connection is in a transaction already. Commit it before the load"
        )


@dataclass(frozen=True)
class LoadResult:
    """What a committed load left: rows and digests by event name, and rows in quarantine."""

    rows: Mapping[str, int]
    digests: Mapping[str, str]
    quarantined: int


@dataclass
class _Target:
    """A table, and encoded rows that wait for their COPY."""

    schema: str
    table: str
    columns: tuple[str, ...]
    digested: Collection[str]
    """Those of the columns that the digest covers."""
    pieces: list[bytes] = field(default_factory=list[bytes])
    waiting: int = 0
    """Bytes in `pieces`."""
    rows: int = 0
    """Taken in all."""
    digest: int = 0
    """Of the rows taken."""


@dataclass(frozen=True)
class Encoded:
    """Rows of one table, encoded for COPY."""

    target: _Target
    pieces: tuple[bytes, ...]
    rows: int
    digest: int


class ChunkLoad:
    """One chunk's transaction. `write` decoded batches in any order, then `commit` once.

    `write` is `encode`, which another thread may do for the next batch, and `copy`, which belongs to the transaction.
    """

    def __init__(
        self, connection: Connection, plan: WarehousePlan, program: Program, chunk: Chunk, attempt: uuid.UUID
    ) -> None:
        self.connection = connection
        self.plan = plan
        self.program = program
        self.chunk = chunk
        self.attempt = attempt
        self._key = chunk_key(program, chunk)
        self._events = {
            event: _Target(table.schema, table.name, table.columns, table.columns)
            for event, table in plan.tables.items()
        }
        self._by_index = list(self._events.values())
        self._quarantine = _Target("uho", "quarantine", QUARANTINE_COLUMNS, QUARANTINE_DIGESTED)
        self._begin()

    def write(self, decoded: uho_native.Decoded) -> None:
        """Take one decoded batch: its tables' rows and its quarantined records."""
        self.copy(self.encode(decoded))

    def encode(self, decoded: uho_native.Decoded) -> list[Encoded]:
        """Encode a decoded batch; the load stays as it is."""
        batches = [(self._by_index[index], batch) for index, batch in decoded.tables]
        if decoded.quarantine.num_rows:
            batches.append((self._quarantine, quarantine_rows(self.program, decoded.quarantine)))
        return [_encode(target, batch) for target, batch in batches]

    def copy(self, encoded: Iterable[Encoded]) -> None:
        """Take encoded rows, and COPY those of each table of which enough have gathered."""
        for one in encoded:
            target = one.target
            target.pieces.extend(one.pieces)
            target.waiting += sum(map(len, one.pieces))
            target.rows += one.rows
            target.digest += one.digest
            if target.waiting >= TABLE_BYTES:
                self._copy(target)
        if sum(target.waiting for target in self._targets()) >= GATHERED_BYTES:
            self._copy_all()

    def commit(
        self, counts: Mapping[str, Any], records_digest: str, *, before: Callable[[], object] = lambda: None
    ) -> LoadResult:
        """Write counts and digests to the ledger and commit; `records_digest` is of the records that were decoded.

        `before` is called when nothing but the commit is left to do, while the chunk is locked.

        Raises:
            AttemptFencedError: a later attempt owns the chunk; nothing was changed.
            RowsMisplacedError: the chunk does not hold exactly the rows that were written; nothing was changed.
        """
        self._copy_all()
        self._require_rows()
        with self.connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM uho.chunk_table WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s)", self._key
            )
            cursor.executemany(
                "INSERT INTO uho.chunk_table (network, owner, program, chunk_start, event, row_count, row_digest) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [[*self._key, event, target.rows, str(target.digest)] for event, target in self._events.items()],
            )
        counted = as_jsonb(counts)
        self._update_own_row(
            "events_state = 'complete', events_finished_at = now(), events_error = NULL, events_counts = %s, "
            "loaded_at = now(), loaded_counts = %s, loaded_digest = %s, loaded_idl_hash = %s, "
            "quarantine_digest = %s, repaired_at = NULL, repaired_idl_hash = NULL",
            [counted, counted, records_digest, self.program.idl_hash, str(self._quarantine.digest)],
        )
        before()
        self.connection.commit()
        rows = {event: target.rows for event, target in self._events.items()}
        digests = {event: str(target.digest) for event, target in self._events.items()}
        return LoadResult(rows, digests, self._quarantine.rows)

    def _begin(self) -> None:
        """Lock the chunk, check that it is still ours, and delete what it has."""
        lock_chunk(self.connection, self.program, self.chunk)
        require_known_hashes(self.connection)
        # Updating locks the row: who begins a later attempt waits for this load to end, and its work is not lost.
        self._update_own_row("events_state = 'running'", [])
        # Tables of events that are in no IDL version any more have rows of earlier loads.
        tables = {table.name for table in self.plan.tables.values()}
        tables.update(table.name for table in read_plan(self.connection, self.program).tables.values())
        for table in sorted(tables):
            delete = sql.SQL("DELETE FROM {} WHERE slot >= %s AND slot < %s")
            self.connection.execute(
                delete.format(sql.Identifier(self.plan.schema, table)), [self.chunk.start, self.chunk.end]
            )
        self.connection.execute(
            "DELETE FROM uho.quarantine WHERE (network, owner, program) = (%s, %s, %s) AND slot >= %s AND slot < %s",
            [*self._key[:3], self.chunk.start, self.chunk.end],
        )

    def _update_own_row(self, assignments: str, values: list[Any]) -> None:
        """Update the chunk's row in the ledger; AttemptFencedError when a later attempt owns it."""
        updated = self.connection.execute(
            f"UPDATE uho.chunk SET {assignments} "  # noqa: S608 - text of this module
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND events_attempt = %s".encode(),
            [*values, *self._key, self.attempt],
        )
        if updated.rowcount == 0:
            raise AttemptFencedError(self.program.key, self.chunk, "events")

    def _require_rows(self) -> None:
        """Return if the chunk's slots hold as many rows as were sent; RowsMisplacedError otherwise."""
        found = {event: count_rows(self.connection, table, self.chunk) for event, table in self.plan.tables.items()}
        for event, rows in found.items():
            if rows != self._events[event].rows:
                raise RowsMisplacedError(self.program.key, self.chunk, event, self._events[event].rows, rows)
        quarantined = count_quarantine(self.connection, self.program, self.chunk)
        if quarantined != self._quarantine.rows:
            raise RowsMisplacedError(self.program.key, self.chunk, "uho.quarantine", self._quarantine.rows, quarantined)

    def _targets(self) -> Iterator[_Target]:
        yield from self._by_index
        yield self._quarantine

    def _copy_all(self) -> None:
        for target in self._targets():
            if target.waiting:
                self._copy(target)

    def _copy(self, target: _Target) -> None:
        _copy_pieces(self.connection, target.schema, target.table, target.columns, target.pieces)
        target.pieces.clear()
        target.waiting = 0


def _encode(target: _Target, batch: pa.RecordBatch) -> Encoded:
    """Encode a table's rows, and digest what is sent."""
    columns = digest_columns(target.columns, batch.schema, target.digested)
    pieces = tuple(uho_native.encode_copy(piece) for piece in _pieces(batch))
    digest = sum(int(uho_native.copy_digest(piece, columns)) for piece in pieces)
    return Encoded(target, pieces, batch.num_rows, digest)


def lock_chunk(connection: Connection, program: Program, chunk: Chunk) -> None:
    """Be the only one that changes the chunk's rows, to the end of the transaction."""
    lock = f"uho chunk {program.key} {chunk.key}"
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [lock])


def copy_rows(connection: Connection, schema: str, table: str, columns: Sequence[str], batch: pa.RecordBatch) -> None:
    """COPY a batch, whose columns are `columns` in this order, into a table."""
    pieces = (uho_native.encode_copy(piece) for piece in _pieces(batch))
    _copy_pieces(connection, schema, table, columns, pieces)


def _copy_pieces(
    connection: Connection, schema: str, table: str, columns: Sequence[str], pieces: Iterable[bytes]
) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(schema, table), sql.SQL(", ").join(sql.Identifier(column) for column in columns)
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(uho_native.copy_header())
        for piece in pieces:
            copy.write(piece)
        copy.write(uho_native.copy_trailer())


_FROM_DECODER = (
    *("slot", "tx_index", "event_index", "signature", "block_time", "source", "instruction_path", "failed"),
    *("truncated", "discriminator", "reason", "idl", "payload", "accounts"),
)
"""What `uho.quarantine` takes as it is from the decoder's quarantine batch."""

QUARANTINE_COLUMNS = ("network", "owner", "program", "length", *_FROM_DECODER)


def quarantine_rows(program: Program, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return quarantined records as rows of `uho.quarantine`: with the program's key and the payload's length."""
    text = {b"uho:postgres": b"text"}
    columns: list[tuple[str, Any, Mapping[bytes, bytes]]] = [
        (name, pa.repeat(pa.scalar(value, pa.string()), batch.num_rows), text)
        for name, value in (("network", program.network), ("owner", program.owner), ("program", program.name))
    ]
    lengths = pc.call_function("binary_length", [batch.column("payload")]).cast(pa.int64())
    columns.append(("length", lengths, {b"uho:postgres": b"bigint"}))
    columns.extend((name, batch.column(name), batch.schema.field(name).metadata) for name in _FROM_DECODER)
    schema = pa.schema([pa.field(name, array.type, metadata=metadata) for name, array, metadata in columns])
    return pa.RecordBatch.from_arrays([array for _, array, _ in columns], schema=schema)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield the rows of `batch` in pieces of about `PIECE_BYTES`, at least one row each."""
    rows = max(1, batch.num_rows * PIECE_BYTES // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


@contextmanager
def chunk_load(
    connection: Connection, plan: WarehousePlan, program: Program, chunk: Chunk, attempt: uuid.UUID
) -> Generator[ChunkLoad]:
    """Replace a chunk's rows: `with chunk_load(…) as load: load.write(…); load.commit(…)`.

    Without commit nothing changes. The connection is used for this transaction alone until the block ends.

    Raises:
        AttemptFencedError: a later attempt owns the chunk.
        ConnectionBusyError: the connection is in a transaction.
    """
    if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise ConnectionBusyError(program.key, chunk)
    try:
        yield ChunkLoad(connection, plan, program, chunk, attempt)
    finally:
        if not connection.closed:
            try:
                connection.rollback()
            except psycopg.Error:  # interrupted within a command: without the connection the server rolls back
                connection.close()

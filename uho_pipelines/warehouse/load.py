"""Loading a chunk: its rows are replaced whole, in one transaction.

What belongs here: the transaction. Readers see the chunk as it was or as it will be, never half of it; an attempt that
was fenced, or that leaves without `commit`, changes nothing.
"""

import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import uho_native
from psycopg import sql
from psycopg.types.json import Jsonb

from uho_pipelines.chunks import Chunk
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.digest import row_digest
from uho_pipelines.warehouse.ledger import AttemptFencedError
from uho_pipelines.warehouse.tables import WarehousePlan

BUFFER_BYTES = 4 * 1024 * 1024
"""So many encoded bytes of one table are gathered before they are COPYed."""

ALL_BUFFERS_BYTES = 32 * 1024 * 1024
"""So many encoded bytes of all tables together; then all are COPYed."""


@dataclass(frozen=True)
class LoadResult:
    """What a committed load left: rows and digests by event name, and rows in quarantine."""

    rows: Mapping[str, int]
    digests: Mapping[str, str]
    quarantined: int


class ChunkLoad:
    """One chunk's transaction. `write` decoded batches in any order, then `commit` once."""

    def __init__(
        self, connection: Connection, plan: WarehousePlan, program: Program, chunk: Chunk, attempt: uuid.UUID
    ) -> None:
        self.connection = connection
        self.plan = plan
        self.program = program
        self.chunk = chunk
        self.attempt = attempt
        self.events = list(plan.tables)
        self.buffers: dict[str, bytearray] = {}
        self.quarantined = 0
        self._key = [program.network, program.owner, program.name, chunk.start]
        self._begin()

    def write(self, decoded: uho_native.Decoded) -> None:
        """Take one decoded batch: its tables' rows and its quarantined records."""
        for index, batch in decoded.tables:
            event = self.events[index]
            buffer = self.buffers.setdefault(event, bytearray())
            buffer += uho_native.encode_copy(batch)
            if len(buffer) > BUFFER_BYTES:
                self._copy(event)
        if sum(len(buffer) for buffer in self.buffers.values()) > ALL_BUFFERS_BYTES:
            self._copy_all()
        if decoded.quarantine.num_rows:
            self._quarantine(decoded.quarantine)

    def commit(self, counts: Mapping[str, Any], records_digest: str) -> LoadResult:
        """Write counts and digests to the ledger and commit; `records_digest` is of the records that were decoded.

        Raises:
            AttemptFencedError: a later attempt owns the chunk; nothing was changed.
        """
        self._copy_all()
        rows: dict[str, int] = {}
        digests: dict[str, str] = {}
        self.connection.execute(
            "DELETE FROM uho.chunk_table WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s)", self._key
        )
        for event, table in self.plan.tables.items():
            rows[event], digests[event] = row_digest(
                self.connection, table.schema, table.name, self.chunk.start, self.chunk.end
            )
            self.connection.execute(
                "INSERT INTO uho.chunk_table (network, owner, program, chunk_start, event, row_count, row_digest) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [*self._key, event, rows[event], digests[event]],
            )
        updated = self.connection.execute(
            "UPDATE uho.chunk SET events_state = 'complete', events_finished_at = now(), events_error = NULL, "
            "events_counts = %s, loaded_digest = %s "
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND events_attempt = %s",
            [Jsonb(dict(counts)), records_digest, *self._key, self.attempt],
        )
        if updated.rowcount == 0:
            raise AttemptFencedError(self.program.key, self.chunk, "events")
        self.connection.commit()
        return LoadResult(rows, digests, self.quarantined)

    def _begin(self) -> None:
        """Lock the chunk, check that it is still ours, and delete what it has."""
        self.connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"uho chunk {self.program.key} {self.chunk.key}"]
        )
        # Taking the row's lock keeps a later attempt waiting in `begin_attempt` no longer than this transaction lasts.
        owner = self.connection.execute(
            "SELECT 1 FROM uho.chunk "
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND events_attempt = %s",
            [*self._key, self.attempt],
        ).fetchone()
        if owner is None:
            raise AttemptFencedError(self.program.key, self.chunk, "events")
        span = [self.chunk.start, self.chunk.end]
        for table in self.plan.tables.values():
            delete = sql.SQL("DELETE FROM {} WHERE slot >= %s AND slot < %s").format(
                sql.Identifier(table.schema, table.name)
            )
            self.connection.execute(delete, span)
        self.connection.execute(
            "DELETE FROM uho.quarantine WHERE (network, owner, program) = (%s, %s, %s) AND slot >= %s AND slot < %s",
            [*self._key[:3], *span],
        )

    def _copy_all(self) -> None:
        for event in [event for event, buffer in self.buffers.items() if buffer]:
            self._copy(event)

    def _copy(self, event: str) -> None:
        table = self.plan.tables[event]
        self._copy_rows(table.schema, table.name, table.columns, self.buffers.pop(event))

    def _quarantine(self, batch: pa.RecordBatch) -> None:
        """COPY quarantined records, with the program's key in front and the payload's length."""
        count = batch.num_rows
        text = {b"uho:postgres": b"text"}
        columns: dict[str, tuple[Any, dict[bytes, bytes]]] = {
            name: (pa.array([value] * count, pa.string()), text)
            for name, value in zip(("network", "owner", "program"), self._key[:3], strict=True)
        }
        lengths = pa.array([len(payload) for payload in batch.column("payload").to_pylist()], pa.int64())
        columns["length"] = (lengths, {b"uho:postgres": b"bigint"})
        for name in QUARANTINE_COLUMNS:
            columns[name] = (batch.column(name), batch.schema.field(name).metadata)
        schema = pa.schema(
            [pa.field(name, array.type, metadata=metadata) for name, (array, metadata) in columns.items()]
        )
        rows = pa.RecordBatch.from_arrays([array for array, _ in columns.values()], schema=schema)
        self._copy_rows("uho", "quarantine", tuple(columns), uho_native.encode_copy(rows))
        self.quarantined += count

    def _copy_rows(self, schema: str, table: str, columns: tuple[str, ...], rows: bytes | bytearray) -> None:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            sql.Identifier(schema, table), sql.SQL(", ").join(sql.Identifier(column) for column in columns)
        )
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(uho_native.copy_header())
            copy.write(rows)
            copy.write(uho_native.copy_trailer())


QUARANTINE_COLUMNS = (
    *(
        "slot",
        "tx_index",
        "event_index",
        "signature",
        "block_time",
        "source",
        "instruction_path",
        "failed",
        "truncated",
    ),
    *("discriminator", "reason", "idl", "payload"),
)
"""What `uho.quarantine` takes as it is from the decoder's quarantine batch."""


@contextmanager
def chunk_load(
    connection: Connection, plan: WarehousePlan, program: Program, chunk: Chunk, attempt: uuid.UUID
) -> Generator[ChunkLoad]:
    """Replace a chunk's rows: `with chunk_load(…) as load: load.write(…); load.commit(…)`.

    Without commit nothing changes. The connection is used for this transaction alone until the block ends.

    Raises:
        AttemptFencedError: a later attempt owns the chunk.
    """
    connection.rollback()
    try:
        yield ChunkLoad(connection, plan, program, chunk, attempt)
    finally:
        if not connection.closed:
            connection.rollback()

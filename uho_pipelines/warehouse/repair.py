"""Repairing a chunk: its quarantined records are decoded again, in one transaction, and nothing else of it is touched.

What belongs here: the transaction. It locks and fences as a load does. What becomes rows is added to the tables, to
their counts and, since row digests are sums, to their digests, without looking at the rows that were there: damage that
was there before is found after.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import psycopg
import pyarrow as pa
import uho_native
from psycopg import sql
from solders.signature import Signature

from uho_pipelines.chunks import SLOTS_PER_EPOCH, Chunk
from uho_pipelines.decoding import SOURCES, Counts
from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.digest import add_row_digests, quarantine_digest, row_digest
from uho_pipelines.warehouse.ledger import AttemptFencedError, as_jsonb, chunk_key
from uho_pipelines.warehouse.load import QUARANTINE_COLUMNS, copy_rows, lock_chunk, quarantine_rows
from uho_pipelines.warehouse.tables import TablePlan, WarehousePlan

RECORDS_AT_ONCE = 2_000
"""So many quarantined records are in memory."""

Decode = Callable[[pa.RecordBatch], uho_native.Decoded]


class QuarantineAlteredError(UhoError):
    """The quarantine, or a table, does not have what the ledger says."""

    def __init__(self, program: str, chunk: Chunk, reason: str) -> None:
        self.program = program
        self.chunk = chunk
        super().__init__(
            f"{program} chunk {chunk.key}: {reason}, so its quarantined records cannot be decoded again alone; nothing "
            f"was changed. `uho replay {program} {chunk.options}` decodes the whole chunk from the lake"
        )


@dataclass(frozen=True)
class RepairResult:
    """What a committed repair came to. `repaired` counts the quarantined records alone; the others the whole chunk."""

    chunk: Chunk
    before: Counts
    repaired: Counts
    after: Counts


def repair_chunk(
    connection: Connection, plan: WarehousePlan, program: Program, chunk: Chunk, attempt: uuid.UUID, decode: Decode
) -> RepairResult:
    """Decode the chunk's quarantined records again and commit.

    Raises:
        AttemptFencedError: a later attempt owns the chunk; nothing was changed.
        QuarantineAlteredError: quarantine or tables are not as the ledger says; nothing was changed.
    """
    try:
        result = _Repair(connection, plan, program, chunk, attempt).run(decode)
        connection.commit()
    finally:
        if not connection.closed:
            connection.rollback()
    return result


class _Repair:
    """One chunk's transaction."""

    def __init__(
        self, connection: Connection, plan: WarehousePlan, program: Program, chunk: Chunk, attempt: uuid.UUID
    ) -> None:
        self.connection = connection
        self.program = program
        self.chunk = chunk
        self.attempt = attempt
        self.tables = list(plan.tables.items())
        self.aside: dict[int, TablePlan] = {}
        """Temporary tables of what was decoded, by table index."""

    def run(self, decode: Decode) -> RepairResult:
        lock_chunk(self.connection, self.program, self.chunk)
        before = self._own_counts()
        self._create_aside("uho_repair_quarantine", sql.Identifier("uho", "quarantine"))
        repaired = Counts()
        for records in self._quarantined():
            decoded = decode(records)
            repaired.add(decoded.counts)
            for index, batch in decoded.tables:
                table = self._table_aside(index)
                copy_rows(self.connection, table.schema, table.name, table.columns, batch)
            if decoded.quarantine.num_rows:
                rows = quarantine_rows(self.program, decoded.quarantine)
                copy_rows(self.connection, "pg_temp", "uho_repair_quarantine", QUARANTINE_COLUMNS, rows)
        if repaired.records != before.undecodable or repaired.twins_folded:
            reason = f"{repaired.records:,} quarantined records were read, the ledger counts {before.undecodable:,}"
            raise QuarantineAlteredError(self.program.key, self.chunk, reason)
        self._replace_quarantine()
        for index, table in self.aside.items():
            self._add_rows(*self.tables[index], table)
        after = _counts_after(before, repaired)
        self._update_ledger(after)
        return RepairResult(self.chunk, before, repaired, after)

    def _own_counts(self) -> Counts:
        """Lock the chunk's row, and return the counts of its load; refuse a quarantine that is not what was loaded."""
        row = self.connection.execute(
            "UPDATE uho.chunk SET events_state = 'running' "
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND events_attempt = %s "
            "RETURNING loaded_counts, quarantine_digest",
            [*chunk_key(self.program, self.chunk), self.attempt],
        ).fetchone()
        if row is None:
            raise AttemptFencedError(self.program.key, self.chunk, "events")
        counts, digest = row
        if counts is None:
            raise QuarantineAlteredError(self.program.key, self.chunk, "its events are not loaded")
        before = Counts()
        before.add(counts)
        found, found_digest = quarantine_digest(self.connection, self.program, self.chunk)
        if found != before.undecodable or digest not in {None, found_digest}:
            reason = f"uho.quarantine does not have the {before.undecodable:,} rows that were loaded"
            raise QuarantineAlteredError(self.program.key, self.chunk, reason)
        return before

    def _quarantined(self) -> Iterator[pa.RecordBatch]:
        """Yield the chunk's quarantined records: each source apart, since twins were folded at the load."""
        for source in SOURCES:
            with self.connection.cursor(name="quarantined") as cursor:
                cursor.itersize = RECORDS_AT_ONCE
                cursor.execute(
                    "SELECT slot, tx_index, event_index, signature, extract(epoch FROM block_time)::bigint, "
                    "instruction_path, payload, failed, truncated, accounts FROM uho.quarantine "
                    "WHERE (network, owner, program) = (%s, %s, %s) AND slot >= %s AND slot < %s AND source = %s "
                    "ORDER BY slot, tx_index, event_index",
                    [*chunk_key(self.program), self.chunk.start, self.chunk.end, source],
                )
                while rows := cursor.fetchmany(RECORDS_AT_ONCE):
                    yield _records(self.program, source, rows)

    def _table_aside(self, index: int) -> TablePlan:
        if index not in self.aside:
            _, table = self.tables[index]
            name = f"uho_repair_{index}"
            self._create_aside(name, sql.Identifier(table.schema, table.name))
            self.aside[index] = replace(table, schema="pg_temp", name=name)
        return self.aside[index]

    def _create_aside(self, name: str, like: sql.Identifier) -> None:
        statement = sql.SQL("CREATE TEMPORARY TABLE {} (LIKE {}) ON COMMIT DROP")
        self.connection.execute(statement.format(sql.Identifier(name), like))

    def _replace_quarantine(self) -> None:
        self.connection.execute(
            "DELETE FROM uho.quarantine WHERE (network, owner, program) = (%s, %s, %s) AND slot >= %s AND slot < %s",
            [*chunk_key(self.program), self.chunk.start, self.chunk.end],
        )
        columns = sql.SQL(", ").join(sql.Identifier(column) for column in QUARANTINE_COLUMNS)
        statement = sql.SQL("INSERT INTO uho.quarantine ({0}) SELECT {0} FROM pg_temp.uho_repair_quarantine")
        self.connection.execute(statement.format(columns))

    def _add_rows(self, event: str, table: TablePlan, aside: TablePlan) -> None:
        """Move what was decoded into its table, and add it to the ledger's count and digest of it."""
        rows, digest = row_digest(self.connection, aside, self.chunk)
        columns = sql.SQL(", ").join(sql.Identifier(column) for column in table.columns)
        statement = sql.SQL("INSERT INTO {0} ({1}) SELECT {1} FROM {2}")
        try:
            self.connection.execute(
                statement.format(
                    sql.Identifier(table.schema, table.name), columns, sql.Identifier("pg_temp", aside.name)
                )
            )
        except psycopg.errors.UniqueViolation:
            reason = f"{table.schema}.{table.name} has a row of a quarantined record already"
            raise QuarantineAlteredError(self.program.key, self.chunk, reason) from None
        key = chunk_key(self.program, self.chunk)
        kept = self.connection.execute(
            "SELECT row_count, row_digest FROM uho.chunk_table "
            "WHERE (network, owner, program, chunk_start, event) = (%s, %s, %s, %s, %s)",
            [*key, event],
        ).fetchone()
        count, sum_before = kept or (0, "0")
        self.connection.execute(
            "INSERT INTO uho.chunk_table (network, owner, program, chunk_start, event, row_count, row_digest) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (network, owner, program, chunk_start, event) "
            "DO UPDATE SET row_count = excluded.row_count, row_digest = excluded.row_digest",
            [*key, event, count + rows, add_row_digests(sum_before, digest)],
        )

    def _update_ledger(self, after: Counts) -> None:
        _, digest = quarantine_digest(self.connection, self.program, self.chunk)
        counted = as_jsonb(after.as_json())
        self.connection.execute(
            "UPDATE uho.chunk SET events_state = 'complete', events_finished_at = now(), events_error = NULL, "
            "events_counts = %s, loaded_counts = %s, quarantine_digest = %s, repaired_at = now(), "
            "repaired_idl_hash = %s WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s)",
            [counted, counted, digest, self.program.idl_hash, *chunk_key(self.program, self.chunk)],
        )


def _counts_after(before: Counts, repaired: Counts) -> Counts:
    """Return the chunk's counts: what was undecodable is now whatever decoding it again made of it."""
    after = Counts()
    instructions = {**asdict(before.instructions), "records": 0, "undecodable": 0}
    known = {**before.as_json(), "records": 0, "undecodable": 0, "undecodable_by": [], "instructions": instructions}
    after.add(known)
    after.add(repaired.as_json())
    after.records = before.records
    after.instructions.records = before.instructions.records
    return after


def _records(program: Program, source: str, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """Return rows of the quarantine as the records that they are."""
    slots, tx_indexes, event_indexes, signatures, times, paths, payloads, failed, truncated, accounts = map(
        list, zip(*rows, strict=True)
    )
    columns: dict[str, list[Any]] = {
        "slot": slots,
        "tx_index": tx_indexes,
        "event_index": event_indexes,
        "signature": [bytes(Signature.from_string(signature)) for signature in signatures],
        "block_time": times,
        "program": [program.id_bytes] * len(rows),
        "source": [SOURCES.index(source)] * len(rows),
        "instruction_path": paths,
        "payload": payloads,
        "failed": failed,
        "truncated": truncated,
        "epoch": [slot // SLOTS_PER_EPOCH for slot in slots],
        # Where it lay in the archive is not kept in the quarantine, and nothing is decoded by it.
        "archive_offset": [0] * len(rows),
        "accounts": accounts,
    }
    schema = uho_native.record_schema(accounts=True)
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)

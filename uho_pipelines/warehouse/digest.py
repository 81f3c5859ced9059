"""The digest of a chunk's rows in one table: it finds damage, it is no protection from an adversary.

What belongs here: the formula in SQL, and comparing the rows that are there with the digests in the ledger. A load
computes the same digest natively, of the bytes that it sends (`uho_native.copy_digest`): Postgres needs half as much
CPU for it as for the COPY.

A row's digest mixes the 64-bit hashes of its values, each seeded by its column's name. A null hashes to 0 and changes
nothing, so a nullable column can be added and old digests stay valid. A chunk's digest is the sum over its rows, so
that their order does not matter. The hashes are Postgres's own, those behind hash partitions, which no upgrade may
change; they work on values, not on text, so no setting of a session changes them, and they run four times as fast as
hashing `jsonb_strip_nulls(to_jsonb(row))::text` (686,000 against 165,000 rows/s of a swap event). A server of the other
byte order has other hashes; `require_known_hashes` refuses it.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import uho_native
from psycopg import sql

from uho_pipelines.chunks import Chunk
from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.tables import TablePlan, WarehousePlan, read_plan

PROBE = b"a text of more than one block"
"""What is hashed on both sides, to see whether they agree."""


class HashesUnknownError(UhoError):
    """The server's hashes are not those of every Postgres that this was tried with."""

    def __init__(self) -> None:
        super().__init__(
            "this Postgres hashes values differently, so that the digests of rows that are sent would not be those of "
            "the rows that it keeps; nothing was changed. Postgres on a big-endian machine does so: use one on a "
            "little-endian machine (x86-64, ARM)"
        )


@dataclass(frozen=True)
class Damage:
    """A table whose rows of a chunk are not those that were loaded; `table` is None where the table is gone."""

    event: str
    table: str | None
    rows_loaded: int
    rows_found: int

    def __str__(self) -> str:
        where = f"table {self.table}" if self.table else "its table is gone"
        rows = f"{self.rows_found:,} rows" if self.rows_found != self.rows_loaded else "as many rows, with other values"
        return f"{self.event} ({where}): loaded were {self.rows_loaded:,} rows, found {rows}"


def row_digest(connection: Connection, table: TablePlan, chunk: Chunk) -> tuple[int, str]:
    """Return the number of the chunk's rows in `table` and their digest (decimal; "0" for none)."""
    row = _row_hash(table.columns, table.kinds)
    return _digest(connection, row, sql.Identifier(table.schema, table.name), sql.SQL("TRUE"), [], chunk)


def quarantine_digest(connection: Connection, program: Program, chunk: Chunk) -> tuple[int, str]:
    """Return the number of the chunk's rows in `uho.quarantine` and their digest."""
    row = _row_hash(QUARANTINE_DIGESTED, {})
    return _digest(connection, row, _QUARANTINE, _OF_PROGRAM, _program_key(program), chunk)


def count_rows(connection: Connection, table: TablePlan, chunk: Chunk) -> int:
    """Return the number of the chunk's rows in `table`."""
    return _count(connection, sql.Identifier(table.schema, table.name), sql.SQL("TRUE"), [], chunk)


def count_quarantine(connection: Connection, program: Program, chunk: Chunk) -> int:
    """Return the number of the chunk's rows in `uho.quarantine`."""
    return _count(connection, _QUARANTINE, _OF_PROGRAM, _program_key(program), chunk)


def digest_columns(
    columns: Sequence[str], schema: pa.Schema, digested: Collection[str]
) -> list[tuple[str, str | None]]:
    """Return the columns of a table for `uho_native.copy_digest`: those that are not `digested` have no type.

    `schema` is that of the batch whose columns are `columns`, in this order; its fields name their Postgres types.
    """
    types = (field.metadata[b"uho:postgres"].decode() for field in schema)
    return [(column, kind if column in digested else None) for column, kind in zip(columns, types, strict=True)]


def require_known_hashes(connection: Connection) -> None:
    """Return if the server's hashes are those that rows are digested with before they are sent.

    Raises:
        HashesUnknownError: they are not.
    """
    row = struct.pack(f">hi{len(PROBE)}s", 1, len(PROBE), PROBE)
    query = "SELECT hashint8extended(hashtextextended(%s, hashtextextended('probe', 0)), 0)::text"
    found = connection.execute(query, [PROBE.decode()]).fetchone()
    if found != (uho_native.copy_digest(row, [("probe", "text")]),):
        raise HashesUnknownError


def add_row_digests(first: str, second: str) -> str:
    """Return the digest of two disjoint sets of rows together."""
    return str(int(first) + int(second))


def find_damage(connection: Connection, program: Program, chunk: Chunk) -> list[Damage]:
    """Return the tables in which the chunk's rows are not those that were loaded last; an empty list: all is well."""
    plan = read_plan(connection, program)
    with connection.transaction():
        # One snapshot: a load that commits between two tables is no damage.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return damage_in_snapshot(connection, plan, program, chunk)


def damage_in_snapshot(connection: Connection, plan: WarehousePlan, program: Program, chunk: Chunk) -> list[Damage]:
    """Do as `find_damage` does, in the caller's transaction, which must be of one snapshot."""
    damages: list[Damage] = []
    loaded = {
        event: (rows, digest)
        for event, rows, digest in connection.execute(
            "SELECT event, row_count, row_digest FROM uho.chunk_table "
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s)",
            [program.network, program.owner, program.name, chunk.start],
        )
    }
    # Tables that came after the load have no digest of the chunk, and no rows of it.
    for event in sorted(loaded.keys() | plan.tables.keys()):
        table = plan.tables.get(event)
        expected = loaded.get(event, (0, "0"))
        found = (0, "") if table is None else row_digest(connection, table, chunk)
        if found != expected:
            damages.append(Damage(event, f"{table.schema}.{table.name}" if table else None, expected[0], found[0]))
    return damages


QUARANTINE_DIGESTED = (
    *("slot", "tx_index", "event_index", "signature", "source", "block_time", "instruction_path", "failed"),
    *("truncated", "discriminator", "length", "reason", "idl", "payload", "accounts"),
)
"""The columns of `uho.quarantine` that its digest covers: all that a decoder put there."""


_QUARANTINE = sql.Identifier("uho", "quarantine")
_OF_PROGRAM = sql.SQL("(network, owner, program) = (%s, %s, %s)")


def _program_key(program: Program) -> list[Any]:
    return [program.network, program.owner, program.name]


def _count(connection: Connection, table: sql.Identifier, condition: sql.SQL, values: list[Any], chunk: Chunk) -> int:
    query = sql.SQL("SELECT count(*) FROM {} WHERE {} AND slot >= %s AND slot < %s").format(table, condition)
    row = connection.execute(query, [*values, chunk.start, chunk.end]).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return int(row[0])


def _digest(
    connection: Connection,
    row_hash: sql.Composable,
    table: sql.Identifier,
    condition: sql.SQL,
    values: list[Any],
    chunk: Chunk,
) -> tuple[int, str]:
    query = sql.SQL(
        "SELECT count(*), coalesce(sum(hashint8extended({row}, 0)), 0)::text FROM {table} "
        "WHERE {condition} AND slot >= %s AND slot < %s"
    ).format(row=row_hash, table=table, condition=condition)
    row = connection.execute(query, [*values, chunk.start, chunk.end]).fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    return int(row[0]), str(row[1])


_TYPED_HASHES = {
    "slot": "hashint8extended",
    "tx_index": "hashint4extended",
    "event_index": "hashint4extended",
    "signature": "hashtextextended",
    "source": "hashtextextended",
}
"""Columns that every table has and that are never null: their types' own hashes are those of a record, for less."""


def _row_hash(columns: Sequence[str], kinds: Mapping[str, str]) -> sql.Composable:
    """Return the SQL of a row's 64 bits: exclusive or of its columns' hashes, where a null's is 0."""
    return sql.SQL(" # ").join(_column_hash(column, kinds.get(column)) for column in columns)


def _column_hash(column: str, kind: str | None) -> sql.Composable:
    # A record of one column has every type's hash behind one name, and is the only one that takes nulls.
    form = "hash_record_extended(ROW({}), hashtextextended({}, 0))"
    if column in _TYPED_HASHES and kind != "bytea":
        form = _TYPED_HASHES[column] + "({}, hashtextextended({}, 0))"
    return sql.SQL(form).format(sql.Identifier(column), sql.Literal(column))  # pyright: ignore[reportArgumentType]

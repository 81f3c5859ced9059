"""The digest of a chunk's rows in one table, computed in SQL: it finds damage, it is no protection from an adversary.

What belongs here: the formula, and comparing the rows that are there with the digests in the ledger.

A row's digest mixes the 64-bit hashes of its values, each seeded by its column's name. A null hashes to 0 and changes
nothing, so a nullable column can be added and old digests stay valid. A chunk's digest is the sum over its rows, so
that their order does not matter. The hashes are Postgres's own, those behind hash partitions, which no upgrade may
change; they work on values, not on text, so no setting of a session changes them, and they run four times as fast as
hashing `jsonb_strip_nulls(to_jsonb(row))::text` (686,000 against 165,000 rows/s of a swap event).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from uho_pipelines.chunks import Chunk
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.tables import TablePlan, WarehousePlan, read_plan


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
    own = sql.SQL("(network, owner, program) = (%s, %s, %s)")
    key = [program.network, program.owner, program.name]
    return _digest(connection, _row_hash(QUARANTINE_DIGESTED, {}), sql.Identifier("uho", "quarantine"), own, key, chunk)


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

"""Indexes that program.yaml asks for: built after a load, beside readers and writers, dropped when no longer asked for.

What belongs here: which indexes are asked for, and having exactly those. Only indexes that were made here, which the
ledger's `uho.index` lists, are ever dropped; a person's own stay.

An index is `btree`, for equality, ranges and order. A field of unbounded length (string, bytes) gets a `hash` index,
for equality alone: a btree refuses values above 2,700 bytes, and with them the whole load.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg
import pyarrow as pa
import uho_native
from psycopg import sql

from uho_pipelines.redaction import redact
from uho_pipelines.registry import PROGRAM_FILE, Program, ProgramFault, ProgramRefusedError
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.naming import FIXED_COLUMNS, INSTRUCTION_COLUMNS
from uho_pipelines.warehouse.tables import WarehousePlan

EVERY_EVENT = "*"

INDEXED_FIXED_COLUMNS = ("signature", "block_time", "source")
"""The fixed columns of events that can be indexed; the others are the primary key."""

INDEXED_INSTRUCTION_COLUMNS = ("signature", "block_time")
"""Those of instructions."""

NAME_BYTES = 63
"""Postgres cuts longer names."""


@dataclass(frozen=True)
class AskedIndex:
    """An index that program.yaml asks for: `columns` are fixed columns or fields, as in the IDL."""

    event: str
    columns: tuple[str, ...]
    method: Literal["btree", "hash"]


@dataclass
class IndexChanges:
    """What having the indexes came to, by name."""

    built: list[str] = field(default_factory=list[str])
    dropped: list[str] = field(default_factory=list[str])
    faults: list[str] = field(default_factory=list[str])


def asked_indexes(program: Program, tables: Sequence[uho_native.EventTable]) -> list[AskedIndex]:
    """Return the indexes that program.yaml asks for.

    Raises:
        ProgramRefusedError: it asks for one of an event or field that no IDL version has, or that has no index.
    """
    faults: list[ProgramFault] = []
    found: dict[AskedIndex, None] = {}
    by_name = {table.name: table for table in tables}
    for event, asked in program.indexes.items():
        for place, columns in enumerate(asked):
            where = f"indexes.{event}.{place}"
            fault = _fault(event, columns, by_name)
            if fault is not None:
                faults.append(ProgramFault(f"{program.name}/{PROGRAM_FILE}", where, fault))
                continue
            every = [table for table in tables if table.kind == "event"]
            for table in every if event == EVERY_EVENT else [by_name[event]]:
                unbounded = any(_is_unbounded(_type(table, column)) for column in columns)
                found[AskedIndex(table.name, columns, "hash" if unbounded else "btree")] = None
    if faults:
        raise ProgramRefusedError(*faults)
    return list(found)


def _fault(event: str, columns: tuple[str, ...], tables: Mapping[str, uho_native.EventTable]) -> str | None:
    """Return why an index cannot be; None when it can."""
    if len(set(columns)) < len(columns):
        return "names a column twice"
    if event == EVERY_EVENT:
        strange = [column for column in columns if column not in INDEXED_FIXED_COLUMNS]
        return f"{strange[0]!r} is no column of every event: {', '.join(INDEXED_FIXED_COLUMNS)}" if strange else None
    if event not in tables:
        return f"no IDL version has an event {event!r}; there are: {', '.join(tables)}"
    for column in columns:
        kind = _type(tables[event], column)
        if kind is None:
            known = ", ".join([*_indexed_fixed(tables[event]), *_fields(tables[event])])
            return f"{column!r} is no field of {event}; it has: {known}"
        if kind == "nested":
            return f"{column!r} is nested (jsonb), which has no plain index; make one of your own for what you look up"
        if _is_unbounded(kind) and len(columns) > 1:
            return f"{column!r} has no bound in length, so it can only be indexed alone (by its hash)"
    return None


def _fields(table: uho_native.EventTable) -> dict[str, Any]:
    """Return the event's own fields by the name under which they are asked for."""
    fixed = 1 + table.schema.names.index("block_time")
    fields = list(table.schema)[fixed:]
    instruction = table.kind == "instruction"
    taken = {*FIXED_COLUMNS, *(INSTRUCTION_COLUMNS if instruction else ())}
    prefix = "argument" if instruction else "event"
    return {f"{prefix}_{field.name}" if field.name in taken else field.name: field for field in fields}


def _indexed_fixed(table: uho_native.EventTable) -> tuple[str, ...]:
    return INDEXED_INSTRUCTION_COLUMNS if table.kind == "instruction" else INDEXED_FIXED_COLUMNS


def _type(table: uho_native.EventTable, column: str) -> Any:  # noqa: ANN401 - a type of pyarrow
    """Return a column's Arrow type, "nested" for jsonb, None when there is no such column."""
    if column in _indexed_fixed(table):
        return pa.bool_()  # as good as any of bounded length: source is one of two words
    found = _fields(table).get(column)
    if found is None:
        return None
    return "nested" if (found.metadata or {}).get(b"uho:postgres") == b"jsonb" else found.type


def _is_unbounded(kind: Any) -> bool:  # noqa: ANN401 - what `_type` returns
    return kind != "nested" and kind is not None and (pa.types.is_string(kind) or pa.types.is_binary(kind))


@dataclass(frozen=True)
class _Index:
    event: str
    table: str
    columns: tuple[str, ...]
    """As in SQL."""
    method: str

    def name(self) -> str:
        """Postgres's own way of naming, or with a hash where that is too long."""
        words = f"{self.table}_{'_'.join(self.columns)}"
        if len(words) + 4 <= NAME_BYTES:
            return f"{words}_idx"
        return f"{self.table[:49]}_{hashlib.sha256(words.encode()).hexdigest()[:8]}_idx"


def ensure_indexes(
    connection: Connection, program: Program, plan: WarehousePlan, tables: Sequence[uho_native.EventTable]
) -> IndexChanges:
    """Have exactly the indexes that program.yaml asks for, built concurrently: readers and writers go on.

    The connection must be outside a transaction. While another session does the same for this program, nothing is done
    here. What fails is told in the result; it leaves rows as they are and is tried again at the next load.
    """
    changes = IndexChanges()
    wanted = {index.name(): index for index in _wanted(program, plan, tables)}
    lock = f"uho indexes {program.key}"
    connection.autocommit = True
    try:
        kept = {name for name, *_ in _made(connection, program)}
        if not wanted and not kept:
            return changes
        row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [lock]).fetchone()
        if row == (True,):
            try:
                _change(connection, program, plan.schema, wanted, changes)
            finally:
                connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [lock])
    finally:
        if not connection.closed:
            connection.autocommit = False
    return changes


def _wanted(program: Program, plan: WarehousePlan, tables: Sequence[uho_native.EventTable]) -> Iterator[_Index]:
    by_name = {table.name: table for table in tables}
    for asked in asked_indexes(program, tables):
        table = plan.tables[asked.event]
        fields = _fields(by_name[asked.event])
        columns = [
            column if column in _indexed_fixed(by_name[asked.event]) else table.field_columns[fields[column].name]
            for column in asked.columns
        ]
        yield _Index(asked.event, table.name, tuple(columns), asked.method)


def _made(connection: Connection, program: Program) -> list[tuple[str, str, list[str], str]]:
    """Return (name, event, columns, method) of the indexes that were made for a program."""
    return connection.execute(
        "SELECT index_name, event, columns, method FROM uho.index WHERE (network, owner, program) = (%s, %s, %s) "
        "ORDER BY index_name",
        [program.network, program.owner, program.name],
    ).fetchall()  # type: ignore[return-value] - the ledger's own columns


def _change(
    connection: Connection, program: Program, schema: str, wanted: Mapping[str, _Index], changes: IndexChanges
) -> None:
    valid: dict[str, bool] = dict(
        connection.execute(
            "SELECT c.relname, i.indisvalid FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s",
            [schema],
        ).fetchall()
    )
    made = {name: (event, tuple(columns), method) for name, event, columns, method in _made(connection, program)}
    for name, was in made.items():
        index = wanted.get(name)
        same = index is not None and was == (index.event, index.columns, index.method)
        if same and valid.get(name):
            continue
        # Not asked for any more, or left invalid by a build that failed.
        drop = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(schema, name))
        if _done(connection, changes, drop):
            connection.execute(
                "DELETE FROM uho.index WHERE (network, owner, program, index_name) = (%s, %s, %s, %s)",
                [program.network, program.owner, program.name, name],
            )
            if not same and name in valid:
                changes.dropped.append(name)
            valid.pop(name, None)
    for name, index in wanted.items():
        if name in made and name in valid:
            continue
        if name in valid:
            changes.faults.append(f"{schema}.{name} exists and is not of our making; rename or drop it")
            continue
        # Recorded before it is built: an index that a crash leaves invalid is known to be ours.
        connection.execute(
            "INSERT INTO uho.index (network, owner, program, index_name, event, columns, method) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [
                *(program.network, program.owner, program.name, name),
                *(index.event, list(index.columns), index.method),
            ],
        )
        statement = sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING {} ({})").format(
            sql.Identifier(name),
            sql.Identifier(schema, index.table),
            sql.Identifier(index.method),
            sql.SQL(", ").join(sql.Identifier(column) for column in index.columns),
        )
        if _done(connection, changes, statement):
            changes.built.append(name)


def _done(connection: Connection, changes: IndexChanges, statement: sql.Composed) -> bool:
    """Run a statement; a fault of Postgres is kept in `changes`."""
    try:
        connection.execute(statement)
    except psycopg.Error as error:
        changes.faults.append(redact(f"{statement.as_string(None)}: {str(error).strip()}"))
        if connection.closed:
            raise
        return False
    return True

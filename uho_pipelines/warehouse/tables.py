"""A program's event tables: made from what the decoder yields, and migrated in place when an IDL version adds to them.

What belongs here: schemas, tables, columns, comments, and the names kept for them. Rows are `load.py`'s business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import uho_native
from psycopg import sql

from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.naming import FIXED_COLUMNS, column_name, sql_name

POSTGRES_TYPES: Mapping[str, sql.SQL] = {
    "bigint": sql.SQL("bigint"),
    "boolean": sql.SQL("boolean"),
    "bytea": sql.SQL("bytea"),
    "double precision": sql.SQL("double precision"),
    "integer": sql.SQL("integer"),
    "jsonb": sql.SQL("jsonb"),
    "numeric": sql.SQL("numeric"),
    "real": sql.SQL("real"),
    "smallint": sql.SQL("smallint"),
    "text": sql.SQL("text"),
    "timestamptz": sql.SQL("timestamptz"),
}
"""The column types that the decoder asks for; anything else is refused rather than put into SQL."""

FLAG_COLUMNS = ("failed", "truncated")
"""The last columns of the tables of a program with `include_failed`."""

NULLABLE_FIXED_COLUMNS = frozenset({"block_time"})


class ColumnTypeError(UhoError):
    """A decoded column has no Postgres type, or its table has it with another one."""

    def __init__(self, table: str, column: str, reason: str) -> None:
        self.table = table
        self.column = column
        self.reason = reason
        super().__init__(f"column {column} of {table}: {reason}")


@dataclass(frozen=True)
class TablePlan:
    """Where an event's rows go: `columns` in the order of the decoded batch's columns."""

    schema: str
    name: str
    columns: tuple[str, ...]
    field_columns: Mapping[str, str]
    """The event's own fields: name in the IDL → column."""


@dataclass(frozen=True)
class WarehousePlan:
    """The tables of one program by event name."""

    schema: str
    tables: Mapping[str, TablePlan] = field(default_factory=dict[str, TablePlan])


def ensure_tables(connection: Connection, program: Program, tables: Sequence[uho_native.EventTable]) -> WarehousePlan:
    """Have the program's schema with a table per event, every field a column, and return where rows go.

    One transaction; safe to run concurrently. Columns are added, never removed or changed. The program must be in the
    ledger (`ledger.begin_attempt` sees to it).

    Raises:
        ColumnTypeError: a column exists with another type than the decoder asks for now.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"uho tables {program.key}"])
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(program.schema_name)))
        names = _Names(connection, program)
        existing = _existing_columns(connection, program.schema_name)
        plans = {table.name: _ensure_table(connection, program, table, names, existing) for table in tables}
    return WarehousePlan(program.schema_name, plans)


def read_plan(connection: Connection, program: Program) -> WarehousePlan:
    """Return the program's tables as they are, for reading: names from `uho.sql_name`, nothing is made."""
    with connection.transaction():
        rows = connection.execute(
            "SELECT event, field, sql_name FROM uho.sql_name WHERE (network, owner, program) = (%s, %s, %s)",
            [program.network, program.owner, program.name],
        ).fetchall()
    tables = {event: made for event, name, made in rows if not name}
    columns = {event: {name: made for of, name, made in rows if of == event and name} for event in tables}
    schema = program.schema_name
    plans = {
        event: TablePlan(schema, made, tuple(columns[event].values()), columns[event]) for event, made in tables.items()
    }
    return WarehousePlan(schema, plans)


def _ensure_table(
    connection: Connection,
    program: Program,
    table: uho_native.EventTable,
    names: "_Names",
    existing: Mapping[tuple[str, str], str],
) -> TablePlan:
    schema: pa.Schema = table.schema
    name = names.table(table.name)
    identifier = sql.Identifier(program.schema_name, name)
    fixed = 1 + schema.names.index("block_time")
    columns: dict[str, str] = {}
    fields: dict[str, str] = {}
    for index, arrow_field in enumerate(schema):
        column = arrow_field.name if index < fixed else names.column(table.name, arrow_field.name)
        columns[column] = _postgres_type(name, arrow_field)
        if index >= fixed:
            fields[arrow_field.name] = column
    if program.include_failed:
        columns |= dict.fromkeys(FLAG_COLUMNS, "boolean")
    definitions = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(column),
            POSTGRES_TYPES[kind],
            sql.SQL(" NOT NULL" if column in FIXED_COLUMNS and column not in NULLABLE_FIXED_COLUMNS else ""),
        )
        for column, kind in columns.items()
    ]
    connection.execute(
        sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY (slot, tx_index, event_index))").format(
            identifier, sql.SQL(", ").join(definitions)
        )
    )
    if any(table_name == name for table_name, _ in existing):
        for column, kind in columns.items():
            kept = existing.get((name, column))
            if kept is None:
                default = sql.SQL(
                    " NOT NULL DEFAULT false"
                    if column in ("failed", "truncated") and column not in fields.values()
                    else ""
                )
                connection.execute(
                    sql.SQL("ALTER TABLE {} ADD COLUMN {} {}{}").format(
                        identifier, sql.Identifier(column), POSTGRES_TYPES[kind], default
                    )
                )
            elif kept != kind:
                raise ColumnTypeError(name, column, f"is {kept}; the IDL now asks for {kind}")
    _comment(connection, program.schema_name, name, table, fields)
    return TablePlan(program.schema_name, name, tuple(columns), fields)


def _comment(
    connection: Connection, schema: str, name: str, table: uho_native.EventTable, fields: Mapping[str, str]
) -> None:
    comment = sql.Literal(_plain(table.docs or f"Event {table.name}"))
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(schema, name), comment))
    for arrow_field in table.schema:
        docs = (arrow_field.metadata or {}).get(b"uho:docs", b"").decode()
        if docs and arrow_field.name in fields:
            column = sql.Identifier(schema, name, fields[arrow_field.name])
            connection.execute(sql.SQL("COMMENT ON COLUMN {} IS {}").format(column, sql.Literal(_plain(docs))))


def _plain(text: str) -> str:
    return text.replace("\0", "\\u0000")


def _postgres_type(table: str, arrow_field: Any) -> str:  # noqa: ANN401 - pyarrow has no types
    kind = (arrow_field.metadata or {}).get(b"uho:postgres", b"").decode()
    if kind not in POSTGRES_TYPES:
        raise ColumnTypeError(
            table, arrow_field.name, f"the decoder asks for the Postgres type {kind!r}, which is not known"
        )
    return kind


def _existing_columns(connection: Connection, schema: str) -> dict[tuple[str, str], str]:
    """Return `{(table, column): type}` of a schema, types as `POSTGRES_TYPES` writes them."""
    query = """
        SELECT c.relname, a.attname, replace(format_type(a.atttypid, NULL), 'timestamp with time zone', 'timestamptz')
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p')"""
    quoted = sql.Identifier(schema).as_string(connection)
    return {(row[0], row[1]): row[2] for row in connection.execute(query, [quoted])}


class _Names:
    """The names of a program's tables and columns: those in `uho.sql_name`, and new ones that it writes there."""

    def __init__(self, connection: Connection, program: Program) -> None:
        self.connection = connection
        self.key = [program.network, program.owner, program.name]
        rows = connection.execute(
            "SELECT event, field, sql_name FROM uho.sql_name WHERE (network, owner, program) = (%s, %s, %s)", self.key
        )
        self.kept: dict[tuple[str, str], str] = {(event, name): made for event, name, made in rows}

    def table(self, event: str) -> str:
        taken = {made for (_, name), made in self.kept.items() if not name}
        return self.kept.get((event, "")) or self._keep(event, "", sql_name(event, taken))

    def column(self, event: str, name: str) -> str:
        taken = {*FIXED_COLUMNS, *(made for (of, kept), made in self.kept.items() if of == event and kept)}
        return self.kept.get((event, name)) or self._keep(event, name, column_name(name, taken))

    def _keep(self, event: str, name: str, made: str) -> str:
        self.connection.execute(
            "INSERT INTO uho.sql_name (network, owner, program, event, field, sql_name) "
            "VALUES (%s, %s, %s, %s, %s, %s)",
            [*self.key, event, name, made],
        )
        self.kept[event, name] = made
        return made

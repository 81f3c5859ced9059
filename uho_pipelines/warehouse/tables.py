"""A program's event tables: made from what the decoder yields, and migrated in place when an IDL version adds to them.

What belongs here: schemas, tables, columns, comments, and the names kept for them. Rows are `load.py`'s business.

Every chunk's load asks for its tables, so what is as it should be is left untouched: even a COMMENT that changes
nothing takes a lock that would cancel the table's autovacuum each time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import uho_native
from psycopg import sql

from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.naming import (
    FIXED_COLUMNS,
    FLAG_COLUMNS,
    INSTRUCTION,
    INSTRUCTION_COLUMNS,
    column_name,
    table_name,
)
from uho_pipelines.warehouse.roles import ensure_owner_role

POSTGRES_TYPES: Mapping[str, sql.SQL] = {
    "bigint": sql.SQL("bigint"),
    "boolean": sql.SQL("boolean"),
    "bytea": sql.SQL("bytea"),
    "double precision": sql.SQL("double precision"),
    "integer": sql.SQL("integer"),
    "integer[]": sql.SQL("integer[]"),
    "jsonb": sql.SQL("jsonb"),
    "numeric": sql.SQL("numeric"),
    "real": sql.SQL("real"),
    "smallint": sql.SQL("smallint"),
    "text": sql.SQL("text"),
    "timestamptz": sql.SQL("timestamptz"),
}
"""The column types that the decoder asks for; anything else is refused rather than put into SQL."""

NULLABLE_FIXED_COLUMNS = frozenset({"accounts_given", "remaining_accounts", "block_time", *FLAG_COLUMNS})

MOST_COLUMNS = 1_600
"""Postgres's limit of columns in a table, dropped ones included."""

FIXED_DOCS: Mapping[str, str] = {
    "slot": "The slot of the transaction's block",
    "tx_index": "The transaction's place in its block, from 0",
    "event_index": "The record's place among the program's records of the transaction: logs first, then CPI",
    "instruction_index": "The instruction's place among all instructions of the transaction, depth first, from 0",
    "signature": "The transaction's signature, base58",
    "instruction_path": "Its place in the message, and for an inner one its place among those recorded for that",
    "accounts_given": "How many accounts it was given; null: one of them cannot be resolved, and none is known",
    "remaining_accounts": "The accounts beyond those that the IDL names, base58, in order; null: none",
    "source": "How the program said it: log or cpi",
    "block_time": "The block's time; null where the block has none",
    "failed": "Whether the transaction failed; null: loaded while failed transactions were left out",
    "truncated": "Whether the transaction's log was cut; null: loaded while failed transactions were left out",
}


class ColumnTypeError(UhoError):
    """A decoded column has no Postgres type, or its table has it with another one."""

    def __init__(self, table: str, column: str, reason: str) -> None:
        self.table = table
        self.column = column
        self.reason = reason
        super().__init__(f"column {column} of {table}: {reason}")


class ColumnChangedError(ColumnTypeError):
    """A column exists with another type than the IDL versions now ask for."""

    def __init__(self, table: str, column: str, kept: str, wanted: str) -> None:
        self.kept = kept
        self.wanted = wanted
        what = (
            "If the layout changed on chain, list the new IDL in program.yaml as a version of its own beside the old "
            "one. If the old IDL was wrong,"
        )
        if {kept, wanted} == {"text", "bytea"}:
            what = "If `bytea` was changed in program.yaml, change it back, or"
        super().__init__(
            table,
            column,
            f"is {kept} and program.yaml and its IDL versions now ask for {wanted}; columns never change their type. "
            f"{what} DROP TABLE {table} and materialize all events of the program again",
        )


class EventRefusedError(UhoError):
    """An event of an IDL that Postgres can have no table for."""

    def __init__(self, program: str, event: str, reason: str) -> None:
        self.program = program
        self.event = event
        self.reason = reason
        super().__init__(f"{program}: event {event!r} can have no table: {reason}. Correct the IDL")


@dataclass(frozen=True)
class TablePlan:
    """Where an event's rows go: `columns` in the order of the decoded batch's columns."""

    schema: str
    name: str
    columns: tuple[str, ...]
    field_columns: Mapping[str, str]
    """The event's own fields: name in the IDL → column."""
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    """Column → its type, as `POSTGRES_TYPES` writes it."""

    @property
    def key(self) -> tuple[str, str, str]:
        """The primary key."""
        return key_columns(self.columns)

    @property
    def is_instruction(self) -> bool:
        """Whether its rows are instructions, not events."""
        return "instruction_index" in self.key


@dataclass(frozen=True)
class WarehousePlan:
    """The tables of one program by event name."""

    schema: str
    tables: Mapping[str, TablePlan] = field(default_factory=dict[str, TablePlan])

    @property
    def events(self) -> "WarehousePlan":
        """The tables of events alone."""
        tables = {name: table for name, table in self.tables.items() if not table.is_instruction}
        return WarehousePlan(self.schema, tables)


def ensure_tables(connection: Connection, program: Program, tables: Sequence[uho_native.EventTable]) -> WarehousePlan:
    """Have the program's schema with a table per event, every field a column, and return where rows go.

    One transaction; safe to run concurrently. Columns are added, never removed or changed. The program must be in the
    ledger (`ledger.begin_attempt` sees to it).

    Raises:
        ColumnTypeError: a column exists with another type than the decoder asks for now, or has no type.
        EventRefusedError: Postgres can have no table for an event.
        OwnerRoleError: the owner's role is not there, and may not be made.
    """
    with connection.transaction():
        lock = f"uho tables {program.key}"
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [lock])
        names = _Names(connection, program)
        existing = _read_catalog(connection, program.schema_name)
        if existing is None:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(program.schema_name)))
        ensure_owner_role(connection, program)
        plans = {table.name: _ensure_table(connection, program, table, names, existing or {}) for table in tables}
    return WarehousePlan(program.schema_name, plans)


def read_plan(connection: Connection, program: Program) -> WarehousePlan:
    """Return the program's tables as they are, of events of earlier IDL versions too; nothing is made.

    Columns are the table's own order, fixed columns and those that were made for a field.
    """
    with connection.transaction():
        catalog = _read_catalog(connection, program.schema_name) or {}
        names = _Names(connection, program).kept
    fields: dict[str, dict[str, str]] = {}
    for (event, name), made in names.items():
        if name:
            fields.setdefault(event, {})[name] = made
    plans: dict[str, TablePlan] = {}
    for (event, name), table in names.items():
        if name or table not in catalog:
            continue
        present = catalog[table].columns
        made = {name: column for name, column in fields.get(event, {}).items() if column in present}
        ours = {*_fixed_columns(present), *made.values()}
        columns = tuple(column for column in present if column in ours)
        kinds = {column: present[column] for column in columns}
        plans[event] = TablePlan(program.schema_name, table, columns, made, kinds)
    return WarehousePlan(program.schema_name, plans)


@dataclass
class ExistingTable:
    """A table as the catalog has it."""

    name: str
    comment: str | None = None
    columns: dict[str, str] = field(default_factory=dict[str, str])
    """Types as `POSTGRES_TYPES` writes them, in the table's order."""
    comments: dict[str, str | None] = field(default_factory=dict[str, str | None])


def _ensure_table(
    connection: Connection,
    program: Program,
    table: uho_native.EventTable,
    names: "_Names",
    catalog: Mapping[str, ExistingTable],
) -> TablePlan:
    schema: pa.Schema = table.schema
    name = names.table(table.name)
    fixed = 1 + schema.names.index("block_time")
    columns: dict[str, str] = {}
    fields: dict[str, str] = {}
    for index, arrow_field in enumerate(schema):
        column = arrow_field.name
        if index >= fixed:
            column = names.column(table.name, arrow_field.name, instruction=table.kind == "instruction")
        columns[column] = postgres_type(name, arrow_field)
        if index >= fixed:
            fields[arrow_field.name] = column
    if program.include_failed:
        columns |= dict.fromkeys(FLAG_COLUMNS, "boolean")
    existing = catalog.get(name)
    if len(columns.keys() | (existing.columns.keys() if existing else set())) > MOST_COLUMNS:
        raise EventRefusedError(program.key, table.name, f"it would have more than {MOST_COLUMNS:,} columns")
    if existing is None:
        connection.execute(create_table_statement(program.schema_name, name, columns))
        existing = ExistingTable(name, columns=columns)
    else:
        _add_columns(connection, program.schema_name, name, columns, existing)
    _comment(connection, program.schema_name, name, table, fields, existing)
    return TablePlan(program.schema_name, name, tuple(columns), fields, columns)


def described_tables(connection: Connection, program: Program) -> list[ExistingTable]:
    """Return the program's event tables as the catalog has them, by name; a person's own tables are left out."""
    plans = read_plan(connection, program).tables.values()
    with connection.transaction():
        catalog = _read_catalog(connection, program.schema_name) or {}
    return [catalog[name] for name in sorted(plan.name for plan in plans) if name in catalog]


def create_table_statement(schema: str, name: str, columns: Mapping[str, str]) -> sql.Composed:
    """Return the statement that makes an event's table of columns and their types."""
    required = set(_fixed_columns(columns)) - NULLABLE_FIXED_COLUMNS
    definitions = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(column), POSTGRES_TYPES[kind], sql.SQL(" NOT NULL" if column in required else "")
        )
        for column, kind in columns.items()
    ]
    return sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
        sql.Identifier(schema, name),
        sql.SQL(", ").join(definitions),
        sql.SQL(", ").join(map(sql.Identifier, key_columns(columns))),
    )


def key_columns(columns: Collection[str]) -> tuple[str, str, str]:
    """Return the primary key of a table with these columns: of an instruction's, which has no `event_index`, or not."""
    return ("slot", "tx_index", "event_index" if "event_index" in columns else "instruction_index")


def _fixed_columns(columns: Collection[str]) -> tuple[str, ...]:
    """Return the fixed columns of a table with these columns."""
    return FIXED_COLUMNS if "event_index" in columns else INSTRUCTION_COLUMNS


def add_column_statement(schema: str, name: str, column: str, kind: str) -> sql.Composed:
    """Return the statement that adds a column: nullable and without a default, so old row digests stay valid."""
    statement = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}")
    return statement.format(sql.Identifier(schema, name), sql.Identifier(column), POSTGRES_TYPES[kind])


def _add_columns(
    connection: Connection, schema: str, name: str, columns: Mapping[str, str], existing: ExistingTable
) -> None:
    """Add what is missing."""
    for column, kind in columns.items():
        kept = existing.columns.get(column)
        if kept is None:
            connection.execute(add_column_statement(schema, name, column, kind))
        elif kept != kind:
            raise ColumnChangedError(f"{schema}.{name}", column, kept, kind)


def _comment(
    connection: Connection,
    schema: str,
    name: str,
    table: uho_native.EventTable,
    fields: Mapping[str, str],
    existing: ExistingTable,
) -> None:
    """Set the comments that differ."""
    comment = _plain(table.docs or f"{table.kind.capitalize()} {table.name.removeprefix(INSTRUCTION)}")
    if existing.comment != comment:
        connection.execute(
            sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(schema, name), sql.Literal(comment))
        )
    fixed = _fixed_columns(existing.columns)
    docs = {column: text for column, text in FIXED_DOCS.items() if column in existing.columns and column in fixed}
    for index, arrow_field in enumerate(table.schema):
        text = _metadata(arrow_field, b"uho:docs")
        if text and index >= table.schema.names.index("block_time"):
            docs[fields.get(arrow_field.name, arrow_field.name)] = _plain(text)
    for column, text in docs.items():
        if existing.comments.get(column) != text:
            where = sql.Identifier(schema, name, column)
            connection.execute(sql.SQL("COMMENT ON COLUMN {} IS {}").format(where, sql.Literal(text)))


def _plain(text: str) -> str:
    return text.replace("\0", "\\u0000")


def _metadata(arrow_field: Any, key: bytes) -> str:  # noqa: ANN401 - pyarrow has no types
    return (arrow_field.metadata or {}).get(key, b"").decode()


def postgres_type(table: str, arrow_field: Any) -> str:  # noqa: ANN401 - pyarrow has no types
    """Return the type that the decoder asks for.

    Raises:
        ColumnTypeError: it is none that is known here.
    """
    kind = _metadata(arrow_field, b"uho:postgres")
    if kind not in POSTGRES_TYPES:
        raise ColumnTypeError(
            table,
            arrow_field.name,
            f"the decoder asks for the Postgres type {kind!r}, which this version does not know. Update both together",
        )
    return kind


def _read_catalog(connection: Connection, schema: str) -> dict[str, ExistingTable] | None:
    """Return the tables of `schema` by name; None when there is no such schema."""
    found = connection.execute("SELECT oid FROM pg_namespace WHERE nspname = %s", [schema]).fetchone()
    if found is None:
        return None
    query = """
        SELECT c.relname, obj_description(c.oid, 'pg_class'), a.attname, format_type(a.atttypid, a.atttypmod),
               col_description(c.oid, a.attnum)
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = %s AND c.relkind IN ('r', 'p')
         ORDER BY c.relname, a.attnum"""
    tables: dict[str, ExistingTable] = {}
    for name, comment, column, kind, docs in connection.execute(query, [found[0]]):
        table = tables.setdefault(name, ExistingTable(name, comment))
        table.columns[column] = "timestamptz" if kind == "timestamp with time zone" else kind
        table.comments[column] = docs
    return tables


class _Names:
    """The names of a program's tables and columns: those in `uho.sql_name`, and new ones that it writes there."""

    def __init__(self, connection: Connection, program: Program) -> None:
        self.connection = connection
        self.program = program
        self.key = [program.network, program.owner, program.name]
        rows = connection.execute(
            "SELECT event, field, sql_name FROM uho.sql_name WHERE (network, owner, program) = (%s, %s, %s) "
            "ORDER BY event, field",
            self.key,
        )
        self.kept: dict[tuple[str, str], str] = {(event, name): made for event, name, made in rows}
        self.tables = {made for (_, name), made in self.kept.items() if not name}
        self.columns: dict[str, set[str]] = {}
        for (event, name), made in self.kept.items():
            if name:
                self.columns.setdefault(event, set()).add(made)

    def table(self, event: str) -> str:
        self._require(event, event)
        made = self.kept.get((event, ""))
        if made is None:
            made = self._keep(event, "", table_name(event, self.tables))
            self.tables.add(made)
        return made

    def column(self, event: str, name: str, *, instruction: bool) -> str:
        self._require(event, name)
        made = self.kept.get((event, name))
        if made is None:
            taken = self.columns.setdefault(event, set())
            made = self._keep(event, name, column_name(name, taken, instruction=instruction))
            taken.add(made)
        return made

    def _require(self, event: str, name: str) -> None:
        if not name or "\0" in name:
            raise EventRefusedError(self.program.key, event, f"the name {name!r} is empty or has U+0000 in it")

    def _keep(self, event: str, name: str, made: str) -> str:
        self.connection.execute(
            "INSERT INTO uho.sql_name (network, owner, program, event, field, sql_name) "
            "VALUES (%s, %s, %s, %s, %s, %s)",
            [*self.key, event, name, made],
        )
        self.kept[event, name] = made
        return made

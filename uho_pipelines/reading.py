"""`read_events`: a program's decoded events as a pandas DataFrame, from Postgres or from its Parquet files.

What belongs here: selecting rows and giving them exact types. Both sources give equal frames: integers of up to 64 bits
as such (never a float, also where values are missing), wider ones as `decimal.Decimal`, nested values as dicts and
lists.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import psycopg
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from psycopg import sql

from uho_pipelines.chunks import SLOT_LIMIT, Chunk
from uho_pipelines.decoding import decoder_for
from uho_pipelines.errors import UhoError
from uho_pipelines.parquet import POSTGRES_TYPE, event_files, event_path, parquet_schema
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.settings import Settings, load_settings
from uho_pipelines.warehouse import Connection, TablePlan, connect, read_plan
from uho_pipelines.warehouse.naming import FLAG_COLUMNS

FETCHED_ROWS = 10_000
"""Rows fetched from Postgres at a time."""


class UnknownEventError(UhoError):
    """An event that a program's IDLs do not have, or that was never loaded."""

    def __init__(self, program: str, event: str, known: Sequence[str]) -> None:
        self.event = event
        super().__init__(f"{program} has no event {event!r} that was loaded; it has: {', '.join(known) or 'none'}")


class UnknownColumnError(UhoError):
    """A column that an event's table does not have."""

    def __init__(self, event: str, column: str, known: Sequence[str]) -> None:
        self.column = column
        super().__init__(f"event {event} has no column {column!r}; it has: {', '.join(known)}")


class InstructionsMissingError(UhoError):
    """Chunks were loaded without an instruction's table."""

    def __init__(self, program: str, event: str, chunks: Sequence[str]) -> None:
        self.chunks = tuple(chunks)
        shown = ", ".join(chunks[:5]) + (f" and {len(chunks) - 5} more" if len(chunks) > 5 else "")
        super().__init__(
            f"{program}: chunks {shown} were loaded before {event} was asked for, so its rows are missing there. "
            f"Materialize their records and events again (`uho backfill {program} --from-slot … --to-slot …`), or ask "
            "for slots outside them"
        )


class ParquetBehindError(UhoError):
    """The Parquet files are not what was loaded last."""

    def __init__(self, program: str, event: str, chunks: Sequence[str]) -> None:
        self.chunks = tuple(chunks)
        shown = ", ".join(chunks[:5]) + (f" and {len(chunks) - 5} more" if len(chunks) > 5 else "")
        super().__init__(
            f"{program}: the Parquet files of {event} are not those of the last load of chunks {shown}. Set "
            "`parquet: true` in program.yaml and materialize the events of these chunks again, or read from Postgres"
        )


def read_events(
    program: str,
    event: str,
    from_slot: int | None = None,
    to_slot: int | None = None,
    *,
    columns: Sequence[str] | None = None,
    source: Literal["postgres", "parquet"] = "postgres",
    settings: Settings | None = None,
) -> pd.DataFrame:
    """Return the rows of `event` in slots `from_slot` to `to_slot` (inclusive; None: no bound), in the key's order.

    Args:
        program: The program's folder name, or network/owner/name.
        event: The event's name as in the IDL, or its table's name; of an instruction its table's name, `ix_<name>`.
        from_slot: First slot wanted.
        to_slot: Last slot wanted, inclusive.
        columns: The columns wanted, called as in Postgres; None: all.
        source: `parquet` is faster, and compared with the ledger before: rows are never missing without an error.
        settings: Other settings than the environment's.

    Raises:
        UnknownProgramError, UnknownEventError, UnknownColumnError, WarehouseUnreachableError
        InstructionsMissingError: a chunk was loaded before the program's instructions were asked for.
        ParquetBehindError: a chunk was loaded without Parquet, or its file is gone or of another load.
    """
    settings = settings or load_settings()
    registered = load_registry(settings).program(program)
    slots = (from_slot or 0, SLOT_LIMIT if to_slot is None else to_slot + 1)
    with connect(warehouse_of(settings), application_name="uho read_events") as connection:
        plans = read_plan(connection, registered).tables
        # A table's name is as good as what the IDL calls its event: nobody says `instruction:swap` for ix_swap.
        event = next((name for name, plan in plans.items() if event not in plans and plan.name == event), event)
        if event not in plans:
            raise UnknownEventError(registered.key, event, sorted(plans))
        plan = plans[event]
        if plan.is_instruction:
            _require_instructions(connection, registered, event, slots)
        schema = _schema(registered, event, plan)
        for column in columns or ():
            if column not in schema.names:
                raise UnknownColumnError(event, column, schema.names)
        wanted = list(columns) if columns is not None else schema.names
        if source == "postgres":
            table = _from_postgres(connection, plan, schema, wanted, slots)
        else:
            files = _current_files(settings, connection, registered, event, plan, slots)
            table = _from_parquet(settings, files, plan.key, schema, wanted, slots)
    return _frame(table, schema)


def _require_instructions(connection: Connection, program: Program, event: str, slots: tuple[int, int]) -> None:
    """Return if every loaded chunk of these slots was loaded with the instruction's table, be it without a row.

    Raises:
        InstructionsMissingError: one was not.
    """
    without = connection.execute(
        "SELECT chunk_start, chunk_end FROM uho.chunk c WHERE (network, owner, program) = (%s, %s, %s) "
        "AND loaded_digest IS NOT NULL AND chunk_end > %s AND chunk_start < %s AND NOT EXISTS "
        "(SELECT 1 FROM uho.chunk_table t WHERE (t.network, t.owner, t.program, t.chunk_start, t.event) "
        "= (c.network, c.owner, c.program, c.chunk_start, %s)) ORDER BY chunk_start",
        [program.network, program.owner, program.name, *slots, event],
    ).fetchall()
    if without:
        raise InstructionsMissingError(program.key, event, [Chunk(start, end - start).key for start, end in without])


def warehouse_of(settings: Settings) -> str:
    """Return the warehouse that is set, else the embedded one, which has to run."""
    if settings.postgres_url is not None:
        return settings.postgres_url.get_secret_value()
    from uho_pipelines.runtime.postgres import EmbeddedPostgres

    return EmbeddedPostgres(settings.home).url("uho")


def _schema(program: Program, event: str, plan: TablePlan) -> pa.Schema:
    """Return the types of an event's columns as in Parquet, with what Postgres calls them."""
    tables = {table.name: table for table in decoder_for(program).tables()}
    if event not in tables:
        raise UnknownEventError(program.key, event, sorted(tables))
    decoded = tables[event].schema
    fixed = 1 + decoded.names.index("block_time")
    names = [
        field.name if index < fixed else plan.field_columns.get(field.name, "") for index, field in enumerate(decoded)
    ]
    made = parquet_schema(decoded, names)
    fields = [
        field.with_metadata({POSTGRES_TYPE: (of_decoder.metadata or {}).get(POSTGRES_TYPE, b"")})
        for field, of_decoder in zip(made, decoded, strict=True)
        if field.name in plan.columns
    ]
    flags = [name for name in FLAG_COLUMNS if name in plan.columns]
    return pa.schema([*fields, *(pa.field(name, pa.bool_(), metadata={POSTGRES_TYPE: b"boolean"}) for name in flags)])


def _from_postgres(
    connection: Connection, plan: TablePlan, schema: pa.Schema, columns: Sequence[str], slots: tuple[int, int]
) -> pa.Table:
    query = sql.SQL("SELECT {} FROM {} WHERE slot >= %s AND slot < %s ORDER BY {}").format(
        sql.SQL(", ").join(_selected(schema.field(column)) for column in columns),
        sql.Identifier(plan.schema, plan.name),
        sql.SQL(", ").join(sql.Identifier(column) for column in plan.key),
    )
    wanted = pa.schema([schema.field(column) for column in columns])
    batches: list[pa.RecordBatch] = []
    with connection.cursor(name="read_events") as cursor:
        cursor.itersize = FETCHED_ROWS
        cursor.execute(query, slots)
        while rows := cursor.fetchmany(FETCHED_ROWS):
            arrays = [
                pa.array([_exact(value, field.type) for value in values], field.type)
                for values, field in zip(zip(*rows, strict=True), wanted, strict=True)
            ]
            batches.append(pa.RecordBatch.from_arrays(arrays, schema=wanted))
    return pa.Table.from_batches(batches, schema=wanted)


def _selected(field: Any) -> sql.Composable:  # noqa: ANN401 - pyarrow has no types
    column = sql.Identifier(field.name)
    text = pa.types.is_string(field.type) and (field.metadata or {}).get(POSTGRES_TYPE) in {b"jsonb", b"numeric"}
    return sql.SQL("{}::text").format(column) if text else column


def _exact(value: Any, kind: Any) -> Any:  # noqa: ANN401 - a value of Postgres, a type of pyarrow
    return int(value) if value is not None and pa.types.is_integer(kind) else value


def _current_files(
    settings: Settings,
    connection: psycopg.Connection[Any],
    program: Program,
    event: str,
    plan: TablePlan,
    slots: tuple[int, int],
) -> list[str]:
    """Return the files that hold what the ledger says was loaded last.

    Raises:
        ParquetBehindError: one is not there, or of another load.
    """
    loaded = connection.execute(
        "SELECT c.chunk_start, c.chunk_end, t.row_count, c.loaded_digest, c.loaded_idl_hash "
        "FROM uho.chunk_table t JOIN uho.chunk c USING (network, owner, program, chunk_start) "
        "WHERE (network, owner, program) = (%s, %s, %s) AND event = %s AND row_count > 0 "
        "AND chunk_end > %s AND chunk_start < %s ORDER BY chunk_start",
        [program.network, program.owner, program.name, event, *slots],
    ).fetchall()
    files = event_files(settings)
    current: list[str] = []
    behind: list[str] = []
    for start, end, rows, digest, idl_hash in loaded:
        chunk = Chunk(start, end - start)
        path = event_path(program, plan.name, chunk)
        if files.size(path) is None:
            behind.append(chunk.key)
            continue
        with files.open(path) as opened:
            metadata = pq.read_metadata(opened)
        kept = metadata.metadata or {}
        origin = (kept.get(b"uho:records_digest", b"").decode(), kept.get(b"uho:idl_hash", b"").decode())
        if (metadata.num_rows, *origin) != (rows, digest, idl_hash):
            behind.append(chunk.key)
        current.append(path)
    if behind:
        raise ParquetBehindError(program.key, event, behind)
    return current


def _from_parquet(
    settings: Settings,
    paths: Sequence[str],
    key: Sequence[str],
    schema: pa.Schema,
    columns: Sequence[str],
    slots: tuple[int, int],
) -> pa.Table:
    filesystem, root = event_files(settings).filesystem()
    dataset = ds.dataset([f"{root}/{path}" for path in paths], schema=schema, format="parquet", filesystem=filesystem)
    slot = ds.field("slot")
    needed = list(dict.fromkeys([*key, *columns]))
    table = dataset.to_table(columns=needed, filter=(slot >= slots[0]) & (slot < slots[1]))
    return table.sort_by([(name, "ascending") for name in key]).select(list(columns))


def _frame(table: pa.Table, schema: pa.Schema) -> pd.DataFrame:
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    for name in table.schema.names:
        if (schema.field(name).metadata or {}).get(POSTGRES_TYPE) == b"jsonb":
            values = [None if value is None else json.loads(value) for value in table.column(name).to_pylist()]
            frame[name] = pd.Series(values, index=frame.index, dtype=object)
    return frame

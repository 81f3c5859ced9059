"""COPY: encoding on the client against what the server does with the same rows, and the load against a bare COPY.

What belongs here: the ceiling, which is bytes encoded beforehand and copied into an empty table like the real one.
"""

import time

import psycopg
import uho_native
from psycopg import sql

from benchmarks.measuring import Spent
from benchmarks.stage import Stage
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.lake import Lake
from uho_pipelines.registry import Program
from uho_pipelines.warehouse import connect, ensure_tables

WALL, ENCODE, CLIENT, SERVER = "wall", "encode", "client", "server"
SLICE_ROWS = 2_000
"""Rows that a core's cache holds, about what a load encodes at a time."""


def encoded_tables(stage: Stage, program: Program, spent: Spent, chunk: Chunk | None) -> dict[int, list[bytes]]:
    """Decode the chunk from the lake and encode it for COPY, by table; encoding is counted."""
    decoder = decoder_for(program)
    encoded: dict[int, list[bytes]] = {}
    for records in Lake(stage.settings).chunk(program, chunk or stage.archive.chunk).batches():
        for table, batch in decode(decoder, program, records).tables:
            for start in range(0, batch.num_rows, SLICE_ROWS):
                with spent.on(ENCODE):
                    rows = uho_native.encode_copy(batch.slice(start, SLICE_ROWS))
                encoded.setdefault(table, []).append(rows)
    return encoded


def run_bare_copy(stage: Stage, program: Program, chunk: Chunk | None = None) -> Spent:
    """COPY bytes that are encoded already into empty copies of the program's tables, and commit."""
    spent = Spent()
    encoded = encoded_tables(stage, program, spent, chunk)
    with connect(stage.url, application_name="benchmarks copy") as connection:
        tables = list(ensure_tables(connection, program, decoder_for(program).tables()).tables.values())
        names = {index: sql.Identifier(f"copy_{index}") for index in encoded}
        for index, name in names.items():
            like = sql.Identifier(tables[index].schema, tables[index].name)
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
            connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(name, like))
        connection.commit()
        with spent.on(WALL, time.monotonic), spent.on(SERVER, stage.postgres_cpu), spent.on(CLIENT):
            for index, pieces in encoded.items():
                columns = sql.SQL(", ").join(map(sql.Identifier, tables[index].columns))
                _copy(connection, names[index], columns, pieces)
            connection.commit()
        for name in names.values():
            connection.execute(sql.SQL("DROP TABLE {}").format(name))
    return spent


def _copy(
    connection: psycopg.Connection[tuple[object, ...]],
    name: sql.Composable,
    columns: sql.Composable,
    pieces: list[bytes],
) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(name, columns)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(uho_native.copy_header())
        for piece in pieces:
            copy.write(piece)
        copy.write(uho_native.copy_trailer())

"""The plain design, as indexers are usually written: NDJSON, anchorpy, INSERT … ON CONFLICT DO NOTHING of 200 rows.

What belongs here: the whole way of a chunk from the archive to committed rows in that design, written as its users
would. It reads the same archive through the same sidecar and fills tables like the program's own, so what differs is
the way from a matched transaction to a row. It proves nothing, folds nothing, and does not ask whether bytes are left
over; where a payload does not decode it goes on.
"""

import base64
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import requests
from anchorpy.coder.event import EventCoder
from anchorpy.idl_adapter import Idl
from psycopg import sql
from psycopg.types.json import Jsonb
from solders.pubkey import Pubkey

from benchmarks.measuring import Spent
from benchmarks.stage import Stage
from uho_pipelines.decoding import decoder_for
from uho_pipelines.registry import Program
from uho_pipelines.warehouse import Connection, connect, ensure_tables
from uho_pipelines.warehouse.tables import TablePlan

WALL, SIDECAR, WORKER, SERVER = "wall", "sidecar", "worker", "server"
INSERT_ROWS = 200
LEAST_SHARE = 0.9
"""It loses what anchorpy does not read, and data lines of several fields; lose more, and it is measured wrongly."""
CPI_EVENT_TAG = bytes.fromhex("e445a52e51cb9a1d")
INVOKED = re.compile(r"Program (\S+) invoke \[\d+\]")
ENDED = re.compile(r"Program \S+ (success|failed)")


class ChunkNotReadError(Exception):
    """The stream was refused, or the rows are fewer than the simulator's events."""


def run_plain(stage: Stage, program: Program, expected_events: int) -> Spent:
    """Take the chunk from the archive to committed rows in the plain design."""
    spent = Spent()
    coder = EventCoder(Idl.from_json(program.idls[0].json.decode("utf-8-sig")))
    with connect(stage.url, application_name="benchmarks plain") as connection:
        plans = ensure_tables(connection, program, decoder_for(program).tables()).tables
        tables = {
            event: _make_table(connection, plan, f"plain_{place}") for place, (event, plan) in enumerate(plans.items())
        }
        connection.commit()
        clocks = (
            spent.on(WALL, time.monotonic),
            spent.on(SIDECAR, stage.sidecar_cpu),
            spent.on(SERVER, stage.postgres_cpu),
        )
        with clocks[0], clocks[1], clocks[2], spent.on(WORKER):
            waiting: dict[str, list[list[Any]]] = {event: [] for event in tables}
            for event, row in _rows(stage, program, coder):
                waiting[event].append(row)
                if len(waiting[event]) == INSERT_ROWS:
                    _insert(connection, tables[event], waiting[event])
            for event, rest in waiting.items():
                _insert(connection, tables[event], rest)
        rows = sum(_count(connection, table) for table in tables.values())
        for table in tables.values():
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(table.name)))
    if rows < LEAST_SHARE * expected_events:
        raise ChunkNotReadError(f"{program.key}: {rows:,} rows of {expected_events:,}")
    return spent


def _make_table(connection: Connection, plan: TablePlan, name: str) -> TablePlan:
    like = sql.Identifier(plan.schema, plan.name)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
    connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(sql.Identifier(name), like))
    return dataclasses.replace(plan, name=name)


def _count(connection: Connection, table: TablePlan) -> int:
    ((count,),) = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.name))).fetchall()
    return count


def _insert(connection: Connection, table: TablePlan, rows: list[list[Any]]) -> None:
    if not rows:
        return
    one = sql.SQL("({})").format(sql.SQL(", ").join(sql.Placeholder() * len(table.columns)))
    statement = sql.SQL("INSERT INTO {} ({}) VALUES {} ON CONFLICT DO NOTHING").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(map(sql.Identifier, table.columns)),
        sql.SQL(", ").join([one] * len(rows)),
    )
    connection.execute(statement, [value for row in rows for value in row])
    connection.commit()
    rows.clear()


def _rows(
    stage: Stage,
    program: Program,
    coder: Any,  # noqa: ANN401 - anchorpy's types say it is something else
) -> Iterator[tuple[str, list[Any]]]:
    for transaction in _transactions(stage, program):
        if transaction["err"] is not None:
            continue
        seconds = transaction["blockTime"]
        when = None if seconds is None else datetime.fromtimestamp(seconds, UTC)
        for place, (source, payload) in enumerate(_payloads(transaction, program.program_id)):
            try:
                event = coder.parse(payload)
            except Exception:  # noqa: BLE001 - anchorpy raises whatever its parts raise, and the design goes on
                continue
            if event is not None:
                fixed = [transaction["slot"], transaction["txIndex"], place, transaction["signature"], source, when]
                yield event.name, [*fixed, *(_column(value) for value in vars(event.data).values())]


def _transactions(stage: Stage, program: Program) -> Iterator[dict[str, Any]]:
    chunk = stage.archive.chunk
    body = {
        "network": program.network,
        "programIds": [program.program_id],
        "startSlot": chunk.start,
        "endSlot": chunk.end,
    }
    headers = {"Accept": "application/x-ndjson", "Authorization": f"Bearer {stage.settings.read_sidecar_secret()}"}
    url = f"{stage.settings.sidecar_url}/backfill"
    with requests.post(url, json=body, headers=headers, stream=True, timeout=600) as response:
        if response.status_code != requests.codes.ok:
            raise ChunkNotReadError(response.text)
        for line in response.iter_lines(chunk_size=1024 * 1024):
            item = json.loads(line)
            if item["type"] == "transaction":
                yield item


def _payloads(transaction: dict[str, Any], program: str) -> Iterator[tuple[str, bytes]]:
    speaking: list[str] = []
    for line in transaction["logs"] or []:
        if line.startswith("Program data: "):
            if speaking and speaking[-1] == program:
                yield "log", base64.b64decode(line.removeprefix("Program data: "))
        elif invoked := INVOKED.fullmatch(line):
            speaking.append(invoked[1])
        elif ENDED.match(line) and speaking:
            speaking.pop()
    keys: list[str] = transaction["accountKeys"]
    for group in transaction["innerInstructions"] or []:
        for instruction in group["instructions"]:
            if keys[instruction["programIdIndex"]] == program:
                data = base64.b64decode(instruction["data"])
                if data.startswith(CPI_EVENT_TAG):
                    yield "cpi", data.removeprefix(CPI_EVENT_TAG)


def _column(value: Any) -> Any:  # noqa: ANN401 - whatever anchorpy makes
    if isinstance(value, Pubkey):
        return str(value)
    if isinstance(value, str):
        return value.replace("\0", "\\u0000")
    if value is None or isinstance(value, bool | int | float | bytes):
        return value
    return Jsonb(_nested(value))


def _nested(value: Any) -> Any:  # noqa: ANN401 - whatever anchorpy makes
    if isinstance(value, list | tuple):
        return [_nested(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Pubkey | str):
        return str(value).replace("\0", "\\u0000")
    if value is None or isinstance(value, bool | int):
        return value
    members = {name: _nested(each) for name, each in vars(value).items()}
    return members if dataclasses.is_dataclass(value) else {type(value).__name__: members}

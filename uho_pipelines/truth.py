"""Comparing the warehouse with what the archive simulator says is true, row by row and field by field.

What belongs here: reading the simulator's truth and finding differences. The demo and the tests compare alike.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from uho_pipelines.registry import Program
from uho_pipelines.warehouse import WarehousePlan
from uho_pipelines.warehouse.naming import INSTRUCTION

Key = tuple[int, int, int]
"""A table's primary key: slot, transaction's place, event's or instruction's place."""

BLOCK_TIME = "extract(epoch from block_time)::bigint"
EVENT_COLUMNS: Mapping[LiteralString, str] = {"signature": "signature", "source": "source", BLOCK_TIME: "blockTime"}
"""The other fixed columns of an event's table, and what the truth calls them."""

INSTRUCTION_COLUMNS: Mapping[LiteralString, str] = {
    "signature": "signature",
    "instruction_path": "path",
    "accounts_given": "given",
    "remaining_accounts": "remaining",
    BLOCK_TIME: "blockTime",
}
"""Those of an instruction's."""

DIFFERENCES_KEPT = 20
"""So many differences of a table are described; all are counted."""


@dataclass
class TableComparison:
    """What comparing one event table with the truth found."""

    program: str
    event: str
    rows: int = 0
    rows_in_truth: int = 0
    missing: int = 0
    """Rows of the truth that the table does not have."""
    extra: int = 0
    """Rows of the table that the truth does not have."""
    differing: int = 0
    """All of these, and fields that differ."""
    differences: list[str] = field(default_factory=list[str])

    @property
    def equal(self) -> bool:
        """Whether every row of the truth is in the table, every row of the table in the truth, field by field equal."""
        return self.differing == 0 and self.rows == self.rows_in_truth

    def differ(self, text: str) -> None:
        """Count a difference, and keep its description while there are few."""
        self.differing += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(text)


def read_truth(archive: Path, file: str = "events.jsonl") -> Iterator[dict[str, Any]]:
    """Yield the truth's events in ascending `(slot, txIndex, eventIndex)` order, as the simulator wrote them."""
    with (archive / "truth" / file).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def same(actual: Any, expected: Any) -> bool:  # noqa: ANN401 - any value of a column against any value of JSON
    """Return whether a value read from Postgres is the truth's value.

    The truth writes integers of 64 bits and wider as decimal strings, bytes as lower-case hexadecimal, floats that JSON
    cannot express as `"NaN"`, `"Infinity"` and `"-Infinity"`.
    """
    match actual:
        case bool() | None:
            return actual is expected
        case bytes():
            return actual.hex() == expected
        case float():
            return str(actual) == str(float(expected)) if isinstance(expected, (int, float, str)) else False
        case int():
            return expected is not None and not isinstance(expected, bool) and str(actual) == str(expected)
        case Decimal():
            return expected is not None and actual == Decimal(str(expected))
        case dict() | list():
            return json.dumps(actual, sort_keys=True) == json.dumps(expected, sort_keys=True)
        case _:
            return actual == expected


def compare_program(
    connection: psycopg.Connection[Any],
    program: Program,
    plan: WarehousePlan,
    truth: Mapping[str, Mapping[Key, dict[str, Any]]],
) -> list[TableComparison]:
    """Compare every event table of `program` with `truth`, which maps event name and key to the truth's line."""
    return [
        _compare_table(connection, program, event, plan, truth.get(event, {}))
        for event in sorted({*plan.tables, *truth})
    ]


def truth_by_event(archive: Path, program: Program) -> dict[str, dict[Key, dict[str, Any]]]:
    """Return the truth of one program as `{event: {key: line}}`."""
    events: dict[str, dict[Key, dict[str, Any]]] = {}
    for line in read_truth(archive):
        if line["program"] == program.name:
            events.setdefault(line["event"], {})[line["slot"], line["txIndex"], line["eventIndex"]] = line
    return events


def truth_by_instruction(archive: Path, program: Program) -> dict[str, dict[Key, dict[str, Any]]]:
    """Return the truth of one program's instructions, in the form of `truth_by_event`.

    Those that are decodable, of transactions that are not known to have failed; accounts are fields beside arguments.
    """
    instructions: dict[str, dict[Key, dict[str, Any]]] = {}
    for line in read_truth(archive, "instructions.jsonl"):
        if line["program"] != program.name or line["failed"] or "instruction" not in line:
            continue
        accounts = {f"account_{name}": key for name, key in (line["accounts"] or {}).items()}
        line["fields"] = {**line["arguments"], **accounts}
        line["remaining"] = line["remaining"] or None
        key = (line["slot"], line["txIndex"], line["instructionIndex"])
        instructions.setdefault(f"{INSTRUCTION}{line['instruction']}", {})[key] = line
    return instructions


def truth_of(archive: Path, program: Program) -> dict[str, dict[Key, dict[str, Any]]]:
    """Return the truth of all tables of a program: its events, and its instructions where it asks for them."""
    instructions = truth_by_instruction(archive, program) if program.instructions else {}
    return {**truth_by_event(archive, program), **instructions}


def count_truth(archive: Path) -> Counter[str]:
    """Return the number of events in the truth by program name."""
    return Counter(line["program"] for line in read_truth(archive))


def _compare_table(
    connection: psycopg.Connection[Any],
    program: Program,
    event: str,
    plan: WarehousePlan,
    truth: Mapping[Key, dict[str, Any]],
) -> TableComparison:
    result = TableComparison(program.name, event, rows_in_truth=len(truth))
    if event not in plan.tables:
        result.missing = len(truth)
        result.differ("there is no table for this event")
        return result
    table = plan.tables[event]
    fields = dict(table.field_columns)
    fixed = INSTRUCTION_COLUMNS if table.is_instruction else EVENT_COLUMNS
    query = sql.SQL("SELECT {}, {}, {} FROM {}").format(
        sql.SQL(", ").join(map(sql.Identifier, table.key)),
        sql.SQL(", ").join(sql.SQL(column) for column in fixed),
        sql.SQL(", ").join(sql.Identifier(column) for column in fields.values()) if fields else sql.SQL("1"),
        sql.Identifier(table.schema, table.name),
    )
    seen: set[Key] = set()
    with connection.cursor(name="truth") as cursor:
        for row in cursor.execute(query):
            result.rows += 1
            key, of_fixed, values = row[:3], row[3 : 3 + len(fixed)], row[3 + len(fixed) :]
            seen.add(key)
            expected = truth.get(key)
            if expected is None:
                result.extra += 1
                result.differ(f"{key}: not in the truth")
                continue
            for (column, name), actual in zip(fixed.items(), of_fixed, strict=True):
                if not same(actual, expected[name]):
                    result.differ(f"{key} {column}: {actual!r} should be {expected[name]!r}")
            wanted_fields = expected["fields"]
            if fields and not set(wanted_fields) <= set(fields):
                result.differ(f"{key}: of the fields {sorted(wanted_fields)} only {sorted(fields)} are columns")
                continue
            for (name, _), actual in zip(fields.items(), values, strict=False):
                # A field that the event did not have yet is null.
                if not same(actual, wanted_fields.get(name)):
                    result.differ(f"{key} {name}: {actual!r} should be {wanted_fields.get(name)!r}")
    for key in sorted(truth.keys() - seen):
        result.missing += 1
        result.differ(f"{key}: missing from the table")
    return result

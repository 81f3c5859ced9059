"""`uho preview`: some of a program's rows, its tables' DDL, and what its IDL does not know, before anything exists.

What belongs here: reading a few blocks, and showing them. Nothing is written, and no Postgres is needed: the DDL is
what `warehouse/tables.py` would execute on a warehouse that has nothing of the program yet.
"""

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import uho_native
from psycopg import sql
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from solders.pubkey import Pubkey
from solders.signature import Signature

from uho_pipelines.archive import ArchiveClient, Checkpoint, Done
from uho_pipelines.decoding import Counts, decode, decoder_for
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import sidecar_service
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.tables import WarehousePlan, ensure_tables

UNKNOWN_SHOWN = 20
"""Discriminators that no IDL knows, at most, the most frequent first."""

VALUE_WIDTH = 60
"""Characters of a value in the table for people; `--json` has them whole."""


@dataclass
class Preview:
    """What the slots `[start, end)` have of a program."""

    program: str
    start: int
    end: int
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    """By event, some rows: column to value, as JSON can say it. Events without rows are there too."""
    counts: Counts = field(default_factory=Counts)
    ddl: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return {
            "program": self.program,
            "startSlot": self.start,
            "endSlot": self.end,
            "events": self.events,
            "rows": self.counts.rows_by_event(),
            "counts": self.counts.as_json(),
            "ddl": self.ddl,
        }


def preview_program(settings: Settings, program: Program, slot: int, slots: int, rows: int) -> Preview:
    """Read the slots `[slot, slot + slots)` through a running sidecar; keep up to `rows` rows of each event.

    Raises:
        ArchiveStreamError: the sidecar refused or failed.
        ProgramRefusedError, EventRefusedError: an IDL cannot be used, or Postgres can have no table for an event.
    """
    decoder = decoder_for(program)
    tables = decoder.tables()
    plan, ddl = dry_run(program, tables)
    preview = Preview(program.key, slot, slot + slots, {table.name: [] for table in tables}, ddl=ddl)
    ids = [program.program_id]
    asked = ids if program.instructions else []
    with ArchiveClient(settings).stream(program.network, ids, slot, slot + slots, instructions_of=asked) as stream:
        for item in stream:
            if isinstance(item, Checkpoint | Done):
                continue
            decoded = decode(decoder, program, item)
            preview.counts.add(decoded.counts)
            for index, batch in decoded.tables:
                event = tables[index].name
                kept = preview.events[event]
                kept += _readable(batch.slice(0, max(0, rows - len(kept))), plan.tables[event].columns)
    return preview


def dry_run(program: Program, tables: Sequence[uho_native.EventTable]) -> tuple[WarehousePlan, list[str]]:
    """Return the program's tables, and the statements that make them in a warehouse that has nothing of it yet."""
    dry = _DryRun()
    plan = ensure_tables(cast("Connection", dry), program, tables)
    return plan, dry.statements


def run_preview(
    settings: Settings, name: str, slot: int, slots: int, rows: int, *, as_json: bool, console: Console
) -> None:
    """Preview the program `name` and show it; a sidecar is started for it where none runs."""
    program = load_registry(settings).program(name)
    with sidecar_service(settings, console.print):
        preview = preview_program(settings, program, slot, slots, rows)
    if as_json:
        console.print_json(json.dumps(preview.as_json()))
    else:
        _show(preview, console)


class _DryRun:
    """Stands in for the connection to an empty warehouse: answers every question with nothing, and keeps the DDL."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Do nothing, whole."""
        yield

    def execute(self, statement: str | sql.Composable, _: Sequence[object] = ()) -> "_DryRun":
        """Keep a statement that is composed of names: those are the DDL, questions and kept names are plain text."""
        if isinstance(statement, sql.Composable):
            self.statements.append(statement.as_string())
        return self

    def fetchone(self) -> None:
        """No row."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(())


def _readable(batch: pa.RecordBatch, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return decoded rows as Postgres would show them, by column: a field may be called like a fixed column."""
    values = [
        [_value(name, value.as_py()) for value in column] for name, column in zip(columns, batch.columns, strict=True)
    ]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _value(name: str, value: object) -> object:
    if isinstance(value, bytes):
        if name == "signature" and len(value) == Signature.LENGTH:
            return str(Signature.from_bytes(value))
        return str(Pubkey.from_bytes(value)) if len(value) == Pubkey.LENGTH else value.hex()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _show(preview: Preview, console: Console) -> None:
    console.print(
        f"{preview.program}, slots {preview.start} to {preview.end - 1} (inclusive): "
        f"{preview.counts.records:,} records, "
        f"{preview.counts.decoded:,} decoded, {preview.counts.twins_folded:,} twins folded, "
        f"{preview.counts.failed_left_out:,} of failed transactions left out, {preview.counts.foreign:,} foreign, "
        f"{preview.counts.undecodable:,} undecodable",
        soft_wrap=True,
    )
    counted = preview.counts.rows_by_event()
    for event, rows in preview.events.items():
        if not rows:
            continue
        table = Table(title=f"{event}: {counted.get(event, 0):,} rows here", title_justify="left", show_lines=False)
        # One column a row: events have more fields than a terminal has room for columns.
        table.add_column("column")
        for _ in rows:
            table.add_column()
        for name in rows[0]:
            table.add_row(name, *(_short(row[name]) for row in rows))
        console.print(table)
    silent = [event for event, rows in preview.events.items() if not rows]
    if silent:
        console.print(f"no rows here: {', '.join(silent)}", soft_wrap=True, markup=False, highlight=False)
    if preview.counts.undecodable_by:
        table = Table(title="decodes by no IDL version", title_justify="left")
        table.add_column("discriminator")
        table.add_column("reason")
        table.add_column("records", justify="right")
        for (discriminator, reason), count in preview.counts.undecodable_by.most_common(UNKNOWN_SHOWN):
            table.add_row(discriminator, reason, f"{count:,}")
        console.print(table)
        left = len(preview.counts.undecodable_by) - UNKNOWN_SHOWN
        if left > 0:
            console.print(f"and {left:,} more")
    console.print("\nThis would be run before the first row is loaded (a program's first time):")
    console.print(Syntax(";\n".join([*preview.ddl, ""]), "postgresql", word_wrap=True, background_color="default"))


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= VALUE_WIDTH else f"{text[: VALUE_WIDTH - 1]}…"

"""`uho idl diff`: what changes from one IDL version to the next, and what that means for the tables.

What belongs here: comparing layouts as the decoder reads them, nested types included, and the DDL that a load would run
by itself once both versions are in program.yaml.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uho_native

from uho_pipelines.chunks import SLOT_LIMIT
from uho_pipelines.idl.payload import make_decoder, read_idl
from uho_pipelines.warehouse.naming import column_name, sql_name
from uho_pipelines.warehouse.tables import add_column_statement, create_table_statement, postgres_type

FROM_SLOT = "<from_slot>"
"""Stands in column names where the second version's first slot is not known."""


@dataclass(frozen=True)
class FieldChange:
    """A field that was added, is gone, or has another type."""

    change: Literal["added", "gone", "type"]
    field: str
    before: str
    after: str

    def __str__(self) -> str:
        match self.change:
            case "added":
                return f"+ {self.field}: {self.after}"
            case "gone":
                return f"- {self.field}: {self.before}"
            case "type":
                return f"~ {self.field}: {self.before} -> {self.after}"


@dataclass(frozen=True)
class EventChange:
    """An event that was added, is gone, or has another layout or discriminator."""

    change: Literal["added", "gone", "layout"]
    event: str
    discriminators: tuple[str, ...]
    """Before and after; one where it is the same."""
    fields: tuple[FieldChange, ...]
    moved: bool
    """Whether fields that both have stand in another order, or with new ones between them."""

    def lines(self) -> Iterator[str]:
        """Yield the change in words, a line each."""
        sign = {"added": "+", "gone": "-", "layout": "~"}[self.change]
        yield f"{sign} {self.event} (discriminator {' -> '.join(self.discriminators)})"
        for field in self.fields:
            yield f"    {field}"
        if self.moved:
            yield "    fields stand in another order: the same bytes mean other values"


@dataclass(frozen=True)
class IdlDiff:
    """What changes between two versions: `events` that differ, how many do not, and `migration`, SQL statements."""

    events: tuple[EventChange, ...]
    unchanged: int
    migration: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield the whole in words and SQL."""
        for event in self.events:
            yield from event.lines()
        yield f"{len(self.events)} events differ, {self.unchanged} are the same"
        yield ""
        if self.migration:
            yield "-- what the next load does by itself when both versions are in program.yaml:"
            yield from self.migration
        else:
            yield "-- no table changes"


def diff_idls(before: Path, after: Path, from_slot: int | None = None, schema: str = "my_program") -> IdlDiff:
    """Compare two versions; `from_slot` is the second one's, `schema` the Postgres schema of the statements.

    Raises:
        IdlUnreadableError: a file cannot be used.
    """
    slot = SLOT_LIMIT - 1 if from_slot is None else from_slot
    old, new = (0, "before", read_idl(before)), (slot, "after", read_idl(after))
    first, both = make_decoder([old]), make_decoder([old, new])
    of_old = {event["event"]: event for event in first.describe()}
    of_new = {event["event"]: event for event in make_decoder([new]).describe()}
    changes = [
        change
        for name in dict.fromkeys([*of_old, *of_new])
        if (change := _event_change(name, of_old.get(name), of_new.get(name))) is not None
    ]
    statements = tuple(_migration(first.tables(), both.tables(), schema))
    if from_slot is None:
        statements = tuple(text.replace(f"__{slot}", f"__{FROM_SLOT}") for text in statements)
    return IdlDiff(tuple(changes), len(of_old.keys() & of_new.keys()) - _in_both(changes), statements)


def _in_both(changes: list[EventChange]) -> int:
    return sum(change.change == "layout" for change in changes)


def _event_change(
    name: str, before: "uho_native.EventDescription | None", after: "uho_native.EventDescription | None"
) -> EventChange | None:
    """Return what changes about an event; None when nothing does."""
    old = dict(before["fields"]) if before else {}
    new = dict(after["fields"]) if after else {}
    discriminators = tuple(dict.fromkeys(event["discriminator"] for event in (before, after) if event))
    fields = tuple(_field_changes(old, new))
    if before is None or after is None:
        return EventChange("added" if before is None else "gone", name, discriminators, fields, moved=False)
    kept = [field for field in old if field in new]
    moved = [field for field in new if field in old] != kept or list(new)[: len(kept)] != kept
    if not fields and not moved and len(discriminators) == 1:
        return None
    return EventChange("layout", name, discriminators, fields, moved)


def _field_changes(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[FieldChange]:
    for field in dict.fromkeys([*old, *new]):
        if field not in old:
            yield FieldChange("added", field, "", new[field])
        elif field not in new:
            yield FieldChange("gone", field, old[field], "")
        elif old[field] != new[field]:
            yield FieldChange("type", field, old[field], new[field])


def _migration(before: list[uho_native.EventTable], after: list[uho_native.EventTable], schema: str) -> Iterator[str]:
    """Yield the statements that lead from the tables of one version to those of both."""
    existing = {table.name: _columns(table) for table in before}
    taken: set[str] = set()
    for table in after:
        name = sql_name(table.name, taken)
        taken.add(name)
        columns = _columns(table)
        if table.name not in existing:
            yield f"{create_table_statement(schema, name, columns).as_string(None)};"
            continue
        for column, kind in columns.items():
            if column not in existing[table.name]:
                yield f"{add_column_statement(schema, name, column, kind).as_string(None)};"


def _columns(table: uho_native.EventTable) -> dict[str, str]:
    """Return the columns and types that a new table would have."""
    fixed = 1 + table.schema.names.index("block_time")
    columns: dict[str, str] = {}
    taken: set[str] = set()
    for index, field in enumerate(table.schema):
        name = field.name if index < fixed else column_name(field.name, taken)
        if index >= fixed:
            taken.add(name)
        columns[name] = postgres_type(table.name, field)
    return columns

"""Payloads decoded by anchorpy, by the stated order of IDL versions, into the stated form of values.

What belongs here: what a payload is, said by an implementation that shares nothing with ours. anchorpy reads values;
what it does not do, this adds: every byte must be used, and values take the form in which the warehouse keeps them.
What anchorpy cannot read is not comparable, with the reason; it is never taken for a fault of the rows.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

from construct import Construct, ConstructError

from uho_pipelines.integrity.anchorpy_parts import (
    EventCoder,
    Idl,
    IdlEvent,
)
from uho_pipelines.integrity.anchorpy_values import Types, column, fields_of, names_of, written
from uho_pipelines.integrity.chain import ChainRecord, NotComparableError
from uho_pipelines.registry import IdlVersion, Program

DISCRIMINATOR_BYTES = 8
"""Log data shorter than this is nobody's event."""


@dataclass(frozen=True)
class Event:
    """A decoded event; values by the field's name as anchorpy knows it."""

    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Undecodable:
    """No IDL version reads the payload: it belongs into quarantine."""


@dataclass(frozen=True)
class Foreign:
    """Nobody's event, or one that program.yaml says to ignore: it belongs nowhere."""


Reading = Event | Undecodable | Foreign


class IndependentDecoder:
    """Decodes a program's records by its IDL versions."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def read(self, record: ChainRecord, slot: int) -> Reading:
        """Return what a record of a transaction in `slot` is.

        Raises:
            NotComparableError: anchorpy cannot tell.
        """
        payload = record.payload
        if any(payload.startswith(prefix) for prefix in self.program.ignore):
            return Foreign()
        known = False
        fallback: Event | None = None
        for in_force, version in self._in_order(slot):
            layout = _readable(version).layout(payload)
            if layout is None:
                continue
            known = True
            event = layout.read(payload)
            if event is None:
                continue
            if in_force:
                return event
            if fallback is not None and not _same_event(fallback, event):
                return Undecodable()
            fallback = fallback or event
        if fallback is not None:
            return fallback
        if not known and len(payload) < DISCRIMINATOR_BYTES and record.source == "log":
            return Foreign()
        return Undecodable()

    def _in_order(self, slot: int) -> Iterator[tuple[bool, IdlVersion]]:
        """Yield the version in force, then older ones from newest to oldest, then newer ones from oldest to newest."""
        begun = [version for version in self.program.idls if version.from_slot <= slot]
        for place, version in enumerate(reversed(begun)):
            yield place == 0, version
        for version in self.program.idls[len(begun) :]:
            yield False, version


@dataclass
class _Layout:
    """How one event of one IDL is laid out; `fault`: why anchorpy cannot read it."""

    event: IdlEvent
    discriminator: bytes
    construct: "Construct[Any, Any] | None"
    types: Types
    fault: str

    def read(self, payload: bytes) -> Event | None:
        """Return the event; None when the bytes are not exactly one."""
        name = self.event.name
        if self.construct is None:
            raise NotComparableError(f"anchorpy cannot read event {name}: {self.fault}")
        body = payload[len(self.discriminator) :]
        try:
            # Bytes that are left over are found below: what was read does not make the payload again.
            value: Any = self.construct.parse(body)
        except (ConstructError, UnicodeDecodeError, IndexError) as error:
            if "nan" in str(error):
                raise NotComparableError(f"anchorpy reads no NaN, and a payload of {name} has one") from None
            return None
        except Exception as error:  # noqa: BLE001 - whatever anchorpy trips over, it is not the rows' fault
            raise NotComparableError(f"anchorpy cannot read a payload of {name} ({type(error).__name__})") from None
        values = fields_of(value, self.event.fields, name)
        if b"".join(written(self.types, kind, item) for _, kind, item in values) != body:
            return None
        if len({plain_name(field) for field, _, _ in values}) < len(values):
            raise NotComparableError(f"two fields of {name} differ in their style of name only")
        return Event(name, {field: column(self.types, kind, item) for field, kind, item in values})


@dataclass
class _ReadableIdl:
    """An IDL as anchorpy reads it. It is kept for good: anchorpy's own caches go by the addresses of its parts."""

    idl: Idl
    layouts: list[_Layout]

    def layout(self, payload: bytes) -> _Layout | None:
        """Return the layout of the event that begins like `payload`."""
        return next((layout for layout in self.layouts if payload.startswith(layout.discriminator)), None)


def _same_event(one: Event, other: Event) -> bool:
    """Return whether two readings of the same bytes say the same."""

    def as_said(event: Event) -> list[Any]:
        return [plain_name(event.name), *((plain_name(name), value) for name, value in event.fields.items())]

    return as_said(one) == as_said(other)


def plain_name(name: str) -> str:
    """Return a name without what naming styles differ in: orderId and order_id are one."""
    return re.sub(r"[^0-9a-z]", "", name.lower())


def _readable(version: IdlVersion) -> _ReadableIdl:
    found = _read_idl(version.json)
    if isinstance(found, str):
        raise NotComparableError(f"anchorpy cannot read the IDL {version.label}: {found}")
    return found


@cache
def _read_idl(document: bytes) -> _ReadableIdl | str:
    """Return the IDL; a text, why anchorpy cannot read it. The programs' IDLs are few and stay the same."""
    try:
        text = document.decode("utf-8-sig")
        idl = Idl.from_json(text)
        types = {item.name: item for item in idl.types}
        # anchorpy reads everything as Borsh, which has none of the padding that memory has.
        in_memory = {
            item["name"]
            for item in json.loads(text).get("types") or []
            if item.get("serialization", "borsh") != "borsh"
        }
        layouts = [_layout(idl, event, types, in_memory) for event in idl.events or []]
    except Exception as error:  # noqa: BLE001 - whatever anchorpy trips over, it is not the rows' fault
        return type(error).__name__
    return _ReadableIdl(idl, layouts)


def _layout(idl: Idl, event: IdlEvent, types: Types, in_memory: Set[str]) -> _Layout:
    stated = bytes(event.discriminator or b"")
    discriminator = stated or hashlib.sha256(f"event:{event.name}".encode()).digest()[:DISCRIMINATOR_BYTES]
    # One event at a time: a type that anchorpy lacks shall cost that event alone.
    alone = copy.copy(idl)
    alone.events = [event]
    try:
        coder: Any = EventCoder(alone)  # its base class has no types
        construct, fault = coder.layouts[event.name], ""
    except Exception as error:  # noqa: BLE001 - as above
        construct, fault = None, f"{type(error).__name__} in its types"
    copied = (names_of([field.ty for field in event.fields], types) | {event.name}) & in_memory
    if copied:
        construct, fault = None, f"{', '.join(sorted(copied))}: copied from memory, not written as Borsh"
    return _Layout(event, discriminator, construct, types, fault)

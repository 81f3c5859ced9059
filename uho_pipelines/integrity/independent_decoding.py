"""Payloads decoded by anchorpy, by the stated order of IDL versions, into the stated form of values.

What belongs here: what a payload is, said by an implementation that shares nothing with ours. anchorpy reads values;
what it does not do, this adds: every byte must be used, and values take the form in which the warehouse keeps them.
What anchorpy cannot read is not comparable, with the reason; it is never taken for a fault of the rows.
"""

import copy
import dataclasses
import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from construct import Construct, ConstructError

from uho_pipelines.integrity.anchorpy_parts import (
    EnumFieldsNamed,
    EnumFieldsTuple,
    EventCoder,
    Idl,
    IdlEnumVariant,
    IdlEvent,
    IdlTypeArray,
    IdlTypeDefined,
    IdlTypeDefinition,
    IdlTypeDefinitionTyAlias,
    IdlTypeDefinitionTyEnum,
    IdlTypeDefinitionTyStruct,
    IdlTypeOption,
    IdlTypeSimple,
    IdlTypeVec,
)
from uho_pipelines.integrity.chain import ChainRecord, NotComparableError
from uho_pipelines.registry import IdlVersion, Program

DISCRIMINATOR_BYTES = 8
"""Log data shorter than this is nobody's event."""

WIDE = {IdlTypeSimple.U64, IdlTypeSimple.I64, IdlTypeSimple.U128, IdlTypeSimple.I128}
"""Integers that are decimal strings within nested values."""


FORMATS = {
    IdlTypeSimple.Bool: "?",
    IdlTypeSimple.U8: "B",
    IdlTypeSimple.U16: "H",
    IdlTypeSimple.U32: "I",
    IdlTypeSimple.U64: "Q",
    IdlTypeSimple.I8: "b",
    IdlTypeSimple.I16: "h",
    IdlTypeSimple.I32: "i",
    IdlTypeSimple.I64: "q",
    IdlTypeSimple.F32: "f",
    IdlTypeSimple.F64: "d",
}
"""How scalars of fixed size are written, in the letters of `struct`."""


class Address(str):
    """An address in base58: equal to the same address's 32 bytes."""


class Single(float):
    """A float of 32 bits: equal to whatever has the same 32 bits."""


@dataclass(frozen=True)
class Nested:
    """A value of a jsonb column."""

    json: Any


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

Types = Mapping[str, IdlTypeDefinition]
"""The types that an IDL defines, by name."""


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
        values = _fields_of(value, self.event.fields, name)
        if b"".join(written(self.types, kind, item) for _, kind, item in values) != body:
            return None
        if len({plain_name(field) for field, _, _ in values}) < len(values):
            raise NotComparableError(f"two fields of {name} differ in their style of name only")
        return Event(name, {field: _column(self.types, kind, item) for field, kind, item in values})


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
        idl = Idl.from_json(document.decode("utf-8-sig"))
        types = {item.name: item for item in idl.types}
        layouts = [_layout(idl, event, types) for event in idl.events or []]
    except Exception as error:  # noqa: BLE001 - whatever anchorpy trips over, it is not the rows' fault
        return type(error).__name__
    return _ReadableIdl(idl, layouts)


def _layout(idl: Idl, event: IdlEvent, types: Types) -> _Layout:
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
    return _Layout(event, discriminator, construct, types, fault)


def _column(types: Types, kind: Any, value: Any) -> Any:  # noqa: ANN401 - any type's value
    """Return a field's value as its column holds it: scalars as they are, everything else as JSON."""
    while isinstance(kind, (IdlTypeOption, IdlTypeDefined)):
        if value is None:
            return None
        if isinstance(kind, IdlTypeOption):
            kind = kind.option
            continue
        definition = _definition(types, kind.defined)
        if not isinstance(definition.ty, IdlTypeDefinitionTyAlias):
            break
        kind = definition.ty.value
    if value is None:
        return None
    if isinstance(kind, IdlTypeSimple):
        return _scalar(kind, value)
    return Nested(_json(types, kind, value))


def _scalar(kind: IdlTypeSimple, value: Any) -> Any:  # noqa: ANN401 - any scalar's value
    match kind:
        case IdlTypeSimple.PublicKey:
            return Address(value)
        case IdlTypeSimple.String:
            return _text(value)
        case IdlTypeSimple.Bytes:
            return bytes(value)
        case IdlTypeSimple.F32:
            return Single(value)
        case _:
            return value


def _json(types: Types, kind: Any, value: Any) -> Any:  # noqa: ANN401 - any type's value
    """Return a nested value in the stated form."""
    match kind:
        case IdlTypeSimple():
            return _json_scalar(kind, value)
        case IdlTypeOption():
            return None if value is None else _json(types, kind.option, value)
        case IdlTypeVec():
            return [_json(types, kind.vec, item) for item in value]
        case IdlTypeArray():
            return [_json(types, kind.array[0], item) for item in value]
        case IdlTypeDefined():
            return _json_defined(types, _definition(types, kind.defined), value)
        case _:
            raise NotComparableError(f"a value of the type {type(kind).__name__} cannot be compared")


def _json_defined(types: Types, definition: IdlTypeDefinition, value: Any) -> Any:  # noqa: ANN401 - any type's value
    body, name = definition.ty, definition.name
    if isinstance(body, IdlTypeDefinitionTyAlias):
        return _json(types, body.value, value)
    if isinstance(body, IdlTypeDefinitionTyStruct):
        parts = {field: _json(types, kind, item) for field, kind, item in _fields_of(value, body.fields, name)}
        # anchorpy names the fields of a tuple struct so; the warehouse keeps a list.
        is_tuple = bool(parts) and list(parts) == [f"field_{place}" for place in range(len(parts))]
        return list(parts.values()) if is_tuple else parts
    variant = _variant(body, value)
    if isinstance(variant.fields, EnumFieldsNamed):
        named = _fields_of(value, variant.fields.fields, name)
        return {variant.name: {field: _json(types, kind, item) for field, kind, item in named}}
    if isinstance(variant.fields, EnumFieldsTuple):
        pairs = zip(variant.fields.fields, value.tuple_data, strict=True)
        return {variant.name: [_json(types, kind, item) for kind, item in pairs]}
    return {variant.name: {}}


def _json_scalar(kind: IdlTypeSimple, value: Any) -> Any:  # noqa: ANN401 - any scalar's value
    match kind:
        case _ if kind in WIDE:
            return str(value)
        case IdlTypeSimple.Bytes:
            return bytes(value).hex()
        case IdlTypeSimple.F32 | IdlTypeSimple.F64 if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case _:
            return _scalar(kind, value)


def _text(value: str) -> str:
    """Return text as the warehouse keeps it: Postgres refuses U+0000, which becomes the six characters."""
    return value.replace("\0", "\\u0000")


def written(types: Types, kind: Any, value: Any) -> bytes:  # noqa: ANN401 - any type's value
    """Return the bytes of a value that anchorpy read.

    It reads any byte but 0 as true, and says nothing of bytes that are left over; a payload is exactly an event if what
    was read makes it again.
    """
    match kind:
        case IdlTypeSimple.PublicKey:
            return bytes(value)
        case IdlTypeSimple.String:
            return _counted(value.encode())
        case IdlTypeSimple.Bytes:
            return _counted(bytes(value))
        case IdlTypeSimple.U128 | IdlTypeSimple.I128:
            return int(value).to_bytes(16, "little", signed=kind == IdlTypeSimple.I128)
        case IdlTypeSimple() if kind in FORMATS:
            return struct.pack(f"<{FORMATS[kind]}", value)
        case IdlTypeOption():
            return b"\0" if value is None else b"\1" + written(types, kind.option, value)
        case IdlTypeVec():
            return struct.pack("<I", len(value)) + b"".join(written(types, kind.vec, item) for item in value)
        case IdlTypeArray():
            return b"".join(written(types, kind.array[0], item) for item in value)
        case IdlTypeDefined():
            return _written_defined(types, _definition(types, kind.defined), value)
        case _:
            raise _unknown_type(kind)


def _written_defined(types: Types, definition: IdlTypeDefinition, value: Any) -> bytes:  # noqa: ANN401 - any type's value
    body, name = definition.ty, definition.name
    if isinstance(body, IdlTypeDefinitionTyAlias):
        return written(types, body.value, value)
    if isinstance(body, IdlTypeDefinitionTyStruct):
        return b"".join(written(types, kind, item) for _, kind, item in _fields_of(value, body.fields, name))
    variant = _variant(body, value)
    start = bytes([value.index])
    if isinstance(variant.fields, EnumFieldsNamed):
        named = _fields_of(value, variant.fields.fields, name)
        return start + b"".join(written(types, kind, item) for _, kind, item in named)
    if isinstance(variant.fields, EnumFieldsTuple):
        pairs = zip(variant.fields.fields, value.tuple_data, strict=True)
        return start + b"".join(written(types, kind, item) for kind, item in pairs)
    return start


def _counted(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _variant(body: Any, value: Any) -> IdlEnumVariant:  # noqa: ANN401 - anchorpy makes the class
    if not isinstance(body, IdlTypeDefinitionTyEnum):
        raise _unknown_type(body)
    return body.variants[value.index]


def _fields_of(value: Any, fields: Sequence[Any], name: str) -> list[tuple[str, Any, Any]]:  # noqa: ANN401 - anchorpy makes the class
    """Return name, type and value of each field of a struct, event or named variant, in the IDL's order.

    anchorpy changes names, so they are taken by place.
    """
    parts = dataclasses.fields(value) if dataclasses.is_dataclass(value) else value.__attrs_attrs__
    if len(parts) != len(fields):
        raise NotComparableError(f"anchorpy reads another number of fields of {name} than its IDL has")
    return [(field.name, field.ty, getattr(value, part.name)) for field, part in zip(fields, parts, strict=True)]


def _definition(types: Types, name: str) -> IdlTypeDefinition:
    if name not in types:
        raise NotComparableError(f"anchorpy knows no type {name}")
    return types[name]


def _unknown_type(kind: object) -> NotComparableError:
    return NotComparableError(f"a value of the type {getattr(kind, 'name', type(kind).__name__)} cannot be compared")

"""Values that anchorpy read: in the form in which the warehouse keeps them, and back to the bytes they came from.

What belongs here: walking a value by its type of the IDL. Nothing of it knows discriminators, versions or records.
"""

import dataclasses
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uho_pipelines.integrity.anchorpy_parts import (
    EnumFieldsNamed,
    EnumFieldsTuple,
    IdlEnumVariant,
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
from uho_pipelines.integrity.chain import NotComparableError

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


Types = Mapping[str, IdlTypeDefinition]
"""The types that an IDL defines, by name."""


def names_of(kinds: Iterable[Any], types: Types) -> set[str]:
    """Return the names of the defined types that types are made of."""
    found: set[str] = set()
    left = list(kinds)
    while left:
        match left.pop():
            case IdlTypeOption(option=inner) | IdlTypeVec(vec=inner):
                left.append(inner)
            case IdlTypeArray(array=(inner, _)):
                left.append(inner)
            case IdlTypeDefined(defined=name) if name in types and name not in found:
                found.add(name)
                left.extend(_parts_of(types[name].ty))
            case _:
                pass
    return found


def _parts_of(body: Any) -> list[Any]:  # noqa: ANN401 - any definition's body
    """Return the types that a definition names."""
    if isinstance(body, IdlTypeDefinitionTyAlias):
        return [body.value]
    if isinstance(body, IdlTypeDefinitionTyStruct):
        return [field.ty for field in body.fields]
    of_variants = [variant.fields for variant in body.variants if variant.fields is not None]
    return [getattr(part, "ty", part) for fields in of_variants for part in fields.fields]


def column(types: Types, kind: Any, value: Any) -> Any:  # noqa: ANN401 - any type's value
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
        parts = {field: _json(types, kind, item) for field, kind, item in fields_of(value, body.fields, name)}
        # anchorpy names the fields of a tuple struct so; the warehouse keeps a list.
        is_tuple = bool(parts) and list(parts) == [f"field_{place}" for place in range(len(parts))]
        return list(parts.values()) if is_tuple else parts
    variant = _variant(body, value)
    if isinstance(variant.fields, EnumFieldsNamed):
        named = fields_of(value, variant.fields.fields, name)
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
            if value is None and _is_option(types, kind.option):
                raise NotComparableError("anchorpy does not say which option of an option is empty")
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
        return b"".join(written(types, kind, item) for _, kind, item in fields_of(value, body.fields, name))
    variant = _variant(body, value)
    start = bytes([value.index])
    if isinstance(variant.fields, EnumFieldsNamed):
        named = fields_of(value, variant.fields.fields, name)
        return start + b"".join(written(types, kind, item) for _, kind, item in named)
    if isinstance(variant.fields, EnumFieldsTuple):
        pairs = zip(variant.fields.fields, value.tuple_data, strict=True)
        return start + b"".join(written(types, kind, item) for kind, item in pairs)
    return start


def _is_option(types: Types, kind: Any) -> bool:  # noqa: ANN401 - any type
    while isinstance(kind, IdlTypeDefined):
        body = _definition(types, kind.defined).ty
        if not isinstance(body, IdlTypeDefinitionTyAlias):
            return False
        kind = body.value
    return isinstance(kind, IdlTypeOption)


def _counted(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _variant(body: Any, value: Any) -> IdlEnumVariant:  # noqa: ANN401 - anchorpy makes the class
    if not isinstance(body, IdlTypeDefinitionTyEnum):
        raise _unknown_type(body)
    return body.variants[value.index]


def fields_of(value: Any, fields: Sequence[Any], name: str) -> list[tuple[str, Any, Any]]:  # noqa: ANN401 - anchorpy makes the class
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

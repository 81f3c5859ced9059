"""Random IDLs and values: what the tests' own Borsh encoder wrote, the kernel reads back, and anchorpy reads alike.

anchorpy knows no 256-bit integers, coption, generics, tuple structs, types copied from memory, nor aliases of the newer
format, and refuses NaN; everything else is compared, in both IDL formats. An option of an option is null or not, for
both. anchorpy does not ask whether bytes are left over: what must not decode is asked of the kernel alone.
"""

import json
import math
import struct
from dataclasses import dataclass
from itertools import count
from typing import Any

import uho_native
from anchorpy.coder.event import EventCoder
from anchorpy.idl_adapter import Idl
from construct import FormatFieldError
from events import Record, batch_of, discriminator, program_of
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from solders.pubkey import Pubkey

from uho_pipelines.decoding import decode

INTEGERS = tuple(f"{sign}{bits}" for bits in (8, 16, 32, 64, 128, 256) for sign in "ui")
FIXED = ("bool", *INTEGERS, "f32", "f64", "pubkey")
SCALARS = (*FIXED, "string", "bytes")
names = (f"T{number}" for number in count())
"""Never one twice: anchorpy remembers enums by name."""


@dataclass(frozen=True)
class Scalar:
    name: str


@dataclass(frozen=True)
class Option:
    of: Any
    c: bool = False


@dataclass(frozen=True)
class Sequence:
    of: Any
    length: int | None
    """None: a vec."""


@dataclass(frozen=True)
class Fields:
    """Named or not: those of a struct, a tuple struct or a variant. A struct has a name of its own."""

    kinds: tuple[Any, ...]
    named: bool
    name: str = ""

    def __iter__(self):
        return zip(("one", "two", "three", "four", "five"), self.kinds, strict=False)


@dataclass(frozen=True)
class Enum:
    variants: tuple[Fields, ...]
    name: str


@dataclass(frozen=True)
class Alias:
    of: Any
    name: str


@dataclass(frozen=True)
class Generic:
    """`Name<T, N> { one: [T; N], two: T }`"""

    of: Any
    length: int
    name: str

    @property
    def body(self):
        return Fields((Sequence(self.of, self.length), self.of), named=True)


@dataclass(frozen=True)
class Copied:
    """A struct of scalars that is copied from memory, so with the padding that C has."""

    kinds: tuple[Scalar, ...]
    name: str


NAMES = st.builds(lambda: next(names))


def common_kinds(kinds):
    """Types that anchorpy knows too."""
    several = st.lists(kinds, min_size=1, max_size=4).map(tuple)
    variant = st.builds(Fields, several, st.booleans()) | st.just(Fields((), named=True))
    return (
        st.builds(Option, kinds)
        | st.builds(Sequence, kinds, st.none() | st.integers(0, 3))
        | st.builds(Fields, several, st.just(value=True), NAMES)
        | st.builds(Enum, st.lists(variant, min_size=1, max_size=4).map(tuple), NAMES)
        | st.builds(Alias, kinds, NAMES)
    )


def all_kinds(kinds):
    fixed = st.builds(Scalar, st.sampled_from(FIXED))
    return (
        common_kinds(kinds)
        | st.builds(Fields, st.lists(kinds, min_size=1, max_size=4).map(tuple), st.just(value=False), NAMES)
        | st.builds(Option, fixed, st.just(value=True))
        | st.builds(Generic, kinds, st.integers(1, 3), NAMES)
        | st.builds(Copied, st.lists(fixed, min_size=1, max_size=5).map(tuple), NAMES)
    )


def scalars(*without):
    return st.builds(Scalar, st.sampled_from([name for name in SCALARS if name not in without]))


KINDS = st.recursive(scalars("u256", "i256"), common_kinds, max_leaves=8) | st.recursive(
    scalars(), all_kinds, max_leaves=8
)


def spelled(kind, older):
    """The type as an IDL has it."""
    match kind:
        case Scalar("pubkey"):
            return "publicKey" if older else "pubkey"
        case Scalar(name):
            return name
        case Option(of, c):
            return {"coption" if c else "option": spelled(of, older)}
        case Sequence(of, None):
            return {"vec": spelled(of, older)}
        case Sequence(of, length):
            return {"array": [spelled(of, older), length]}
        case Generic(of, length, name) if older:
            return {
                "definedWithTypeArgs": {"name": name, "args": [{"type": spelled(of, older)}, {"value": str(length)}]}
            }
        case Generic(of, length, name):
            arguments = [{"kind": "type", "type": spelled(of, older)}, {"kind": "const", "value": str(length)}]
            return {"defined": {"name": name, "generics": arguments}}
        case _:
            return {"defined": kind.name if older else {"name": kind.name}}


def fields_spelled(fields, older):
    return [
        {"name": field, "type": spelled(kind, older)} if fields.named else spelled(kind, older)
        for field, kind in fields
    ]


def definitions(kind, older):
    """The type definitions that a type needs."""
    match kind:
        case Scalar():
            return
        case Fields(kinds):
            body = {"kind": "struct", "fields": fields_spelled(kind, older)}
            yield {"name": kind.name, "type": body}
            for each in kinds:
                yield from definitions(each, older)
        case Enum(variants):
            bodies = [
                {"name": f"V{place}", **({"fields": fields_spelled(fields, older)} if fields.kinds else {})}
                for place, fields in enumerate(variants)
            ]
            yield {"name": kind.name, "type": {"kind": "enum", "variants": bodies}}
            for each in (each for fields in variants for each in fields.kinds):
                yield from definitions(each, older)
        case Copied(kinds):
            body = {"kind": "struct", "fields": fields_spelled(Fields(kinds, named=True), older)}
            yield {"name": kind.name, "serialization": "bytemuck", "repr": {"kind": "c"}, "type": body}
        case Generic(of):
            generic = {"generic": "T"}
            array = {"genericLenArray": [generic, "N"]} if older else {"array": [generic, {"generic": "N"}]}
            fields = [{"name": "one", "type": array}, {"name": "two", "type": generic}]
            parameters = [{"kind": "type", "name": "T"}, {"kind": "const", "name": "N", "type": "usize"}]
            generics = [parameter["name"] for parameter in parameters] if older else parameters
            yield {"name": kind.name, "generics": generics, "type": {"kind": "struct", "fields": fields}}
            yield from definitions(of, older)
        case Alias(of):
            body = (
                {"kind": "alias", "value": spelled(of, older)}
                if older
                else {"kind": "type", "alias": spelled(of, older)}
            )
            yield {"name": kind.name, "type": body}
            yield from definitions(of, older)
        case _:
            yield from definitions(kind.of, older)


def idl_of(fields, older):
    found = [each for kind in fields.kinds for each in definitions(kind, older)]
    defined = list({each["name"]: each for each in found}.values())
    if older:
        event = {"name": "Said", "fields": [{**field, "index": False} for field in fields_spelled(fields, older)]}
        document = {"version": "0.1.0", "name": "demo", "instructions": [], "events": [event], "types": defined}
        document["metadata"] = {"address": "1" * 32}
    else:
        said = {"name": "Said", "type": {"kind": "struct", "fields": fields_spelled(fields, older)}}
        document = {
            "address": "1" * 32,
            "metadata": {"name": "demo", "version": "0.1.0", "spec": "0.1.0"},
            "instructions": [],
            "events": [{"name": "Said", "discriminator": list(discriminator("Said"))}],
            "types": [*defined, said],
        }
    return json.dumps(document).encode()


def values_of(kind):
    """Values of a type: an option is `()` or `(value,)`, fields are tuples, an enum is (place, fields)."""
    match kind:
        case Scalar("bool"):
            return st.booleans()
        case Scalar("f32"):
            return st.floats(width=32)
        case Scalar("f64"):
            return st.floats()
        case Scalar("pubkey"):
            return st.binary(min_size=32, max_size=32)
        case Scalar("string"):
            return st.text(max_size=12).map(lambda text: text.replace("\0", ""))  # that one is tested elsewhere
        case Scalar("bytes"):
            return st.binary(max_size=12)
        case Scalar(name):
            bits, least = int(name[1:]), 0
            if name[0] == "i":
                bits, least = bits - 1, -(2 ** (bits - 1))
            return st.sampled_from([least, 0, 2**bits - 1]) | st.integers(least, 2**bits - 1)
        case Option(of, True):
            return st.tuples(st.booleans(), values_of(of))
        case Option(of):
            return st.just(()) | st.tuples(values_of(of))
        case Sequence(of, None):
            return st.lists(values_of(of), max_size=3)
        case Sequence(of, length):
            return st.lists(values_of(of), min_size=length, max_size=length)
        case Fields(kinds) | Copied(kinds):
            return st.tuples(*map(values_of, kinds))
        case Enum(variants):
            return st.one_of(*(st.tuples(st.just(place), values_of(fields)) for place, fields in enumerate(variants)))
        case Generic():
            return values_of(kind.body)
        case _:
            return values_of(kind.of)


def packed(kind, value):
    """The value as Borsh (or memory) has it."""
    match kind:
        case Scalar("bool"):
            return bytes([value])
        case Scalar("f32"):
            return struct.pack("<f", value)
        case Scalar("f64"):
            return struct.pack("<d", value)
        case Scalar("pubkey"):
            return value
        case Scalar("string"):
            return packed(Scalar("bytes"), value.encode())
        case Scalar("bytes"):
            return struct.pack("<I", len(value)) + value
        case Scalar(name):
            return value.to_bytes(int(name[1:]) // 8, "little", signed=name[0] == "i")
        case Option(of, True):
            return struct.pack("<I", value[0]) + packed(of, value[1])
        case Option(of):
            return bytes([len(value)]) + b"".join(packed(of, each) for each in value)
        case Sequence(of, length):
            prefix = b"" if length is not None else struct.pack("<I", len(value))
            return prefix + b"".join(packed(of, each) for each in value)
        case Fields(kinds):
            return b"".join(map(packed, kinds, value))
        case Copied(kinds):
            memory, aligns = b"", [1]
            for each, part in zip(kinds, value, strict=True):
                plain = packed(each, part)
                aligns.append(1 if each.name in ("bool", "pubkey") else min(8, len(plain)))
                memory += b"\xcc" * (-len(memory) % aligns[-1]) + plain
            return memory + b"\xcc" * (-len(memory) % max(aligns))
        case Enum(variants):
            return bytes([value[0]]) + packed(variants[value[0]], value[1])
        case Generic():
            return packed(kind.body, value)
        case _:
            return packed(kind.of, value)


def said(kind, value):
    """The value as nested JSON spells it."""
    match kind:
        case Scalar("f32" | "f64"):
            if not math.isfinite(value):
                return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            return value
        case Scalar("pubkey"):
            return str(Pubkey(value))
        case Scalar("bytes"):
            return value.hex()
        case Scalar(name):
            return str(value) if name[1:] in ("64", "128", "256") else value
        case Option(of, True):
            return said(of, value[1]) if value[0] else None
        case Option(of):
            return said(of, value[0]) if value else None
        case Sequence(of):
            return [said(of, each) for each in value]
        case Fields(kinds, named):
            parts = list(map(said, kinds, value))
            return dict(zip(dict(kind), parts, strict=True)) if named else parts
        case Copied(kinds):
            return said(Fields(kinds, named=True), value)
        case Enum(variants):
            return {f"V{value[0]}": said(variants[value[0]], value[1])}
        case Generic():
            return said(kind.body, value)
        case _:
            return said(kind.of, value)


def known_to_anchorpy(kind, older):
    match kind:
        case Scalar(name):
            return name not in ("u256", "i256")
        case Fields(kinds, named):
            return named and all(known_to_anchorpy(each, older) for each in kinds)
        case Enum(variants):
            return all(known_to_anchorpy(each, older) for fields in variants for each in fields.kinds)
        case Generic() | Copied() | Option(_, True):
            return False
        case Alias(of):
            return older and known_to_anchorpy(of, older)
        case _:
            return known_to_anchorpy(kind.of, older)


def from_anchorpy(kind, value):
    """What anchorpy read, as nested JSON spells it."""
    match kind:
        case Scalar("pubkey"):
            return str(value)
        case Scalar():
            return said(kind, bytes(value) if kind.name == "bytes" else value)
        case Option(of):
            return None if value is None else from_anchorpy(of, value)
        case Sequence(of):
            return [from_anchorpy(of, each) for each in value]
        case Fields(_, named):
            if not named:
                return [from_anchorpy(each, part) for (_, each), part in zip(kind, value.tuple_data, strict=True)]
            return {name: from_anchorpy(each, getattr(value, name)) for name, each in kind}
        case Enum(variants):
            return {f"V{value.index}": from_anchorpy(variants[value.index], value)}
        case _:
            return from_anchorpy(kind.of, value)


def scalar_of(kind):
    """The scalar that a column of its own holds; None for what is nested."""
    match kind:
        case Scalar():
            return kind
        case Option(of) | Alias(of):
            return scalar_of(of)
        case _:
            return None


def from_column(kind, value):
    """A cell of a decoded batch, as nested JSON spells it."""
    if value is None:
        return None
    scalar = scalar_of(kind)
    if scalar is None:
        return json.loads(value)
    if scalar.name in ("u256", "i256"):
        return value
    return said(scalar, int(value) if scalar.name in INTEGERS else value)


def comparable(value):
    """Floats by the bits that an f32 of them has: JSON writes the shortest text that reads back."""
    match value:
        case float():
            return struct.pack("<f", value) if abs(value) < 3.5e38 else value
        case list():
            return list(map(comparable, value))
        case dict():
            return {name: comparable(each) for name, each in value.items()}
        case _:
            return value


EVENTS = st.lists(KINDS, max_size=4).map(lambda kinds: Fields(tuple(kinds), named=True))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=EVENTS, older=st.booleans(), data=st.data())
def test_kernel_and_anchorpy_read_what_was_written(fields, older, data):
    idl = idl_of(fields, older)
    program = program_of(idl)
    try:
        decoder = uho_native.Decoder(program.id_bytes, [(0, "random.json", idl)])
    except uho_native.IdlError as error:
        assert "elements of no size" in str(error)  # noqa: PT017 - anything else is a defect
        assume(condition=False)
        return
    value = data.draw(values_of(fields))
    payload = discriminator("Said") + packed(fields, value)

    decoded = decode(decoder, program, batch_of(program, [Record(150, payload)]))
    assert decoded.quarantine.column("reason").to_pylist() == []
    ((_, rows),) = decoded.tables
    cells = [column[0].as_py() for column in rows.columns[6:]]
    found = [from_column(kind, cell) for kind, cell in zip(fields.kinds, cells, strict=True)]
    expected = [said(kind, each) for kind, each in zip(fields.kinds, value, strict=True)]
    assert comparable(found) == comparable(expected)

    wrong = [payload[:length] for length in range(len(payload))] + [payload + bytes([byte]) for byte in (0, 1, 255)]
    refused = decode(decoder, program, batch_of(program, [Record(150, each) for each in wrong]))
    assert refused.tables == []
    assert refused.quarantine.num_rows == len(wrong)

    if known_to_anchorpy(fields, older):
        try:
            read = EventCoder(Idl.from_json(idl.decode())).parse(payload)
        except FormatFieldError:
            event("refused by anchorpy: NaN")
            assert "NaN" in json.dumps(said(fields, value))
            return
        event("compared with anchorpy")
        assert comparable(from_anchorpy(fields, read.data)) == comparable(said(fields, value))
    else:
        event("unknown to anchorpy")

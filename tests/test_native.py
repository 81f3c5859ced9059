"""What crosses the border to Rust: COPY bytes by a reader of the tests' own, decoded batches, errors, certificates."""

import json
import math
import random
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import uho_native
from solders.pubkey import Pubkey
from solders.signature import Signature

PROGRAM = bytes([7]) * 32
DISCRIMINATOR = bytes(range(1, 9))
ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def column(values: list[Any], kind: pa.DataType, postgres: str) -> pa.RecordBatch:
    field = pa.field("value", kind, metadata={"uho:postgres": postgres})
    return pa.record_batch([pa.array(values, kind)], schema=pa.schema([field]))


def copied(batch: pa.RecordBatch) -> Iterator[bytes | None]:
    """The values of a batch of one column, as COPY carries them."""
    stream = uho_native.encode_copy(batch)
    while stream:
        fields, length = struct.unpack_from(">hi", stream)
        assert fields == 1
        stream = stream[6:]
        if length == -1:
            yield None
            continue
        yield stream[:length]
        stream = stream[length:]


def numeric(value: bytes) -> int:
    count, weight, sign, scale = struct.unpack_from(">hhHh", value)
    digits = struct.unpack_from(f">{count}H", value, 8)
    assert len(value) == 8 + 2 * count
    assert scale == 0
    assert all(digit < 10_000 for digit in digits)
    assert not digits or (digits[0] and digits[-1]), "zeros at the ends are left out"
    total = sum(digit * 10_000 ** (weight - place) for place, digit in enumerate(digits))
    return -total if sign == 0x4000 else total


def base58(value: bytes) -> str:
    number, text = int.from_bytes(value), ""
    while number:
        number, digit = divmod(number, 58)
        text = ALPHABET[digit] + text
    return "1" * (len(value) - len(value.lstrip(b"\0"))) + text


def test_header_and_trailer_frame_a_copy_stream():
    assert uho_native.copy_header() == b"PGCOPY\n\xff\r\n\0" + bytes(8)
    assert uho_native.copy_trailer() == b"\xff\xff"


def test_whole_numbers_become_numeric_to_the_last_digit():
    source = random.Random(5)
    edges = [0, 1, 9_999, 10_000, 10_001, 99_999_999, 100_000_000, 10**12, 10**16, 2**64 - 1]
    narrow = edges + [source.getrandbits(source.randrange(1, 65)) for _ in range(500)]
    assert [numeric(value) for value in copied(column(narrow, pa.uint64(), "numeric")) if value] == narrow
    wide = [sign * value for value in [*narrow, 2**127, 2**128 - 1, 10**38, 10**39 - 1] for sign in (1, -1)]
    decimals = [Decimal(value) for value in wide]
    found = copied(column(decimals, pa.decimal256(39, 0), "numeric"))
    assert [numeric(value) for value in found if value] == wide
    widest = [*wide, -(2**255), 2**256 - 1, 10**79, 10**80 - 1]
    found = copied(column([str(value) for value in widest], pa.string(), "numeric"))
    assert [numeric(value) for value in found if value] == widest
    assert [numeric(value) for value in copied(column(["-0", "007"], pa.string(), "numeric")) if value] == [0, 7]
    for text in ("", "-", "+1", "1.0", "1e3", "٣", "1" * 81):
        with pytest.raises(uho_native.CopyError, match="row 0: the value does not fit Postgres numeric"):
            uho_native.encode_copy(column([text], pa.string(), "numeric"))


def test_integers_outside_their_postgres_type_are_an_error_that_names_the_column():
    assert list(copied(column([-1, None], pa.int32(), "integer"))) == [b"\xff" * 4, None]
    with pytest.raises(uho_native.CopyError, match="column `value`, row 1: the value does not fit Postgres bigint"):
        uho_native.encode_copy(column([1, 2**63], pa.uint64(), "bigint"))


def test_what_has_no_rule_is_an_error_that_names_the_column():
    with pytest.raises(uho_native.CopyError, match="`value`: no rule writes Arrow Float64 as Postgres numeric"):
        uho_native.encode_copy(column([1.5], pa.float64(), "numeric"))
    with pytest.raises(uho_native.CopyError, match="`value` does not say its Postgres type"):
        uho_native.encode_copy(pa.record_batch([pa.array([1])], names=["value"]))


def test_text_keeps_everything_but_nul():
    values = ["", "a\0b\0", "é🦀\\"]
    assert list(copied(column(values, pa.string(), "text"))) == [b"", rb"a\u0000b\u0000", "é🦀\\".encode()]
    assert list(copied(column(["{}"], pa.string(), "jsonb"))) == [b"\x01{}"]


def test_addresses_and_signatures_become_base58_and_bytes_stay():
    for width in (32, 64):
        values = [bytes(width), bytes([0, 1]) + bytes([255]) * (width - 2), bytes([255]) * width]
        found = copied(column(values, pa.binary(width), "text"))
        assert [value.decode() for value in found if value is not None] == [base58(value) for value in values]
        assert list(copied(column(values, pa.binary(width), "bytea"))) == values


def test_addresses_that_come_again_and_those_that_share_a_place_have_texts_of_their_own():
    """What was written is remembered by its last eight bytes."""
    alike = [bytes([first, *[0] * 31]) for first in range(256)]
    source = random.Random(7)
    some = [source.randbytes(32) for _ in range(2_000)]
    addresses = [*alike, *alike, *some, *source.choices(some, k=1_000)]
    found = copied(column(addresses, pa.binary(32), "text"))
    assert [value.decode() for value in found if value is not None] == [str(Pubkey(one)) for one in addresses]


def test_instants_floats_booleans_and_paths():
    instant = datetime(1999, 12, 31, 23, 59, 58, tzinfo=UTC)
    for unit in ("s", "ms", "us"):
        found = copied(column([instant, instant + timedelta(seconds=4)], pa.timestamp(unit, "UTC"), "timestamptz"))
        assert [struct.unpack(">q", value)[0] for value in found if value] == [-2_000_000, 2_000_000]
    (double,) = copied(column([math.nan], pa.float64(), "double precision"))
    assert double is not None
    assert math.isnan(struct.unpack(">d", double)[0])
    assert list(copied(column([True, False], pa.bool_(), "boolean"))) == [b"\1", b"\0"]
    paths = copied(column([[], [0, 65_535]], pa.list_(pa.uint16()), "integer[]"))
    empty, two = paths
    assert empty == struct.pack(">iii", 0, 0, 23)
    assert two == struct.pack(">iiiii", 1, 0, 23, 2, 1) + struct.pack(">iiii", 4, 0, 4, 65_535)


def test_slices_encode_their_own_rows():
    batch = column([f"text {place}" for place in range(9)], pa.string(), "text")
    parts = [batch.slice(0, 4), batch.slice(4, 1), batch.slice(5)]
    assert b"".join(map(uho_native.encode_copy, parts)) == uho_native.encode_copy(batch)


def decoder() -> uho_native.Decoder:
    fields = [{"name": "slot", "type": "u64", "docs": ["when"]}, {"name": "memo", "type": {"vec": "string"}}]
    idl = {
        "address": "1" * 32,
        "metadata": {"name": "n", "version": "0.1.0", "spec": "0.1.0"},
        "instructions": [],
        "events": [{"name": "Said", "discriminator": list(DISCRIMINATOR)}],
        "types": [{"name": "Said", "docs": ["a word"], "type": {"kind": "struct", "fields": fields}}],
    }
    return uho_native.Decoder(PROGRAM, [(0, "said.json", json.dumps(idl).encode())])


def records(payloads: list[bytes]) -> pa.RecordBatch:
    count = len(payloads)
    columns: list[list[Any]] = [
        [5] * count,
        [0] * count,
        list(range(count)),
        [bytes([9]) * 64] * count,
        [None] * count,
        [PROGRAM] * count,
        [0] * count,
        [[0]] * count,
        payloads,
        [False] * count,
        [False] * count,
        [800] * count,
        [59] * count,
    ]
    schema = uho_native.record_schema()
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def test_decoded_batches_have_the_tables_schema_and_encode():
    said = decoder()
    (table,) = said.tables()
    assert (table.name, table.docs) == ("Said", "a word")
    assert table.schema.field(6).metadata == {b"uho:postgres": b"numeric", b"uho:docs": b"when"}
    batch = records([DISCRIMINATOR + bytes([255]) * 8 + bytes(4), b"something else", b"short"])
    decoded = said.decode(batch, include_failed=False, ignore=[])
    ((place, rows),) = decoded.tables
    assert place == 0
    assert rows.schema.equals(table.schema, check_metadata=True)
    assert (rows.column(6)[0].as_py(), rows.column(7)[0].as_py()) == (2**64 - 1, "[]")
    assert decoded.quarantine.column("reason").to_pylist() == [
        "unknown_discriminator: no IDL version has an event that begins like this"
    ]
    assert decoded.counts == {
        "records": 3,
        "twins_folded": 0,
        "failed_left_out": 0,
        "foreign": 1,
        "decoded": 1,
        "undecodable": 1,
        "decoded_by": [{"event": "Said", "idl": "said.json", "count": 1}],
        "undecodable_by": [
            {
                "discriminator": b"somethin".hex(),
                "reason": "unknown_discriminator",
                "count": 1,
                "first_slot": 5,
                "last_slot": 5,
                "least_unexplained": 6,
                "most_unexplained": 6,
            }
        ],
        "fallback": [],
        "instructions": dict.fromkeys(
            (
                "records",
                "failed_left_out",
                "foreign",
                "decoded",
                "undecodable",
                "short_of_accounts",
                "unknown_accounts",
            ),
            0,
        ),
    }
    assert uho_native.encode_copy(rows)
    assert uho_native.encode_copy(decoded.quarantine)
    flagged = said.decode(batch, include_failed=True, ignore=[b"some"])
    assert flagged.tables[0][1].schema.names[-2:] == ["failed", "truncated"]
    assert (flagged.counts["foreign"], flagged.quarantine.num_rows) == (2, 0)


def test_batches_decoded_side_by_side_are_as_one_after_the_other():
    said = decoder()
    batches = [records([DISCRIMINATOR + bytes([place]) * 8 + bytes(4), b"something else"]) for place in range(9)]
    policy: Any = {"include_failed": False, "ignore": [b"short"]}
    expected = [said.decode(batch, **policy) for batch in batches]
    for threads in (None, 1, 2, 20):
        found = said.decode_all(batches, threads=threads, **policy)
        assert [(each.tables, each.quarantine, each.counts) for each in found] == [
            (each.tables, each.quarantine, each.counts) for each in expected
        ]
    assert said.decode_all([], **policy) == []
    with pytest.raises(uho_native.DecodeError, match="not a record batch"):
        said.decode_all([*batches, pa.record_batch([pa.array([1])], names=["slot"])], **policy)
    with pytest.raises(ValueError, match="zero"):
        said.decode_all(batches, threads=0, **policy)


def test_errors_say_what_is_wrong():
    with pytest.raises(uho_native.IdlError, match=r"a\.json: expected ident"):
        uho_native.Decoder(PROGRAM, [(0, "a.json", b"nothing")])
    with pytest.raises(ValueError, match="32 bytes, this has 1"):
        uho_native.Decoder(b"x", [])
    with pytest.raises(uho_native.DecodeError, match="not a record batch"):
        decoder().decode(pa.record_batch([pa.array([1])], names=["slot"]), include_failed=False, ignore=[])


def test_digests_add_up_over_slices():
    batch = records([b"a", b"bb", b"ccc"])
    parts = [uho_native.record_digest(batch.slice(0, 1)), uho_native.record_digest(batch.slice(1))]
    assert uho_native.add_digests(*parts) == uho_native.record_digest(batch)
    assert uho_native.add_digests("f" * 32, "0" * 31 + "1") == "0" * 32
    with pytest.raises(ValueError, match="32 hexadecimal"):
        uho_native.add_digests("+" + "0" * 31, "0" * 32)


def test_what_is_no_certificate_is_refused():
    with pytest.raises(ValueError, match="not a certificate"):
        uho_native.certificate_fault("{}")
    with pytest.raises(ValueError, match="not a certificate"):
        uho_native.merge_certificates("{}", "{}")


def test_addresses_and_signatures_become_base58() -> None:
    keys = [bytes(32), bytes(range(32)), None, b"\xff" * 32]
    text = uho_native.base58(pa.array(keys, pa.binary(32))).to_pylist()
    assert text == [None if key is None else str(Pubkey.from_bytes(key)) for key in keys]
    signature = bytes(range(64))
    assert uho_native.base58(pa.array([signature], pa.binary(64))).to_pylist() == [str(Signature.from_bytes(signature))]
    with pytest.raises(ValueError, match="32 or 64 bytes"):
        uho_native.base58(pa.array([b"x"], pa.binary(1)))

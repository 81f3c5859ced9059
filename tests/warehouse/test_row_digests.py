"""The digest of rows that are sent is the digest that Postgres makes of what it stored, for every kind of column."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import pyarrow as pa
import pytest
import uho_native
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_up import CHUNK, SIMPLE, load, program_of, simple
from psycopg import sql

from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse import load as load_module
from uho_pipelines.warehouse.digest import QUARANTINE_DIGESTED, HashesUnknownError, quarantine_digest, row_digest
from uho_pipelines.warehouse.load import copy_rows
from uho_pipelines.warehouse.tables import POSTGRES_TYPES, TablePlan


def integers(bits, *, signed):
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.integers(least, most) | st.sampled_from([least, most, 0, 1, min(9_999, most), min(10_000, most)])


def instants(unit):
    times = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))
    scale = {"s": 10**6, "ms": 10**3, "us": 1}[unit]
    return times.map(
        lambda time: int((time.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 10**6) // scale
    )


def keys(width):
    return st.binary(min_size=width, max_size=width) | st.integers(0, width).map(
        lambda zeros: bytes(zeros) + bytes([255]) * (width - zeros)
    )


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\0\\u0a", max_size=40)
SPACE = st.sampled_from(["", "", "", " ", "\n\t\r "])
NUMBERS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?\Z") | st.floats(
    allow_nan=False, allow_infinity=False
).map(repr)
STRINGS = st.builds(
    lambda text, ascii_only: json.dumps(text, ensure_ascii=ascii_only).replace("/", "\\/" if ascii_only else "/"),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30),
    st.booleans(),
)
NAMES = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"aa"', '"B"', '"é"', '"ab"', '""']) | STRINGS


def bracketed(items, brackets):
    def text(values, space):
        return space + brackets[0] + space + (space + "," + space).join(values) + space + brackets[1] + space

    return st.builds(text, st.lists(items, max_size=6), SPACE)


def containers(values):
    members = st.builds(lambda name, space, value: f"{name}{space}:{space}{value}", NAMES, SPACE, values)
    return bracketed(values, "[]") | bracketed(members, "{}")


JSON = st.recursive(st.sampled_from(["null", "true", "false", "[]", "{}"]) | NUMBERS | STRINGS, containers)

KINDS = {
    "flag": (pa.bool_(), "boolean", st.booleans()),
    **{
        f"{'i' if signed else 'u'}{bits}_{postgres.replace(' ', '_')}": (
            getattr(pa, f"{'' if signed else 'u'}int{bits}")(),
            postgres,
            integers(min(bits, most), signed=signed),
        )
        for postgres, most, widths in (
            ("smallint", 15, [(8, False), (8, True), (16, True)]),
            ("integer", 31, [(8, False), (16, False), (32, True)]),
            ("bigint", 63, [(32, False), (64, True), (64, False)]),
            ("numeric", 64, [(8, True), (64, False), (64, True)]),
        )
        for bits, signed in widths
    },
    "wide": (pa.decimal256(39, 0), "numeric", (integers(128, signed=False) | integers(128, signed=True)).map(Decimal)),
    "widest": (pa.string(), "numeric", (integers(256, signed=False) | integers(256, signed=True)).map(str)),
    "round": (pa.string(), "numeric", st.integers(0, 76).map(lambda zeros: f"1{'0' * zeros}")),
    "small": (pa.float32(), "real", st.floats(width=32)),
    "ratio": (pa.float64(), "double precision", st.floats()),
    "label": (pa.string(), "text", TEXTS),
    "blob": (pa.binary(), "bytea", st.binary(max_size=100)),
    "key": (pa.binary(32), "text", keys(32)),
    "key_bytes": (pa.binary(32), "bytea", keys(32)),
    "sign": (pa.binary(64), "text", keys(64)),
    "sign_bytes": (pa.binary(64), "bytea", keys(64)),
    **{f"time_{unit}": (pa.timestamp(unit, "UTC"), "timestamptz", instants(unit)) for unit in ("s", "ms", "us")},
    "path": (pa.list_(pa.uint16()), "integer[]", st.lists(integers(16, signed=False), max_size=8)),
    "nested": (pa.string(), "jsonb", JSON),
    # Those that the formula in SQL knows by name.
    "tx_index": (pa.uint32(), "integer", integers(31, signed=False)),
    "event_index": (pa.uint32(), "integer", integers(31, signed=False)),
    "signature": (pa.binary(64), "text", keys(64)),
    "source": (pa.string(), "text", st.sampled_from(["log", "cpi", "instruction"])),
}
NEVER_NULL = ("tx_index", "event_index", "signature", "source")
ROWS = st.lists(
    st.fixed_dictionaries(
        {name: values if name in NEVER_NULL else st.none() | values for name, (_, _, values) in KINDS.items()}
    ),
    max_size=4,
)
COLUMNS = ("slot", *KINDS)


def batch_of(rows):
    kinds = {"slot": (pa.uint64(), "bigint"), **{name: kind[:2] for name, kind in KINDS.items()}}
    schema = pa.schema([pa.field(name, kind, metadata={"uho:postgres": of}) for name, (kind, of) in kinds.items()])
    columns = {"slot": [CHUNK.start + place for place in range(len(rows))]}
    columns |= {name: [row[name] for row in rows] for name in KINDS}
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def digest_sent(batch):
    return load_module._encode(SimpleNamespace(columns=COLUMNS, digested=COLUMNS), batch)


@pytest.fixture(scope="module")
def table(postgres):
    """A table with a column of every kind, and its connection."""
    kinds = {"slot": "bigint", **{name: kind[1] for name, kind in KINDS.items()}}
    assert set(kinds.values()) == set(POSTGRES_TYPES)
    with connect(postgres.url("uho"), application_name="test") as connection:
        definitions = [
            sql.SQL("{} {}").format(sql.Identifier(name), POSTGRES_TYPES[kind]) for name, kind in kinds.items()
        ]
        connection.execute(sql.SQL("CREATE TEMPORARY TABLE sent ({})").format(sql.SQL(", ").join(definitions)))
        connection.commit()
        yield connection, TablePlan("pg_temp", "sent", COLUMNS, {}, kinds)


def everything_null():
    return dict.fromkeys(KINDS) | {"tx_index": 0, "event_index": 0, "signature": bytes(64), "source": "log"}


def extreme(**values):
    return [everything_null() | values]


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(rows=ROWS)
@example(rows=[])
@example(rows=[everything_null()] * 3)
@example(rows=extreme(ratio=-0.0, small=-0.0, nested="-0.0", wide=Decimal(0), widest="-0", u64_numeric=0))
@example(rows=extreme(ratio=-math.nan, small=math.nan, nested='{"a": {}, "b": [], "a": [[], {}]}'))
@example(rows=extreme(ratio=5e-324, small=1.401298464324817e-45, nested="5e-324"))
@example(rows=extreme(nested="[1.7976931348623157e+308, 1e-130, 0.00010, 10000.0001, 123456789012345678901234567890]"))
@example(rows=extreme(nested='"\\ud83e\\udd80 \\\\u0000 \\/ \\b\\f\\n\\r\\t"'))
@example(rows=extreme(nested=f'"{"x" * 100_000}"', label="y" * 100_000, blob=b"z" * 100_000))
@example(rows=extreme(nested="[" * 200 + "]" * 200))
@example(rows=extreme(nested=f"[{'9' * 1_000}.{'9' * 1_000}]"))
def test_what_is_sent_has_the_digest_of_what_is_stored(table, rows):
    connection, plan = table
    batch = batch_of(rows)
    encoded = digest_sent(batch)
    copy_rows(connection, plan.schema, plan.name, plan.columns, batch)
    found = row_digest(connection, plan, CHUNK)
    connection.execute("TRUNCATE sent")
    connection.commit()
    assert found == (encoded.rows, str(encoded.digest)) == (len(rows), str(encoded.digest))


@settings(max_examples=300, deadline=None)
@given(
    changed=st.sampled_from([name for name in KINDS if name not in NEVER_NULL]),
    data=st.data(),
)
def test_another_value_has_another_digest(changed, data):
    (_, postgres, values) = KINDS[changed]
    one, other = data.draw(values), data.draw(values)
    rows = [batch_of(extreme(**{changed: value})) for value in (one, other)]
    stored = [read_back(value, postgres) for value in (one, other)]
    digests = [digest_sent(row).digest for row in rows]
    assert (digests[0] == digests[1]) == (stored[0] == stored[1])


def read_back(value, postgres):
    """What stays different in Postgres; a numeric's sign is not part of its hash, alas, and -0 is 0."""
    if postgres == "jsonb":
        return canonical(json.loads(value, parse_float=Decimal, parse_int=Decimal))
    if postgres == "numeric":
        return abs(Decimal(value))
    if postgres in {"real", "double precision"}:
        return "NaN" if math.isnan(value) else value
    return value.replace("\0", "\\u0000") if isinstance(value, str) else value


def canonical(value):
    if isinstance(value, dict):
        return sorted((key, canonical(member)) for key, member in value.items())
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return ("number", abs(value)) if isinstance(value, Decimal) else value


def test_rows_are_read_strictly():
    columns = [("a", "integer"), ("b", None)]
    row = b"\0\2" + b"\0\0\0\4\0\0\0\7" + b"\xff\xff\xff\xff"
    digest = uho_native.copy_digest(row, columns)
    assert int(uho_native.copy_digest(row * 3, columns)) == 3 * int(digest)
    assert uho_native.copy_digest(row, [("a", "integer"), ("c", None)]) == digest != "0"
    assert uho_native.copy_digest(b"", columns) == "0"
    for bad in (row[:-1], row + b"\0", b"\0\1" + row[2:], row[:5] + b"\3" + row[6:]):
        with pytest.raises(uho_native.CopyError):
            uho_native.copy_digest(bad, columns)
    with pytest.raises(uho_native.CopyError, match="column `a`, row 0: the value is no bigint"):
        uho_native.copy_digest(row, [("a", "bigint"), ("b", None)])
    with pytest.raises(uho_native.CopyError, match="column `a`: the digest of Postgres type money is not known"):
        uho_native.copy_digest(row, [("a", "money"), ("b", None)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1",
        '{"a"}',
        '{"a" 1}',
        "tru",
        '"',
        '"\\',
        '"\\x"',
        '"\\u12"',
        '"\\ud800"',
        '"\\u0000"',
        "1 2",
        "-",
        "1e",
        "[1,]",
    ],
)
def test_text_that_is_no_json_has_no_digest(text):
    with pytest.raises(uho_native.CopyError, match="the value is no jsonb"):
        digest_sent(batch_of(extreme(nested=text)))
    with pytest.raises(uho_native.CopyError, match="the value is no jsonb"):
        digest_sent(batch_of(extreme(nested="[" * 100_000)))


def test_quarantine_has_the_digest_of_what_was_sent(warehouse):
    program = program_of({"Simple": SIMPLE})
    load(warehouse, program, [b"unknown discriminator", simple(1) + b"\0", simple(1), b"", b"short"])
    with connect(warehouse, application_name="test") as connection:
        found = quarantine_digest(connection, program, CHUNK)
        (kept,) = connection.execute("SELECT quarantine_digest FROM uho.chunk").fetchall()
    assert found == (2, kept[0])
    assert kept[0] not in {None, "0"}
    assert set(QUARANTINE_DIGESTED) < set(load_module.QUARANTINE_COLUMNS)


def test_a_server_with_other_hashes_is_refused(warehouse, monkeypatch):
    monkeypatch.setattr(uho_native, "copy_digest", lambda rows, columns: "1")
    with pytest.raises(HashesUnknownError, match="hashes values differently"):
        load(warehouse, program_of({"Simple": SIMPLE}), [simple(1)])

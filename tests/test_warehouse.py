"""The warehouse as a person meets it: what was said on chain reads back the same, and nobody sees half a chunk.

How a chunk is loaded step by step is tested in `tests/warehouse`.
"""

import json
import math
import struct
import subprocess
import sys
from contextlib import contextmanager

import psycopg
import pytest
import uho_native
from events import CHUNK, Record, decoded, discriminator, idl, load, program_of, record, rows, signature_of, tables_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from solders.pubkey import Pubkey
from solders.signature import Signature

from uho_pipelines.warehouse import chunk_load, connect, find_damage
from uho_pipelines.warehouse import load as load_module
from uho_pipelines.warehouse.ledger import AttemptFencedError, begin_attempt, fail_attempt, set_halt

MEBIBYTE = 1024 * 1024


def integer(kind):
    size, signed = int(kind[1:]), kind[0] == "i"
    low, high = (-(2 ** (size - 1)), 2 ** (size - 1) - 1) if signed else (0, 2**size - 1)
    numbers = st.sampled_from([low, low + 1, 0, 1, high - 1, high]) | st.integers(low, high)
    return numbers, lambda value: value.to_bytes(size // 8, "little", signed=signed)


def text(value):
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded


def blob(value):
    return struct.pack("<I", len(value)) + value


WIDE = ("u64", "i64", "u128", "i128", "u256", "i256")
"""Integers that are text within jsonb."""

KINDS = {kind: integer(kind) for kind in ("u8", "i8", "u16", "i16", "u32", "i32", *WIDE)} | {
    "bool": (st.booleans(), lambda value: bytes([value])),
    "f32": (st.floats(width=32), lambda value: struct.pack("<f", value)),
    "f64": (st.floats(), lambda value: struct.pack("<d", value)),
    "string": (st.text(), text),
    "bytes": (st.binary(), blob),
    "pubkey": (st.binary(min_size=32, max_size=32), bytes),
}
"""Type → its values, and how Borsh writes one."""

FIXED = tuple(kind for kind in KINDS if kind not in ("string", "bytes"))
"""Types whose values are all of one size."""

WHOLE = idl(
    {
        "Plain": {f"p_{kind}": kind for kind in KINDS},
        "Optional": {f"o_{kind}": {"option": kind} for kind in KINDS},
        "Coptional": {f"c_{kind}": {"coption": kind} for kind in FIXED},
        "Nested": {f"n_{kind}": {"vec": kind} for kind in KINDS},
    }
)

values = st.fixed_dictionaries({kind: drawn for kind, (drawn, _) in KINDS.items()})
optional = st.fixed_dictionaries({kind: st.none() | drawn for kind, (drawn, _) in KINDS.items()})
nested = st.fixed_dictionaries({kind: st.lists(drawn, max_size=3) for kind, (drawn, _) in KINDS.items()})


def stored(kind, value):
    """What Postgres's client gives for a value in a column of its own."""
    if value is None:
        return None
    if kind == "string":
        return value.replace("\0", "\\u0000")
    if kind == "pubkey":
        return str(Pubkey.from_bytes(value))
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def stored_in_json(kind, value):
    """What Postgres's client gives for a value within jsonb."""
    if kind in ("f32", "f64"):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if kind in WIDE:
        return str(value)
    return value.hex() if kind == "bytes" else stored(kind, value)


def comparable(kind, value):
    """Return what was found so that it can be compared.

    NaN equals itself, a `real`'s shortest text is that `real`, and jsonb writes a whole number without a point.
    """
    if isinstance(value, list):
        return [comparable(kind, each) for each in value]
    if kind not in ("f32", "f64") or not isinstance(value, float | int):
        return value
    value = float(value)
    return "NaN" if math.isnan(value) else struct.unpack("<f", struct.pack("<f", value))[0] if kind == "f32" else value


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(plain=values, some=optional, many=nested)
def test_every_value_reads_back_as_it_was_said(warehouse, plain, some, many):
    program = program_of(WHOLE)
    packed = {kind: pack for kind, (_, pack) in KINDS.items()}
    load(
        warehouse,
        program,
        record(150, "Plain", *(packed[kind](plain[kind]) for kind in KINDS)),
        record(
            151,
            "Optional",
            *(b"\0" if some[kind] is None else b"\1" + packed[kind](some[kind]) for kind in KINDS),
        ),
        record(
            151,
            "Coptional",
            *(
                struct.pack("<I", some[kind] is not None)
                + packed[kind](plain[kind] if some[kind] is None else some[kind])
                for kind in FIXED
            ),
        ),
        record(
            152,
            "Nested",
            *(struct.pack("<I", len(many[kind])) + b"".join(map(packed[kind], many[kind])) for kind in KINDS),
        ),
    )
    (found,) = rows(warehouse, select("plain", "p"))
    assert list(map(comparable, KINDS, found)) == [stored(kind, plain[kind]) for kind in KINDS]
    (found,) = rows(warehouse, select("optional", "o"))
    assert list(map(comparable, KINDS, found)) == [stored(kind, some[kind]) for kind in KINDS]
    (found,) = rows(warehouse, select("coptional", "c", FIXED))
    assert list(map(comparable, FIXED, found)) == [stored(kind, some[kind]) for kind in FIXED]
    (found,) = rows(warehouse, select("nested", "n"))
    expected = [[stored_in_json(kind, value) for value in many[kind]] for kind in KINDS]
    assert list(map(comparable, KINDS, found)) == expected


def select(table, letter, kinds=tuple(KINDS)):
    return f"SELECT {', '.join(f'{letter}_{kind}' for kind in kinds)} FROM demo_sim_alpha.{table}"


EXTREMES = {
    "u64": [2**64 - 1],
    "u128": [2**128 - 1],
    "i128": [-(2**127), 2**127 - 1],
    "u256": [2**256 - 1],
    "i256": [-(2**255), 2**255 - 1],
    "f64": [math.nan, math.inf, -math.inf, -0.0, 5e-324],
    "string": ["", "\0", "a\0b"],
}


def test_extreme_values_read_back_equal_alone_and_deep_within_options(warehouse):
    def deep(kind):
        for _ in range(20):
            kind = {"option": kind}
        return {"vec": {"option": {"vec": {"option": kind}}}}

    program = program_of(idl({f"Of{kind}": {"plain": kind, "deep": deep(kind)} for kind in EXTREMES}))
    one = struct.pack("<I", 1)
    said = [
        record(100 + place, f"Of{kind}", packed := KINDS[kind][1](value), one, b"\1", one, b"\1" * 21, packed)
        for kind, values in EXTREMES.items()
        for place, value in enumerate(values)
    ]
    load(warehouse, program, *said)
    for kind, values in EXTREMES.items():
        found = rows(warehouse, f"SELECT plain, deep FROM demo_sim_alpha.of{kind} ORDER BY slot")
        assert [comparable(kind, plain) for plain, _ in found] == [stored(kind, value) for value in values]
        assert [comparable(kind, nested[0][0]) for _, nested in found] == [
            stored_in_json(kind, value) for value in values
        ]
    (found,) = rows(warehouse, "SELECT plain::text FROM demo_sim_alpha.off64 WHERE slot = 103")
    assert found == ("-0",)


def test_large_values_read_back_as_they_were_said(warehouse):
    program = program_of(idl({"Said": {"memo": "string", "raw": "bytes", "words": {"vec": "string"}}}))
    memo, raw = "é" * (5 * MEBIBYTE), bytes(range(256)) * 4096
    words = ["", "\0" * 1000, memo]
    many = struct.pack("<I", len(words)) + b"".join(map(text, words))
    load(warehouse, program, *(record(slot, "Said", text(memo), blob(raw), many) for slot in range(100, 103)))
    ((count, kinds),) = rows(warehouse, "SELECT count(*), count(DISTINCT (memo, raw, words)) FROM demo_sim_alpha.said")
    assert (count, kinds) == (3, 1)
    (found,) = rows(warehouse, "SELECT memo, raw, words FROM demo_sim_alpha.said LIMIT 1")
    assert found == (memo, raw, ["", "\\u0000" * 1000, memo])


def test_the_fixed_columns_say_where_an_event_is(warehouse):
    program = program_of(idl({"Said": {}}))
    said = record(150, "Said", tx_index=7, event_index=3, block_time=1_700_000_000, source=1)
    load(warehouse, program, said, record(151, "Said", block_time=None, source=0))
    query = (
        "SELECT slot, tx_index, event_index, signature, source, extract(epoch FROM block_time) FROM demo_sim_alpha.said"
    )
    assert rows(warehouse, f"{query} ORDER BY slot") == [
        (150, 7, 3, str(Signature.from_bytes(signature_of(said))), "cpi", 1_700_000_000),
        (151, 0, 0, str(Signature.from_bytes(signature_of(record(151, "Said")))), "log", None),
    ]


def test_events_of_failed_transactions_are_flagged_beside_fields_of_these_names(warehouse):
    program = program_of(idl({"Tried": {"failed": "u8", "truncated": "string"}}), include_failed=True)
    load(
        warehouse,
        program,
        record(150, "Tried", b"\x07", text("own"), failed=True),
        record(151, "Tried", b"\x08", text(""), truncated=True),
    )
    query = "SELECT event_failed, event_truncated, failed, truncated FROM demo_sim_alpha.tried ORDER BY slot"
    assert rows(warehouse, query) == [(7, "own", True, False), (8, "", False, True)]


def test_events_of_failed_transactions_are_left_out_where_they_are_not_asked_for(warehouse):
    program = program_of(idl({"Tried": {"failed": "u8"}}))
    result = load(warehouse, program, record(150, "Tried", b"\x07", failed=True), record(151, "Tried", b"\x08"))
    assert result.rows == {"Tried": 1}
    assert rows(warehouse, "SELECT slot, event_failed FROM demo_sim_alpha.tried") == [(151, 8)]


def test_quarantine_keeps_the_whole_record(warehouse):
    program = program_of(idl({"Said": {"amount": "u64"}}))
    payload = discriminator("Said") + b"\x01\x02"
    bad = Record(150, payload, tx_index=4, event_index=2, block_time=None, source=0, truncated=True)
    result = load(warehouse, program, bad, Record(151, b"\xff" * 9), Record(152, b"short", source=0))
    assert (result.rows, result.quarantined) == ({"Said": 0}, 2)
    query = """
        SELECT program, slot, tx_index, event_index, signature, block_time, source, instruction_path, failed, truncated,
               discriminator, length, idl, payload FROM uho.quarantine ORDER BY slot LIMIT 1"""
    signature = str(Signature.from_bytes(signature_of(bad)))
    assert rows(warehouse, query) == [
        ("alpha", 150, 4, 2, signature, None, "log", [0], False, True, payload[:8], 10, "from-0.json", payload)
    ]
    assert [
        reason.partition(":")[0] for (reason,) in rows(warehouse, "SELECT reason FROM uho.quarantine ORDER BY slot")
    ] == [
        "truncated_payload",
        "unknown_discriminator",
    ]


@contextmanager
def begun(url, program):
    """A load of the chunk that was begun, by a session called loader."""
    with connect(url, application_name="loader") as connection:
        attempt = begin_attempt(connection, program, CHUNK, "events")
        plan = tables_of(connection, program)
        with chunk_load(connection, plan, program, CHUNK, attempt) as chunk_of_events:
            yield chunk_of_events


SIMPLE = program_of(idl({"Said": {"amount": "u64"}, "Done": {"amount": "u64"}}))


def said(slot, amount, event="Said"):
    return record(slot, event, struct.pack("<Q", amount))


def seen(url):
    """All that a reader sees of the chunk, in one snapshot."""
    query = """
        SELECT (SELECT array_agg(amount::int ORDER BY slot) FROM demo_sim_alpha.said),
               (SELECT array_agg(amount::int ORDER BY slot) FROM demo_sim_alpha.done),
               (SELECT array_agg(row_count ORDER BY event) FROM uho.chunk_table),
               (SELECT loaded_digest FROM uho.chunk)"""
    return rows(url, query)[0]


def test_readers_see_a_chunk_as_it_was_until_it_is_committed(warehouse, monkeypatch):
    monkeypatch.setattr(load_module, "TABLE_BYTES", 1)
    load(warehouse, SIMPLE, said(150, 1), said(151, 2, "Done"), digest="a" * 32)
    before = ([1], [2], [1, 1], "a" * 32)
    assert seen(warehouse) == before
    with begun(warehouse, SIMPLE) as again:
        assert seen(warehouse) == before
        again.write(decoded(SIMPLE, said(150, 3), said(151, 4)))
        assert seen(warehouse) == before
        again.commit({}, "b" * 32)
    assert seen(warehouse) == ([3, 4], None, [0, 2], "b" * 32)


@pytest.mark.parametrize("when", ["within a COPY", "between statements", "before the commit"])
def test_a_session_that_is_ended_leaves_the_chunk_as_it_was(warehouse, monkeypatch, when):
    load(warehouse, SIMPLE, said(150, 1), digest="a" * 32)
    before = seen(warehouse)
    trailer = uho_native.copy_trailer

    def end():
        monkeypatch.undo()
        rows(
            warehouse, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'loader'"
        )

    def ending_trailer():
        end()
        return trailer()

    def break_off():
        with begun(warehouse, SIMPLE) as broken:
            broken.write(decoded(SIMPLE, *(said(slot, slot) for slot in range(100, 200))))
            if when == "within a COPY":
                monkeypatch.setattr(uho_native, "copy_trailer", ending_trailer)
            else:
                broken._copy_all()
                end()
            if when == "between statements":
                broken.write(decoded(SIMPLE, said(100, 1, "Done")))
            broken.commit({}, "b" * 32)

    with pytest.raises(psycopg.OperationalError):
        break_off()
    assert seen(warehouse) == before
    assert load(warehouse, SIMPLE, said(150, 9)).rows == {"Said": 1, "Done": 0}
    with connect(warehouse, application_name="test") as connection:
        assert find_damage(connection, SIMPLE, CHUNK) == []


def test_an_attempt_that_is_fenced_while_its_rows_wait_changes_nothing(warehouse):
    load(warehouse, SIMPLE, said(150, 1), digest="a" * 32)
    before = seen(warehouse)
    with (
        connect(warehouse, application_name="older") as older,
        connect(warehouse, application_name="newer") as newer,
    ):
        old = begin_attempt(older, SIMPLE, CHUNK, "events")
        plan = tables_of(older, SIMPLE)
        new = begin_attempt(newer, SIMPLE, CHUNK, "events")
        with pytest.raises(AttemptFencedError), chunk_load(older, plan, SIMPLE, CHUNK, old) as late:
            late.commit({}, "b" * 32)
        assert seen(warehouse) == before
        with chunk_load(newer, plan, SIMPLE, CHUNK, new) as owner:
            owner.write(decoded(SIMPLE, said(150, 5)))
            owner.commit({}, "c" * 32)
    assert seen(warehouse) == ([5], None, [0, 1], "c" * 32)


def test_a_new_database_is_migrated_by_processes_that_start_at_once(postgres):
    code = "import sys; from uho_pipelines.warehouse import migrate; migrate(sys.argv[1])"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE at_once")
        try:
            url = postgres.url("at_once")
            command = [sys.executable, "-c", code, url]
            processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
            assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0)] * 2
            assert rows(url, "SELECT count(*) FROM uho.schema_version") == [(1,)]
            assert rows(url, "SELECT count(*) FROM uho.proven_ranges") == [(0,)]
        finally:
            connection.execute(sql.SQL("DROP DATABASE at_once WITH (FORCE)"))


def test_errors_are_kept_without_credentials(warehouse):
    told = "GET https://me:hush@host/?api-key=hush answered 403"
    with connect(warehouse, application_name="test") as connection:
        attempt = begin_attempt(connection, SIMPLE, CHUNK, "events")
        fail_attempt(connection, SIMPLE, CHUNK, attempt, "events", told)
        set_halt(connection, SIMPLE, CHUNK, told)
    shown = "GET https://***@host/?api-key=*** answered 403"
    assert rows(warehouse, "SELECT events_error, reason FROM uho.chunk, uho.halt") == [(shown, shown)]
    assert json.dumps(rows(warehouse, "SELECT to_jsonb(c) FROM uho.chunk c")).count("hush") == 0

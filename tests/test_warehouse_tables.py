"""Tables made from IDLs, in a real Postgres: names, columns, comments, and what a new IDL version changes."""

import json
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from events import CHUNK, idl, load, program_of, record, rows, tables_of

from uho_pipelines.chunks import Chunk
from uho_pipelines.warehouse import connect, find_damage, read_plan
from uho_pipelines.warehouse.ledger import begin_attempt
from uho_pipelines.warehouse.tables import ColumnChangedError, EventRefusedError

NEXT = Chunk(CHUNK.end, CHUNK.slots)


def u64(value):
    return struct.pack("<Q", value)


def made(url, program):
    """The program's tables, made by a connection of their own."""
    with connect(url, application_name="test") as connection:
        begin_attempt(connection, program, CHUNK, "events")
        return tables_of(connection, program)


def columns(url, table, schema="demo_sim_alpha"):
    """`{column: type}`, with `!` where it cannot be null, in the table's order."""
    query = """
        SELECT attname, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN '!' ELSE '' END
          FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
    return dict(rows(url, query, f'"{schema}"."{table}"'))


FIXED = {
    "slot": "bigint!",
    "tx_index": "integer!",
    "event_index": "integer!",
    "signature": "text!",
    "source": "text!",
    "block_time": "timestamp with time zone",
}


COLUMN_TYPES = [
    ("bool", "boolean"),
    ("u8", "smallint"),
    ("i8", "smallint"),
    ("u16", "integer"),
    ("i16", "smallint"),
    ("u32", "bigint"),
    ("i32", "integer"),
    ("u64", "numeric"),
    ("i64", "bigint"),
    ("u128", "numeric"),
    ("i128", "numeric"),
    ("f32", "real"),
    ("f64", "double precision"),
    ("string", "text"),
    ("bytes", "bytea"),
    ("pubkey", "text"),
    ({"option": "u64"}, "numeric"),
    ({"vec": "u8"}, "jsonb"),
    ({"array": ["u16", 3]}, "jsonb"),
]


def test_an_events_table_has_fixed_columns_then_its_fields(warehouse):
    made(warehouse, program_of(idl({"TradeEvent": {f"f{n}": kind for n, (kind, _) in enumerate(COLUMN_TYPES)}})))
    found = columns(warehouse, "trade_event")
    assert list(found)[:6] == list(FIXED)
    assert found == FIXED | {f"f{n}": postgres for n, (_, postgres) in enumerate(COLUMN_TYPES)}
    key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'demo_sim_alpha.trade_event'::regclass"
    assert ("PRIMARY KEY (slot, tx_index, event_index)",) in rows(warehouse, key)


def test_an_instructions_table_has_arguments_and_accounts_and_no_name_of_another(warehouse):
    document = json.loads(idl({"ix_swap": {"instruction_index": "u8"}}))
    document["instructions"] = [
        {
            "name": "swap",
            "discriminator": [1],
            "accounts": [{"name": "signature"}, {"name": "pool", "accounts": [{"name": "mint"}]}],
            "args": [{"name": name, "type": "u8"} for name in ("event_index", "source", "accounts_given", "amount")],
        }
    ]
    program = program_of(json.dumps(document).encode(), instructions=True, include_failed=True)
    plan = made(warehouse, program)
    event, told = plan.tables["ix_swap"], plan.tables["instruction:swap"]
    assert (event.name, event.is_instruction) == ("ix_swap", False)
    assert (told.name[:8], len(told.name), told.is_instruction) == ("ix_swap_", 16, True)
    found = columns(warehouse, told.name)
    assert found == {
        "slot": "bigint!",
        "tx_index": "integer!",
        "instruction_index": "integer!",
        "signature": "text!",
        "instruction_path": "integer[]!",
        "accounts_given": "integer",
        "remaining_accounts": "jsonb",
        "block_time": "timestamp with time zone",
        **dict.fromkeys(("argument_event_index", "argument_source", "argument_accounts_given", "amount"), "smallint"),
        **dict.fromkeys(("account_signature", "account_pool_mint"), "text"),
        **dict.fromkeys(("failed", "truncated"), "boolean"),
    }
    key = f"SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'demo_sim_alpha.{told.name}'::regclass"
    assert ("PRIMARY KEY (slot, tx_index, instruction_index)",) in rows(warehouse, key)
    comment = f"SELECT obj_description('demo_sim_alpha.{told.name}'::regclass)"
    assert rows(warehouse, comment) == [("Instruction swap",)]
    with connect(warehouse, application_name="test") as connection:
        read = read_plan(connection, program)
        assert set(read.events.tables) == {"ix_swap"}
        assert set(read.tables["instruction:swap"].columns) == set(found)
        assert read.tables["instruction:swap"].key == told.key == ("slot", "tx_index", "instruction_index")
        # The event's own field is no place of an instruction.
        assert read.tables["ix_swap"].key == event.key == ("slot", "tx_index", "event_index")


def test_docs_become_comments(warehouse):
    docs = {"Said": "Somebody's word;\nDROP TABLE said; -- $$ %s {}", "Said.memo": "What was \0 said"}
    made(warehouse, program_of(idl({"Said": {"memo": "string", "plain": "u8"}, "Silent": {}}, docs=docs)))
    comment = "SELECT obj_description(%s::regclass, 'pg_class')"
    assert rows(warehouse, comment, "demo_sim_alpha.said") == [("Somebody's word;\nDROP TABLE said; -- $$ %s {}",)]
    assert rows(warehouse, comment, "demo_sim_alpha.silent") == [("Event Silent",)]
    query = "SELECT attname, col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = %s::regclass"
    said = dict(rows(warehouse, query, "demo_sim_alpha.said"))
    assert (said["memo"], said["plain"]) == ("What was \\u0000 said", None)
    assert "block" in said["slot"]
    docs["Said"], docs["Said.plain"] = "Another word", "Plain"
    made(warehouse, program_of(idl({"Said": {"memo": "string", "plain": "u8"}}, docs=docs)))
    assert rows(warehouse, comment, "demo_sim_alpha.said") == [("Another word",)]
    assert dict(rows(warehouse, query, "demo_sim_alpha.said"))["plain"] == "Plain"


def test_a_field_called_as_a_fixed_column_has_its_own(warehouse):
    program = program_of(idl({"Told": {"slot": "u64", "signature": "u8", "failed": "bool", "xmin": "u8"}}))
    load(warehouse, program, record(150, "Told", u64(7), b"\x05", b"\x01", b"\x09"))
    query = "SELECT slot, event_slot, event_signature, event_failed, event_xmin FROM demo_sim_alpha.told"
    assert rows(warehouse, query) == [(150, 7, 5, True, 9)]
    assert list(columns(warehouse, "told"))[6:] == ["event_slot", "event_signature", "event_failed", "event_xmin"]


def test_clashing_names_keep_their_values_apart(warehouse):
    fields = {"fooBar": "u64", "foo_bar": "u64", "slot": "u64", "event_slot": "u64"}
    program = program_of(idl({"FooBar": fields, "foo_bar": {"value": "u64"}}))
    plan = made(warehouse, program)
    first, second = plan.tables["FooBar"], plan.tables["foo_bar"]
    assert first.name == "foo_bar" != second.name
    names = [first.field_columns[field] for field in fields]
    assert len(set(names)) == 4
    assert names[0] == "foo_bar"
    load(warehouse, program, record(150, "FooBar", *map(u64, range(4))), record(151, "foo_bar", u64(9)))
    listed = ", ".join(f'"{name}"' for name in names)
    assert rows(warehouse, f"SELECT {listed} FROM demo_sim_alpha.foo_bar") == [(0, 1, 2, 3)]
    assert rows(warehouse, f'SELECT value FROM demo_sim_alpha."{second.name}"') == [(9,)]


def test_hostile_names_are_only_names(warehouse):
    event, field = '"; DROP SCHEMA uho CASCADE; --', "x\" text); --%s{}'\\"
    program = program_of(idl({event: {field: "u64", "select": "u64", "é" * 120: "u64"}}))
    load(warehouse, program, record(150, event, u64(1), u64(2), u64(3)))
    table = made(warehouse, program).tables[event]
    assert rows(warehouse, f'SELECT * FROM demo_sim_alpha."{table.name}"')[0][-3:] == (1, 2, 3)


def test_an_event_that_postgres_has_no_table_for_is_refused(warehouse):
    wide = program_of(idl({"Wide": {f"field{place}": "u8" for place in range(1_595)}}))
    with pytest.raises(EventRefusedError, match="more than 1,600 columns"):
        made(warehouse, wide)
    with pytest.raises(EventRefusedError, match=r"U\+0000"):
        made(warehouse, program_of(idl({"N\0l": {"a": "u8"}})))
    assert rows(warehouse, "SELECT count(*) FROM uho.sql_name") == [(0,)]
    assert rows(warehouse, "SELECT to_regnamespace('demo_sim_alpha')") == [(None,)]


def test_names_are_kept_and_never_made_again(warehouse):
    program = program_of(idl({"FooBar": {"slot": "u64", "amount": "u64"}}))
    made(warehouse, program)
    kept = "SELECT event, field, sql_name FROM uho.sql_name ORDER BY event, field"
    assert rows(warehouse, kept) == [
        ("FooBar", "", "foo_bar"),
        ("FooBar", "amount", "amount"),
        ("FooBar", "slot", "event_slot"),
    ]
    with connect(warehouse, application_name="test") as connection:
        # As if an older rule had made other names.
        connection.execute("ALTER TABLE demo_sim_alpha.foo_bar RENAME amount TO how_much")
        connection.execute("ALTER TABLE demo_sim_alpha.foo_bar RENAME TO old_name")
        connection.execute("UPDATE uho.sql_name SET sql_name = 'how_much' WHERE field = 'amount'")
        connection.execute("UPDATE uho.sql_name SET sql_name = 'old_name' WHERE field = ''")
    load(warehouse, program, record(150, "FooBar", u64(1), u64(2)))
    assert rows(warehouse, "SELECT event_slot, how_much FROM demo_sim_alpha.old_name") == [(1, 2)]
    assert rows(warehouse, "SELECT to_regclass('demo_sim_alpha.foo_bar')") == [(None,)]


def test_a_version_that_adds_a_field_adds_a_nullable_column_and_old_digests_stay_valid(warehouse):
    old = program_of(idl({"Traded": {"amount": "u64"}}))
    load(warehouse, old, *(record(slot, "Traded", u64(slot)) for slot in range(100, 120)))
    new = program_of(
        idl({"Traded": {"amount": "u64"}}),
        (200, idl({"Traded": {"amount": "u64", "fee": "u32"}, "Opened": {"by": "pubkey"}})),
    )
    load(warehouse, new, record(250, "Traded", u64(1), struct.pack("<I", 2)), chunk=NEXT)
    assert columns(warehouse, "traded") == FIXED | {"amount": "numeric", "fee": "bigint"}
    assert columns(warehouse, "opened") == FIXED | {"by": "text"}
    counts = "SELECT count(*), count(fee) FROM demo_sim_alpha.traded WHERE slot < 200"
    assert rows(warehouse, counts) == [(20, 0)]
    with connect(warehouse, application_name="test") as connection:
        assert find_damage(connection, new, CHUNK) == []
        assert find_damage(connection, new, NEXT) == []


def test_a_changed_type_gives_a_second_column(warehouse):
    old = program_of(idl({"Traded": {"amount": "u32", "memo": "string"}}))
    load(warehouse, old, record(150, "Traded", struct.pack("<I", 1), struct.pack("<I", 1) + b"a"))
    new = program_of(
        idl({"Traded": {"amount": "u32", "memo": "string"}}),
        (200, idl({"Traded": {"amount": "string", "memo": "string"}})),
    )
    text = struct.pack("<I", 3) + b"two"
    load(warehouse, new, record(250, "Traded", text, text), chunk=NEXT)
    query = "SELECT slot, amount, amount__200, memo FROM demo_sim_alpha.traded ORDER BY slot"
    assert rows(warehouse, query) == [(150, 1, None, "a"), (250, None, "two", "two")]
    with connect(warehouse, application_name="test") as connection:
        assert find_damage(connection, new, CHUNK) == []


def test_a_column_never_changes_its_type(warehouse):
    made(warehouse, program_of(idl({"Traded": {"amount": "u64"}})))
    with pytest.raises(ColumnChangedError, match=r"amount of demo_sim_alpha.traded: is numeric .* ask for text"):
        made(warehouse, program_of(idl({"Traded": {"amount": "string"}, "New": {"a": "u8"}})))
    assert columns(warehouse, "traded") == FIXED | {"amount": "numeric"}
    assert rows(warehouse, "SELECT to_regclass('demo_sim_alpha.new')") == [(None,)], "all or nothing"


def test_flags_are_the_last_columns_where_they_are_asked_for(warehouse):
    fields = {"failed": "u8", "truncated": "u8", "amount": "u8"}
    made(warehouse, program_of(idl({"Tried": fields}), include_failed=True))
    expected = ["event_failed", "event_truncated", "amount", "failed", "truncated"]
    assert list(columns(warehouse, "tried"))[6:] == expected


def test_a_table_that_is_as_it_should_be_is_not_locked(warehouse):
    program = program_of(idl({"Traded": {"amount": "u64"}}, docs={"Traded": "A trade", "Traded.amount": "How much"}))
    plan = made(warehouse, program)
    with (
        connect(warehouse, application_name="reader") as reader,
        connect(warehouse, application_name="test") as connection,
    ):
        reader.execute("LOCK TABLE demo_sim_alpha.traded IN ROW EXCLUSIVE MODE")
        connection.execute("SET lock_timeout = '100ms'")
        connection.commit()
        assert tables_of(connection, program) == plan


def test_tables_made_by_several_connections_at_once_are_made_once(warehouse):
    program = program_of(idl({f"Event{place}": {"fooBar": "u64", "foo_bar": "u64"} for place in range(20)}))
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: made(warehouse, program), range(4)))
    assert all(plan == plans[0] for plan in plans)
    assert rows(warehouse, "SELECT count(*) FROM uho.sql_name") == [(60,)]


def test_two_programs_have_their_own_tables(warehouse):
    alpha = program_of(idl({"Traded": {"amount": "u64"}}))
    beta = program_of(idl({"Traded": {"amount": "string"}}), name="beta")
    made(warehouse, alpha)
    made(warehouse, beta)
    assert columns(warehouse, "traded")["amount"] == "numeric"
    assert columns(warehouse, "traded", "demo_sim_beta")["amount"] == "text"


def test_tables_are_read_back_as_they_are(warehouse):
    program = program_of(idl({"Traded": {"slot": "u64", "amount": "u64"}, "Gone": {"a": "u8"}}))
    plan = made(warehouse, program)
    with connect(warehouse, application_name="test") as connection:
        assert read_plan(connection, program) == plan
        connection.execute("ALTER TABLE demo_sim_alpha.traded ADD COLUMN somebodys text")
        connection.execute("DROP TABLE demo_sim_alpha.gone")
        assert read_plan(connection, program).tables == {"Traded": plan.tables["Traded"]}

"""Indexes: exactly those that program.yaml asks for, built beside whoever uses the table; a person's own stay."""

import struct

import psycopg
import pytest
import yaml
from events import idl, keep, record, registered, rows
from streams import make_settings

from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import decoder_for
from uho_pipelines.definitions import usable_programs
from uho_pipelines.materialization import Reporter, load_events
from uho_pipelines.registry import load_registry
from uho_pipelines.warehouse import connect, ensure_tables
from uho_pipelines.warehouse.indexes import ensure_indexes

CHUNK = Chunk(100, 100)
EVENTS = {
    "Trade": {"mint": "pubkey", "amount": "u128", "memo": "string", "slot": "u64", "parts": {"vec": "u64"}},
    "Closed": {"mint": "pubkey"},
}


def trade(slot, memo="memo"):
    text = memo.encode()
    return record(
        slot, "Trade", bytes(32) + bytes(16) + struct.pack("<I", len(text)) + text + struct.pack("<QI", slot, 0)
    )


@pytest.fixture
def settings(tmp_path, warehouse):
    return make_settings(tmp_path, programs_dir=tmp_path / "programs", postgres_url=warehouse)


def load(settings, program, *records):
    notices = []
    keep(settings, program, *records)
    outcome = load_events(settings, program, CHUNK, Reporter(notice=notices.append))
    assert outcome.result is not None
    return outcome.indexes, notices


def indexes(url, table="trade"):
    """Return the definitions of a table's indexes but the primary key's, from `USING` on."""
    query = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'demo_sim_alpha' AND tablename = %s ORDER BY indexname"
    found = [definition.split(" USING ")[1] for (definition,) in rows(url, query, table)]
    return [definition for definition in found if definition != "btree (slot, tx_index, event_index)"]


def test_what_is_asked_for_is_built_after_the_load_and_goes_when_it_is_not(settings, warehouse):
    asked = {"*": ["signature"], "Trade": ["amount", ["mint", "block_time"], "memo", "event_slot"]}
    program = registered(settings, "alpha", (0, idl(EVENTS)), indexes=asked)
    # A memo that no btree would take: the load must not fail for it.
    changes, notices = load(settings, program, trade(110), trade(111, "long" * 10_000))
    assert (len(changes.built), changes.dropped, changes.faults, notices) == (6, [], [], [])
    assert "trade_mint_block_time_idx" in changes.built
    every = ["btree (amount)", "btree (event_slot)", "hash (memo)", "btree (mint, block_time)", "btree (signature)"]
    assert indexes(warehouse) == every
    assert indexes(warehouse, "closed") == ["btree (signature)"]
    # Nothing to do: nothing is done.
    changes, _ = load(settings, program, trade(110))
    assert (changes.built, changes.dropped) == ([], [])

    with connect(warehouse, application_name="test") as connection:
        connection.execute("CREATE INDEX mine ON demo_sim_alpha.trade (tx_index)")
    program = registered(settings, "alpha", (0, idl(EVENTS)), indexes={"Trade": ["amount"]})
    changes, _ = load(settings, program, trade(110))
    assert (changes.built, len(changes.dropped)) == ([], 5)
    assert indexes(warehouse) == ["btree (tx_index)", "btree (amount)"]
    program = registered(settings, "alpha", (0, idl(EVENTS)))
    changes, _ = load(settings, program, trade(110))
    assert (changes.dropped, indexes(warehouse)) == (["trade_amount_idx"], ["btree (tx_index)"])
    assert rows(warehouse, "SELECT count(*) FROM uho.index") == [(0,)]


def test_an_index_that_is_gone_or_invalid_is_built_again(settings, warehouse):
    program = registered(settings, "alpha", (0, idl(EVENTS)), indexes={"Trade": ["amount"]})
    load(settings, program, trade(110))
    with connect(warehouse, application_name="test") as connection:
        connection.execute("DROP INDEX demo_sim_alpha.trade_amount_idx")
    assert load(settings, program, trade(110))[0].built == ["trade_amount_idx"]
    with connect(warehouse, application_name="test") as connection:
        # As a build leaves it that was cut off.
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'demo_sim_alpha.trade_amount_idx'::regclass"
        )
    changes, _ = load(settings, program, trade(110))
    assert (changes.built, changes.dropped) == (["trade_amount_idx"], [])
    assert indexes(warehouse) == ["btree (amount)"]


def test_a_name_that_is_taken_is_told_and_the_rows_stay(settings, warehouse):
    load(settings, registered(settings, "alpha", (0, idl(EVENTS))), trade(110))
    with connect(warehouse, application_name="test") as connection:
        connection.execute("CREATE INDEX trade_amount_idx ON demo_sim_alpha.trade (tx_index)")
    program = registered(settings, "alpha", (0, idl(EVENTS)), indexes={"Trade": ["amount"]})
    changes, notices = load(settings, program, trade(111))
    assert changes.built == []
    (notice,) = notices
    assert "the rows are loaded" in notice
    assert "demo_sim_alpha.trade_amount_idx exists and is not of our making" in notice
    assert rows(warehouse, "SELECT slot FROM demo_sim_alpha.trade") == [(111,)]


def test_one_session_builds_at_a_time(settings, warehouse):
    program = registered(settings, "alpha", (0, idl(EVENTS)), indexes={"Trade": ["amount"]})
    load(settings, registered(settings, "alpha", (0, idl(EVENTS))), trade(110))
    program = registered(settings, "alpha", (0, idl(EVENTS)), indexes={"Trade": ["amount"]})
    tables = decoder_for(program).tables()
    with psycopg.connect(warehouse) as other, connect(warehouse, application_name="test") as connection:
        other.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"uho indexes {program.key}"])
        plan = ensure_tables(connection, program, tables)
        assert ensure_indexes(connection, program, plan, tables).built == []
        other.execute("SELECT pg_advisory_unlock_all()")
        assert ensure_indexes(connection, program, plan, tables).built == ["trade_amount_idx"]


@pytest.mark.parametrize(
    ("asked", "field", "fault"),
    [
        ({"Swap": ["mint"]}, "indexes.Swap.0", "no IDL version has an event 'Swap'; there are: Trade, Closed"),
        ({"Trade": ["mint", "price"]}, "indexes.Trade.1", "'price' is no field of Trade; it has: signature, "),
        ({"Trade": ["parts"]}, "indexes.Trade.0", "'parts' is nested (jsonb)"),
        ({"Trade": [["mint", "memo"]]}, "indexes.Trade.0", "'memo' has no bound in length"),
        ({"Trade": [["mint", "mint"]]}, "indexes.Trade.0", "names a column twice"),
        ({"*": ["mint"]}, "indexes.*.0", "'mint' is no column of every event"),
        ({"Trade": "mint"}, "indexes.Trade", "Input should be a valid list"),
        ({"Trade": [7]}, "indexes.Trade.0", "Input should be a valid list"),
        ({"Trade": [[]]}, "indexes.Trade.0", "List should have at least 1 item"),
        (["mint"], "indexes", "Input should be a valid dictionary"),
    ],
)
def test_what_cannot_be_indexed_is_refused_by_file_field_and_fault(settings, asked, field, fault):
    registered(settings, "alpha", (0, idl(EVENTS)))
    text = (settings.programs_dir / "alpha" / "program.yaml").read_text()
    (settings.programs_dir / "alpha" / "program.yaml").write_text(text + yaml.safe_dump({"indexes": asked}))
    registry = load_registry(settings)
    usable, refused = usable_programs(registry.programs)
    (found,) = [*registry.faults, *refused]
    assert (usable, found.file, found.field) == ([], "alpha/program.yaml", field)
    assert found.fault.startswith(fault)

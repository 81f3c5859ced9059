"""`uho idl diff`: what changes, and that the DDL it prints is what a load does."""

import pytest
from events import idl, program_of, rows
from services import shared_data

from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import decoder_for
from uho_pipelines.idl.diff import diff_idls
from uho_pipelines.warehouse import connect, ensure_tables
from uho_pipelines.warehouse.ledger import begin_attempt

BEFORE = {
    "Trade": {"amount": "u64", "memo": "string", "kind": {"defined": {"name": "Kind"}}},
    "Closed": {"slot": "u64"},
    "Same": {"a": "u8", "b": "u8"},
    "Swapped": {"a": "u8", "b": "u8"},
}
AFTER = {
    "Trade": {"amount": "u128", "kind": {"defined": {"name": "Kind"}}, "fee": "u64"},
    "Same": {"a": "u8", "b": "u8"},
    "Swapped": {"b": "u8", "a": "u8"},
    "Opened": {"slot": "u64", "who": "pubkey"},
}


def kind(*variants):
    return {"name": "Kind", "type": {"kind": "enum", "variants": [{"name": name} for name in variants]}}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.json").write_bytes(idl(BEFORE, types=[kind("Buy", "Sell")]))
    (tmp_path / "b.json").write_bytes(idl(AFTER, types=[kind("Buy", "Sell", "Swap")]))
    return tmp_path / "a.json", tmp_path / "b.json"


def test_changes_are_told_as_deep_as_they_are(files):
    text = "\n".join(diff_idls(*files).lines())
    for line in (
        "~ Trade (discriminator",
        "    ~ amount: u64 -> u128",
        "    - memo: string",
        "    ~ kind: enum {Buy, Sell} -> enum {Buy, Sell, Swap}",
        "    + fee: u64",
        "- Closed (discriminator",
        "~ Swapped (discriminator",
        "    fields stand in another order",
        "+ Opened (discriminator",
        "4 events differ, 1 are the same",
    ):
        assert line in text, line
    assert diff_idls(files[0], files[0]).migration == ()


def test_the_migration_is_what_a_load_does(files, warehouse):
    before, after = (path.read_bytes() for path in files)
    first, both = program_of((0, before)), program_of((0, before), (500, after))
    with connect(warehouse, application_name="test") as connection:
        begin_attempt(connection, first, Chunk(100, 100), "events")
        ensure_tables(connection, first, decoder_for(first).tables())
        connection.commit()
        for statement in diff_idls(*files, from_slot=500, schema=first.schema_name).migration:
            connection.execute(statement.encode())
        connection.commit()
        by_hand = catalog(warehouse)
        # The load finds nothing left to do: it would fail on a column of another type.
        ensure_tables(connection, both, decoder_for(both).tables())
    assert catalog(warehouse) == by_hand
    assert ("opened", "event_slot", "numeric") in by_hand


def catalog(url):
    return rows(
        url,
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'demo_sim_alpha' ORDER BY 1, ordinal_position",
    )


def test_pumps_real_versions_can_be_compared():
    data = shared_data() / "idl"
    (older,) = data.glob("pump__0.30+__2025-05-08__*")
    (newer,) = data.glob("pump__0.30+__2025-11-16__*")
    diff = diff_idls(older, newer, schema="acme_mainnet_pump")
    trade = next(event for event in diff.events if event.event == "TradeEvent")
    assert "+ ix_name: string" in [str(field) for field in trade.fields]
    assert 'ALTER TABLE "acme_mainnet_pump"."trade_event" ADD COLUMN "ix_name" text;' in diff.migration

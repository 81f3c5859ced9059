"""`uho dbt-sources`: what dbt is told is what the warehouse has."""

import struct

import yaml
from events import CHUNK, idl, keep, record, registered
from streams import make_settings
from typer.testing import CliRunner

from uho_pipelines.cli import app
from uho_pipelines.dbt import dbt_sources
from uho_pipelines.materialization import Reporter, load_events
from uho_pipelines.warehouse import connect

SOURCE = {"name", "description", "schema", "config", "tables"}
TABLE = {"name", "description", "columns"}
COLUMN = {"name", "data_type", "description"}
"""Of the keys that dbt documents for sources, those that are used."""


def test_tables_columns_types_and_descriptions_are_those_of_the_warehouse(tmp_path, warehouse, monkeypatch):
    settings = make_settings(tmp_path, programs_dir=tmp_path / "programs", postgres_url=warehouse)
    document = idl(
        {"Trade": {"amount": "u128", "slot": "u64"}, "Closed": {"parts": {"vec": "u8"}}},
        docs={"Trade": "A trade: 100 %", "Trade.amount": "In lamports # not a comment\nsecond line"},
    )
    ending = registered(settings, "alpha", (0, document))
    followed = registered(settings, "beta", (0, document), last_slot=None)
    never = registered(settings, "gamma", (0, document))
    for program in (ending, followed):
        keep(settings, program, record(110, "Trade", bytes(16) + struct.pack("<Q", 1)))
        load_events(settings, program, CHUNK, Reporter())
    with connect(warehouse, application_name="test") as connection:
        connection.execute("CREATE TABLE demo_sim_alpha.somebodys (a int)")
        connection.commit()
        text = dbt_sources(connection, [ending, followed, never])
        types = dict(
            connection.execute(
                "SELECT column_name, data_type FROM information_schema.columns "
                "WHERE (table_schema, table_name) = ('demo_sim_alpha', 'trade') ORDER BY ordinal_position"
            ).fetchall()
        )
    read = yaml.safe_load(text)
    assert read["version"] == 2
    alpha, beta = read["sources"]
    assert ([source["schema"] for source in (alpha, beta)]) == ["demo_sim_alpha", "demo_sim_beta"]
    assert ("config" in alpha, beta["config"]["loaded_at_field"]) == (False, "block_time")
    assert beta["config"]["freshness"] == {"warn_after": {"count": 7, "period": "day"}}
    assert [table["name"] for table in alpha["tables"]] == ["closed", "trade"]
    closed, trade = alpha["tables"]
    assert trade["description"] == "A trade: 100 %"
    columns = {column["name"]: column for column in trade["columns"]}
    long = {"timestamp with time zone": "timestamptz"}
    assert {name: column["data_type"] for name, column in columns.items()} == {
        name: long.get(kind, kind) for name, kind in types.items()
    }
    assert columns["amount"]["description"] == "In lamports # not a comment\nsecond line"
    assert columns["event_slot"]["data_type"] == "numeric"
    assert {"name": "parts", "data_type": "jsonb"} in closed["columns"]
    for source in (alpha, beta):
        assert source.keys() <= SOURCE
        for table in source["tables"]:
            assert table.keys() <= TABLE
            assert all(column.keys() <= COLUMN for column in table["columns"])

    monkeypatch.setenv("UHO_PROGRAMS_DIR", str(settings.programs_dir))
    monkeypatch.setenv("UHO_POSTGRES_URL", warehouse)
    result = CliRunner().invoke(app, ["dbt-sources", "alpha"])
    assert (result.exit_code, yaml.safe_load(result.stdout)["sources"]) == (0, [alpha])

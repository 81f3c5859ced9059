"""The asset graph as it is meant to be, so that a change of lineage shows in review."""

import json

import dagster as dg
import pytest
from dagster._core.definitions.partitions.mapping import IdentityPartitionMapping
from streams import IDL, make_settings, program_id

from uho_pipelines.assets import events_key, records_key
from uho_pipelines.definitions import LedgerUnreachableError, build_definitions
from uho_pipelines.registry import load_registry

PROGRAM = """\
program_id: {id}
network: sim
owner: {owner}
first_slot: {first}
last_slot: {last}
scan_group: {group}
idls:
  - {{from_slot: 0, file: idl.json}}
"""

GRAPH = {
    "sim/archive": [],
    "sim/demo/alpha_idl": [],
    "sim/demo/beta_idl": [],
    "sim/other/gamma_idl": [],
    "sim/demo/alpha_records": ["sim/archive"],
    "sim/demo/beta_records": ["sim/archive"],
    "sim/other/gamma_records": ["sim/archive"],
    "sim/demo/alpha_events": ["sim/demo/alpha_idl", "sim/demo/alpha_records"],
    "sim/demo/beta_events": ["sim/demo/beta_idl", "sim/demo/beta_records"],
    "sim/other/gamma_events": ["sim/other/gamma_idl", "sim/other/gamma_records"],
}
"""Each asset and what it depends on."""

CHECKS = [
    *("sim/demo/alpha_events:integrity", "sim/demo/alpha_events:skip_rate", "sim/demo/alpha_records:completeness"),
    *("sim/demo/beta_events:integrity", "sim/demo/beta_events:skip_rate", "sim/demo/beta_records:completeness"),
    *("sim/other/gamma_events:integrity", "sim/other/gamma_events:skip_rate", "sim/other/gamma_records:completeness"),
]


def add(folder, name, owner="demo", group="pair", first=0, last=299, idl=IDL):
    (folder / name).mkdir(parents=True)
    text = PROGRAM.format(id=program_id(name), owner=owner, group=group, first=first, last=last)
    (folder / name / "program.yaml").write_text(text)
    (folder / name / "idl.json").write_text(json.dumps(idl))


@pytest.fixture
def settings(tmp_path):
    folder = tmp_path / "programs"
    add(folder, "alpha")
    add(folder, "beta", first=150, last=450)
    add(folder, "gamma", owner="other", group="alone")
    return make_settings(tmp_path, programs_dir=folder)


@pytest.fixture
def graph(settings):
    return build_definitions(settings).resolve_asset_graph()


def test_the_asset_graph_is_as_agreed(graph):
    found = {
        "/".join(key.path): sorted("/".join(parent.path) for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    assert found == GRAPH
    assert sorted(f"{'/'.join(key.asset_key.path)}:{key.name}" for key in graph.asset_check_keys) == CHECKS


def test_programs_of_a_group_share_partitions_and_others_do_not(graph):
    def keys(*path):
        return graph.get(dg.AssetKey(path)).partitions_def.get_partition_keys()

    pair = [f"{start:010d}" for start in range(0, 500, 100)]
    assert keys("sim", "demo", "alpha_records") == keys("sim", "demo", "beta_events") == pair
    assert keys("sim", "other", "gamma_records") == pair[:3]


def test_records_and_events_of_a_chunk_fit_into_one_run(graph):
    records, events = dg.AssetKey(["sim", "demo", "alpha_records"]), dg.AssetKey(["sim", "demo", "alpha_events"])
    assert graph.get(records).partitions_def == graph.get(events).partitions_def
    assert graph.get(records).backfill_policy == graph.get(events).backfill_policy == dg.BackfillPolicy.multi_run(1)
    assert isinstance(graph.get_partition_mapping(events, records), IdentityPartitionMapping)


def test_assets_say_whose_they_are_and_what_they_hold(graph):
    events = graph.get(dg.AssetKey(["sim", "demo", "alpha_events"]))
    assert (events.group_name, list(events.owners), events.kinds) == ("alpha", ["team:demo"], {"postgres"})
    columns = {column.name: column.type for column in events.metadata["dagster/column_schema"].columns}
    assert (columns["slot"], columns["Happened.amount"]) == ("bigint", "numeric")
    assert events.code_version is not None
    records = graph.get(dg.AssetKey(["sim", "demo", "alpha_records"]))
    assert (records.group_name, records.kinds) == ("alpha", {"solana", "parquet"})


def test_streams_and_writers_are_limited_by_pools(settings):
    definitions = build_definitions(settings)
    program = load_registry(settings).program("alpha")
    pools = {
        key.path[-1]: definitions.resolve_assets_def(key).op.pool for key in (records_key(program), events_key(program))
    }
    assert pools == {"alpha_records": "archive", "alpha_events": "warehouse"}


def test_a_program_that_is_refused_is_shown_and_takes_no_other_down(settings):
    add(settings.programs_dir, "broken", idl={**IDL, "types": []})
    (settings.programs_dir / "empty").mkdir()
    definitions = build_definitions(settings)
    keys = {key.to_user_string() for key in definitions.resolve_all_asset_keys()}
    assert "sim/demo/alpha_events" in keys
    assert "sim/demo/broken_events" not in keys
    shown = definitions.metadata["refused programs"].value
    assert "broken/program.yaml: idls" in shown
    assert "empty/program.yaml" in shown


def test_no_program_at_all_loads(tmp_path):
    (tmp_path / "programs").mkdir()
    settings = make_settings(tmp_path, programs_dir=tmp_path / "programs")
    assert list(build_definitions(settings).resolve_all_asset_keys()) == []


def test_a_program_whose_archive_has_no_known_tip_has_no_chunks_yet(tmp_path):
    add(tmp_path / "programs", "alpha")
    path = tmp_path / "programs" / "alpha" / "program.yaml"
    path.write_text(path.read_text().replace("last_slot: 299\n", ""))
    graph = build_definitions(make_settings(tmp_path, programs_dir=tmp_path / "programs")).resolve_asset_graph()
    assert graph.get(dg.AssetKey(["sim", "demo", "alpha_events"])).partitions_def.get_partition_keys() == []


def test_an_unreachable_ledger_is_said_without_its_password(settings):
    broken = settings.model_copy(update={"postgres_url": type("Secret", (), {"get_secret_value": lambda _: URL})()})
    with pytest.raises(LedgerUnreachableError, match="cannot be reached") as caught:
        build_definitions(broken)
    assert "hunter2" not in str(caught.value)


URL = "postgresql://uho:hunter2@127.0.0.1:9/uho?connect_timeout=1"


def test_the_job_of_a_program_has_both_its_assets(settings):
    job = build_definitions(settings).resolve_job_def("demo_sim_alpha")
    assert {key.path[-1] for key in job.asset_layer.executable_asset_keys} >= {"alpha_records", "alpha_events"}

"""What follows the archive by itself: which chunks are requested, how often, how many at once, and when not."""

import json

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from made_up import load, prove, simple
from streams import IDL, make_settings, program_id

from uho_pipelines.assets import events_key, records_key
from uho_pipelines.chunks import Chunk
from uho_pipelines.definitions import build_definitions
from uho_pipelines.registry import load_registry
from uho_pipelines.sensors import FOLLOW_TAG, RUNS_IN_FLIGHT, TRIES
from uho_pipelines.settings import NetworkSettings
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.ledger import set_halt, set_tip

SLOTS = 27_000
EPOCH = 432_000

PROGRAM = f"""\
program_id: {program_id("alpha")}
network: sim
owner: demo
first_slot: 0
follow: true
idls:
  - {{from_slot: 0, file: idl.json}}
"""


@pytest.fixture
def settings(warehouse, tmp_path):
    folder = tmp_path / "programs" / "alpha"
    folder.mkdir(parents=True)
    (folder / "program.yaml").write_text(PROGRAM)
    (folder / "idl.json").write_text(json.dumps({**IDL, "address": str(program_id("alpha"))}))
    network = NetworkSettings(chunk_slots=SLOTS, checkpoint_slots=1_000)
    programs = tmp_path / "programs"
    return make_settings(tmp_path, networks={"sim": network}, programs_dir=programs, postgres_url=warehouse)


@pytest.fixture
def program(settings):
    return load_registry(settings).program("alpha")


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def look(settings, program, instance, warehouse):
    """Do what the sensor does in a tick when so many epochs are published; have Dagster take up what it requests."""

    def tick(epochs=1):
        with connect(warehouse, application_name="test") as connection:
            set_tip(connection, "sim", epochs * EPOCH)
        definitions = build_definitions(settings)
        with dg.build_sensor_context(instance=instance, definitions=definitions) as context:
            data = definitions.resolve_sensor_def(f"{program.schema_name}_follow").evaluate_tick(context)
        for request in data.run_requests:
            instance.create_run_for_job(
                definitions.resolve_implicit_global_asset_job_def(),
                tags={**request.tags, "dagster/partition": request.partition_key},
                asset_selection=frozenset({records_key(program), events_key(program)}),
                status=DagsterRunStatus.NOT_STARTED,
            )
        return [request.partition_key for request in data.run_requests], data.skip_message, data.run_requests

    return tick


def fail_what_waits(instance):
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=[DagsterRunStatus.NOT_STARTED])):
        instance.report_run_failed(run)


def complete(warehouse, program, *starts, tail="proven"):
    for start in starts:
        prove(warehouse, program, Chunk(start, SLOTS), tail=tail)
        load(warehouse, program, [simple(1, "Happened")], chunk=Chunk(start, SLOTS))


def test_missing_chunks_are_requested_the_oldest_first_and_a_few_at_a_time(look, warehouse, program, instance):
    complete(warehouse, program, 0, 2 * SLOTS)
    keys, _, requests = look()
    expected = [f"{start:010d}" for start in range(0, EPOCH, SLOTS) if start not in (0, 2 * SLOTS)]
    assert keys == expected[:RUNS_IN_FLIGHT]
    assert {request.tags["uho/started_by"] for request in requests} == {"follow sensor"}
    assert {request.tags["dagster/priority"] for request in requests} == {"-1"}, "who starts by hand goes first"
    keys, told, _ = look()
    assert keys == [], "those are queued"
    assert told == "14 of 16 chunks are missing; 0 requested"


def test_a_chunk_that_fails_is_taken_up_again_and_left_to_a_person_after_a_while(look, instance, warehouse, program):
    complete(warehouse, program, *range(0, EPOCH - SLOTS, SLOTS))
    gap = f"{EPOCH - SLOTS:010d}"
    run_keys = []
    for _ in range(TRIES):
        keys, _, requests = look()
        assert keys == [gap]
        run_keys += [request.run_key for request in requests]
        fail_what_waits(instance)
    assert len(set(run_keys)) == TRIES, "Dagster launches no run key twice"
    keys, told, _ = look()
    assert (keys, told) == (
        [],
        f"1 of 16 chunks are missing; 0 requested; failed {TRIES} times and left to a person: {gap}",
    )


def test_what_a_person_started_is_not_requested_beside_it(look, instance, program, settings, warehouse):
    with connect(warehouse, application_name="test") as connection:
        set_tip(connection, "sim", EPOCH)
    instance.create_run_for_job(
        build_definitions(settings).resolve_implicit_global_asset_job_def(),
        tags={f"dagster/asset_partition_range_{end}": f"{0:010d}" for end in ("start", "end")},
        asset_selection=frozenset({events_key(program)}),
        status=DagsterRunStatus.STARTED,
    )
    keys, _, _ = look()
    assert f"{0:010d}" not in keys
    assert len(keys) == RUNS_IN_FLIGHT
    assert {run.tags.get(FOLLOW_TAG) for run in instance.get_runs()} == {None, program.key}


def test_an_unproven_tail_is_looked_at_again_once_more_is_published(look, warehouse, program):
    last = EPOCH - SLOTS
    complete(warehouse, program, *range(0, last, SLOTS))
    complete(warehouse, program, last, tail="unproven")
    keys, told, _ = look(epochs=1)
    assert (keys, told) == ([], "0 of 16 chunks are missing; 0 requested"), "nothing new to prove it with"
    keys, _, _ = look(epochs=2)
    assert keys[0] == f"{last:010d}"


def test_a_halted_program_is_left_alone(look, warehouse, program):
    complete(warehouse, program, 0)
    with connect(warehouse, application_name="test") as connection:
        set_halt(connection, program, Chunk(0, SLOTS), "30 of 100 records decode by no IDL version.")
    keys, told, _ = look()
    assert keys == []
    assert told == "sim/demo/alpha is halted: 30 of 100 records decode by no IDL version."

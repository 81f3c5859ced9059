"""A program that follows the archive and falls behind: latched, told, and cleared once it has caught up."""

import json

import dagster as dg
import pytest
from made_up import load, prove, rows, simple
from streams import IDL, make_settings, program_id
from typer.testing import CliRunner

from uho_pipelines import cli
from uho_pipelines.assets import events_key
from uho_pipelines.chunks import Chunk
from uho_pipelines.definitions import build_definitions
from uho_pipelines.freshness import FRESHNESS, freshness_sensor, look
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.settings import NetworkSettings
from uho_pipelines.status import program_status
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.ledger import set_tip
from uho_pipelines.warehouse.stall import StillLaggingError, clear_stall, get_stall, measure_lag

SLOTS = 100_000
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
    return make_settings(
        tmp_path,
        networks={"sim": network},
        programs_dir=tmp_path / "programs",
        postgres_url=warehouse,
        stall_slots=EPOCH + SLOTS,
    )


@pytest.fixture
def program(settings):
    return load_registry(settings).program("alpha")


def complete(warehouse, program, *starts):
    for start in starts:
        prove(warehouse, program, Chunk(start, SLOTS))
        load(warehouse, program, [simple(1, "Happened")], chunk=Chunk(start, SLOTS))


def publish(warehouse, epochs):
    with connect(warehouse, application_name="test") as connection:
        set_tip(connection, "sim", epochs * EPOCH)


def test_a_program_that_falls_behind_stalls_and_stays_so_until_it_is_cleared(settings, warehouse, program):
    publish(warehouse, 1)
    complete(warehouse, program, 0, SLOTS, 2 * SLOTS, 3 * SLOTS)
    assert look(settings, program).text == ""
    publish(warehouse, 2)
    assert look(settings, program).text == "", "a new epoch alone is no stall"
    publish(warehouse, 3)
    verdict = look(settings, program)
    assert verdict.blocks
    assert "800,000 slots" in verdict.text
    assert "ends before slot 400000" in verdict.text
    assert verdict.metadata["chunks missing"] == 8
    with connect(warehouse, application_name="test") as connection:
        with pytest.raises(StillLaggingError, match=r"800,000 slots .* 532,000 are allowed"):
            clear_stall(connection, settings, program, "alice", "I want to")
        status = program_status(connection, settings, program)
        assert status.as_json()["ready"] is False
        # The newest complete chunk counts; what is missing before it is told as missing.
        complete(warehouse, program, 11 * SLOTS)
        assert measure_lag(connection, settings, program).slots == 0
        verdict = look(settings, program)
        assert "It has caught up since: clear the stall with `uho stall clear sim/demo/alpha`" in verdict.text
        assert verdict.metadata["chunks missing"] == 7
        assert not program_status(connection, settings, program).as_json()["ready"], "latched"
        clear_stall(connection, settings, program, "alice", "the node was down")
        assert get_stall(connection, program) is None
        assert program_status(connection, settings, program).as_json()["ready"]
    assert look(settings, program).text == ""
    audited = "SELECT person, action, reason, details ->> 'stall' LIKE '800,000 slots%%' FROM uho.audit ORDER BY number"
    assert rows(warehouse, audited)[-1] == ("alice", "clear stall", "the node was down", True)


def test_the_command_line_tells_refuses_and_clears(settings, warehouse, program, monkeypatch):
    publish(warehouse, 3)
    complete(warehouse, program, 0)
    look(settings, program)
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)

    def uho(*arguments):
        return CliRunner().invoke(cli.app, list(arguments))

    asked = uho("ready")
    assert asked.exit_code == 1
    assert "sim/demo/alpha stalled on " in asked.output
    refused = uho("stall", "clear", "alpha")
    assert isinstance(refused.exception, StillLaggingError)
    complete(warehouse, program, 11 * SLOTS)
    assert uho("ready").exit_code == 1
    assert "sim/demo/alpha is no longer stalled" in uho("stall", "clear", "alpha").output
    again = uho("ready")
    assert (again.exit_code, again.output.strip()) == (0, "ready")


def test_dagster_shows_the_check_whether_a_run_or_the_sensor_evaluates_it(settings, warehouse, program):
    publish(warehouse, 3)
    complete(warehouse, program, 0)
    sensor = freshness_sensor(settings, [program])
    with dg.DagsterInstance.ephemeral() as instance:
        with dg.build_sensor_context(instance=instance) as context:
            result = sensor.evaluate_tick(context)
            (evaluation,) = result.asset_events
            assert (evaluation.asset_key, evaluation.check_name) == (events_key(program), FRESHNESS)
            assert not evaluation.passed
            assert evaluation.severity is dg.AssetCheckSeverity.ERROR
        with dg.build_sensor_context(instance=instance, cursor=result.cursor) as context:
            assert sensor.evaluate_tick(context).asset_events == [], "said once"
        definitions = build_definitions(settings)
        job = definitions.resolve_job_def(program.schema_name)
        checks = {key.name for key in job.asset_layer.asset_graph.asset_check_keys}
        assert checks == {"completeness", "skip_rate", "integrity"}, (
            "a chunk's run does not evaluate the program's check"
        )
        selection = dg.AssetSelection.checks(dg.AssetCheckKey(events_key(program), FRESHNESS))
        by_hand = dg.define_asset_job("by_hand", selection=selection)
        run = build_definitions(settings).resolve_asset_graph()
        run = by_hand.resolve(asset_graph=run).execute_in_process(instance=instance, raise_on_error=False)
        (evaluation,) = run.get_asset_check_evaluations()
        assert (evaluation.check_name, evaluation.passed) == (FRESHNESS, False)

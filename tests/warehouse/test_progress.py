"""How far a program is, how fast, and until when: by the ledger, in sentences and in JSON."""

import json

import dagster as dg
import pytest
from made_up import certificate, load, program_of, simple
from rich.console import Console
from streams import make_settings
from typer.testing import CliRunner

from uho_pipelines import cli
from uho_pipelines.chunks import Chunk
from uho_pipelines.progress import backfills_under_way, program_progress, progress_sensor
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.status import run_status
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.ledger import begin_attempt, fail_attempt, finish_records


@pytest.fixture
def settings(warehouse, tmp_path):
    return make_settings(tmp_path, postgres_url=warehouse, webserver_port=9)


@pytest.fixture
def program():
    """Ten chunks of 100 slots."""
    return program_of({"Simple": {"amount": "u64"}}, last_slot=999)


def read(warehouse, program, start, rows):
    """Read and load a chunk of 7,000 bytes of archive."""
    chunk = Chunk(start, 100)
    with connect(warehouse, application_name="test") as connection:
        attempt = begin_attempt(connection, program, chunk, "records")
        finish_records(connection, program, chunk, attempt, {**certificate(program, chunk), "bytes": 7_000})
    load(warehouse, program, [simple(1)] * rows, chunk=chunk)


def progress_of(warehouse, settings, program):
    with connect(warehouse, application_name="test") as connection:
        return program_progress(connection, settings, program)


def test_speed_and_estimate_rest_on_what_was_completed_within_the_hour(warehouse, settings, program):
    before = progress_of(warehouse, settings, program)
    assert (before.total, before.left, before.seconds_left) == (10, 10, None)
    assert before.sentence.endswith("(no chunk was completed within the last 60 minutes, so nothing tells the speed)")
    for start in (0, 100, 200, 300):
        read(warehouse, program, start, rows=30)
    with connect(warehouse, application_name="test") as connection:
        connection.execute(
            "UPDATE uho.chunk SET loaded_at = now() - interval '3 hours', "
            "records_started_at = now() - interval '4 hours' WHERE chunk_start = 0"
        )
        begun = "UPDATE uho.chunk SET records_started_at = now() - interval '10 minutes' WHERE chunk_start > 0"
        connection.execute(begun)
        begin_attempt(connection, program, Chunk(400, 100), "records")
        failed = begin_attempt(connection, program, Chunk(500, 100), "records")
        fail_attempt(connection, program, Chunk(500, 100), failed, "records", "the archive is gone")
    found = progress_of(warehouse, settings, program)
    assert (found.total, found.done, found.running, found.failed, found.left) == (10, 4, 1, 1, 6)
    assert found.chunks_lately == 3, "the one of three hours ago says nothing of now"
    assert found.events_per_second == pytest.approx(90 / 600, rel=0.1)
    assert found.bytes_per_second == pytest.approx(21_000 / 600, rel=0.1)
    assert found.seconds_left == pytest.approx(6 * 200, rel=0.1)
    assert found.sentence.startswith(
        "4 of 10 chunks done, 1 running, 1 failed; 0 events/s, 0.0 MB/s of archive; done in"
    )
    assert found.basis == "3 chunks in the last 10 min, 6 are left"
    assert found.as_json()["left"] == 6


def test_nothing_left_is_no_estimate_and_a_program_without_chunks_has_none(warehouse, settings):
    short = program_of({"Simple": {"amount": "u64"}}, last_slot=99)
    read(warehouse, short, 0, rows=1)
    found = progress_of(warehouse, settings, short)
    assert (found.left, found.seconds_left, found.basis) == (0, 0.0, "every chunk that the archive has is complete")
    endless = program_of({"Simple": {"amount": "u64"}}, name="beta", last_slot=None)
    assert progress_of(warehouse, settings, endless).total == 0, "its archive's tip is not known"


def test_the_programs_page_moves_when_a_chunk_ends_and_stays_quiet_otherwise(warehouse, settings, program):
    sensor = progress_sensor(settings, [program])
    with dg.DagsterInstance.ephemeral() as instance:

        def tick(cursor):
            with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
                return sensor.evaluate_tick(context)

        assert tick(None).asset_events == []
        read(warehouse, program, 0, rows=5)
        moved = tick(None)
        (observation,) = moved.asset_events
        assert observation.metadata["chunks done"].value == 1
        assert observation.metadata["chunks left"].value == 9
        assert "1 of 10 chunks done" in observation.metadata["estimate"].value
        assert tick(moved.cursor).asset_events == []


@pytest.fixture
def registered(settings, warehouse, tmp_path, monkeypatch, program):
    folder = tmp_path / "programs" / "alpha"
    folder.mkdir(parents=True)
    text = {"network": "sim", "owner": "demo", "program_id": program.program_id, "first_slot": 0, "last_slot": 999}
    (folder / "program.yaml").write_text(json.dumps({**text, "idls": [{"from_slot": 0, "file": "idl.json"}]}))
    (folder / "idl.json").write_bytes(program.idls[0].json)
    settings = settings.model_copy(update={"programs_dir": tmp_path / "programs"})
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    read(warehouse, program, 0, rows=5)
    return settings


def test_status_tells_it_in_json_and_again_and_again(registered, warehouse, program):
    told = CliRunner().invoke(cli.app, ["status", "alpha", "--json"], catch_exceptions=False)
    assert json.loads(told.output)["progress"]["done"] == 1
    console = Console(record=True, width=300)

    def looks():
        yield 1
        read(warehouse, program, 100, rows=5)
        yield 2

    run_status(registered, "alpha", console, as_json=True, watch=0.0, looks=looks())
    lines = [json.loads(line)["progress"]["done"] for line in console.export_text().splitlines()]
    assert lines == [1, 2]
    run_status(registered, None, console, as_json=False, watch=0.0, looks=iter([1]))
    assert "2 of 10 chunks done" in console.export_text()
    assert backfills_under_way(registered) is None, "no Dagster answers here"

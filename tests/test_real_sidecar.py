"""The real sidecar over a simulated archive: chunks go through both stages, and every row equals the truth."""

import json
import os
import subprocess
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from services import fresh_warehouse

from uho_pipelines.assets import events_key, records_key
from uho_pipelines.chunks import chunk_of, program_chunks
from uho_pipelines.decoding import decoder_for
from uho_pipelines.definitions import build_definitions
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, truth_by_event
from uho_pipelines.warehouse import connect, ensure_tables

RELEASE = Path(__file__).parent.parent / "sidecar" / "target" / "release"


def built(name: str, variable: str) -> str:
    path = os.environ.get(variable, str(RELEASE / name))
    if not Path(path).is_file():
        pytest.skip(f"{name} is not built: `make build`, or set {variable}")
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A simulated archive; its folder."""
    folder = tmp_path_factory.mktemp("sim")
    command = [built("archive-sim", "UHO_ARCHIVE_SIM_BINARY"), "write", "--out", str(folder), "--seed", "7"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def settings(archive, postgres, tmp_path_factory):
    """Settings that point at a sidecar and a Postgres which run."""
    home = tmp_path_factory.mktemp("home")
    command = [
        built("uho-sidecar", "UHO_SIDECAR_BINARY"),
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--archive",
        f"sim={archive}",
    ]
    environment = {**os.environ, "UHO_SIDECAR_SECRET": "secret"}
    sidecar = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    try:
        address = json.loads(sidecar.stdout.readline())["listening"]
        summary = json.loads((archive / "truth" / "summary.json").read_text())
        network = NetworkSettings(chunk_slots=summary["chunk_slots"], checkpoint_slots=50)
        yield Settings(
            home=home,
            sidecar_url=f"http://{address}",
            sidecar_secret="secret",
            postgres_url=fresh_warehouse(postgres, "real_sidecar"),
            programs_dir=archive / "programs",
            networks={"sim": network},
        )
    finally:
        sidecar.terminate()
        sidecar.wait(60)


@pytest.fixture(scope="module")
def programs(settings):
    return load_registry(settings).programs


def test_every_row_of_every_chunk_equals_the_truth(settings, programs, archive):
    assert {program.name for program in programs} == {"orderbook", "vault"}
    chunks = program_chunks(settings, programs[0], tip=None)
    assert any(len(chunk.epochs) == 2 for chunk in chunks)
    for chunk in chunks:
        for outcome in read_records(settings, programs, chunk, Reporter()):
            assert outcome.error is None
            assert load_events(settings, outcome.program, chunk, Reporter()).result is not None
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        for program in programs:
            plan = ensure_tables(connection, program, decoder_for(program).tables())
            comparisons = compare_program(connection, program, plan, truth_by_event(archive, program))
            assert comparisons
            for comparison in comparisons:
                assert comparison.equal, comparison.differences[:3]
        count = connection.execute("SELECT count(*) FROM uho.quarantine").fetchone()[0]
        assert count == len((archive / "truth" / "quarantine.jsonl").read_text().splitlines())
        proven = connection.execute("SELECT count(*) FROM uho.chunk WHERE records_digest = loaded_digest").fetchone()[0]
        assert proven == 2 * len(chunks)


def test_the_same_chunk_as_a_run_of_dagster(settings, programs):
    keys = [key for program in programs for key in (records_key(program), events_key(program))]
    chunk = chunk_of(programs[0].first_slot, settings.network("sim").chunk_slots)
    with dg.instance_for_test() as instance:
        job = build_definitions(settings).resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(keys))
        run = instance.create_run_for_job(
            job_def=job, asset_selection=frozenset(keys), tags={"dagster/partition": chunk.key}, run_config={}
        )
        events = list(execute_run_iterator(InMemoryJob(job), run, instance))
        assert instance.get_run_by_id(run.run_id).is_success, [event.message for event in events if event.is_failure]
        assert {event.asset_key for event in events if event.is_step_materialization} == set(keys)


def test_the_tip_is_the_end_of_the_last_whole_epoch(settings):
    from uho_pipelines.archive import archive_tip

    assert archive_tip(settings, "sim", 2) == 4 * 432_000
    assert archive_tip(settings, "sim", 9) is None

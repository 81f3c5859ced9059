"""What `uho preview` shows is what a backfill would load, and the DDL what a warehouse would run."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from services import SECRET, fresh_warehouse, running_sidecar, simulate

from uho_pipelines.decoding import decoder_for
from uho_pipelines.preview import dry_run, preview_program, run_preview
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import Settings
from uho_pipelines.truth import truth_by_event
from uho_pipelines.warehouse import connect

UHO = Path(sys.executable).parent / "uho"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("sim"))


@pytest.fixture(scope="module")
def settings(archive):
    with running_sidecar({"sim": str(archive)}, archive / "sidecar.log") as sidecar:
        yield Settings(
            home=archive / "home",
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            programs_dir=archive / "programs",
            networks={},
        )


def test_rows_and_counts_are_those_of_the_truth(settings, archive):
    for program in load_registry(settings).programs:
        start, slots = program.first_slot, 700
        preview = preview_program(settings, program, start, slots, 3)
        truth = {
            event: {key: line for key, line in lines.items() if start <= key[0] < start + slots}
            for event, lines in truth_by_event(archive, program).items()
        }
        assert preview.counts.rows_by_event() == {event: len(lines) for event, lines in sorted(truth.items()) if lines}
        assert any(preview.events.values())
        for event, shown in preview.events.items():
            expected = list(truth.get(event, {}).items())[:3]
            keys = [(row["slot"], row["tx_index"], row["event_index"]) for row in shown]
            assert keys == [key for key, _ in expected]
            assert [row["signature"] for row in shown] == [line["signature"] for _, line in expected]
        quarantined = [json.loads(line) for line in (archive / "truth" / "quarantine.jsonl").read_text().splitlines()]
        unknown = [
            row for row in quarantined if row["program"] == program.name and start <= row["slot"] < start + slots
        ]
        assert preview.counts.undecodable == len(unknown)


def test_the_ddl_runs_and_makes_what_a_backfill_would(settings, postgres):
    program = next(program for program in load_registry(settings).programs if program.name == "orderbook")
    tables = decoder_for(program).tables()
    _, statements = dry_run(program, tables)
    with connect(fresh_warehouse(postgres, "preview"), application_name="test") as connection:
        # Roles belong to the server: another test may have made its owner's there.
        roles = [f'CREATE ROLE "{name}" NOLOGIN' for (name,) in connection.execute("SELECT rolname FROM pg_roles")]
        for statement in statements:
            if statement not in roles:
                connection.execute(statement.encode())
        made = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = %s", [program.schema_name]
        ).fetchone()[0]
    assert made == len(tables)


def test_the_command_needs_no_postgres(settings, tmp_path):
    program = load_registry(settings).programs[0]
    environment = {
        **os.environ,
        "UHO_HOME": str(tmp_path),
        "UHO_PROGRAMS_DIR": str(settings.programs_dir),
        "UHO_SIDECAR_URL": settings.sidecar_url,
        "UHO_SIDECAR_SECRET": SECRET,
        "COLUMNS": "160",
    }

    command = [UHO, "preview", program.name, "--slot", str(program.first_slot), "--slots", "400"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "CREATE TABLE" in text
    assert "rows here" in text
    assert not (tmp_path / "postgres").exists()
    assert not (tmp_path / "lake").exists()
    output = io.StringIO()
    console = Console(file=output)
    run_preview(settings, program.name, program.first_slot, 400, 1, as_json=True, console=console)
    answer = json.loads(output.getvalue())
    assert answer["rows"]
    assert all(len(rows) <= 1 for rows in answer["events"].values())
    assert answer["ddl"][0].startswith("CREATE SCHEMA")

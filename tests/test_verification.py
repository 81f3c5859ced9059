"""`uho verify`: whatever is damaged by hand is found, named to the chunk, and mended by the command that is printed."""

import json
import shlex

import pytest
from conftest import empty
from services import SECRET, fresh_warehouse, running_sidecar, simulate
from typer.testing import CliRunner

from uho_pipelines import cli
from uho_pipelines.chunks import program_chunks
from uho_pipelines.lake import Lake
from uho_pipelines.materialization import Reporter, load_events, read_records
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.stack import settings_environment
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, truth_by_event
from uho_pipelines.verification import due_chunks, verify_chunk, verify_program
from uho_pipelines.warehouse import connect, read_plan

FIRST_SLOT, LAST_SLOT = 1_295_000, 1_297_799  # eight chunks across the end of epoch 2


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("sim"), first_slot=FIRST_SLOT, last_slot=LAST_SLOT)


@pytest.fixture(scope="module")
def settings(archive, postgres, tmp_path_factory):
    """Settings of a warehouse and a lake of this module's own, with every chunk of one program loaded."""
    home = tmp_path_factory.mktemp("home")
    network = NetworkSettings(archive_url=f"file://{archive}", chunk_slots=350, checkpoint_slots=50)
    with running_sidecar({"sim": f"file://{archive}"}, home / "sidecar.log") as sidecar:
        made = Settings(
            home=home,
            sidecar_url=sidecar.url,
            sidecar_secret=SECRET,
            postgres_url=fresh_warehouse(postgres, "verification"),
            programs_dir=archive / "programs",
            disk_reserve_bytes=0,
            networks={"sim": network},
        )
        program = load_registry(made).program("orderbook")
        for chunk in program_chunks(made, program, tip=None):
            (outcome,) = read_records(made, [program], chunk, Reporter())
            assert outcome.error is None
            load_events(made, program, chunk, Reporter())
        yield made
        empty(made.postgres_url.get_secret_value())


@pytest.fixture
def program(settings):
    return load_registry(settings).program("orderbook")


@pytest.fixture
def chunks(settings, program):
    return program_chunks(settings, program, tip=None)


@pytest.fixture
def uho(settings, monkeypatch):
    """Run a command of `uho` as the shell would, in this process."""
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)

    return run


def execute(settings, text, *values):
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        cursor = connection.execute(text, values or None)
        return cursor.fetchall() if cursor.description else None


def by_hand(settings, text, *values):
    """Change what the database guards against slips, as its owner can."""
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        connection.execute("ALTER TABLE uho.certificate DISABLE TRIGGER appended_only")
        assert connection.execute(text, values).rowcount == 1
        connection.execute("ALTER TABLE uho.certificate ENABLE TRIGGER appended_only")


def part(settings, program, chunk):
    folder = Lake(settings).chunk(program, chunk)
    stretch = next(stretch for stretch in folder.complete_manifest().stretches if stretch.file)
    return folder.files.local / folder.folder / stretch.file


def test_all_that_is_changed_by_hand_is_found_and_mended_by_the_printed_command(
    settings, archive, program, chunks, uho
):
    table = "demo_sim_orderbook.order_placed"
    in_chunk = "WHERE slot >= %s AND slot < %s ORDER BY slot LIMIT 1"
    deleted, changed, added, truncated, flipped, edited, told_apart, forgotten = chunks

    execute(
        settings, f"DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} {in_chunk})", deleted.start, deleted.end
    )
    execute(
        settings,
        f"UPDATE {table} SET signature = 'x' WHERE ctid = (SELECT ctid FROM {table} {in_chunk})",
        changed.start,
        changed.end,
    )
    execute(
        settings,
        f"INSERT INTO {table} (slot, tx_index, event_index, signature, source) VALUES (%s, 999999, 0, 'x', 'log')",
        added.start,
    )
    shortened = part(settings, program, truncated)
    shortened.write_bytes(shortened.read_bytes()[:-100])
    bits = part(settings, program, flipped)
    content = bytearray(bits.read_bytes())
    content[len(content) // 2] ^= 1
    bits.write_bytes(content)
    by_hand(
        settings,
        "UPDATE uho.certificate SET certificate = jsonb_set(certificate, '{blocks}', '1') WHERE chunk_start = %s",
        edited.start,
    )
    by_hand(settings, "UPDATE uho.chunk SET record_count = record_count + 1 WHERE chunk_start = %s", told_apart.start)
    by_hand(settings, "DELETE FROM uho.certificate WHERE chunk_start = %s", forgotten.start)

    told = uho("verify", "orderbook", "--json")
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert [chunk["chunk"] for chunk in found["damaged"]] == [chunk.key for chunk in chunks]
    parts = [{finding["part"] for finding in chunk["findings"]} for chunk in found["damaged"]]
    assert parts[:5] == [{"tables"}, {"tables"}, {"tables"}, {"lake"}, {"lake"}]
    assert "certificate" in parts[5]
    assert {"ledger", "tables"} >= parts[6] - {"certificate"} != set()
    assert parts[7] == {"certificate"}
    texts = [chunk["findings"][0]["text"] for chunk in found["damaged"]]
    assert shortened.name in texts[3]
    assert bits.name in texts[4]
    verbs = [chunk["command"].split()[1] for chunk in found["damaged"]]
    assert verbs == ["replay"] * 3 + ["backfill"] * 5
    assert execute(settings, "SELECT sum(chunks) FROM uho.proven_ranges") == [(7,)]  # one has no certificate

    for chunk in found["damaged"]:
        mended = uho(*shlex.split(chunk["command"])[1:])
        assert mended.exit_code == 0, mended.output

    again = uho("verify", "orderbook", "--json")
    found = json.loads(again.stdout)
    assert (again.exit_code, found["damaged"], found["busy"]) == (0, [], [])
    assert (found["chunksVerified"], found["certificates"]) == (8, 8 + 5 - 1)
    assert len(found["scars"]) == 2  # the lines that were edited and deleted hold for nothing any more, and stay told
    assert execute(settings, "SELECT sum(chunks) FROM uho.proven_ranges") == [(8,)]
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        truth = truth_by_event(archive, program)
        assert all(one.equal for one in compare_program(connection, program, read_plan(connection, program), truth))


def test_rows_where_nothing_was_loaded_are_found(settings, program, chunks):
    table = "demo_sim_orderbook.order_placed"
    slot = chunks[-1].end + 7_000
    insert = f"INSERT INTO {table} (slot, tx_index, event_index, signature, source) VALUES (%s, 0, 0, 'x', 'log')"
    execute(settings, insert, slot)
    (found,) = verify_program(settings, program, None, None).damaged
    assert found.chunk.start <= slot < found.chunk.end
    assert "never loaded" in found.findings[0].text
    verb, _, statement = found.command.partition(": ")
    assert verb == "psql"
    execute(settings, statement)
    assert not verify_program(settings, program, None, None).damaged


def test_what_an_attempt_reads_again_now_is_busy_and_not_damaged(settings, program, chunks):
    chunk = chunks[2]
    url = settings.postgres_url.get_secret_value()
    execute(settings, "UPDATE uho.chunk SET records_state = 'running' WHERE chunk_start = %s", chunk.start)
    folder = Lake(settings).chunk(program, chunk)
    manifest = folder.complete_manifest()
    ((attempt,),) = execute(settings, "SELECT records_attempt FROM uho.chunk WHERE chunk_start = %s", chunk.start)
    folder.write_manifest(manifest.model_copy(update={"complete": False, "attempt": str(attempt)}))
    with connect(url, application_name="test") as connection:
        found = verify_chunk(connection, settings, program, chunk)
        assert (found.damaged, "reads it again" in found.busy) == (False, True)
        execute(settings, "UPDATE uho.chunk SET records_state = 'failed' WHERE chunk_start = %s", chunk.start)
        found = verify_chunk(connection, settings, program, chunk)
        assert found.command == f"uho backfill {program.key} {chunk.options}"
        folder.write_manifest(manifest)
        execute(settings, "UPDATE uho.chunk SET records_state = 'complete' WHERE chunk_start = %s", chunk.start)
        assert not verify_chunk(connection, settings, program, chunk).damaged


def test_the_chunks_that_were_verified_longest_ago_are_due_first(settings, program, chunks):
    with connect(settings.postgres_url.get_secret_value(), application_name="test") as connection:
        for chunk in chunks:
            verify_chunk(connection, settings, program, chunk)
        assert due_chunks(connection, program, 3_600, 10) == []
        connection.execute("DELETE FROM uho.verification WHERE chunk_start = %s", [chunks[5].start])
        connection.execute(
            "UPDATE uho.verification SET verified_at = now() - interval '2 hours' WHERE chunk_start = %s",
            [chunks[3].start],
        )
        connection.commit()
        due = due_chunks(connection, program, 3_600, 10)
        assert [chunk for _, chunk in due] == [chunks[5], chunks[3]]
        assert due[0][0] == 0
        assert due_chunks(connection, program, 3_600, 1) == due[:1]

"""Estimates by the real sidecar, against archives whose contents are known, and against what Postgres really takes."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from psycopg import sql
from rich.console import Console
from services import SECRET, built, fresh_warehouse, running_sidecar, simulate
from solders.pubkey import Pubkey

from uho_pipelines.archive import ArchiveClient, ArchiveStreamError, Checkpoint, Done
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.estimate import Interval, NothingToEstimateError, estimate_program, run_estimate, stored_bytes
from uho_pipelines.registry import load_registry
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import chunk_load, connect, ensure_tables
from uho_pipelines.warehouse.ledger import begin_attempt

VOTE = "Vote111111111111111111111111111111111111111"
MEGABYTES = 16
UHO = Path(sys.executable).parent / "uho"


def simulated_id(name):
    """The id that the simulator gives to a program."""
    return str(Pubkey.from_bytes(hashlib.sha256(f"archive-sim program {name}".encode()).digest()))


def settings_of(archive, sidecar, home):
    return Settings(
        home=home, sidecar_url=sidecar.url, sidecar_secret=SECRET, programs_dir=archive / "programs", networks={}
    )


@pytest.fixture(scope="module", params=[12, 2])
def large(request, tmp_path_factory):
    """An archive of 60 MB with one program of so many percent of the transactions: its truth, and settings for it."""
    folder = tmp_path_factory.mktemp("large")
    command = [
        built("archive-sim", "UHO_ARCHIVE_SIM_BINARY"),
        "write-large",
        "--out",
        str(folder),
        "--bytes",
        "60000000",
    ]
    subprocess.run([*command, "--program-percent", str(request.param)], check=True, stdout=subprocess.DEVNULL)
    truth = json.loads((folder / "truth" / "large.json").read_text())
    with running_sidecar({"sim": str(folder)}, folder / "sidecar.log") as sidecar:
        yield truth, settings_of(folder, sidecar, folder / "home"), request.param


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The demo's archive: its summary, and settings for it."""
    folder = simulate(tmp_path_factory.mktemp("small"))
    summary = json.loads((folder / "truth" / "summary.json").read_text())
    with running_sidecar({"sim": str(folder)}, folder / "sidecar.log") as sidecar:
        yield summary, settings_of(folder, sidecar, folder / "home")


def certificate(settings, program_ids, start, end):
    """What a backfill of the whole range counts."""
    with ArchiveClient(settings).stream("sim", program_ids, start, end) as stream:
        return next(item.certificate for item in stream if isinstance(item, Done))


def off_by(interval, truth):
    """How far an estimate is off, as a fraction; its interval must hold the truth."""
    low, high = interval["low"], interval["high"]
    assert low <= truth <= high, f"{truth} is not in {interval}"
    return abs(interval["estimate"] - truth) / truth


def test_programs_of_different_density_are_within_a_fifth_for_a_few_megabytes(large):
    truth, settings, percent = large
    names = {VOTE: "votes", simulated_id("orderbook"): "orderbook", simulated_id("router"): "router"}
    start, end = truth["plan"]["first_slot"], truth["last_block"] + 1
    counted = certificate(settings, list(names), start, end)
    # Two ways to the truth agree: what the simulator wrote, and what a backfill reads.
    assert counted["transactions"] == truth["transactions"]
    assert counted["programs"][simulated_id("orderbook")]["records"] == truth["programs"]["orderbook"]["records"]
    answer = ArchiveClient(settings).estimate(
        "sim", list(names), start, end, bytes_at_most=MEGABYTES << 20, precision=0.1
    )
    assert answer["archiveBytes"] == counted["bytes"]
    assert answer["sample"]["bytesRead"] <= MEGABYTES << 20
    assert off_by(answer["transactions"], counted["transactions"]) < 0.1
    densities = {}
    for program, name in names.items():
        found, true_of = answer["programs"][program], counted["programs"][program]
        densities[name] = true_of["matched"] / counted["transactions"]
        off = off_by(found["matched"], true_of["matched"])
        sys.stdout.write(f"{name}: {densities[name]:.2%} of the transactions, off by {off:.1%}\n")
        assert off <= 0.2, name
        if true_of["records"]:
            assert off_by(found["records"], true_of["records"]) <= 0.2, name
    # Five densities in the two archives; the votes are the same in both.
    assert densities["votes"] > 0.5
    assert densities["orderbook"] == pytest.approx(percent / 100, rel=0.1)
    assert densities["router"] == pytest.approx(percent / 300, rel=0.2)


def test_of_a_rare_program_the_interval_holds_the_truth(large):
    truth, settings, _ = large
    rare = next(program for program in load_registry(settings).programs if program.name == "rare")
    estimate = estimate_program(settings, rare, None, truth["last_block"], megabytes=4)
    assert estimate.sample["endedBy"] == "bytes"
    assert estimate.sample["bytesRead"] <= 4 << 20
    true_of = truth["programs"]["rare"]
    for interval, true_value in ((estimate.matched, true_of["transactions"]), (estimate.records, true_of["records"])):
        assert interval.high is not None
        assert interval.low <= true_value <= interval.high
    assert estimate.matched.high > 2 * estimate.matched.estimate


def test_rows_and_their_bytes_are_what_postgres_takes(small, postgres):
    summary, settings = small
    start, end = summary["first_slot"], summary["last_slot"] + 1
    url = fresh_warehouse(postgres, "estimate")
    for program in load_registry(settings).programs:
        estimate = estimate_program(settings, program, None, None, megabytes=64, precision=0.05)
        true_of = summary["total"]["programs"][program.name]
        assert (estimate.start, estimate.end) == (start, end)
        assert estimate.archive_bytes == certificate(settings, [program.program_id], start, end)["bytes"]
        assert estimate.records.estimate == pytest.approx(true_of["records"], rel=0.1)
        assert estimate.rows.estimate == pytest.approx(true_of["events"], rel=0.15)
        reckoned, taken = load_all(settings, program, start, end, url)
        assert reckoned == pytest.approx(taken, rel=0.1), program.key
        assert estimate.warehouse_bytes.estimate == pytest.approx(taken, rel=0.2), program.key


def load_all(settings, program, start, end, url):
    """Load a program's rows; return the bytes that they were reckoned at, and that they take."""
    reckoned = 0
    chunk = Chunk(0, 10_000_000)
    decoder = decoder_for(program)
    with connect(url, application_name="test") as connection:
        attempt = begin_attempt(connection, program, chunk, "events")
        plan = ensure_tables(connection, program, decoder.tables())
        with (
            chunk_load(connection, plan, program, chunk, attempt) as load,
            ArchiveClient(settings).stream("sim", [program.program_id], start, end) as stream,
        ):
            for item in stream:
                if not isinstance(item, Checkpoint | Done):
                    rows = decode(decoder, program, item)
                    reckoned += sum(stored_bytes(batch) for _, batch in rows.tables)
                    load.write(rows)
            load.commit({}, "d" * 32)
        connection.commit()
        connection.autocommit = True
        # A COPY extends a table by many pages at once, which are some in a hundred thousand rows, and half of these.
        for table in plan.tables.values():
            connection.execute(sql.SQL("VACUUM FULL {}").format(sql.Identifier(table.schema, table.name)))
        taken = connection.execute(
            "SELECT sum(pg_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relkind IN ('r', 'i')",
            [program.schema_name],
        ).fetchone()[0]
        # The last page of each table is half empty on the average, and each index has a first one that holds no rows.
        pages = connection.execute(
            "SELECT sum(CASE c.relkind WHEN 'r' THEN 4096 ELSE 8192 + 4096 END) FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relkind IN ('r', 'i') "
            "AND pg_relation_size(c.oid) > 0",
            [program.schema_name],
        ).fetchone()[0]
    return reckoned, int(taken) - int(pages)


def test_what_cannot_be_estimated_says_why(small):
    summary, settings = small
    program = load_registry(settings).programs[0]
    with pytest.raises(NothingToEstimateError, match="no slot between 900 and 799"):
        estimate_program(settings, program, 900, 799)
    with pytest.raises(ArchiveStreamError, match="epoch_not_found"):
        estimate_program(settings, program, 0, 10)
    first, _ = summary["plan"]["empty_slots"]
    empty = estimate_program(settings, program, first, first + 3)
    assert empty.records == empty.warehouse_bytes == Interval(0, 0, 0)


def test_the_command_answers_for_machines_and_people(small, tmp_path):
    _, settings = small
    environment = {
        **os.environ,
        "UHO_HOME": str(tmp_path),
        "UHO_PROGRAMS_DIR": str(settings.programs_dir),
        "UHO_SIDECAR_URL": settings.sidecar_url,
        "UHO_SIDECAR_SECRET": SECRET,
        "COLUMNS": "160",
    }

    done = subprocess.run([UHO, "estimate", "vault"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for said in ("sim/demo/vault, slots", "rows in Postgres", "GB to read", "hours to read", "bytes a row"):
        assert said in done.stdout, done.stdout
    assert not (tmp_path / "postgres").exists()
    output = io.StringIO()
    run_estimate(settings, "vault", None, None, megabytes=8, precision=0.1, as_json=True, console=Console(file=output))
    answer = json.loads(output.getvalue())
    assert answer["rows"]["low"] <= answer["rows"]["estimate"] <= answer["rows"]["high"]
    by_event = sum(rows["estimate"] for rows in answer["rows_by_event"].values())
    assert by_event == pytest.approx(answer["rows"]["estimate"])

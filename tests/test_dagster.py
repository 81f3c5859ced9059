"""The whole stack as a person meets it: its UI in a browser, who may start what, and what happens by itself."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import short_home
from services import built, simulate, wait_until
from stack import Dagster, kill, uho_up

from uho_pipelines.graphql import ask, backfill_progress
from uho_pipelines.sensors import PARTITION_TAGS

CHUNK_SLOTS = 350
FIRST_SLOT, LAST_SLOT = 1_295_000, 1_297_099  # six chunks; the third has the end of epoch 2 in it
KEYS = [f"{start:010d}" for start in range(FIRST_SLOT, LAST_SLOT, CHUNK_SLOTS)]
BACKFILL_TAGS = """
query Tags($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
  tags { key value } } } }"""
LAUNCH_RUN = """
mutation Run($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""


@pytest.fixture(scope="module")
def dagster():
    """`uho up` over an archive whose second epoch is not published yet; one program follows the archive."""
    built("uho-sidecar", "UHO_SIDECAR_BINARY")
    with short_home() as home:
        simulate(home / "sim", first_slot=FIRST_SLOT, last_slot=LAST_SLOT)
        (home / "sim" / "3").rename(home / "unpublished")
        programs = home / "programs"
        shutil.copytree(home / "sim" / "programs", programs)
        vault = programs / "vault" / "program.yaml"
        lines = [line for line in vault.read_text().splitlines() if not line.startswith(("first_slot", "last_slot"))]
        # The second and third of the chunks, so that one can be read now and one when epoch 3 is published.
        lines += [f"first_slot: {FIRST_SLOT + CHUNK_SLOTS}", f"last_slot: {FIRST_SLOT + 3 * CHUNK_SLOTS - 1}"]
        vault.write_text("\n".join([*lines, "follow: true", ""]))
        with uho_up(home, programs, UHO_ARCHIVE_TIP_SECONDS="5") as stack:
            yield stack


PARTITIONS = """
query Partitions($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode { partitionKeys } } }"""


def partitions(dagster: Dagster, *path: str) -> list[str] | None:
    """Return the partitions of an asset; None when there is no such asset."""
    return ask(dagster.url, PARTITIONS, {"key": {"path": path}})["assetNodeOrError"].get("partitionKeys")


def test_a_program_that_is_registered_appears_and_the_others_stay(dagster: Dagster, tmp_path: Path) -> None:
    before = partitions(dagster, "sim", "demo", "orderbook_events")
    new = tmp_path / "newcomer"
    shutil.copytree(dagster.home / "sim" / "programs" / "vault", new)
    text = (new / "program.yaml").read_text().replace("owner: demo", "owner: acme")
    (new / "program.yaml").write_text(text.replace("scan_group: demo", "scan_group: newcomer"))
    uho = [Path(sys.executable).parent / "uho", "register", new]
    done = subprocess.run(uho, env=dagster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Dagster reloads" in done.stdout
    wait_until(lambda: partitions(dagster, "sim", "acme", "newcomer_events"), "its assets", pause=0.5)
    assert partitions(dagster, "sim", "demo", "orderbook_events") == before


def partition(run: dict[str, Any]) -> str:
    """Return the chunk that a run is of."""
    return next(tag["value"] for tag in run["tags"] if tag["key"] in PARTITION_TAGS)


def test_a_new_epoch_brings_partitions_and_runs_by_itself_and_once_though_sensors_are_killed(dagster: Dagster) -> None:
    complete = "SELECT chunk_start FROM uho.chunk_status WHERE program = 'vault' AND status = 'proven' ORDER BY 1"
    first, second = FIRST_SLOT + CHUNK_SLOTS, FIRST_SLOT + 2 * CHUNK_SLOTS
    wait_until(lambda: dagster.query(complete) == [(first,)], "the chunk of the first epoch", pause=0.5)
    (dagster.home / "unpublished").rename(dagster.home / "sim" / "3")
    # Between what the sensors do: after the tip has moved and before the partitions are there, and again after the run
    # was requested.
    tip = "SELECT 1 FROM uho.network WHERE network = 'sim' AND tip = 4 * 432000"
    wait_until(lambda: dagster.query(tip), "the tip moves", pause=0.05)
    kill(dagster.child("dagster-daemon"))
    wait_until(lambda: len(dagster.runs(uho__follow="sim/demo/vault")) == 2, "a run is requested", pause=0.2)
    kill(dagster.child("dagster-daemon"))
    wait_until(lambda: dagster.query(complete) == [(first,), (second,)], "the chunk of the new epoch", pause=0.5)
    wait_until(
        lambda: [run["status"] for run in dagster.runs(uho__follow="sim/demo/vault")] == ["SUCCESS"] * 2,
        "both runs end",
        pause=0.5,
    )
    assert sorted(map(partition, dagster.runs(uho__follow="sim/demo/vault"))) == [f"{first:010d}", f"{second:010d}"]


def test_a_person_starts_one_backfill_in_five_minutes_and_is_named(dagster: Dagster) -> None:
    started = dagster.launch("alice", "orderbook", KEYS[:1])
    assert started["__typename"] == "LaunchBackfillSuccess", started
    refused = dagster.launch("alice", "orderbook", KEYS[1:2])
    assert refused["__typename"] == "PythonError"
    assert "alice started a backfill less than 300 seconds ago; the next start is possible at" in refused["message"]
    other = dagster.launch("bob", "orderbook", KEYS[1:2])
    assert other["__typename"] == "LaunchBackfillSuccess", "another person's start is their own"
    for backfill, user in ((started, "alice"), (other, "bob")):
        wait_until(
            lambda backfill=backfill: backfill_progress(dagster.url, backfill["backfillId"]).ended,
            "end",
            pause=0.5,
        )
        tags = ask(dagster.url, BACKFILL_TAGS, {"id": backfill["backfillId"]})["partitionBackfillOrError"]["tags"]
        assert {"key": "uho/user", "value": user} in tags
        assert [run["status"] for run in dagster.runs(uho__user=user)] == ["SUCCESS"], "its runs carry its person"


def test_the_job_for_slots_backfills_what_is_missing_in_a_range(dagster: Dagster) -> None:
    config = {
        "ops": {"launch": {"config": {"program": "orderbook", "from_slot": FIRST_SLOT, "to_slot": FIRST_SLOT + 1000}}}
    }
    selector = {
        "repositoryName": "__repository__",
        "repositoryLocationName": "uho_pipelines",
        "pipelineName": "backfill_slots",
    }
    params = {"selector": selector, "runConfigData": config, "mode": "default"}
    launched = dagster.as_user("carol", LAUNCH_RUN, {"params": params})["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    wait_until(lambda: len(dagster.runs(uho__user="carol")) == 2, "the job's run and its backfill's", pause=0.5)
    complete = "SELECT count(*) FROM uho.chunk_status WHERE program = 'orderbook' AND status = 'proven'"
    wait_until(lambda: dagster.query(complete) == [(3,)], "the third chunk", pause=0.5)
    job, of_backfill = sorted(dagster.runs(uho__user="carol"), key=lambda run: run["jobName"] != "backfill_slots")
    assert job["jobName"] == "backfill_slots"
    assert partition(of_backfill) == KEYS[2], "the first two were complete"

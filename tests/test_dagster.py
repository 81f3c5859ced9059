"""The whole stack as a person meets it: its UI in a browser, who may start what, and what happens by itself."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import short_home
from services import built, free_port, simulate, wait_until

from uho_pipelines.graphql import ask, backfill_progress
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.sensors import PARTITION_TAGS
from uho_pipelines.warehouse import connect

CHUNK_SLOTS = 350
FIRST_SLOT, LAST_SLOT = 1_295_000, 1_297_099  # six chunks; the third has the end of epoch 2 in it
KEYS = [f"{start:010d}" for start in range(FIRST_SLOT, LAST_SLOT, CHUNK_SLOTS)]
HEADER = "X-Forwarded-User"

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""

BACKFILL_TAGS = """
query Tags($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
  tags { key value } } } }"""
RUNS = """
query Runs($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results {
  runId status jobName tags { key value } } } } }"""
LAUNCH_RUN = """
mutation Run($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""


@dataclass(frozen=True)
class Dagster:
    """A running stack: where its UI is, and its home."""

    url: str
    home: Path
    log: Path

    def as_user(self, user: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Ask GraphQL as the proxy does for this person."""
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, headers={HEADER: user}, timeout=60
        ).json()
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, user: str, program: str, keys: list[str]) -> dict[str, Any]:
        """Launch a backfill as the UI's dialog does."""
        assets = [{"path": ["sim", "demo", f"{program}_{stage}"]} for stage in ("records", "events")]
        params = {"assetSelection": assets, "partitionNames": keys}
        return self.as_user(user, LAUNCH, {"params": params})["launchPartitionBackfill"]

    def runs(self, **tags: str) -> list[dict[str, Any]]:
        """Return the runs that have all of these tags (`__` stands for `/`)."""
        wanted = [{"key": key.replace("__", "/"), "value": value} for key, value in tags.items()]
        return ask(self.url, RUNS, {"filter": {"tags": wanted}})["runsOrError"]["results"]

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Ask the warehouse."""
        with connect(EmbeddedPostgres(self.home).url("uho"), application_name="test") as connection:
            return connection.execute(text).fetchall()


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
        webserver = free_port()
        environment = {
            **os.environ,
            "UHO_HOME": str(home),
            "UHO_PROGRAMS_DIR": str(programs),
            "UHO_WEBSERVER_PORT": str(webserver),
            "UHO_CODE_SERVER_PORT": str(free_port()),
            "UHO_SIDECAR_URL": f"http://127.0.0.1:{free_port()}",
            "UHO_USER_HEADER": HEADER,
            "UHO_TRUSTED_PROXIES": '["127.0.0.1/32"]',
            "UHO_ARCHIVE_TIP_SECONDS": "5",
            "UHO_DISK_RESERVE_BYTES": "0",
            "COLUMNS": "200",
        }
        log = home / "up.log"
        with log.open("wb") as output:
            uho = Path(sys.executable).parent / "uho"
            up = subprocess.Popen([uho, "up"], env=environment, stdout=output, stderr=output)
        try:
            wait_until(
                lambda: "Ctrl-C stops everything" in log.read_text() or up.poll() is not None,
                "uho up",
                seconds=120,
                pause=0.5,
            )
            assert up.poll() is None, log.read_text()
            yield Dagster(f"http://127.0.0.1:{webserver}", home, log)
        finally:
            if os.environ.get("KEEP"):
                shutil.copytree(home / "logs", "/tmp/keep", dirs_exist_ok=True)
            up.terminate()
            up.wait(60)


def partition(run: dict[str, Any]) -> str:
    """Return the chunk that a run is of."""
    return next(tag["value"] for tag in run["tags"] if tag["key"] in PARTITION_TAGS)


def test_a_new_epoch_brings_partitions_and_runs_by_itself_and_once(dagster: Dagster) -> None:
    complete = "SELECT chunk_start FROM uho.chunk_status WHERE program = 'vault' AND status = 'proven' ORDER BY 1"
    first, second = FIRST_SLOT + CHUNK_SLOTS, FIRST_SLOT + 2 * CHUNK_SLOTS
    wait_until(lambda: dagster.query(complete) == [(first,)], "the chunk of the first epoch", seconds=120, pause=0.5)
    (dagster.home / "unpublished").rename(dagster.home / "sim" / "3")
    wait_until(
        lambda: dagster.query(complete) == [(first,), (second,)], "the chunk of the new epoch", seconds=180, pause=0.5
    )
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
            seconds=120,
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
    wait_until(
        lambda: len(dagster.runs(uho__user="carol")) == 2, "the job's run and its backfill's", seconds=120, pause=0.5
    )
    complete = "SELECT count(*) FROM uho.chunk_status WHERE program = 'orderbook' AND status = 'proven'"
    wait_until(lambda: dagster.query(complete) == [(3,)], "the third chunk", seconds=120, pause=0.5)
    job, of_backfill = sorted(dagster.runs(uho__user="carol"), key=lambda run: run["jobName"] != "backfill_slots")
    assert job["jobName"] == "backfill_slots"
    assert partition(of_backfill) == KEYS[2], "the first two were complete"

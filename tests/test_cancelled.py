"""What is cancelled in the UI: the sidecar's job ends, the chunk stays pending, and is completed by another launch."""

import pytest
from held_stack import held_stack
from services import wait_until

from uho_pipelines.graphql import ask
from uho_pipelines.lake import Lake

CANCEL_RUN = "mutation Cancel($id: String!) { terminateRun(runId: $id) { __typename } }"
CANCEL_BACKFILL = "mutation Cancel($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with held_stack(tmp_path_factory.mktemp("sim")) as running:
        yield running


@pytest.fixture(autouse=True)
def _released(stack):
    yield
    stack.archive.release()


@pytest.mark.parametrize("what", ["run", "backfill"])
def test_cancelled_in_the_ui(stack, what):
    place = {"run": 0, "backfill": 1}[what]
    backfill, run = stack.launch_held(place)
    chunk = stack.chunk(place)
    if what == "run":
        ask(stack.dagster.url, CANCEL_RUN, {"id": run})
    else:
        ask(stack.dagster.url, CANCEL_BACKFILL, {"id": backfill})
    stack.wait_for_runs(backfill, "CANCELED")
    # The archive still holds its bytes: the sidecar's job ended because its client went.
    wait_until(lambda: stack.dagster.sidecar_jobs() == 0, "the sidecar's job ends", pause=0.2)
    state = f"SELECT records_state FROM uho.chunk WHERE program = 'orderbook' AND chunk_start = {chunk.start}"
    assert stack.dagster.query(state) == [("pending",)]
    status = f"SELECT status FROM uho.chunk_status WHERE chunk_start = {chunk.start}"
    assert stack.dagster.query(status) == [("no records",)]
    manifest = Lake(stack.settings).chunk(stack.program, chunk).manifest()
    assert manifest is None or not manifest.complete
    stack.archive.release()
    again = stack.launch(place)
    stack.wait_for_runs(again, "SUCCESS")
    stack.require_true_rows(place)

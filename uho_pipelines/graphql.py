"""What we ask Dagster's webserver over GraphQL: launching a partition backfill and watching it.

What belongs here: the queries and the shape of their answers. Used by the demo and by tests that want what a person
gets from the UI.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
    ... on UnauthorizedError { message }
    ... on PartitionSetNotFoundError { message }
    ... on InvalidSubsetError { message }
  }
}"""

STATUS = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    __typename
    ... on PythonError { message }
    ... on BackfillNotFoundError { message }
    ... on PartitionBackfill {
      status
      error { message }
      assetBackfillData {
        assetBackfillStatuses {
          ... on AssetPartitionsStatusCounts {
            assetKey { path }
            numPartitionsTargeted numPartitionsInProgress numPartitionsMaterialized numPartitionsFailed
          }
        }
      }
    }
  }
}"""


RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) {
    __typename
    ... on PythonError { message }
    ... on UnauthorizedError { message }
    ... on ReloadNotSupported { message }
    ... on RepositoryLocationNotFound { message }
  }
}"""

LOCATION = "uho_pipelines"
"""The name of the code location, as in `workspace.yaml`."""


class DagsterRefusedError(Exception):
    """Dagster's webserver answered a request with an error."""

    def __init__(self, request: str, message: str) -> None:
        self.request = request
        self.message = message
        super().__init__(f"Dagster refused to {request}: {message}")


@dataclass(frozen=True)
class BackfillProgress:
    """How far a backfill is, counted in (asset, partition) pairs."""

    status: str
    targeted: int
    materialized: int
    failed: int
    in_progress: int

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.startswith("COMPLETED") or self.status in {"FAILED", "CANCELED"}


def ask(url: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    """Post one GraphQL request to the webserver at `url` and return its `data`.

    Raises:
        DagsterRefusedError: the answer carries errors.
    """
    response = requests.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60)
    answer = response.json()
    if answer.get("errors"):
        raise DagsterRefusedError("answer", str(answer["errors"][0]["message"]))
    return answer["data"]


def reload_location(url: str) -> None:
    """Have the webserver at `url` reload the code location, as the UI's button does: programs and chunks are read anew.

    Raises:
        DagsterRefusedError: it was not done.
    """
    answer = ask(url, RELOAD, {"name": LOCATION})["reloadRepositoryLocation"]
    if "message" in answer:
        raise DagsterRefusedError("reload the code location", str(answer["message"]))


def launch_backfill(
    url: str,
    assets: Sequence[Sequence[str]],
    partitions: Sequence[str],
    title: str,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Launch the backfill of `partitions` of `assets` (their key paths), as the UI's dialog does; return its id."""
    params = {
        "assetSelection": [{"path": list(path)} for path in assets],
        "partitionNames": list(partitions),
        "title": title,
        "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()],
    }
    answer = ask(url, LAUNCH, {"params": params})["launchPartitionBackfill"]
    if answer["__typename"] != "LaunchBackfillSuccess":
        raise DagsterRefusedError("launch the backfill", str(answer.get("message", answer["__typename"])))
    return str(answer["backfillId"])


def backfill_progress(url: str, backfill: str) -> BackfillProgress:
    """Return how far the backfill with this id is."""
    answer = ask(url, STATUS, {"id": backfill})["partitionBackfillOrError"]
    if answer["__typename"] != "PartitionBackfill":
        raise DagsterRefusedError("show the backfill", str(answer.get("message", answer["__typename"])))
    if answer["error"]:
        raise DagsterRefusedError("go on with the backfill", str(answer["error"]["message"]))
    counts = ((answer["assetBackfillData"] or {}).get("assetBackfillStatuses")) or []
    partitioned = [count for count in counts if count]
    return BackfillProgress(
        status=str(answer["status"]),
        targeted=sum(count["numPartitionsTargeted"] for count in partitioned),
        materialized=sum(count["numPartitionsMaterialized"] for count in partitioned),
        failed=sum(count["numPartitionsFailed"] for count in partitioned),
        in_progress=sum(count["numPartitionsInProgress"] for count in partitioned),
    )

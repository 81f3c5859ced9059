"""A whole `uho up` for tests, and what a person or the proxy before it asks of its UI.

What belongs here: starting it over an archive with a program folder, its processes, and GraphQL as the UI speaks it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from services import built, free_port, wait_until

from uho_pipelines.graphql import DagsterRefusedError, ask
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.warehouse import connect

HEADER = "X-Forwarded-User"

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""
RUNS = """
query Runs($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results {
  runId status jobName tags { key value } } } } }"""
MESSAGES = """
query Messages($id: ID!) { logsForRun(runId: $id, limit: 500) { ... on EventConnection { events {
  ... on MessageEvent { message } } } ... on PythonError { message } ... on RunNotFoundError { message } } }"""


@dataclass
class Dagster:
    """A stack: where its UI is, and its home; `start` it, and it may be started again."""

    home: Path
    environment: Mapping[str, str] = field(repr=False)
    url: str
    process: "subprocess.Popen[bytes] | None" = None
    starts: int = field(default=0)

    @property
    def log(self) -> Path:
        """What `uho up` said since it was started last."""
        return self.home / f"up-{self.starts}.log"

    def start(self) -> None:
        """Run `uho up`; return when its UI answers."""
        self.starts += 1
        with self.log.open("wb") as output:
            uho = Path(sys.executable).parent / "uho"
            self.process = up = subprocess.Popen([uho, "up"], env=self.environment, stdout=output, stderr=output)
        wait_until(
            lambda: "Ctrl-C stops everything" in self.log.read_text() or up.poll() is not None,
            "uho up",
            seconds=600,
            pause=0.5,
        )
        assert up.poll() is None, self.log.read_text()

    def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(120)

    def child(self, command: str) -> int:
        """Return the id of the stack's process with this in its command line."""
        assert self.process is not None
        return next(child for child in descendants(self.process.pid) if command in command_line(child))

    def tree(self, command: str) -> list[int]:
        """Return the ids of that process and of all that it started."""
        child = self.child(command)
        return [child, *descendants(child)]

    def worker(self, run_id: str) -> int:
        """Return the process id of a run's worker, as the event log tells it."""
        started = "Started process for run (pid: "
        told = [line for line in self.messages(run_id) if line.startswith(started)]
        return int(told[-1].removeprefix(started).rstrip(")."))

    def messages(self, run_id: str) -> list[str]:
        """Return what the event log says of a run.

        Raises:
            DagsterRefusedError: it does not know the run, or its storage does not answer.
        """
        answer = ask(self.url, MESSAGES, {"id": run_id})["logsForRun"]
        if "message" in answer:
            raise DagsterRefusedError("tell of a run", str(answer["message"]))
        return [event["message"] for event in answer["events"] if event.get("message")]

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

    def sidecar_jobs(self) -> int:
        """Return how many jobs the sidecar has under way."""
        secret = (self.home / "secrets" / "sidecar").read_text().strip()
        address = self.environment["UHO_SIDECAR_URL"]
        text = requests.get(f"{address}/metrics", headers={"Authorization": f"Bearer {secret}"}, timeout=60).text
        (line,) = [line for line in text.splitlines() if 'jobs{state="running"}' in line]
        return int(float(line.rsplit(" ", 1)[1]))

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Ask the warehouse."""
        with connect(EmbeddedPostgres(self.home).url("uho"), application_name="test") as connection:
            return connection.execute(text).fetchall()


@contextmanager
def uho_up(home: Path, programs: Path, **environment: str) -> Iterator[Dagster]:
    """Have `uho up` run in `home`, with these programs and further variables of the environment."""
    built("uho-sidecar", "UHO_SIDECAR_BINARY")
    webserver = free_port()
    variables = {
        **os.environ,
        "UHO_HOME": str(home),
        "UHO_PROGRAMS_DIR": str(programs),
        "UHO_WEBSERVER_PORT": str(webserver),
        "UHO_CODE_SERVER_PORT": str(free_port()),
        "UHO_SIDECAR_URL": f"http://127.0.0.1:{free_port()}",
        "UHO_USER_HEADER": HEADER,
        "UHO_TRUSTED_PROXIES": '["127.0.0.1/32"]',
        "UHO_DISK_RESERVE_BYTES": "0",
        "COLUMNS": "200",
        **environment,
    }
    stack = Dagster(home, variables, f"http://127.0.0.1:{webserver}")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def kill(*processes: int) -> None:
    """Kill processes, all before any other can notice."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def descendants(process: int) -> list[int]:
    """Return the ids of a process's children, theirs, and so on."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = list(parents.get(process, []))
    for one in found:
        found.extend(parents.get(one, []))
    return found


def command_line(process: int) -> str:
    """Return a process's command; nothing for one that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""

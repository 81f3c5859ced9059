"""The embedded default: Postgres, the sidecar and Dagster's three processes, started and stopped together.

What belongs here: which processes there are, what they are told, when they are ready, and what happens when one ends.
How Postgres is run is `postgres.py`'s business, how one child process is run is `process.py`'s.
"""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

import uho_pipelines
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.runtime.process import Child, ChildFailedError, start_child
from uho_pipelines.runtime.secrets import read_or_create_secret
from uho_pipelines.settings import Settings

PROJECT_ROOT = Path(uho_pipelines.__file__).resolve().parent.parent
"""The folder with `dagster.yaml`, `workspace.yaml` and `sidecar/`."""

RESTARTS_ALLOWED = 5
"""A process that ends by itself is started again this many times within `RESTART_WINDOW_SECONDS`; then all stops."""

RESTART_WINDOW_SECONDS = 300.0


class PortTakenError(Exception):
    """Another process listens where one of ours should."""

    def __init__(self, what: str, port: int, setting: str) -> None:
        self.what = what
        self.port = port
        self.setting = setting
        super().__init__(f"{what} cannot listen on 127.0.0.1:{port}: the port is taken. Set {setting} to a free port.")


class ProgramMissingError(Exception):
    """A program that the project builds is not there."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        super().__init__(f"{name} is not at {path}: run `make build`, or set UHO_{name.upper().replace('-', '_')}_BINARY")


def built_program(name: str) -> Path:
    """Return the path of `uho-sidecar` or `archive-sim`: `UHO_<NAME>_BINARY`, else the release build.

    Raises:
        ProgramMissingError: nothing is there.
    """
    variable = f"{name.upper().replace('-', '_')}_BINARY".removeprefix("UHO_")
    path = Path(os.environ.get(f"UHO_{variable}", PROJECT_ROOT / "sidecar" / "target" / "release" / name))
    if not path.is_file():
        raise ProgramMissingError(name, path)
    return path


@dataclass
class Service:
    """One process of the stack: how to start it (again), and the child that runs now."""

    name: str
    start: Callable[[], Child]
    child: Child
    ended_at: list[float] = field(default_factory=list[float])


def is_listening(port: int) -> bool:
    """Return whether something accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def sidecar_answers(url: str) -> bool:
    """Return whether a healthy sidecar answers at `url`."""
    try:
        return requests.get(f"{url}/health", timeout=2).json().get("status") == "ok"
    except (requests.RequestException, ValueError):
        return False


def start_sidecar(settings: Settings) -> Child:
    """Start the sidecar at `settings.sidecar_url`, serving every network that has an archive.

    Raises:
        PortTakenError, ProgramMissingError, ChildFailedError
    """
    port = urlsplit(settings.sidecar_url).port or 3001
    if is_listening(port):
        raise PortTakenError("the sidecar", port, "UHO_SIDECAR_URL")
    read_or_create_secret(settings.home, "sidecar")
    command = [str(built_program("uho-sidecar")), "serve", "--listen", f"127.0.0.1:{port}"]
    for name, network in sorted(settings.networks.items()):
        if network.archive_url:
            command += ["--archive", f"{name}={network.archive_url}"]
    environment = dict(os.environ)
    if settings.sidecar_secret is not None:
        environment["UHO_SIDECAR_SECRET"] = settings.sidecar_secret.get_secret_value()
    else:
        command += ["--secret-file", str(settings.home / "secrets" / "sidecar")]
    log = settings.home / "logs" / "sidecar.log"
    child = start_child("sidecar", command, environment=environment, log=log, folder=settings.home)
    child.wait_until_ready(lambda: sidecar_answers(settings.sidecar_url), seconds=30)
    return child


def dagster_home(settings: Settings) -> Path:
    """Return Dagster's home in `UHO_HOME`, with the project's `dagster.yaml` as it is now."""
    folder = settings.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PROJECT_ROOT / "dagster.yaml", folder / "dagster.yaml")
    return folder


def environment_for_dagster(settings: Settings, postgres_url: str, dagster_postgres_url: str) -> dict[str, str]:
    """Return the environment in which Dagster's processes find everything: this one's plus what was decided here."""
    return {
        **os.environ,
        "DAGSTER_HOME": str(dagster_home(settings)),
        "PYTHONUNBUFFERED": "1",
        "UHO_HOME": str(settings.home),
        "UHO_POSTGRES_URL": postgres_url,
        "UHO_DAGSTER_POSTGRES_URL": dagster_postgres_url,
        "UHO_CODE_SERVER_PORT": str(settings.code_server_port),
    }


@contextmanager
def backing_services(settings: Settings) -> Iterator[dict[str, str]]:
    """Have Postgres and the sidecar run, and this process's environment and Dagster home point at them.

    What already runs (of a `uho up` beside, or set by `UHO_POSTGRES_URL`) is used and left running; what was started
    here is stopped on leaving. Yields the environment for Dagster's own processes.
    """
    with ExitStack() as stack:
        if settings.postgres_url is not None:
            postgres_url = settings.postgres_url.get_secret_value()
            dagster_postgres_url = os.environ.get("UHO_DAGSTER_POSTGRES_URL", postgres_url)
        else:
            server = stack.enter_context(EmbeddedPostgres(settings.home))
            postgres_url, dagster_postgres_url = server.url("uho"), server.url("dagster")
        environment = environment_for_dagster(settings, postgres_url, dagster_postgres_url)
        os.environ.update(environment)
        if not sidecar_answers(settings.sidecar_url):
            stack.callback(start_sidecar(settings).stop)
        yield environment


class DagsterStack:
    """Dagster's code server, webserver and daemon, watched: a process that ends is started again, and said so."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.settings = settings
        self.environment = dict(environment)
        self.say = say
        self.services: list[Service] = []

    @property
    def url(self) -> str:
        """Where the Dagster UI is."""
        return f"http://127.0.0.1:{self.settings.webserver_port}"

    def __enter__(self) -> "DagsterStack":
        """Start the three processes; return when the UI has loaded the code location.

        Raises:
            PortTakenError, ChildFailedError
        """
        settings = self.settings
        for what, port, setting in (
            ("the Dagster UI", settings.webserver_port, "UHO_WEBSERVER_PORT"),
            ("Dagster's code server", settings.code_server_port, "UHO_CODE_SERVER_PORT"),
        ):
            if is_listening(port):
                raise PortTakenError(what, port, setting)
        bin_folder = Path(sys.executable).parent
        workspace = str(PROJECT_ROOT / "workspace.yaml")
        commands = {
            "code-server": [
                *[str(bin_folder / "dagster"), "code-server", "start", "--host", "127.0.0.1"],
                *["--port", str(settings.code_server_port), "--module-name", "uho_pipelines.definitions"],
                *["--location-name", "uho_pipelines"],
            ],
            "webserver": [
                *[str(bin_folder / "dagster-webserver"), "--host", "127.0.0.1"],
                *["--port", str(settings.webserver_port), "--workspace", workspace],
            ],
            "daemon": [str(bin_folder / "dagster-daemon"), "run", "--workspace", workspace],
        }
        try:
            for name, command in commands.items():
                self._add(name, command)
                if name == "code-server":
                    self.services[-1].child.wait_until_ready(lambda: is_listening(settings.code_server_port), seconds=60)
            self.services[1].child.wait_until_ready(self._location_is_loaded, seconds=180)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the three processes, the last started first."""
        for service in reversed(self.services):
            service.child.stop()
        self.services.clear()

    def watch(self) -> None:
        """Start again whatever ended; return at once.

        Raises:
            ChildFailedError: a process ended more than `RESTARTS_ALLOWED` times within `RESTART_WINDOW_SECONDS`.
        """
        for service in self.services:
            code = service.child.process.poll()
            if code is None:
                continue
            now = time.monotonic()
            service.ended_at = [at for at in service.ended_at if now - at < RESTART_WINDOW_SECONDS] + [now]
            if len(service.ended_at) > RESTARTS_ALLOWED:
                raise ChildFailedError(service.name, f"ended {len(service.ended_at)} times", service.child.log)
            self.say(f"{service.name} ended with exit code {code}; starting it again ({len(service.ended_at)} of {RESTARTS_ALLOWED})")
            service.child.stop(seconds=1)
            service.child = service.start()

    def _add(self, name: str, command: list[str]) -> None:
        log = self.settings.home / "logs" / f"{name}.log"

        def start() -> Child:
            return start_child(name, command, environment=self.environment, log=log, folder=PROJECT_ROOT)

        self.services.append(Service(name, start, start()))

    def _location_is_loaded(self) -> bool:
        query = """{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
            __typename ... on PythonError { message } } } } } }"""
        try:
            answer = requests.post(f"{self.url}/graphql", json={"query": query}, timeout=30).json()
        except (requests.RequestException, ValueError):
            return False
        entries = answer["data"]["workspaceOrError"].get("locationEntries") or []
        for entry in entries:
            fault = entry["locationOrLoadError"]
            if fault is not None and fault["__typename"] == "PythonError":
                raise ChildFailedError("code-server", f"could not load the project: {fault['message'][:2000]}", self.services[0].child.log)
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)



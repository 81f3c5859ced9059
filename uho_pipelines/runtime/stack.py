"""The embedded default: Postgres, the sidecar and Dagster's three processes, started and stopped together.

What belongs here: which processes there are, what they are told, when they are ready, and what happens when one ends.
How Postgres is run is `postgres.py`'s business, how one child process is run is `process.py`'s.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests
import yaml
from pydantic import SecretStr

import uho_pipelines
from uho_pipelines.errors import UhoError
from uho_pipelines.runtime.abandoned import end_abandoned_runs
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.runtime.process import Child, ChildFailedError, start_child
from uho_pipelines.runtime.secrets import read_or_create_secret
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import migrate

PROJECT_ROOT = Path(uho_pipelines.__file__).resolve().parent.parent
"""The folder with `dagster.yaml`, `workspace.yaml` and `sidecar/`."""

RESTARTS_ALLOWED = 5
"""A process that ends by itself is started again this many times within `RESTART_WINDOW_SECONDS`; then all stops."""

RESTART_WINDOW_SECONDS = 300.0

LOCATION_STATUS = """{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
    __typename ... on PythonError { message } } } } } }"""


class PortTakenError(UhoError):
    """Another process listens where one of ours should."""

    def __init__(self, what: str, port: int, setting: str) -> None:
        self.what = what
        self.port = port
        self.setting = setting
        super().__init__(f"{what} cannot listen on 127.0.0.1:{port}: the port is taken. Set {setting} to a free one")


class BuiltProgramMissingError(UhoError):
    """A program that the project builds is not there."""

    def __init__(self, name: str, path: Path, variable: str) -> None:
        self.name = name
        self.path = path
        super().__init__(f"{name} is not at {path}: run `make build`, or set {variable}")


def built_program(name: str) -> Path:
    """Return the path of `uho-sidecar` or `archive-sim`.

    It is what `UHO_SIDECAR_BINARY` or `UHO_ARCHIVE_SIM_BINARY` says, else the release build.

    Raises:
        BuiltProgramMissingError: nothing is there.
    """
    variable = f"UHO_{name.removeprefix('uho-').upper().replace('-', '_')}_BINARY"
    path = Path(os.environ.get(variable) or PROJECT_ROOT / "sidecar" / "target" / "release" / name)
    if not path.is_file():
        raise BuiltProgramMissingError(name, path, variable)
    return path


@dataclass
class Service:
    """One process of the stack: how to start it (again), and the child that runs now."""

    name: str
    start: Callable[[], Child]
    child: Child
    ended_at: list[float] = field(default_factory=list[float])


@dataclass
class Stack:
    """What runs: the services started here, and where they are reached."""

    settings: Settings
    """As given, with the warehouse's URL filled in."""
    environment: Mapping[str, str]
    """What Dagster's processes are started with."""
    say: Callable[[str], None]
    services: list[Service] = field(default_factory=list[Service])
    postgres: EmbeddedPostgres | None = None
    """The embedded server; None where another one is used."""
    postgres_ended_at: list[float] = field(default_factory=list[float])

    @property
    def url(self) -> str:
        """Where the Dagster UI is, once it runs."""
        return f"http://127.0.0.1:{self.settings.webserver_port}"

    def add(self, name: str, start: Callable[[], Child]) -> Service:
        """Start a service and watch it from now on."""
        service = Service(name, start, start())
        self.services.append(service)
        return service

    def watch(self) -> None:
        """Start again whatever ended, and say so; return at once.

        Raises:
            ChildFailedError: a process ended more than `RESTARTS_ALLOWED` times within `RESTART_WINDOW_SECONDS`.
            PostgresFailedError: the embedded Postgres does not come back.
        """
        if self.postgres is not None and self.postgres.has_ended():
            self._count_end("postgres", "ended", self.postgres_ended_at, self.postgres.files.log)
            self.postgres.start()  # returns when it has recovered and answers
        for service in self.services:
            code = service.child.process.poll()
            if code is None:
                continue
            self._count_end(service.name, f"ended with exit code {code}", service.ended_at, service.child.log)
            service.child.stop(seconds=1)
            service.child = service.start()

    def _count_end(self, name: str, what: str, ended_at: list[float], log: Path) -> None:
        now = time.monotonic()
        ended_at[:] = [at for at in ended_at if now - at < RESTART_WINDOW_SECONDS] + [now]
        if len(ended_at) > RESTARTS_ALLOWED:
            raise ChildFailedError(name, f"ended {len(ended_at)} times", log)
        self.say(f"{name} {what}; starting it again ({len(ended_at)} of {RESTARTS_ALLOWED})")

    def stop(self) -> None:
        """Stop what was started here, the last first."""
        while self.services:
            self.services.pop().child.stop()


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
        PortTakenError, BuiltProgramMissingError, ChildFailedError
    """
    port = urlsplit(settings.sidecar_url).port or 3001
    if is_listening(port):
        raise PortTakenError("the sidecar", port, "UHO_SIDECAR_URL")
    (settings.home / "sim").mkdir(exist_ok=True)  # the simulator's archive, until there is one
    command = [str(built_program("uho-sidecar")), "serve", "--listen", f"127.0.0.1:{port}"]
    for name, network in sorted(settings.networks.items()):
        if network.archive_url:
            command += ["--archive", f"{name}={network.archive_url}"]
    # glibc otherwise keeps an arena per thread: 132 MB and creeping after 15 jobs, against 81 MB and flat.
    environment = {"MALLOC_ARENA_MAX": "2", "UHO_SIDECAR_MAX_JOBS": str(settings.archive_streams), **os.environ}
    if settings.sidecar_secret is not None:
        environment["UHO_SIDECAR_SECRET"] = settings.sidecar_secret.get_secret_value()
    else:
        read_or_create_secret(settings.home, "sidecar")
        command += ["--secret-file", str(settings.home / "secrets" / "sidecar")]
    log = settings.home / "logs" / "sidecar.log"
    child = start_child("sidecar", command, environment=environment, log=log, folder=settings.home)
    child.wait_until_ready(lambda: sidecar_answers(settings.sidecar_url), seconds=30)
    return child


def with_simulated_node(settings: Settings) -> tuple[Settings, int | None]:
    """Return the settings with an RPC node for network `sim`, and its port; None: no archive is there, or it has one.

    The simulator answers for the chain of the archive that it wrote, so integrity is checked without another's node.
    """
    simulated = settings.network("sim")
    if simulated.rpc_url is not None or not (settings.home / "sim" / "truth" / "summary.json").is_file():
        return settings, None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    simulated = simulated.model_copy(update={"rpc_url": SecretStr(f"http://127.0.0.1:{port}")})
    return settings.model_copy(update={"networks": {**settings.networks, "sim": simulated}}), port


def start_simulated_node(settings: Settings, port: int) -> Child:
    """Start the simulator's RPC node for the archive in `UHO_HOME/sim`.

    Raises:
        BuiltProgramMissingError, ChildFailedError
    """
    folder = settings.home / "sim"
    command = [str(built_program("archive-sim")), "rpc", "--dir", str(folder), "--listen", f"127.0.0.1:{port}"]
    log = settings.home / "logs" / "simulated-node.log"
    child = start_child("simulated-node", command, environment=os.environ, log=log, folder=settings.home)
    child.wait_until_ready(lambda: is_listening(port), seconds=30)
    return child


def dagster_home(settings: Settings) -> Path:
    """Return Dagster's home in `UHO_HOME`, with the project's `dagster.yaml` as it is now, and as the settings say."""
    folder = settings.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    document = yaml.safe_load((PROJECT_ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    document["run_monitoring"] |= {
        "poll_interval_seconds": settings.worker_check_seconds,
        "free_slots_after_run_end_seconds": 2 * settings.worker_check_seconds,
    }
    runs = document["concurrency"]["runs"]
    runs["max_concurrent_runs"] = settings.runs_at_once
    for limit in runs["tag_concurrency_limits"]:
        limit["limit"] = settings.runs_per_person
    # Another `uho` may read it at this moment.
    written = folder / f"dagster.yaml.{os.getpid()}"
    written.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    written.replace(folder / "dagster.yaml")
    return folder


def settings_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables by which another process reads the same settings."""
    networks = {name: network.model_dump(mode="json") for name, network in settings.networks.items()}
    for name, network in settings.networks.items():
        networks[name]["rpc_url"] = network.rpc_url.get_secret_value() if network.rpc_url else None
    alerts = settings.alerts.model_dump(mode="json")
    for name in ("webhook_url", "slack_url"):
        alerts[name] = secret.get_secret_value() if (secret := getattr(settings.alerts, name)) else None
    if settings.alerts.email is not None and settings.alerts.email.password is not None:
        alerts["email"]["password"] = settings.alerts.email.password.get_secret_value()
    environment = {
        "UHO_HOME": str(settings.home),
        "UHO_PROGRAMS_DIR": str(settings.programs_dir),
        "UHO_SIDECAR_URL": settings.sidecar_url,
        "UHO_LAKE_DIR": settings.lake_dir,
        "UHO_NETWORKS": json.dumps(networks),
        "UHO_DISK_RESERVE_BYTES": str(settings.disk_reserve_bytes),
        "UHO_INTEGRITY_SAMPLES": str(settings.integrity_samples),
        "UHO_INTEGRITY_BLOCKS": str(settings.integrity_blocks),
        "UHO_INTEGRITY_SECONDS": str(settings.integrity_seconds),
        "UHO_WEBSERVER_PORT": str(settings.webserver_port),
        "UHO_CODE_SERVER_PORT": str(settings.code_server_port),
        "UHO_TRUSTED_PROXIES": json.dumps([str(proxy) for proxy in settings.trusted_proxies]),
        "UHO_BACKFILL_START_SECONDS": str(settings.backfill_start_seconds),
        "UHO_WORKER_CHECK_SECONDS": str(settings.worker_check_seconds),
        "UHO_ARCHIVE_TIP_SECONDS": str(settings.archive_tip_seconds),
        "UHO_ARCHIVE_STREAMS": str(settings.archive_streams),
        "UHO_WAREHOUSE_WRITERS": str(settings.warehouse_writers),
        "UHO_RUNS_AT_ONCE": str(settings.runs_at_once),
        "UHO_RUNS_PER_PERSON": str(settings.runs_per_person),
        "UHO_USER_PRIORITIES": json.dumps(settings.user_priorities),
        "UHO_PROGRAM_PRIORITIES": json.dumps(settings.program_priorities),
        "UHO_RUN_RETENTION_DAYS": str(settings.run_retention_days),
        "UHO_STALL_SLOTS": str(settings.stall_slots),
        "UHO_ALERTS": json.dumps(alerts),
        "UHO_UI_URL": settings.ui_url,
    }
    if settings.user_header is not None:
        environment["UHO_USER_HEADER"] = settings.user_header
    if settings.postgres_url is not None:
        environment["UHO_POSTGRES_URL"] = settings.postgres_url.get_secret_value()
    if settings.sidecar_secret is not None:
        environment["UHO_SIDECAR_SECRET"] = settings.sidecar_secret.get_secret_value()
    return environment


@contextmanager
def running_warehouse(settings: Settings) -> Generator[Settings]:
    """Have Postgres run with an up-to-date ledger; yield the settings with its URL.

    A server that runs already, or that `UHO_POSTGRES_URL` names, is used and left running.
    """
    with _running_server(settings) as (running, _):
        yield running


@contextmanager
def _running_server(settings: Settings) -> Generator[tuple[Settings, EmbeddedPostgres | None]]:
    """Have Postgres run, as `running_warehouse` says; yield the embedded server too, None where another one is used."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as exits:
        server = None
        if settings.postgres_url is None:
            server = exits.enter_context(EmbeddedPostgres(settings.home))
            settings = settings.model_copy(update={"postgres_url": SecretStr(server.url("uho"))})
        assert settings.postgres_url is not None  # noqa: S101 - it was filled in above
        migrate(settings.postgres_url.get_secret_value())
        yield settings, server


@contextmanager
def backing_services(settings: Settings, say: Callable[[str], None], *, sidecar: bool = True) -> Generator[Stack]:
    """Have Postgres run, and the `sidecar` too where the archive is needed.

    What runs already (of a `uho up` beside this, or the Postgres of `UHO_POSTGRES_URL`) is used and left running; what
    is started here is stopped on leaving.
    """
    with ExitStack() as exits:
        settings, server = exits.enter_context(_running_server(settings))
        assert settings.postgres_url is not None  # noqa: S101 - it runs
        warehouse = settings.postgres_url.get_secret_value()
        dagster_storage = server.url("dagster") if server is not None else warehouse
        settings, node_port = with_simulated_node(settings)
        dagster_storage = os.environ.get("UHO_DAGSTER_POSTGRES_URL") or dagster_storage
        scheme, rest = dagster_storage.split("://", 1)
        environment = {
            # A backfill waits for a code server that is being started again; without this Dagster gives it up.
            "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR": "1",
            # Where a machine is so busy that a worker takes minutes to start, its run has not failed yet.
            "DAGSTER_GRPC_TIMEOUT_SECONDS": "180",
            **os.environ,
            **settings_environment(settings),
            "DAGSTER_HOME": str(dagster_home(settings)),
            "UHO_DAGSTER_POSTGRES_URL": f"{'postgresql+psycopg2' if '+' not in scheme else scheme}://{rest}",
            "PYTHONUNBUFFERED": "1",
        }
        stack = Stack(settings, environment, say, postgres=server)
        exits.callback(stack.stop)
        if sidecar and not sidecar_answers(settings.sidecar_url):
            stack.add("sidecar", lambda: start_sidecar(settings))
        if node_port is not None:
            stack.add("simulated-node", lambda: start_simulated_node(settings, node_port))
        yield stack


@contextmanager
def sidecar_service(settings: Settings, say: Callable[[str], None]) -> Generator[None]:
    """Have the sidecar run, and nothing else; one that runs already is used and left running."""
    settings.home.mkdir(parents=True, exist_ok=True)
    stack = Stack(settings, os.environ, say)
    try:
        if not sidecar_answers(settings.sidecar_url):
            stack.add("sidecar", lambda: start_sidecar(settings))
        yield
    finally:
        stack.stop()


@contextmanager
def running_stack(settings: Settings, say: Callable[[str], None]) -> Generator[Stack]:
    """Have everything run: Postgres, the sidecar, and Dagster's code server, webserver and daemon.

    Returns when the UI has loaded the code location.

    Raises:
        PortTakenError, BuiltProgramMissingError, ChildFailedError, PostgresFailedError
    """
    for what, port, setting in (
        ("the Dagster UI", settings.webserver_port, "UHO_WEBSERVER_PORT"),
        ("Dagster's code server", settings.code_server_port, "UHO_CODE_SERVER_PORT"),
    ):
        if is_listening(port):
            raise PortTakenError(what, port, setting)
    with backing_services(settings, say) as stack:
        prepare_dagster(stack.settings, stack.environment)
        _start_dagster(stack)
        yield stack


def prepare_dagster(settings: Settings, environment: Mapping[str, str]) -> None:
    """Make Dagster's own tables before several of its processes would at once, or migrate those of another version;
    set its pools' limits, and end the runs that a killed process left behind."""
    os.environ.update(environment)
    import dagster
    from dagster import DagsterInstance

    from uho_pipelines.assets import set_pool_limits

    version = Path(environment["DAGSTER_HOME"]) / "version"
    with DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
        if not version.exists() or version.read_text(encoding="ascii") != dagster.__version__:
            # What `dagster instance migrate` does. It changes nothing where nothing is to be changed.
            instance.upgrade()
            version.write_text(dagster.__version__, encoding="ascii")
        set_pool_limits(instance, settings)
        end_abandoned_runs(instance)


def _start_dagster(stack: Stack) -> None:
    settings = stack.settings
    folder = Path(sys.executable).parent
    workspace = ["--workspace", str(PROJECT_ROOT / "workspace.yaml")]
    port = str(settings.code_server_port)
    code_server = _add_dagster(
        stack,
        "code-server",
        [
            *(str(folder / "dagster"), "code-server", "start", "--host", "127.0.0.1", "--port", port),
            *("--module-name", "uho_pipelines.definitions", "--location-name", "uho_pipelines"),
        ],
    )
    code_server.child.wait_until_ready(lambda: is_listening(settings.code_server_port), seconds=120)
    command = [sys.executable, "-m", "uho_pipelines.webserver", "--port", str(settings.webserver_port), *workspace]
    webserver = _add_dagster(stack, "webserver", command)
    _add_dagster(stack, "daemon", [str(folder / "dagster-daemon"), "run", *workspace])
    webserver.child.wait_until_ready(lambda: _location_is_loaded(stack, code_server), seconds=180)


def _add_dagster(stack: Stack, name: str, command: Sequence[str]) -> Service:
    log = stack.settings.home / "logs" / f"{name}.log"
    return stack.add(
        name, lambda: start_child(name, command, environment=stack.environment, log=log, folder=PROJECT_ROOT)
    )


def _location_is_loaded(stack: Stack, code_server: Service) -> bool:
    try:
        answer = requests.post(f"{stack.url}/graphql", json={"query": LOCATION_STATUS}, timeout=30).json()
    except (requests.RequestException, ValueError):
        return False
    entries = answer["data"]["workspaceOrError"].get("locationEntries") or []
    for entry in entries:
        fault = entry["locationOrLoadError"]
        if fault is not None and fault["__typename"] == "PythonError":
            reason = f"could not load the project: {fault['message'][:2000]}"
            raise ChildFailedError("code-server", reason, code_server.child.log)
    return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)

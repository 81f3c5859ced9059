"""`uho up`: everything starts, the UI has the project, Ctrl-C stops all of it and kill -9 leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from uho_pipelines.runtime.stack import BuiltProgramMissingError, built_program

UHO = Path(sys.executable).parent / "uho"
ASSETS = "{ assetNodes { assetKey { path } isPartitioned } }"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def processes_of(home: Path) -> list[str]:
    """Return the command lines of the processes that were started for this home, by their environment."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"UHO_HOME={home}\0".encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def wait_until(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "not ready in time"
        time.sleep(0.2)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_uho_up_serves_the_project_and_leaves_nothing_behind(tmp_path: Path, ending: signal.Signals) -> None:
    try:
        built_program("uho-sidecar")
    except BuiltProgramMissingError as missing:
        pytest.skip(str(missing))
    webserver, code_server, sidecar = free_ports(3)
    environment = {
        **os.environ,
        "UHO_HOME": str(tmp_path),
        "UHO_WEBSERVER_PORT": str(webserver),
        "UHO_CODE_SERVER_PORT": str(code_server),
        "UHO_SIDECAR_URL": f"http://127.0.0.1:{sidecar}",
        "COLUMNS": "200",
    }
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        up = subprocess.Popen([UHO, "up"], env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: "Ctrl-C stops everything" in log.read_text() or up.poll() is not None, 600)
        assert f"http://127.0.0.1:{webserver}" in log.read_text()
        answer = requests.post(f"http://127.0.0.1:{webserver}/graphql", json={"query": ASSETS}, timeout=60).json()
        names = {"/".join(node["assetKey"]["path"]) for node in answer["data"]["assetNodes"]}
        assert {"sim/demo/vault_records", "sim/demo/vault_events", "sim/archive"} <= names
        assert requests.get(f"http://127.0.0.1:{sidecar}/health", timeout=60).json()["status"] == "ok"
        assert len(processes_of(tmp_path)) >= 5
    finally:
        up.send_signal(ending)
        up.wait(120)
    wait_until(lambda: not processes_of(tmp_path), 60)

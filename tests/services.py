"""Real programs for tests: the simulator, the sidecar, and what a network may do to it.

What belongs here: starting and ending processes, a warehouse of one's own, a slow archive, a connection that breaks.
"""

import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from psycopg import sql

from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.warehouse import migrate

PROJECT = Path(__file__).resolve().parent.parent
RELEASE = PROJECT / "sidecar" / "target" / "release"
SECRET = "secret"
PIECE = 8 * 1024
"""Bytes that a server here sends or passes on at a time."""


def built(name: str, variable: str) -> str:
    """Return the path of a program that the project builds; skip the test where it is not built."""
    path = os.environ.get(variable, str(RELEASE / name))
    if not Path(path).is_file():
        pytest.skip(f"{name} is not built: `make build`, or set {variable}")
    return path


def shared_data() -> Path:
    """Return the folder of real data; skip the test where it is absent."""
    folder = Path(os.environ.get("UHO_SHARED_DATA") or PROJECT.parent / "shared" / "data")
    if not (folder / "archive").is_dir():
        pytest.skip("the real data is not here: put it at ../shared/data, or set UHO_SHARED_DATA")
    return folder.resolve()


def simulate(
    folder: Path,
    *,
    seed: int = 7,
    first_slot: int | None = None,
    last_slot: int | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Write a simulated archive, its truth and its programs; return the folder."""
    command = [built("archive-sim", "UHO_ARCHIVE_SIM_BINARY"), "write", "--out", str(folder), "--seed", str(seed)]
    command += options
    for option, slot in (("--first-slot", first_slot), ("--last-slot", last_slot)):
        command += [option, str(slot)] if slot is not None else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def fresh_database(server: EmbeddedPostgres, name: str) -> str:
    """Make an empty database; return its URL."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server.url(name)


def fresh_warehouse(server: EmbeddedPostgres, name: str) -> str:
    """Make a migrated warehouse in a database of its own; return its URL."""
    migrate(fresh_database(server, name))
    return server.url(name)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float = 600, pause: float = 0.02) -> Any:
    """Return what `condition` returns once it is true, asked every `pause` seconds; fail saying `what` did not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError(f"after {seconds:.0f} s still not: {what}")


class Sidecar:
    """A sidecar on a port that stays the same when it is started again."""

    def __init__(self, archives: Mapping[str, str], log: Path, options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.command = [built("uho-sidecar", "UHO_SIDECAR_BINARY"), "serve", "--listen", f"127.0.0.1:{self.port}"]
        self.command += [part for name, base in archives.items() for part in ("--archive", f"{name}={base}")]
        self.command += options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            environment = {**os.environ, "UHO_SIDECAR_SECRET": SECRET}
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())["listening"].endswith(f":{self.port}")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Return its log lines with this message, of all its lives."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["message"] == message]

    def starts(self) -> list[int]:
        """Return the first slots of the backfills that it began."""
        return [line["start_slot"] for line in self.logged("backfill started")]

    def lines(self, network: str, program_id: str, start: int, end: int, checkpoint_slots: int) -> list[dict[str, Any]]:
        """Return the NDJSON lines of a backfill, failed transactions included."""
        body = {"network": network, "programId": program_id, "startSlot": start, "endSlot": end}
        with requests.post(
            f"{self.url}/backfill",
            json={**body, "includeFailed": True, "checkpointSlots": checkpoint_slots},
            headers={"Authorization": f"Bearer {SECRET}", "Accept": "application/x-ndjson"},
            timeout=60,
        ) as response:
            assert response.status_code == requests.codes.ok, response.text
            return [json.loads(line) for line in response.text.splitlines()]


@contextmanager
def running_sidecar(archives: Mapping[str, str], log: Path, options: Sequence[str] = ()) -> Iterator[Sidecar]:
    """Run a sidecar that serves `archives`, network to base."""
    sidecar = Sidecar(archives, log, options)
    sidecar.start()
    try:
        yield sidecar
    finally:
        sidecar.kill(signal.SIGTERM)


class HeldArchive:
    """Serves an archive by HTTP ranges. While a hold is set, no more than so many bytes of cars go out."""

    def __init__(self) -> None:
        self.url = ""
        self._allowed: int | None = None
        self._sent = 0
        self._changed = threading.Condition()
        self.waiting = 0
        """Connections that wait for bytes that are held back."""

    def hold_after(self, size: int) -> None:
        """Let `size` more bytes of cars go out, and then none until `release`."""
        with self._changed:
            self._allowed, self._sent = size, 0
            self._changed.notify_all()

    def release(self) -> None:
        """Let everything go out."""
        with self._changed:
            self._allowed = None
            self._changed.notify_all()

    def take(self, size: int) -> None:
        """Wait until `size` bytes may go out."""
        with self._changed:
            self.waiting += 1
            self._changed.wait_for(lambda: self._allowed is None or self._sent + size <= self._allowed)
            self.waiting -= 1
            self._sent += size


@contextmanager
def held_archive(folder: Path) -> Iterator[HeldArchive]:
    """Serve the archive in `folder` on a free port of 127.0.0.1."""
    archive = HeldArchive()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = path.stat().st_size
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted else 0
            end = min(size, int(wanted[2]) + 1) if wanted and wanted[2] else size
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{size}"')
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if not body:
                return
            with path.open("rb") as file, suppress(BrokenPipeError, ConnectionResetError):
                file.seek(start)
                while start < end:
                    piece = file.read(min(PIECE, end - start))
                    if path.suffix == ".car":
                        archive.take(len(piece))
                    self.wfile.write(piece)
                    start += len(piece)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    archive.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield archive
    finally:
        archive.release()
        server.shutdown()
        server.server_close()


class CuttingProxy:
    """Passes connections on, and of each answer only so many bytes: those of `cuts`, the last for all that follow."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.cuts: list[int | None] = [None]
        """Bytes of the answers to connections to come; None: all."""
        self.cut = 0
        """Connections that were cut."""
        self.url = ""
        self._carried: set[socket.socket] = set()

    def cut_all(self) -> int:
        """Cut every connection that is carried now, in the middle of whatever it carries; return how many."""
        carried = list(self._carried)
        for client in carried:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.cut += len(carried)
        return len(carried)

    def carry(self, client: socket.socket) -> None:
        """Carry one connection to its end."""
        left = self.cuts.pop(0) if len(self.cuts) > 1 else self.cuts[0]
        with (
            client,
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self.target)) as server,
            ExitStack() as end,
        ):
            self._carried.add(client)
            end.callback(self._carried.discard, client)
            while True:
                readable, _, _ = select.select([client, server], [], [], 60)
                if client in readable:
                    request = client.recv(PIECE)
                    if not request:
                        return
                    server.sendall(request)
                if server in readable:
                    answer = server.recv(PIECE)
                    if left is not None and len(answer) >= left:
                        client.sendall(answer[:left])
                        self.cut += 1
                        return
                    if not answer:
                        return
                    client.sendall(answer)
                    left = left - len(answer) if left is not None else None


@contextmanager
def cutting_proxy(port: int) -> Iterator[CuttingProxy]:
    """Listen on a free port of 127.0.0.1 and pass connections on to `port`."""
    proxy = CuttingProxy(port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=proxy.carry, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield proxy

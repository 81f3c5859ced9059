"""RPC nodes for tests: one that answers from a file of real answers, one that misbehaves, and the simulator's.

What belongs here: nodes on free ports of 127.0.0.1, with what was asked of them.
"""

import copy
import json
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from services import built


class Node:
    """A node whose answers are `transactions`, by signature; tests change them, and what happens to requests."""

    def __init__(self, transactions: Iterable[Mapping[str, Any]]) -> None:
        self.url = ""
        self.transactions = {item["signature"]: copy.deepcopy(dict(item)) for item in transactions}
        self.calls: list[tuple[str, list[Any]]] = []
        self.bodies: list[Any] = []
        self.failures: list[tuple[int, dict[str, str]]] = []
        """Statuses and headers of the answers to come; then requests are answered."""
        self.takes_batches = True
        self.silent_seconds = 0.0
        self.cleaned_up = False
        """Whether every block and transaction is gone."""

    def answer(self, method: str, parameters: list[Any]) -> Any:
        """Return the result of a call; raise KeyError for what is not there."""
        self.calls.append((method, parameters))
        items = [] if self.cleaned_up else list(self.transactions.values())
        if method == "getTransaction":
            found = None if self.cleaned_up else self.transactions.get(parameters[0])
            return found and {key: value for key, value in found.items() if key not in ("signature", "source")}
        if method == "getBlocks":
            return sorted({item["slot"] for item in items if parameters[0] <= item["slot"] <= parameters[1]})
        if method == "getBlock":
            block = sorted(
                (item for item in items if item["slot"] == parameters[0]), key=lambda i: i["transactionIndex"]
            )
            if not block:
                raise KeyError(parameters[0])
            shown = [{key: item[key] for key in ("transaction", "meta", "version")} for item in block]
            return {"blockTime": block[0]["blockTime"], "parentSlot": 0, "transactions": shown}
        raise AssertionError(method)

    def respond(self, document: Any) -> Any:
        """Return the JSON-RPC answer to a document."""
        if isinstance(document, list):
            if not self.takes_batches:
                return {"jsonrpc": "2.0", "id": None, "error": {"code": -32_600, "message": "no batches"}}
            return [self.respond(item) for item in reversed(document)]
        base = {"jsonrpc": "2.0", "id": document["id"]}
        try:
            return {**base, "result": self.answer(document["method"], document["params"])}
        except KeyError:
            return {**base, "error": {"code": -32_007, "message": "Slot was skipped: secret-of-the-node"}}


@contextmanager
def serving(node: Node) -> Iterator[Node]:
    """Serve a node; its URL has credentials in it, as real ones have."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            node.bodies.append(document)
            time.sleep(node.silent_seconds)
            status, headers = node.failures.pop(0) if node.failures else (200, {})
            body = json.dumps(node.respond(document)).encode() if status == 200 else b"secret-of-the-node"
            try:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    node.url = f"http://{USER}:{PASSWORD}@127.0.0.1:{server.server_address[1]}/v2/{KEY}?api-key={KEY}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield node
    finally:
        server.shutdown()
        server.server_close()


USER, PASSWORD, KEY = "customer", "pass-of-the-customer", "k3yOfTheCustomer0123456789"
CREDENTIALS = (USER, PASSWORD, KEY)


@contextmanager
def simulated_node(archive: Path, faults: Sequence[str] = (), *, seed: int = 1) -> Iterator[str]:
    """Run the simulator's node for `archive`; yield its URL."""
    command = [built("archive-sim", "UHO_ARCHIVE_SIM_BINARY"), "rpc", "--dir", str(archive), "--seed", str(seed)]
    command += [part for fault in faults for part in ("--fault", fault)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://{json.loads(process.stdout.readline())['listening']}"
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()

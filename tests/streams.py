"""Made-up records, certificates and Arrow streams, and a small HTTP server that sends them as a sidecar would."""

import hashlib
import json
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import uho_native
from solders.pubkey import Pubkey

from uho_pipelines.archive import ARROW_STREAM, CHECKPOINT, DONE, ERROR, RECORD, STARTED, record_batch, stream_schema
from uho_pipelines.registry import IdlVersion, Program
from uho_pipelines.settings import NetworkSettings, Settings

CHUNK_SLOTS = 100
CHECKPOINT_SLOTS = 20
EVENT = "Happened"

IDL = {
    "address": "11111111111111111111111111111111",
    "metadata": {"name": "demo", "version": "0.1.0", "spec": "0.1.0"},
    "instructions": [],
    "events": [{"name": EVENT, "discriminator": list(hashlib.sha256(f"event:{EVENT}".encode()).digest()[:8])}],
    "types": [
        {
            "name": EVENT,
            "docs": ["Something happened."],
            "type": {"kind": "struct", "fields": [{"name": "amount", "type": "u64"}]},
        }
    ],
}


def program_id(name: str) -> Pubkey:
    """Return a program id made from a name."""
    return Pubkey.from_bytes(hashlib.sha256(name.encode()).digest())


def make_program(folder: Path, name: str = "alpha", **changes: Any) -> Program:
    """Return a registered program of network `sim`, owner `demo`, scan group `pair`, slots 0 to 299."""
    values: dict[str, Any] = {
        "network": "sim",
        "owner": "demo",
        "name": name,
        "program_id": str(program_id(name)),
        "first_slot": 0,
        "last_slot": 3 * CHUNK_SLOTS - 1,
        "scan_group": "pair",
        "include_failed": False,
        "follow": False,
        "ignore": (),
        "idls": (IdlVersion(0, folder / "idl.json", json.dumps(IDL).encode()),),
        "folder": folder,
    }
    return Program(**{**values, **changes})


def make_settings(home: Path, sidecar_url: str = "http://127.0.0.1:9", **changes: Any) -> Settings:
    """Return settings with small chunks of network `sim`."""
    network = NetworkSettings(chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS)
    values: dict[str, Any] = {
        "home": home,
        "sidecar_url": sidecar_url,
        "sidecar_secret": "secret",
        "sidecar_stall_seconds": 60.0,
        "disk_reserve_bytes": 0,
        "networks": {"sim": network},
    }
    return Settings(**{**values, **changes})


def payload_of(slot: int, *, decodable: bool = True) -> bytes:
    """Return an event's payload: `amount` is the slot; one byte too many when it is not to decode."""
    discriminator = hashlib.sha256(f"event:{EVENT}".encode()).digest()[:8]
    return discriminator + struct.pack("<Q", slot) + (b"" if decodable else b"\0")


def make_records(
    slots: Iterable[int],
    programs: Sequence[Pubkey],
    *,
    per_slot: int = 1,
    decodable: Callable[[int], bool] = lambda _: True,
) -> pa.RecordBatch:
    """Return `per_slot` records of each program in each slot, in the order of the stream."""
    rows = [(slot, tx, program) for slot in slots for tx in range(per_slot) for program in programs]
    count = len(rows)
    item = uho_native.record_schema().field("instruction_path").type
    return record_batch(
        [
            pa.array([slot for slot, _, _ in rows], pa.uint64()),
            pa.array([tx for _, tx, _ in rows], pa.uint32()),
            pa.array([0] * count, pa.uint32()),
            pa.array([hashlib.sha512(f"{slot} {tx}".encode()).digest() for slot, tx, _ in rows], pa.binary(64)),
            pa.array([1_700_000_000 + slot for slot, _, _ in rows], pa.int64()),
            pa.array([bytes(program) for _, _, program in rows], pa.binary(32)),
            pa.array([0] * count, pa.uint8()),
            pa.array([[0]] * count, item),
            pa.array([payload_of(slot, decodable=decodable(slot)) for slot, _, _ in rows], pa.binary()),
            pa.array([False] * count, pa.bool_()),
            pa.array([False] * count, pa.bool_()),
            pa.array([0] * count, pa.uint32()),
            pa.array([slot * 1000 + tx for slot, tx, _ in rows], pa.uint64()),
        ]
    )


def certificate(
    start: int, end: int, batches: Sequence[pa.RecordBatch], programs: Sequence[Pubkey], **changes: Any
) -> dict[str, Any]:
    """Return the certificate of `[start, end)` where every slot has a block of ten transactions."""
    blocks = end - start
    counts: dict[str, Any] = {}
    for program in programs:
        own = [
            batch.filter(pa.compute.equal(batch.column("program"), pa.scalar(bytes(program), pa.binary(32))))
            for batch in batches
        ]
        digest = "0" * 32
        for batch in own:
            digest = uho_native.add_digests(digest, uho_native.record_digest(batch))
        records = sum(batch.num_rows for batch in own)
        counts[str(program)] = {
            "matched": records,
            "matchedByLookupOnly": 0,
            "withRecords": records,
            "failed": 0,
            "truncated": 0,
            "unrecorded": 0,
            "records": records,
            "digest": digest,
        }
    return {
        "startSlot": start,
        "endSlot": end,
        "epochs": [start // 432_000],
        "index": "slot-ranges",
        "verify": "full",
        "slotsWithBlocks": blocks,
        "blocks": blocks,
        "transactions": 10 * blocks,
        "votes": 0,
        "entries": blocks,
        "missingMetadata": 0,
        "unresolvedLookups": 0,
        "bytes": 1000 * blocks,
        "cidsVerified": blocks,
        "firstBlock": {"slot": start, "parentSlot": max(0, start - 1)},
        "lastBlockSlot": end - 1,
        "tail": "unread",
        "nextBlock": None,
        "programs": counts,
        **changes,
    }


Item = tuple[int, Any]
"""A batch of the stream: its kind, and a record batch or a control object."""


def chunk_items(
    start: int,
    end: int,
    programs: Sequence[Pubkey],
    *,
    records: Callable[[Sequence[int], Sequence[Pubkey]], pa.RecordBatch] = make_records,
    with_records: Callable[[int], bool] = lambda _: True,
    checkpoint_slots: int = CHECKPOINT_SLOTS,
    tail: str = "proven",
) -> list[Item]:
    """Return what a sidecar sends for `[start, end)`: two batches a stretch, none where `with_records` denies."""
    items: list[Item] = [
        (STARTED, {"type": "started", "jobId": "job-1", "programIds": [str(program) for program in programs]})
    ]
    everything: list[pa.RecordBatch] = []
    for stretch in range(start, end, checkpoint_slots):
        stretch_end = min(end, stretch + checkpoint_slots)
        batches: list[pa.RecordBatch] = []
        if with_records(stretch):
            middle = (stretch + stretch_end) // 2
            batches = [records(range(stretch, middle), programs), records(range(middle, stretch_end), programs)]
        items += [(RECORD, batch) for batch in batches]
        items.append(
            (
                CHECKPOINT,
                {
                    "type": "checkpoint",
                    "slot": stretch_end,
                    "certificate": certificate(stretch, stretch_end, batches, programs),
                },
            )
        )
        everything += batches
    following = {"slot": end, "parentSlot": end - 1} if tail == "proven" else None
    done = certificate(start, end, everything, programs, tail=tail, nextBlock=following)
    return [*items, (DONE, {"type": "done", "certificate": done})]


def error_item(code: str, message: str = "something") -> Item:
    """Return an error record."""
    return ERROR, {"type": "error", "code": code, "message": message}


def encode(items: Iterable[Item], schema: pa.Schema | None = None) -> list[bytes]:
    """Return the Arrow stream message by message: the schema, each item, the end of the stream."""
    schema = schema or stream_schema()
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_stream(sink, schema)
    messages: list[bytes] = []
    position = 0

    def cut() -> None:
        nonlocal position
        content = sink.tell()
        messages.append((position, content))  # type: ignore[arg-type]
        position = content

    cut()
    for kind, value in items:
        writer.write_batch(_batch(schema, kind, value))
        cut()
    writer.close()
    whole = sink.getvalue().to_pybytes()
    bounds = [end for _, end in messages] + [len(whole)]  # type: ignore[misc]
    starts = [0, *bounds[:-1]]
    return [whole[start:end] for start, end in zip(starts, bounds, strict=True) if end > start]


def _batch(schema: pa.Schema, kind: int, value: Any) -> pa.RecordBatch:
    if kind == RECORD:
        count = value.num_rows
        columns = [pa.array([RECORD] * count, pa.uint8()), *value.columns, pa.nulls(count, pa.string())]
    else:
        nulls = [pa.nulls(1, field.type) for field in schema][1:-1]
        columns = [pa.array([kind], pa.uint8()), *nulls, pa.array([json.dumps(value)])]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass
class Answer:
    """What the server does with one request."""

    messages: Sequence[bytes] = ()
    status: int = 200
    body: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Close the connection, without the end of the body, after so many bytes."""
    hang_after: int | None = None
    """Send nothing more after so many messages, until the client leaves."""


class FakeSidecar:
    """Answers `POST /backfill` by calling `answer(body)`, and `GET` by `tip(path)`; keeps what was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda body: stream_of(body)
        self.tip: Callable[[str], Answer] = lambda _: Answer(body={"tipSlot": None})
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.client_left = threading.Event()
        self.url = ""


def stream_of(body: dict[str, Any], **options: Any) -> Answer:
    """Answer a request with the records of every slot it asks for."""
    programs = [Pubkey.from_string(text) for text in body["programIds"]]
    return Answer(encode(chunk_items(body["startSlot"], body["endSlot"], programs, **options)))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that goes away is what several tests are about; anything else is printed.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def fake_sidecar() -> Iterator[FakeSidecar]:
    """Run a server on a free port of 127.0.0.1."""
    fake = FakeSidecar()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            fake.headers.append(dict(self.headers))
            self._send(fake.tip(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(body)
            fake.headers.append(dict(self.headers))
            try:
                self._send(fake.answer(body))
            except (BrokenPipeError, ConnectionResetError):
                fake.client_left.set()
                self.close_connection = True

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.body is not None or answer.status >= 300:
                content = json.dumps(answer.body or {}).encode()
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_header("Content-Type", ARROW_STREAM)
            self.send_header("Uho-Job-Id", "job-1")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent = 0
            for index, message in enumerate(answer.messages):
                if answer.hang_after == index:
                    # The client leaving is the only thing that can be read here.
                    if self.rfile.read(1) == b"":
                        fake.client_left.set()
                    self.close_connection = True
                    return
                if answer.cut_after is not None and sent + len(message) > answer.cut_after:
                    part = message[: answer.cut_after - sent]
                    if part:
                        self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    self.wfile.flush()
                    self.close_connection = True
                    return
                self.wfile.write(f"{len(message):x}\r\n".encode() + message + b"\r\n")
                self.wfile.flush()
                sent += len(message)
            self.wfile.write(b"0\r\n\r\n")

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()

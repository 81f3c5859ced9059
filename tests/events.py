"""Events of a test's own: IDLs, payloads, records, and a load of them as the pipeline does it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import uho_native
from streams import CHUNK_SLOTS, make_program

from uho_pipelines.archive import record_batch
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.registry import IdlVersion, Program
from uho_pipelines.warehouse import Connection, LoadResult, WarehousePlan, chunk_load, connect, ensure_tables
from uho_pipelines.warehouse.ledger import begin_attempt

CHUNK = Chunk(CHUNK_SLOTS, CHUNK_SLOTS)
"""Slots [100, 200)."""

Fields = Mapping[str, Any]
"""Name → type of the IDL."""


def discriminator(event: str) -> bytes:
    return hashlib.sha256(f"event:{event}".encode()).digest()[:8]


def idl(events: Mapping[str, Fields], *, docs: Mapping[str, str] | None = None, types: Sequence[Any] = ()) -> bytes:
    """An IDL; `docs` by event or `event.field`, `types` as they are in IDLs."""
    docs = docs or {}

    def documented(key: str) -> dict[str, Any]:
        return {"docs": docs[key].split("\n")} if key in docs else {}

    structs = [
        {
            "name": event,
            **documented(event),
            "type": {
                "kind": "struct",
                "fields": [
                    {"name": field, **documented(f"{event}.{field}"), "type": kind} for field, kind in fields.items()
                ],
            },
        }
        for event, fields in events.items()
    ]
    document = {
        "address": "1" * 32,
        "metadata": {"name": "demo", "version": "0.1.0", "spec": "0.1.0"},
        "instructions": [],
        "events": [{"name": event, "discriminator": list(discriminator(event))} for event in events],
        "types": [*structs, *types],
    }
    return json.dumps(document).encode()


def program_of(*versions: bytes | tuple[int, bytes], name: str = "alpha", **changes: Any) -> Program:
    """A program with these IDLs, the first in force from slot 0."""
    pairs = [version if isinstance(version, tuple) else (0, version) for version in versions]
    idls = tuple(IdlVersion(slot, Path(f"from-{slot}.json"), content) for slot, content in pairs)
    return make_program(Path(), name, idls=idls, **changes)


@dataclass(frozen=True)
class Record:
    """What a record is made of; the payload begins with its event's discriminator."""

    slot: int
    payload: bytes
    tx_index: int = 0
    event_index: int = 0
    block_time: int | None = 1_700_000_000
    source: int = 1
    failed: bool = False
    truncated: bool = False


def record(slot: int, event: str, *packed: bytes, **changes: Any) -> Record:
    return Record(slot, discriminator(event) + b"".join(packed), **changes)


def signature_of(record: Record) -> bytes:
    return hashlib.sha512(f"{record.slot} {record.tx_index}".encode()).digest()


def batch_of(program: Program, records: Iterable[Record]) -> pa.RecordBatch:
    rows = list(records)
    schema = uho_native.record_schema()
    columns: list[list[Any]] = [
        [row.slot for row in rows],
        [row.tx_index for row in rows],
        [row.event_index for row in rows],
        [signature_of(row) for row in rows],
        [row.block_time for row in rows],
        [program.id_bytes] * len(rows),
        [row.source for row in rows],
        [[0, 1] if row.source else [0] for row in rows],
        [row.payload for row in rows],
        [row.failed for row in rows],
        [row.truncated for row in rows],
        [0] * len(rows),
        list(range(len(rows))),
    ]
    return record_batch([pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)])


def decoded(program: Program, *records: Record) -> uho_native.Decoded:
    return decode(decoder_for(program), program, batch_of(program, records))


def tables_of(connection: Connection, program: Program) -> WarehousePlan:
    """The program's tables, made if need be; the program must be in the ledger."""
    return ensure_tables(connection, program, decoder_for(program).tables())


def load(url: str, program: Program, *records: Record, chunk: Chunk = CHUNK, digest: str = "d" * 32) -> LoadResult:
    """Load a chunk whole, of one batch."""
    with connect(url, application_name="test") as connection:
        attempt = begin_attempt(connection, program, chunk, "events")
        plan = tables_of(connection, program)
        with chunk_load(connection, plan, program, chunk, attempt) as chunk_of_events:
            if records:
                chunk_of_events.write(decoded(program, *records))
            return chunk_of_events.commit({"decoded": len(records)}, digest)


def rows(url: str, query: str, *values: Any) -> list[Any]:
    with connect(url, application_name="test") as connection:
        return connection.execute(query.encode(), values or None).fetchall()

"""Events of a test's own: IDLs, payloads, records, and a load of them as the pipeline does it."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import uho_native
import yaml
from solders.pubkey import Pubkey
from streams import CHUNK_SLOTS, certificate, make_program, program_id

from uho_pipelines.archive import Checkpoint, Done, record_batch
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.lake import Lake
from uho_pipelines.registry import IdlVersion, Program, read_program
from uho_pipelines.settings import Settings
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


def registered(settings: Settings, name: str, *versions: tuple[int, bytes], **fields: Any) -> Program:
    """Write a program folder with these IDL versions and fields of program.yaml; return the program as it is read."""
    folder = settings.programs_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    for slot, content in versions:
        (folder / f"from-{slot}.json").write_bytes(content)
    document = {
        "program_id": str(program_id(name)),
        "network": "sim",
        "owner": "demo",
        "first_slot": 0,
        "last_slot": 10 * CHUNK_SLOTS - 1,
        "idls": [{"from_slot": slot, "file": f"from-{slot}.json"} for slot, _ in versions],
        **fields,
    }
    (folder / "program.yaml").write_text(yaml.safe_dump(document))
    return read_program(folder, settings)


def keep(settings: Settings, program: Program, *records: Record, chunk: Chunk = CHUNK) -> None:
    """Have the lake hold a chunk's records, complete, as if they had been streamed."""
    batches = [batch_of(program, records)] if records else []
    proof = certificate(chunk.start, chunk.end, batches, [Pubkey.from_string(program.program_id)])
    writer = Lake(settings).chunk(program, chunk).writer("test", settings, lambda _: None)
    writer.begin(start_over=True)
    writer.restart(chunk.start)
    for batch in batches:
        writer.write(batch)
    writer.checkpoint(Checkpoint(chunk.end, proof))
    writer.finish(Done(proof))


def rows(url: str, query: str, *values: Any) -> list[Any]:
    with connect(url, application_name="test") as connection:
        return connection.execute(query.encode(), values or None).fetchall()

"""Made-up programs, events and decoded batches of every type, for the tests of the warehouse."""

import hashlib
import json
import struct
from pathlib import Path

import pyarrow as pa
import uho_native
from solders.pubkey import Pubkey
from streams import make_program

from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.registry import IdlVersion
from uho_pipelines.warehouse import chunk_load, connect, ensure_tables
from uho_pipelines.warehouse.ledger import begin_attempt, finish_records

CHUNK = Chunk(100, 100)
NEXT = Chunk(200, 100)
COUNTS = {"records": 1}

EVERYTHING = {
    "amount": "u64",
    "wide": "u128",
    "signed": "i64",
    "ratio": "f64",
    "small": "f32",
    "label": "string",
    "blob": "bytes",
    "who": "pubkey",
    "flag": "bool",
    "maybe": {"option": "u64"},
    "many": {"vec": "u64"},
    "words": {"vec": "string"},
}
SIMPLE = {"amount": "u64"}


def discriminator(event):
    return hashlib.sha256(f"event:{event}".encode()).digest()[:8]


def idl(events, docs=()):
    """An IDL of `{event: {field: type}}`; `docs` are those of every event and field."""
    return json.dumps(
        {
            "address": "11111111111111111111111111111111",
            "metadata": {"name": "demo", "version": "0.1.0", "spec": "0.1.0"},
            "instructions": [],
            "events": [{"name": name, "discriminator": list(discriminator(name))} for name in events],
            "types": [
                {
                    "name": name,
                    "docs": list(docs),
                    "type": {
                        "kind": "struct",
                        "fields": [{"name": field, "type": of, "docs": list(docs)} for field, of in fields.items()],
                    },
                }
                for name, fields in events.items()
            ],
        }
    ).encode()


def program_of(*versions, name="alpha", **changes):
    """A program with these IDL versions, `{event: {field: type}}` or bytes, in force from slots 0, 1, 2, …"""
    idls = tuple(
        IdlVersion(slot, Path(f"v{slot}.json"), version if isinstance(version, bytes) else idl(version))
        for slot, version in enumerate(versions)
    )
    return make_program(Path(), name, idls=idls, **changes)


def everything(
    amount=1, wide=2, signed=-3, ratio=0.5, small=0.25, label="text", blob=b"\1", maybe=None, many=(), words=()
):
    """The payload of an event `Everything`."""

    def sized(value):
        return struct.pack("<I", len(value)) + value

    return b"".join(
        [
            discriminator("Everything"),
            struct.pack("<Q", amount),
            wide.to_bytes(16, "little"),
            struct.pack("<qdf", signed, ratio, small),
            sized(label.encode()),
            sized(blob),
            bytes([7]) * 32,
            b"\1",
            b"\0" if maybe is None else b"\1" + struct.pack("<Q", maybe),
            struct.pack(f"<I{len(many)}Q", len(many), *many),
            struct.pack("<I", len(words)) + b"".join(sized(word.encode()) for word in words),
        ]
    )


def simple(amount, event="Simple"):
    """The payload of an event of one u64."""
    return discriminator(event) + struct.pack("<Q", amount)


def records(program, payloads, *, first_slot=CHUNK.start, failed=False):
    """A batch of one record a slot."""
    count = len(payloads)
    schema = uho_native.record_schema()
    columns = {
        "slot": range(first_slot, first_slot + count),
        "tx_index": [0] * count,
        "event_index": [0] * count,
        "signature": [hashlib.sha512(str(slot).encode()).digest() for slot in range(first_slot, first_slot + count)],
        "block_time": [1_700_000_000] * count,
        "program": [bytes(Pubkey.from_string(program.program_id))] * count,
        "source": [0] * count,
        "instruction_path": [[0]] * count,
        "payload": payloads,
        "failed": [failed] * count,
        "truncated": [False] * count,
        "epoch": [0] * count,
        "archive_offset": [0] * count,
    }
    return pa.record_batch([pa.array(list(columns[field.name]), field.type) for field in schema], schema=schema)


def load(url, program, payloads, *, chunk=CHUNK, digest="1" * 32, **options):
    """Load a chunk whole, as the pipeline does; returns its LoadResult."""
    decoder = decoder_for(program)
    with connect(url, application_name="test") as connection:
        attempt = begin_attempt(connection, program, chunk, "events")
        plan = ensure_tables(connection, program, decoder.tables())
        with chunk_load(connection, plan, program, chunk, attempt) as load:
            batch = records(program, payloads, first_slot=chunk.start, **options)
            load.write(decode(decoder, program, batch))
            return load.commit(COUNTS, digest)


def certificate(program, chunk=CHUNK, *, digest="1" * 32, unrecorded=0, **changes):
    """A certificate under which the chunk is proven, but for `changes`."""
    return {
        "startSlot": chunk.start,
        "endSlot": chunk.end,
        "verify": "full",
        "tail": "proven",
        "unresolvedLookups": 0,
        "missingMetadata": 0,
        "programs": {program.program_id: {"unrecorded": unrecorded, "records": 1, "digest": digest}},
        **changes,
    }


def prove(url, program, chunk=CHUNK, **changes):
    """Have the chunk's records complete."""
    with connect(url, application_name="test") as connection:
        attempt = begin_attempt(connection, program, chunk, "records")
        finish_records(connection, program, chunk, attempt, certificate(program, chunk, **changes))


def rows(url, query, values=None):
    with connect(url, application_name="test") as connection:
        return connection.execute(query, values).fetchall()

"""A chunk of swaps: the event of 12 fields that exchanges emit most, so many that what a chunk costs once is nothing.

What belongs here: making it up, and putting it into the lake with the certificate that a stream would have brought.
"""

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import uho_native

from benchmarks.stage import Stage
from uho_pipelines.archive import Checkpoint, Done
from uho_pipelines.chunks import Chunk
from uho_pipelines.lake import Lake
from uho_pipelines.registry import IdlVersion, Program

FIELDS = {
    "pool": "pubkey",
    "user": "pubkey",
    "mint_in": "pubkey",
    "mint_out": "pubkey",
    "amount_in": "u64",
    "amount_out": "u64",
    "reserve_in": "u64",
    "reserve_out": "u64",
    "fee": "u64",
    "sqrt_price": "u128",
    "timestamp": "i64",
    "is_buy": "bool",
}
BYTES = {"pubkey": 32, "u64": 8, "u128": 16, "i64": 8, "bool": 1}
DISCRIMINATOR = hashlib.sha256(b"event:Swapped").digest()[:8]
PER_BLOCK = 100
BLOCKS_PER_BATCH = 200
DISTINCT_KEYS = 5_000
"""Pools, mints and users come again."""


def swap_program(like: Program) -> Program:
    """Return a program of the event, registered as `like` is."""
    fields = [{"name": name, "type": kind} for name, kind in FIELDS.items()]
    idl = {
        "address": like.program_id,
        "metadata": {"name": "swaps", "version": "0.1.0", "spec": "0.1.0"},
        "instructions": [],
        "events": [{"name": "Swapped", "discriminator": list(DISCRIMINATOR)}],
        "types": [{"name": "Swapped", "type": {"kind": "struct", "fields": fields}}],
    }
    version = IdlVersion(0, Path("swaps.json"), json.dumps(idl).encode())
    return dataclasses.replace(like, name="swaps", scan_group="swaps", idls=(version,))


def swap_batches(program: Program, chunk: Chunk, rows: int) -> list[pa.RecordBatch]:
    """Return records of swaps in the chunk's first slots, the same each time."""
    source = random.Random(12)
    keys = [source.randbytes(32) for _ in range(DISTINCT_KEYS)]

    def value(kind: str) -> bytes:
        if kind == "pubkey":
            return source.choice(keys)
        bits = source.randrange(1, 8 * BYTES[kind]) if BYTES[kind] > 1 else 1
        return source.getrandbits(bits).to_bytes(BYTES[kind], "little")

    size = PER_BLOCK * BLOCKS_PER_BATCH
    return [
        _batch(program, chunk, range(start, min(rows, start + size)), source, value) for start in range(0, rows, size)
    ]


def _batch(program: Program, chunk: Chunk, rows: range, source: random.Random, value: Any) -> pa.RecordBatch:  # noqa: ANN401
    count = len(rows)
    columns: list[list[Any]] = [
        [chunk.start + row // PER_BLOCK for row in rows],
        [row % PER_BLOCK for row in rows],
        [0] * count,
        [source.randbytes(64) for _ in rows],
        [1_700_000_000 + row // PER_BLOCK for row in rows],
        [program.id_bytes] * count,
        [1] * count,
        [[0, 1]] * count,
        [DISCRIMINATOR + b"".join(map(value, FIELDS.values())) for _ in rows],
        [False] * count,
        [False] * count,
        [chunk.start // 432_000] * count,
        list(rows),
    ]
    schema = uho_native.record_schema()
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def fill_lake(stage: Stage, program: Program, chunk: Chunk, batches: list[pa.RecordBatch]) -> None:
    """Keep the records in the lake, a part of each batch."""
    writer = Lake(stage.settings).chunk(program, chunk).writer("benchmarks", stage.settings, print)
    writer.begin(start_over=True)
    whole, start = "", chunk.start
    for batch in batches:
        last = batch is batches[-1]
        end = chunk.end if last else batch.column("slot")[batch.num_rows - 1].as_py() + 1
        certificate = _certificate(program, start, end, batch)
        writer.write(batch)
        writer.checkpoint(Checkpoint(end, certificate))
        text = json.dumps(certificate)
        whole = uho_native.merge_certificates(whole, text) if whole else text
        start = end
    writer.finish(Done(json.loads(whole)))
    writer.close()


def _certificate(program: Program, start: int, end: int, batch: pa.RecordBatch) -> dict[str, Any]:
    blocks = end - start
    counts = {
        "matched": batch.num_rows,
        "matchedByLookupOnly": 0,
        "withRecords": batch.num_rows,
        "failed": 0,
        "truncated": 0,
        "unrecorded": 0,
        "records": batch.num_rows,
        "digest": uho_native.record_digest(batch),
    }
    return {
        "startSlot": start,
        "endSlot": end,
        "epochs": [start // 432_000],
        "index": "slot-ranges",
        "verify": "full",
        "slotsWithBlocks": blocks,
        "blocks": blocks,
        "transactions": PER_BLOCK * blocks,
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
        "programs": {program.program_id: counts},
    }

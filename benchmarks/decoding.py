"""The native decoder against anchorpy, the decoder of Python's users, on the same payloads.

What belongs here: both, decoding the same bytes, of the lake or of swaps made up here. Ours also folds twins, checks
that every byte is used and builds Arrow columns; anchorpy builds Python objects.
"""

import hashlib
import json
import random
from itertools import islice
from typing import Any

import pyarrow as pa
import uho_native
from anchorpy.coder.event import EventCoder
from anchorpy.idl_adapter import Idl

from benchmarks.measuring import Spent
from benchmarks.stage import Stage
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.lake import Lake
from uho_pipelines.registry import Program

NATIVE, ANCHORPY = "native", "anchorpy"
NATIVE_RECORDS, ANCHORPY_RECORDS = 200_000, 4_000
"""So many records of the lake are decoded, repeated as often as it takes."""


def run_decoders(stage: Stage, program: Program) -> Spent:
    """Return CPU seconds per record of either decoder."""
    batches = list(islice(Lake(stage.settings).chunk(program, stage.archive.chunk).batches(), 4))
    spent, seconds = Spent(), Spent()
    decoder = decoder_for(program)
    records = 0
    with seconds.on(NATIVE):
        while records < NATIVE_RECORDS:
            for batch in batches:
                decode(decoder, program, batch)
                records += batch.num_rows
    spent.seconds[NATIVE] = seconds[NATIVE] / records

    payloads: list[bytes] = pa.Table.from_batches(batches).column("payload").slice(0, ANCHORPY_RECORDS).to_pylist()
    coder = EventCoder(Idl.from_json(program.idls[0].json.decode("utf-8-sig")))
    with seconds.on(ANCHORPY):
        for payload in payloads:
            coder.parse(payload)
    spent.seconds[ANCHORPY] = seconds[ANCHORPY] / len(payloads)
    return spent


SWAP_FIELDS = {
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
SWAP_BYTES = {"pubkey": 32, "u64": 8, "u128": 16, "i64": 8, "bool": 1}
SWAP_DISCRIMINATOR = hashlib.sha256(b"event:Swapped").digest()[:8]
SWAP_ROWS = 20_000


def swap_decoder() -> tuple[uho_native.Decoder, str]:
    """Return the decoder of an event of 12 fields such as exchanges emit, and its IDL."""
    fields = [{"name": name, "type": kind} for name, kind in SWAP_FIELDS.items()]
    idl = {
        "address": "1" * 32,
        "metadata": {"name": "swaps", "version": "0.1.0", "spec": "0.1.0"},
        "instructions": [],
        "events": [{"name": "Swapped", "discriminator": list(SWAP_DISCRIMINATOR)}],
        "types": [{"name": "Swapped", "type": {"kind": "struct", "fields": fields}}],
    }
    text = json.dumps(idl)
    return uho_native.Decoder(bytes(32), [(0, "swaps.json", text.encode())]), text


def swap_records(rows: int = SWAP_ROWS) -> pa.RecordBatch:
    """Return records of swaps: keys at random, amounts of every size."""
    source = random.Random(12)

    def value(kind: str) -> bytes:
        if kind == "pubkey":
            return source.randbytes(32)
        bits = source.randrange(1, 8 * SWAP_BYTES[kind]) if SWAP_BYTES[kind] > 1 else 1
        return source.getrandbits(bits).to_bytes(SWAP_BYTES[kind], "little")

    payloads = [SWAP_DISCRIMINATOR + b"".join(map(value, SWAP_FIELDS.values())) for _ in range(rows)]
    columns: list[list[Any]] = [
        [400_000_000 + row // 100 for row in range(rows)],
        [row % 100 for row in range(rows)],
        [0] * rows,
        [source.randbytes(64) for _ in range(rows)],
        [1_700_000_000] * rows,
        [bytes(32)] * rows,
        [1] * rows,
        [[0, 1]] * rows,
        payloads,
        [False] * rows,
        [False] * rows,
        [925] * rows,
        list(range(rows)),
    ]
    schema = uho_native.record_schema()
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def run_swaps(records: pa.RecordBatch) -> Spent:
    """Return CPU seconds per swap of either decoder."""
    spent, seconds = Spent(), Spent()
    decoder, idl = swap_decoder()
    decoded = 0
    with seconds.on(NATIVE):
        while decoded < 5 * NATIVE_RECORDS:
            decoded += decoder.decode(records, include_failed=False, ignore=[]).counts["decoded"]
    spent.seconds[NATIVE] = seconds[NATIVE] / decoded
    payloads: list[bytes] = records.column("payload").slice(0, ANCHORPY_RECORDS).to_pylist()
    coder = EventCoder(Idl.from_json(idl))
    with seconds.on(ANCHORPY):
        for payload in payloads:
            coder.parse(payload)
    spent.seconds[ANCHORPY] = seconds[ANCHORPY] / len(payloads)
    return spent

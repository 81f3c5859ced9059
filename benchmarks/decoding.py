"""The native decoder against anchorpy, the decoder of Python's users, on the same payloads.

What belongs here: both, decoding the same bytes. Ours also folds twins, checks that every byte is used and builds Arrow
columns; anchorpy builds Python objects.
"""

from contextlib import suppress
from itertools import islice

import pyarrow as pa
from anchorpy.coder.event import EventCoder
from anchorpy.idl_adapter import Idl
from construct import FormatFieldError

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
    return compare_decoders(program, batches)


def compare_decoders(program: Program, batches: list[pa.RecordBatch]) -> Spent:
    """Return CPU seconds per record of either decoder."""
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
            with suppress(FormatFieldError):  # anchorpy refuses NaN
                coder.parse(payload)
    spent.seconds[ANCHORPY] = seconds[ANCHORPY] / len(payloads)
    return spent

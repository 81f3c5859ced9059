"""`uho estimate`: what a program's backfill would find, cost and take, before a byte of it is stored.

What belongs here: rows and bytes in Postgres from the records of a sample, and what a person sees. The sampling is the
sidecar's (`POST /estimate`): it draws blocks in proportion to their bytes, so that matches per byte, averaged over the
draws and multiplied by the range's bytes (which the index tells exactly), are unbiased. Intervals are of 95 %: by
Student's t from how the draws vary, and never narrower than a Poisson count of what was seen, so that nothing seen is
not "nothing there".

Rows are the records' estimate times the share of the sampled records that become rows (twins folded, failed ones left
out as the program says). What a row takes is worked out from the sampled rows as Postgres stores them; both are means
over hundreds of records where there are as many, and the interval shown is that of the records alone.
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import uho_native
from rich.console import Console
from rich.table import Table

from uho_pipelines.archive import ArchiveClient, ArchiveStreamError, read_records_stream
from uho_pipelines.chunks import SLOTS_PER_EPOCH
from uho_pipelines.decoding import decode, decoder_for
from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import sidecar_service
from uho_pipelines.settings import Settings

TUPLE_BYTES = 24 + 4
"""Of each row: its header of 23 bytes, rounded up, and its line pointer."""

KEY_BYTES = 32
"""Of each row in the index of its key (bigint, int, int): 24 bytes and a line pointer, in pages that are 90 % full."""

PAGE_OVERHEAD = 1.01
"""Page headers, and the end of a page that no further row fits into."""

NUMERIC_SAVES = 5
"""Bytes by which a stored numeric is shorter than its binary form: 8 bytes of header there, 2 and a length here."""


class NothingToEstimateError(UhoError):
    """The range asked for has no slot that the archive has."""

    def __init__(self, program: str, start: int, end: int) -> None:
        self.program = program
        self.start = start
        self.end = end
        super().__init__(
            f"{program}: no slot between {start} and {end - 1} (inclusive) is published yet, or the range ends before "
            "it begins. Give --from-slot and --to-slot within the archive"
        )


JSONB_ADDS = 20
"""Bytes by which a stored jsonb is longer than its text: 4 for each of the few values in it, and alignment."""


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds the true value with a chance of 95 %. `high` None: not known."""

    estimate: float
    low: float
    high: float | None

    def scaled(self, factor: float) -> "Interval":
        """Return the same times `factor`."""
        return Interval(self.estimate * factor, self.low * factor, None if self.high is None else self.high * factor)


@dataclass(frozen=True)
class Estimate:
    """What a backfill of the slots `[start, end)` would find, take and leave."""

    program: str
    start: int
    end: int
    confidence: float
    blocks: Interval
    transactions: Interval
    matched: Interval
    records: Interval
    rows: Interval
    archive_bytes: int
    """Bytes to read: exact but for whole epochs, of which it is their file's size."""
    read_seconds: Interval
    read_seconds_basis: str
    """`jobs`: as fast as the sidecar's last jobs of this network; `sample`: as the sample was read, block by block."""
    warehouse_bytes: Interval
    """Tables and their primary keys."""
    rows_by_event: Mapping[str, Interval]
    row_bytes: Mapping[str, float]
    """Bytes of a row by event, its entry in the primary key included."""
    undecodable_share: float
    """Of the sampled records that should decode."""
    sample: Mapping[str, Any]
    """What was read for it, as the sidecar says."""


@dataclass
class SampledRows:
    """What the sampled records became."""

    records: int = 0
    rows: Counter[str] = field(default_factory=Counter[str])
    stored_bytes: Counter[str] = field(default_factory=Counter[str])
    decoded: int = 0
    undecodable: int = 0

    def add(self, program: Program, records: pa.RecordBatch) -> None:
        """Decode a batch of whole blocks and measure its rows."""
        decoder = decoder_for(program)
        decoded = decode(decoder, program, records)
        self.records += decoded.counts["records"]
        self.decoded += decoded.counts["decoded"]
        self.undecodable += decoded.counts["undecodable"]
        tables = decoder.tables()
        for index, batch in decoded.tables:
            self.rows[tables[index].name] += batch.num_rows
            self.stored_bytes[tables[index].name] += stored_bytes(batch)


def stored_bytes(batch: pa.RecordBatch) -> int:
    """Return about how many bytes Postgres takes for the rows of a decoded batch, with their primary key.

    From the binary form of the rows, which has every value at nearly the length it is stored at: 4 bytes of length of
    each value become the header of a text or bytea (1 byte below 127 bytes, else 4) and alignment; a numeric is stored
    shorter, a jsonb longer. Long values are compressed or moved aside by Postgres only above 2 kB a row: not counted.
    """
    rows = batch.num_rows
    copied = len(uho_native.encode_copy(batch)) - rows * 2
    total = 0
    for arrow_field, column in zip(batch.schema, batch.columns, strict=True):
        kind = (arrow_field.metadata or {}).get(b"uho:postgres", b"").decode()
        present = rows - column.null_count
        copied -= 4 * rows
        if kind == "numeric":
            total -= NUMERIC_SAVES * present
        elif kind == "jsonb":
            total += JSONB_ADDS * present
        elif kind in {"text", "bytea"}:
            total += 2 * present
    # Rows begin at multiples of 8 bytes: on the average 4 are lost, those between values included.
    heap = rows * (TUPLE_BYTES + 4) + copied + total
    return round(heap * PAGE_OVERHEAD) + rows * KEY_BYTES


def estimate_program(
    settings: Settings,
    program: Program,
    from_slot: int | None,
    to_slot: int | None,
    *,
    megabytes: int = 16,
    precision: float = 0.1,
) -> Estimate:
    """Ask a running sidecar for an estimate of the slots `from_slot` to `to_slot` (inclusive), and complete it.

    Without bounds: the program's own, and the archive's tip. `megabytes` (of 2²⁰ bytes) are read at most, and reading
    ends before when matches and records are known to `precision`, the half width of their interval as a fraction.

    Raises:
        NothingToEstimateError: the range has no slot.
        ArchiveStreamError: the sidecar refused or failed.
    """
    client = ArchiveClient(settings)
    start = program.first_slot if from_slot is None else from_slot
    last = program.last_slot if to_slot is None else to_slot
    end = last + 1 if last is not None else client.tip(program.network, start // SLOTS_PER_EPOCH) or start
    if start >= end:
        raise NothingToEstimateError(program.key, start, end)
    ids = [program.program_id]
    answer = client.estimate(
        program.network,
        ids,
        start,
        end,
        bytes_at_most=megabytes << 20,
        precision=precision,
        instructions_of=ids if program.instructions else [],
    )
    try:
        return _complete(program, answer)
    except (KeyError, ValueError, pa.ArrowInvalid) as error:
        raise ArchiveStreamError(
            "stream_malformed",
            f"the sidecar's estimate cannot be read ({type(error).__name__})",
            remedy="Build both from one commit",
        ) from None


def run_estimate(
    settings: Settings,
    name: str,
    from_slot: int | None,
    to_slot: int | None,
    *,
    megabytes: int,
    precision: float,
    as_json: bool,
    console: Console,
) -> None:
    """Estimate the program `name` and show it; a sidecar is started for it where none runs. Postgres is not needed."""
    program = load_registry(settings).program(name)
    with sidecar_service(settings, console.print):
        estimate = estimate_program(settings, program, from_slot, to_slot, megabytes=megabytes, precision=precision)
    if as_json:
        console.print_json(json.dumps(asdict(estimate)))
    else:
        _show(estimate, console)


def _complete(program: Program, answer: Mapping[str, Any]) -> Estimate:
    found = answer["programs"][program.program_id]
    sampled = SampledRows()
    for batch in read_records_stream(base64.b64decode(answer["records"])):
        sampled.add(program, batch)
    records = _interval(found["records"])
    share = {event: count / sampled.records for event, count in sorted(sampled.rows.items())}
    row_bytes = {event: sampled.stored_bytes[event] / count for event, count in sorted(sampled.rows.items())}
    # Without a record in the sample, nothing is known of what becomes of them: all may be rows.
    rows_share = sum(share.values()) if sampled.records else 1.0
    bytes_of_record = sum(share[event] * row_bytes[event] for event in share)
    size = records.scaled(bytes_of_record)
    return Estimate(
        program=program.key,
        start=answer["startSlot"],
        end=answer["endSlot"],
        confidence=answer["confidence"],
        blocks=_interval(answer["blocks"]),
        transactions=_interval(answer["transactions"]),
        matched=_interval(found["matched"]),
        records=records,
        rows=records.scaled(rows_share),
        archive_bytes=answer["archiveBytes"],
        read_seconds=_interval(answer["readSeconds"]),
        read_seconds_basis=answer["readSecondsBasis"],
        warehouse_bytes=size if sampled.records or records.high == 0 else Interval(0, 0, None),
        rows_by_event={event: records.scaled(part) for event, part in share.items()},
        row_bytes=row_bytes,
        undecodable_share=sampled.undecodable / max(1, sampled.decoded + sampled.undecodable),
        sample=answer["sample"],
    )


def _interval(value: Mapping[str, Any]) -> Interval:
    high = value["high"]
    return Interval(float(value["estimate"]), float(value["low"] or 0), None if high is None else float(high))


def _show(estimate: Estimate, console: Console) -> None:
    table = Table(
        title=f"{estimate.program}, slots {estimate.start} to {estimate.end - 1} (inclusive)", title_justify="left"
    )
    table.add_column("")
    table.add_column("estimate", justify="right")
    table.add_column(f"{estimate.confidence:.0%} interval", justify="right")
    gigabyte = 1e9
    for name, interval, unit, places in (
        ("blocks", estimate.blocks, "", 0),
        ("transactions", estimate.transactions, "", 0),
        ("transactions matched", estimate.matched, "", 0),
        ("records", estimate.records, "", 0),
        ("rows in Postgres", estimate.rows, "", 0),
        ("GB in Postgres, keys included", estimate.warehouse_bytes.scaled(1 / gigabyte), "", 3),
        ("hours to read", estimate.read_seconds.scaled(1 / 3600), "", 2),
    ):
        high = "?" if interval.high is None else f"{interval.high:,.{places}f}"
        table.add_row(name, f"{interval.estimate:,.{places}f}{unit}", f"{interval.low:,.{places}f} … {high}{unit}")
    table.add_row("GB to read", f"{estimate.archive_bytes / gigabyte:,.3f}", "by the index")
    console.print(table)
    if estimate.rows_by_event:
        events = Table()
        for heading in ("event", "rows", "interval", "bytes a row"):
            events.add_column(heading, justify="left" if heading == "event" else "right")
        for event, rows in sorted(estimate.rows_by_event.items(), key=lambda item: -item[1].estimate):
            high = "?" if rows.high is None else f"{rows.high:,.0f}"
            events.add_row(
                event, f"{rows.estimate:,.0f}", f"{rows.low:,.0f} … {high}", f"{estimate.row_bytes[event]:,.0f}"
            )
        console.print(events)
    sample = estimate.sample
    speed = {
        "jobs": "as fast as the sidecar's last jobs",
        "sample": "at the speed of the sample, one block at a time: backfills read several at once",
    }[estimate.read_seconds_basis]
    console.print(
        f"From {sample['blocks']:,} blocks with {sample['transactions']:,.0f} transactions "
        f"({sample['bytesRead'] / 1e6:,.1f} MB read in {sample['seconds']:.1f} s). Hours are {speed}.",
        soft_wrap=True,
    )
    if sample["endedBy"] == "bytes":
        console.print("The bytes allowed ended it: --megabytes reads more and narrows the intervals.", soft_wrap=True)
    if estimate.undecodable_share:
        console.print(
            f"[yellow]{estimate.undecodable_share:.1%} of the sampled records decode by no IDL version[/yellow]: "
            "`uho preview` shows which",
            soft_wrap=True,
        )

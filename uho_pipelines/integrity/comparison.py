"""One transaction on the chain against its rows, field by field, in both directions.

What belongs here: which rows a transaction must have (twins folded, failed ones left out, what is ignored), and how a
value of a column is the same as one that was decoded. Both follow from the stated policy, and share no code with the
loading of rows.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from solders.pubkey import Pubkey

from uho_pipelines.integrity.anchorpy_values import Address, Nested, Single
from uho_pipelines.integrity.chain import ChainRecord, ChainTransaction, NotComparableError
from uho_pipelines.integrity.independent_decoding import Event, Foreign, IndependentDecoder, Undecodable, plain_name
from uho_pipelines.integrity.outcome import Comparison, Difference
from uho_pipelines.registry import Program

SHOWN_CHARACTERS = 200
"""A value in a difference is cut after so many characters."""

DIFFERENCES_KEPT = 20
"""So many differences of a transaction are kept."""

VERSIONED = re.compile(r"__[0-9]+$")
"""How the column of a field ends whose type changed with an IDL version: `<field>__<from_slot>`."""


@dataclass(frozen=True)
class StoredRow:
    """A row of an event table, read back; `fields` by their names in the IDL."""

    event: str
    event_index: int
    tx_index: int
    source: str
    block_time: int | None
    fields: Mapping[str, Any]
    flags: Mapping[str, bool | None] = field(default_factory=dict[str, bool | None])
    """`failed` and `truncated`, where the table has them and they were loaded."""


@dataclass
class StoredTransaction:
    """What the warehouse holds of one transaction."""

    rows: list[StoredRow] = field(default_factory=list[StoredRow])
    quarantined: dict[int, int] = field(default_factory=dict[int, int])
    """`event_index` to `tx_index` of its records in quarantine."""


def compare(
    transaction: ChainTransaction, stored: StoredTransaction, program: Program, decoder: IndependentDecoder
) -> Comparison:
    """Compare a transaction with what the warehouse holds of it."""
    expected = dict(expected_records(transaction, program, decoder))
    rows = {row.event_index: row for row in stored.rows}
    differences: list[Difference] = []
    reasons: Counter[str] = Counter()
    equal = 0
    if len(rows) != len(stored.rows):
        differences.append(Difference(None, "", "rows", "two tables have rows of one record", "one event each"))
    for index, what in sorted(expected.items()):
        row = rows.get(index)
        if isinstance(what, NotComparableError):
            reasons[what.reason] += 1
        elif isinstance(what, Undecodable):
            if index not in stored.quarantined:
                differences.append(_of_row(index, row, "in quarantine: no IDL version reads it"))
        elif row is None:
            kept = "in quarantine" if index in stored.quarantined else "no row"
            differences.append(Difference(index, what.event.name, "row", kept, "an event"))
        else:
            found = list(_differing(transaction, row, what))
            differences.extend(found)
            equal += not found
    for index, row in sorted(rows.items()):
        if index not in expected:
            differences.append(_of_row(index, row, "no event"))
    for index, tx_index in sorted(stored.quarantined.items()):
        if index not in expected:
            differences.append(Difference(index, "", "row", "in quarantine", "no record"))
        elif transaction.tx_index not in (None, tx_index):
            differences.append(Difference(index, "", "tx_index", str(tx_index), str(transaction.tx_index)))
    if differences and transaction.truncated and len(rows) + len(stored.quarantined) > len(expected):
        # How much of a log is kept is each node's own setting.
        return Comparison("not comparable", "this node's log of the transaction is cut, and says less than the rows")
    if differences:
        return Comparison("mismatch", "", tuple(differences[:DIFFERENCES_KEPT]), equal)
    if reasons:
        return Comparison("not comparable", "; ".join(reasons), (), equal)
    return Comparison("verified", "", (), equal)


@dataclass(frozen=True)
class Expected:
    """An event that must have a row."""

    event: Event
    source: str


def expected_records(
    transaction: ChainTransaction, program: Program, decoder: IndependentDecoder
) -> Iterator[tuple[int, Expected | Undecodable | NotComparableError]]:
    """Yield what the warehouse must hold of a transaction by `event_index`: rows, and records in quarantine."""
    if transaction.failed and not program.include_failed:
        return
    for record in without_twins(transaction.records):
        try:
            reading = decoder.read(record, transaction.slot)
        except NotComparableError as error:
            yield record.event_index, error
            continue
        if isinstance(reading, Event):
            yield record.event_index, Expected(reading, record.source)
        elif not isinstance(reading, Foreign):
            yield record.event_index, reading


def without_twins(records: Sequence[ChainRecord]) -> Iterator[ChainRecord]:
    """Yield the records without those of the log that are the same event as one by CPI.

    Of each payload, as many log records are left out, the first ones, as there are CPI records of it.
    """
    by_cpi = Counter(record.payload for record in records if record.source == "cpi")
    for record in records:
        if record.source == "log" and by_cpi[record.payload] > 0:
            by_cpi[record.payload] -= 1
        else:
            yield record


def same(stored: Any, chain: Any) -> bool:  # noqa: ANN401 - a column's value, a decoded one
    """Return whether a column's value is the one that was decoded, exactly."""
    match chain:
        case None:
            return stored is None
        case Nested():
            return _same_json(stored, chain.json)
        case bool():
            return stored is chain
        case Single():
            return isinstance(stored, float) and struct.pack("<f", stored) == struct.pack("<f", chain)
        case float():
            return isinstance(stored, float) and struct.pack("<d", stored) == struct.pack("<d", chain)
        case int():
            return isinstance(stored, (int, Decimal)) and not isinstance(stored, bool) and stored == chain
        case bytes():
            return isinstance(stored, (bytes, memoryview)) and bytes(stored) == chain
        case Address() if isinstance(stored, (bytes, memoryview)):
            return len(stored) == Pubkey.LENGTH and str(Pubkey(bytes(stored))) == chain
        case _:
            return isinstance(stored, str) and stored == chain


def _same_json(stored: Any, chain: Any) -> bool:  # noqa: ANN401 - any JSON
    match chain:
        case dict():
            if not isinstance(stored, dict):
                return False
            theirs = {plain_name(name): value for name, value in chain.items()}
            ours = {plain_name(name): value for name, value in stored.items()}
            return (
                len(ours) == len(stored)
                and ours.keys() == theirs.keys()
                and all(_same_json(ours[name], value) for name, value in theirs.items())
            )
        case list():
            return (
                isinstance(stored, list)
                and len(stored) == len(chain)
                and all(_same_json(one, other) for one, other in zip(stored, chain, strict=True))
            )
        case float():
            # jsonb keeps numbers as decimals: it knows no -0, and a whole float comes back as an integer.
            if not isinstance(stored, (int, float)) or isinstance(stored, bool):
                return False
            single = isinstance(chain, Single)
            return (struct.unpack("<f", struct.pack("<f", stored))[0] if single else float(stored)) == float(chain)
        case str():
            return isinstance(stored, str) and stored == chain
        case _:
            return type(stored) is type(chain) and stored == chain


def _differing(transaction: ChainTransaction, row: StoredRow, expected: Expected) -> Iterator[Difference]:
    """Yield what differs between a row and the event that it must be."""
    event = expected.event

    def differ(name: str, stored: object, chain: object) -> Difference:
        return Difference(row.event_index, event.name, name, shown(stored), shown(chain))

    if plain_name(row.event) != plain_name(event.name):
        yield differ("table", row.event, event.name)
        return
    fixed: list[tuple[str, object, object]] = [
        ("source", row.source, expected.source),
        ("block_time", row.block_time, transaction.block_time),
    ]
    if transaction.tx_index is not None:
        fixed.append(("tx_index", row.tx_index, transaction.tx_index))
    of_chain = {"failed": transaction.failed, "truncated": transaction.truncated}
    fixed += [(name, value, of_chain[name]) for name, value in row.flags.items() if value is not None]
    for name, stored, chain in fixed:
        if stored != chain:
            yield differ(name, stored, chain)
    columns: dict[str, list[Any]] = {}
    fields = {plain_name(name) for name in event.fields}
    for name, value in row.fields.items():
        own = plain_name(name) in fields
        columns.setdefault(plain_name(name if own else VERSIONED.sub("", name)), []).append(value)
    for name, chain in event.fields.items():
        if plain_name(name) not in columns:
            yield differ(name, "no column", chain)
            continue
        # Of a field whose type changed, one column holds the value and the others nothing.
        values = [value for value in columns.pop(plain_name(name)) if value is not None]
        if len(values) > 1 or not same(values[0] if values else None, chain):
            yield differ(name, values[0] if len(values) == 1 else values or None, chain)
    for name, values in columns.items():
        if any(value is not None for value in values):
            yield differ(name, values, "no such field in this IDL version")


def _of_row(index: int, row: StoredRow | None, chain: str) -> Difference:
    return Difference(index, row.event if row else "", "row", "a row" if row else "no row", chain)


def shown(value: object) -> str:
    """Return a value for people, cut."""
    text = str(value.json if isinstance(value, Nested) else value.hex() if isinstance(value, bytes) else value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"

"""A program's records become events: the native decoder for its IDL versions, and counts of what became of records.

What belongs here: making and keeping decoders, and adding up counts. What a payload means is the native module's
business, where rows go is the warehouse's.
"""

import importlib.metadata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import uho_native

from uho_pipelines.registry import PROGRAM_FILE, Program, ProgramFault, ProgramRefusedError

DECODER_VERSION = importlib.metadata.version("uho-native")
"""The native module's version; another one may decode the same records to other rows."""

SOURCES = ("log", "cpi", "instruction")
"""How a program said a record, or that it was told, in tables; a record's `source` is the place in this list."""

INSTRUCTION_REASON = "instruction_"
"""The codes of instructions that no IDL version decodes begin so."""

_decoders: dict[tuple[str, str, bool, bool], uho_native.Decoder] = {}


def decoder_for(program: Program) -> uho_native.Decoder:
    """Return the decoder of a program's IDL versions; one is kept for every program id and set of versions.

    Raises:
        ProgramRefusedError: an IDL cannot be used.
    """
    key = (program.program_id, program.idl_hash, program.bytea, program.instructions)
    if key not in _decoders:
        versions = [(version.from_slot, version.label, version.json) for version in program.idls]
        try:
            _decoders[key] = uho_native.Decoder(
                program.id_bytes, versions, bytea=program.bytea, instructions=program.instructions
            )
        except uho_native.IdlError as error:
            fault = ProgramFault(f"{program.name}/{PROGRAM_FILE}", "idls", str(error))
            raise ProgramRefusedError(fault) from None
    return _decoders[key]


def decode(decoder: uho_native.Decoder, program: Program, records: pa.RecordBatch) -> uho_native.Decoded:
    """Decode a batch of whole blocks by the program's policy."""
    return decoder.decode(records, include_failed=program.include_failed, ignore=list(program.ignore))


def whole_blocks(records: pa.RecordBatch, rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """Yield a batch of ascending records in pieces of whole blocks: as few as give `rows` or `size` bytes, roughly."""
    slots: Any = records.column("slot").to_numpy()
    rows = max(1, min(rows, records.num_rows * size // max(1, records.nbytes)))
    start = 0
    while start < records.num_rows:
        last = min(start + rows, records.num_rows) - 1
        end = int(slots.searchsorted(slots[last], side="right"))
        yield records.slice(start, end - start)
        start = end


def code_version(program: Program) -> str:
    """Return what, beside records and IDLs, decides the rows: the decoder's version and the program's policy."""
    return f"{DECODER_VERSION}-{program.policy_hash}"


def events_by_discriminator(program: Program) -> dict[str, str]:
    """Return `{discriminator (hexadecimal): event}` of all IDL versions, and `instruction:<name>` where asked for."""
    return {described["discriminator"]: described["event"] for described in decoder_for(program).describe()}


@dataclass
class Fallback:
    """Rows of one event that were decoded by an IDL version that was not in force; slots are inclusive."""

    first_slot: int
    last_slot: int
    count: int


@dataclass
class Unexplained:
    """Where undecodable records of one kind lie (slots inclusive), and the fewest and most bytes left unexplained."""

    first_slot: int
    last_slot: int
    least: int
    most: int

    @property
    def bytes(self) -> str:
        """Return the bytes in words: `8`, or `8 to 40`."""
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"

    def add(self, other: "Unexplained") -> None:
        """Widen to what `other` covers."""
        self.first_slot = min(self.first_slot, other.first_slot)
        self.last_slot = max(self.last_slot, other.last_slot)
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)


@dataclass
class InstructionCounts:
    """What of a chunk's counts are instructions, and how many rows of theirs lack accounts.

    Short are those that were given fewer accounts than any IDL version that reads their data demands; unknown, those
    with an account that the transaction's metadata does not resolve.
    """

    records: int = 0
    failed_left_out: int = 0
    foreign: int = 0
    decoded: int = 0
    undecodable: int = 0
    short_of_accounts: int = 0
    unknown_accounts: int = 0

    @property
    def skip_rate(self) -> float:
        """Undecodable ÷ (decoded + undecodable) of instructions alone; 0 when there is neither."""
        return self.undecodable / max(1, self.decoded + self.undecodable)

    def add(self, counts: "uho_native.InstructionCounts | Mapping[str, int]") -> None:
        """Add those of one decoded batch, or those that `as_json` kept."""
        for name, count in dict(counts).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class Counts:
    """What became of a chunk's records: each is a twin, left out as failed, foreign, decoded or undecodable."""

    records: int = 0
    twins_folded: int = 0
    failed_left_out: int = 0
    foreign: int = 0
    decoded: int = 0
    undecodable: int = 0
    decoded_by: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """By event and IDL version."""
    undecodable_by: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """By discriminator (hexadecimal) and reason."""
    unexplained: dict[tuple[str, str], Unexplained] = field(default_factory=dict[tuple[str, str], Unexplained])
    """Of the same records, by the same keys."""
    fallbacks: dict[tuple[str, str, str], Fallback] = field(default_factory=dict[tuple[str, str, str], Fallback])
    """By event, IDL version and discriminator (hexadecimal)."""
    instructions: InstructionCounts = field(default_factory=InstructionCounts)
    """What of all this are instructions; the rest are events."""

    @property
    def events_decoded(self) -> int:
        """Decoded records that are events."""
        return self.decoded - self.instructions.decoded

    @property
    def events_undecodable(self) -> int:
        """Undecodable records that are events."""
        return self.undecodable - self.instructions.undecodable

    @property
    def skip_rate(self) -> float:
        """Undecodable ÷ (decoded + undecodable) of events alone; 0 when there is neither.

        Instructions have a rate of their own: so many that decode would hide events that do not, and programs have
        instructions that are none of Anchor's.
        """
        return self.events_undecodable / max(1, self.events_decoded + self.events_undecodable)

    def rows_by_event(self) -> dict[str, int]:
        """Return decoded rows by event."""
        rows: Counter[str] = Counter()
        for (event, _), count in self.decoded_by.items():
            rows[event] += count
        return dict(sorted(rows.items()))

    def add(self, counts: "uho_native.DecodeCounts | Mapping[str, Any]") -> None:
        """Add the counts of one decoded batch, or those that `as_json` returned."""
        self.records += counts["records"]
        self.twins_folded += counts["twins_folded"]
        self.failed_left_out += counts["failed_left_out"]
        self.foreign += counts["foreign"]
        self.decoded += counts["decoded"]
        self.undecodable += counts["undecodable"]
        for by_event in counts["decoded_by"]:
            self.decoded_by[by_event["event"], by_event["idl"]] += by_event["count"]
        for by_reason in counts["undecodable_by"]:
            kind = (by_reason["discriminator"], by_reason["reason"])
            self.undecodable_by[kind] += by_reason["count"]
            place = (by_reason["first_slot"], by_reason["last_slot"])
            found = Unexplained(*place, by_reason["least_unexplained"], by_reason["most_unexplained"])
            self.unexplained.setdefault(kind, found).add(found)
        for used in counts["fallback"]:
            key = (used["event"], used["idl"], used["discriminator"])
            kept = self.fallbacks.setdefault(key, Fallback(used["first_slot"], used["last_slot"], 0))
            kept.first_slot = min(kept.first_slot, used["first_slot"])
            kept.last_slot = max(kept.last_slot, used["last_slot"])
            kept.count += used["count"]
        # Counts that were kept before there were instructions have none.
        self.instructions.add(counts.get("instructions") or {})

    def _place(self, kind: tuple[str, str]) -> dict[str, int]:
        found = self.unexplained.get(kind)
        if found is None:
            return {}
        return {
            "first_slot": found.first_slot,
            "last_slot": found.last_slot,
            "least_unexplained": found.least,
            "most_unexplained": found.most,
        }

    def as_json(self) -> dict[str, Any]:
        """Return the counts as the ledger keeps them, in the decoder's own form."""
        return {
            "records": self.records,
            "twins_folded": self.twins_folded,
            "failed_left_out": self.failed_left_out,
            "foreign": self.foreign,
            "decoded": self.decoded,
            "undecodable": self.undecodable,
            "decoded_by": [
                {"event": event, "idl": idl, "count": count} for (event, idl), count in sorted(self.decoded_by.items())
            ],
            "undecodable_by": [
                {"discriminator": kind[0], "reason": kind[1], "count": count, **self._place(kind)}
                for kind, count in sorted(self.undecodable_by.items())
            ],
            "fallback": [
                {
                    "event": event,
                    "idl": idl,
                    "discriminator": discriminator,
                    "first_slot": fallback.first_slot,
                    "last_slot": fallback.last_slot,
                    "count": fallback.count,
                }
                for (event, idl, discriminator), fallback in sorted(self.fallbacks.items())
            ],
            **({"instructions": asdict(self.instructions)} if self.instructions.records else {}),
        }

"""Slot arithmetic: chunks, their partition keys, and which chunks of a program exist.

What belongs here: numbers only. A chunk is a range of slots that begins at a multiple of its network's chunk size.
Every range here is half-open, `[start, end)`; only `last_slot` is inclusive, and says so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uho_pipelines.errors import UhoError

if TYPE_CHECKING:
    from uho_pipelines.registry import Program
    from uho_pipelines.settings import Settings

SLOTS_PER_EPOCH = 432_000
"""Slots in an epoch of the archive, on every network."""

KEY_DIGITS = 10
"""Partition keys are chunk starts padded to so many digits, so that they sort as the slots do."""

SLOT_LIMIT = 10**KEY_DIGITS
"""Every slot is below this: about a hundred years of 400 ms slots."""


class ChunkKeyError(UhoError):
    """A text that is not the partition key of a chunk."""

    def __init__(self, key: str, slots: int) -> None:
        self.key = key
        self.slots = slots
        super().__init__(
            f"{key!r} is no chunk of {slots:,} slots: a key is a chunk's first slot, a multiple of {slots:,}, "
            f"padded to {KEY_DIGITS} digits"
        )


@dataclass(frozen=True, order=True)
class Chunk:
    """The slots `[start, start + slots)`; `start` is a multiple of `slots`."""

    start: int
    slots: int

    def __post_init__(self) -> None:
        if self.slots <= 0 or not 0 <= self.start < SLOT_LIMIT or self.start % self.slots:
            raise ChunkKeyError(str(self.start), self.slots)

    @property
    def end(self) -> int:
        """The first slot after the chunk."""
        return self.start + self.slots

    @property
    def key(self) -> str:
        """The partition key, `0345600000`."""
        return f"{self.start:0{KEY_DIGITS}d}"

    @property
    def epochs(self) -> range:
        """The epochs that the chunk touches."""
        return range(self.start // SLOTS_PER_EPOCH, (self.end - 1) // SLOTS_PER_EPOCH + 1)

    @property
    def options(self) -> str:
        """The options by which a command of `uho` takes this chunk alone; `--to-slot` is inclusive."""
        return f"--from-slot {self.start} --to-slot {self.end - 1}"

    def __str__(self) -> str:
        return f"slots [{self.start}, {self.end})"


def chunk_of(slot: int, slots: int) -> Chunk:
    """Return the chunk of `slots` slots that holds `slot`."""
    return Chunk(slot // slots * slots, slots)


def parse_key(key: str, slots: int) -> Chunk:
    """Return the chunk with this partition key.

    Raises:
        ChunkKeyError: `key` is not a chunk's start, padded to ten digits.
    """
    if len(key) != KEY_DIGITS or not key.isascii() or not key.isdigit():
        raise ChunkKeyError(key, slots)
    return Chunk(int(key), slots)


def chunks_between(start: int, end: int, slots: int) -> Iterator[Chunk]:
    """Yield, ascending, the chunks that hold the slots `[start, end)`, rounded outward."""
    for chunk_start in range(start // slots * slots, end, slots) if start < end else ():
        yield Chunk(chunk_start, slots)


def published_end(tip: int) -> int:
    """Return the end of the newest epoch that is whole below `tip` (exclusive)."""
    return tip // SLOTS_PER_EPOCH * SLOTS_PER_EPOCH


def program_chunks(settings: "Settings", program: "Program", tip: int | None) -> list[Chunk]:
    """Return, ascending, the chunks of `program` that can be read.

    From its first slot (rounded down) to its `last_slot` (inclusive, rounded up), where it has one, and in every case
    only chunks whose every epoch is published whole: `tip` is the end (exclusive) of the archive's newest such epoch.
    While `tip` is unknown (None), `last_slot` is believed; a program without one then has no chunks.
    """
    slots = settings.network(program.network).chunk_slots
    if program.last_slot is None and tip is None:
        return []
    end = SLOT_LIMIT if program.last_slot is None else program.last_slot + 1
    readable = SLOT_LIMIT if tip is None else published_end(tip)
    return [chunk for chunk in chunks_between(program.first_slot, min(end, readable), slots) if chunk.end <= readable]


def select_chunks(chunks: Sequence[Chunk], from_slot: int | None, to_slot: int | None) -> list[Chunk]:
    """Return the chunks that hold slots of `from_slot` to `to_slot` (inclusive), rounded outward; None: no bound."""
    return [
        chunk
        for chunk in chunks
        if (from_slot is None or chunk.end > from_slot) and (to_slot is None or chunk.start <= to_slot)
    ]

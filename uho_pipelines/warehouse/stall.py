"""How far a program is behind its archive, and the latch that keeps a stall until a person has seen it.

What belongs here: measuring by the ledger, latching, clearing. Who is told is `freshness.py`'s business.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from uho_pipelines.chunks import program_chunks
from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse.connection import Connection
from uho_pipelines.warehouse.ledger import (
    audit,
    chunk_key,
    chunk_states,
    fix_chunk_slots,
    get_tip,
    register_program,
)

SLOTS_PER_DAY = 216_000
"""Slots of 400 ms in a day: what lag is told in, for people."""


class StillLaggingError(UhoError):
    """A stall is cleared while the program is still behind."""

    def __init__(self, program: str, lag: "Lag", allowed: int) -> None:
        self.program = program
        self.lag = lag
        super().__init__(
            f"{program} is still behind: {lag}; {allowed:,} are allowed (UHO_STALL_SLOTS). "
            "Clear the stall when it has caught up"
        )


class NotStalledError(UhoError):
    """There is no stall to clear."""

    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(f"{program} is not stalled")


@dataclass(frozen=True)
class Lag:
    """How far a program is behind what can be read of its archive. Both ends are exclusive."""

    end: int
    """Of the newest chunk that the archive has whole."""
    complete_end: int
    """Of the newest complete chunk; the program's first slot while there is none."""
    missing: int
    """Chunks that are not complete, wherever they are."""

    @property
    def slots(self) -> int:
        """The lag."""
        return max(0, self.end - self.complete_end)

    def __str__(self) -> str:
        if not self.slots:
            return "complete up to the newest chunk of the archive"
        return (
            f"{self.slots:,} slots (about {self.slots / SLOTS_PER_DAY:.1f} days of the chain) lie between the newest "
            f"complete chunk, which ends before slot {self.complete_end}, and the archive, which has chunks up to slot "
            f"{self.end - 1}"
        )


@dataclass(frozen=True)
class Stall:
    """A latched stall."""

    since: datetime
    reason: str

    def __str__(self) -> str:
        return f"stalled on {self.since:%Y-%m-%d %H:%M} UTC: {self.reason}"


def measure_lag(connection: Connection, settings: Settings, program: Program) -> Lag | None:
    """Return how far `program` is behind; None while the archive has no chunk of it, or its tip is not known."""
    chunks = program_chunks(settings, program, get_tip(connection, program.network))
    if not chunks:
        return None
    states = chunk_states(connection, program)
    complete = [chunk for chunk in chunks if chunk.start in states and states[chunk.start].loaded]
    return Lag(chunks[-1].end, complete[-1].end if complete else chunks[0].start, len(chunks) - len(complete))


def get_stall(connection: Connection, program: Program) -> Stall | None:
    """Return the program's latched stall."""
    with connection.transaction():
        row = connection.execute(
            "SELECT stalled_at, reason FROM uho.stall WHERE (network, owner, program) = (%s, %s, %s)",
            chunk_key(program),
        ).fetchone()
    return None if row is None else Stall(*row)


def latch_stall(connection: Connection, settings: Settings, program: Program, lag: Lag | None) -> Stall | None:
    """Latch a stall if `lag` is more than the settings allow; return the latched one, new or old.

    A stall that stands keeps its beginning and its reason.
    """
    if lag is not None and lag.slots > settings.stall_slots:
        fix_chunk_slots(connection, program.network, settings.network(program.network).chunk_slots)
        register_program(connection, program)
        with connection.transaction():
            connection.execute(
                "INSERT INTO uho.stall (network, owner, program, reason) VALUES (%s, %s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                [*chunk_key(program), f"{lag}; {settings.stall_slots:,} are allowed"],
            )
    return get_stall(connection, program)


def clear_stall(connection: Connection, settings: Settings, program: Program, person: str, reason: str) -> None:
    """Take the program's stall away, and keep who did and why.

    Raises:
        NotStalledError: it is not stalled.
        StillLaggingError: it has not caught up.
    """
    lag = measure_lag(connection, settings, program)
    if lag is not None and lag.slots > settings.stall_slots:
        raise StillLaggingError(program.key, lag, settings.stall_slots)
    with connection.transaction():
        cleared = connection.execute(
            "DELETE FROM uho.stall WHERE (network, owner, program) = (%s, %s, %s) RETURNING stalled_at, reason",
            chunk_key(program),
        ).fetchone()
        if cleared is None:
            raise NotStalledError(program.key)
        details: dict[str, Any] = {"stalledAt": cleared[0].isoformat(), "stall": cleared[1]}
        audit(connection, program, person, "clear stall", reason, details)

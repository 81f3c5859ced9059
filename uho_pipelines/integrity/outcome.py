"""What comparing samples came to: of one transaction, and of a chunk.

What belongs here: the words of a result. It is light, so that whoever shows results need not load what made them.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from uho_pipelines.integrity.sampling import Job, Share

Side = Literal["stored", "chain"]

Outcome = Literal["verified", "mismatch", "not served", "not comparable"]
"""verified: every field of every row is equal, both ways. not served: the node has no answer. not comparable: it has,
and the other implementation cannot read it."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Difference:
    """What differs; `event_index` None: of the transaction as a whole."""

    event_index: int | None
    event: str
    field: str
    stored: str
    chain: str

    def as_json(self) -> dict[str, Any]:
        """Return it as the ledger keeps it."""
        return {
            "eventIndex": self.event_index,
            "event": self.event,
            "field": self.field,
            "stored": self.stored,
            "chain": self.chain,
        }


@dataclass(frozen=True)
class Comparison:
    """What comparing one transaction found; `events`: rows that were compared with equal result."""

    outcome: Outcome
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    events: int = 0


@dataclass(frozen=True)
class Sample:
    """One drawn transaction and what came of it; without a signature: a block that could not be looked at."""

    side: Side
    slot: int | None
    signature: str | None
    comparison: Comparison

    @property
    def outcome(self) -> Outcome:
        """What came of it."""
        return self.comparison.outcome


@dataclass
class IntegrityOutcome:
    """What comparing a chunk's samples found."""

    job: Job
    seed: int
    share: Share
    node: str
    """Scheme and host."""
    samples: list[Sample] = field(default_factory=list[Sample])
    blocks_read: int = 0
    blocks_known: int | None = None
    """Slots of the chunk that have a block, says the node; None: it was not asked, or did not say."""
    blocks_proved: int = 0
    """The same, says the certificate."""
    http_requests: int = 0
    seconds: float = 0.0

    def counts(self) -> dict[Outcome, int]:
        """Return the number of samples by outcome."""
        counted = Counter(sample.outcome for sample in self.samples)
        return {outcome: counted[outcome] for outcome in OUTCOMES}


@dataclass(frozen=True)
class NotChecked:
    """No sample was drawn, and why."""

    reason: str

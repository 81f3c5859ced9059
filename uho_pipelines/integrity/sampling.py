"""Which transactions are compared: how a job's samples fall on its chunks, and how a chunk's are drawn.

What belongs here: numbers and draws. A job is a Dagster backfill, or a run without one; its samples alternate between
the two sides, stored rows and the chain, and are spread evenly over its chunks in order. With 50 samples, 24 chunks
have two or three each, a chunk alone has all 50, and where there are more chunks than samples each still has one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql
from solders.signature import Signature

from uho_pipelines.chunks import Chunk
from uho_pipelines.warehouse import Connection, TablePlan, WarehousePlan

SEED_LIMIT = 2**63
"""Seeds are below this, so that the ledger keeps them as they are."""


@dataclass(frozen=True)
class Job:
    """What samples are counted by: `name` (of the backfill or run) has `chunks` chunks, this being one of them."""

    name: str
    place: int = 0
    chunks: int = 1


@dataclass(frozen=True)
class Share:
    """How many of a job's samples one chunk draws from each side."""

    stored: int
    chain: int

    @property
    def samples(self) -> int:
        """From both sides."""
        return self.stored + self.chain


def share_of(job: Job, samples: int) -> Share:
    """Return the samples of one chunk, at least one; over all chunks they are `samples` where these suffice."""
    if job.chunks > samples:
        start, end = job.place, job.place + 1
    else:
        start, end = (place * samples // job.chunks for place in (job.place, job.place + 1))
    stored = (end + 1) // 2 - (start + 1) // 2
    return Share(stored, end - start - stored)


@dataclass(frozen=True, order=True)
class Drawn:
    """A transaction that has rows."""

    slot: int
    signature: str


def draw_stored(
    connection: Connection, plan: WarehousePlan, chunk: Chunk, wanted: int, generator: random.Random
) -> list[Drawn]:
    """Return `wanted` transactions that have rows in `chunk`, or all that are found, ascending.

    The tables take turns, so that a rare event is drawn as often as a frequent one; within a table the first row from a
    random slot on decides, and a random one of that slot's transactions is taken.
    """
    tables = sorted(plan.tables)
    generator.shuffle(tables)
    drawn: list[Drawn] = []
    while tables and len(drawn) < wanted:
        for event in list(tables):
            if len(drawn) == wanted:
                break
            found = _draw_one(connection, plan.tables[event], chunk, generator, drawn)
            if found is None:
                tables.remove(event)
            else:
                drawn.append(found)
    return sorted(drawn)


def _draw_one(
    connection: Connection, table: TablePlan, chunk: Chunk, generator: random.Random, drawn: Sequence[Drawn]
) -> Drawn | None:
    """Return a transaction that is not drawn yet; None when the table has no other."""
    where = sql.Identifier(table.schema, table.name)
    first = sql.SQL(
        "SELECT slot FROM {} WHERE slot >= %s AND slot < %s AND NOT signature = ANY(%s) ORDER BY slot LIMIT 1"
    ).format(where)
    of_slot = sql.SQL(
        "SELECT DISTINCT signature FROM {} WHERE slot = %s AND NOT signature = ANY(%s) ORDER BY signature"
    ).format(where)
    in_bytes = table.kinds.get("signature") == "bytea"
    known = [bytes(Signature.from_string(item.signature)) if in_bytes else item.signature for item in drawn]
    for start in (generator.randrange(chunk.start, chunk.end), chunk.start):
        row = connection.execute(first, [start, chunk.end, known]).fetchone()
        if row is not None:
            signatures = [signature for (signature,) in connection.execute(of_slot, [row[0], known])]
            return Drawn(row[0], signature_text(generator.choice(signatures)))
    return None


def signature_text(stored: str | bytes) -> str:
    """Return a signature as base58, whichever of the two ways the program's tables keep it."""
    return stored if isinstance(stored, str) else str(Signature.from_bytes(stored))

"""The ledger, schema `uho`: what is known of networks, programs and chunks, and which attempt owns a chunk now.

What belongs here: reading and writing the ledger's rows. What a chunk's rows are is `load.py`'s business.

Every attempt at a chunk's stage has an id. The newest attempt owns the stage: an older one, believed dead or beside it,
finds its id gone at its next write and ends (`AttemptFencedError`), having changed nothing that counts.
"""

import uuid
from typing import Any, Literal

from psycopg import sql
from psycopg.types.json import Jsonb

from uho_pipelines.chunks import Chunk
from uho_pipelines.errors import UhoError
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection

Stage = Literal["records", "events"]

ERROR_CHARACTERS = 2_000
"""An error kept in the ledger is cut after so many characters."""


class AttemptFencedError(UhoError):
    """Another attempt at the same stage of the same chunk began later and owns it now."""

    def __init__(self, program: str, chunk: Chunk, stage: Stage) -> None:
        self.program = program
        self.chunk = chunk
        self.stage = stage
        super().__init__(
            f"{program} chunk {chunk.key}: another attempt at its {stage} began later and owns it; nothing was "
            "changed. Look at that attempt's run"
        )


class ChunkSlotsFixedError(UhoError):
    """A network's chunk size differs from the one that it was first used with."""

    def __init__(self, network: str, fixed: int, wanted: int) -> None:
        self.network = network
        self.fixed = fixed
        self.wanted = wanted
        super().__init__(
            f"network {network} has chunks of {fixed:,} slots since its first use; the settings say {wanted:,}. "
            f"Set UHO_NETWORKS__{network.upper()}__CHUNK_SLOTS={fixed}"
        )


class ProgramChangedError(UhoError):
    """A registered program's id differs from the one that its rows were made of."""

    def __init__(self, program: str, kept: str, wanted: str) -> None:
        self.program = program
        self.kept = kept
        self.wanted = wanted
        super().__init__(
            f"{program} was loaded for program id {kept}; its program.yaml now says {wanted}. "
            "Give the other program a folder of its own"
        )


def fix_chunk_slots(connection: Connection, network: str, chunk_slots: int) -> None:
    """Fix the chunk size of `network` (slots) at its first use.

    Raises:
        ChunkSlotsFixedError: it is fixed already, at another size.
    """
    with connection.transaction():
        connection.execute(
            "INSERT INTO uho.network (network, chunk_slots) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [network, chunk_slots],
        )
        fixed = _one(connection, "SELECT chunk_slots FROM uho.network WHERE network = %s", [network])
    if fixed != chunk_slots:
        raise ChunkSlotsFixedError(network, int(fixed), chunk_slots)


def get_tip(connection: Connection, network: str) -> int | None:
    """Return the end slot (exclusive) of the newest epoch of `network` known to be published whole."""
    row = connection.execute("SELECT tip FROM uho.network WHERE network = %s", [network]).fetchone()
    return row[0] if row else None


def set_tip(connection: Connection, network: str, slot: int) -> None:
    """Move the tip of `network` to `slot` (exclusive end); it never moves back."""
    with connection.transaction():
        connection.execute(
            "UPDATE uho.network SET tip = greatest(coalesce(tip, 0), %s) WHERE network = %s", [slot, network]
        )


def register_program(connection: Connection, program: Program) -> None:
    """Have the program in the ledger. Its network's chunk size must be fixed before.

    Raises:
        ProgramChangedError: it is there with another program id.
    """
    with connection.transaction():
        connection.execute(
            "INSERT INTO uho.program (network, owner, program, program_id, schema_name) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (network, owner, program) DO NOTHING",
            [program.network, program.owner, program.name, program.program_id, program.schema_name],
        )
        kept = _one(
            connection,
            "SELECT program_id FROM uho.program WHERE (network, owner, program) = (%s, %s, %s)",
            [program.network, program.owner, program.name],
        )
    if kept != program.program_id:
        raise ProgramChangedError(program.key, str(kept), program.program_id)


def begin_attempt(connection: Connection, program: Program, chunk: Chunk, stage: Stage) -> uuid.UUID:
    """Begin an attempt at a stage of a chunk and return its id; every earlier attempt is fenced from now on.

    What an earlier attempt completed stays as it is until this one completes.
    """
    attempt = uuid.uuid4()
    fix_chunk_slots(connection, program.network, chunk.slots)
    register_program(connection, program)
    query = sql.SQL(
        "INSERT INTO uho.chunk (network, owner, program, chunk_start, chunk_end, {attempt}, {state}, {started}) "
        "VALUES (%s, %s, %s, %s, %s, %s, 'running', now()) "
        "ON CONFLICT (network, owner, program, chunk_start) DO UPDATE "
        "SET {attempt} = excluded.{attempt}, {state} = 'running', {started} = now(), {finished} = NULL, {error} = NULL"
    ).format(**_columns(stage))
    with connection.transaction():
        connection.execute(query, [program.network, program.owner, program.name, chunk.start, chunk.end, attempt])
    return attempt


def owns_attempt(connection: Connection, program: Program, chunk: Chunk, attempt: uuid.UUID, stage: Stage) -> None:
    """Return if the attempt still owns its stage.

    Raises:
        AttemptFencedError: a later attempt does.
    """
    query = sql.SQL(
        "SELECT 1 FROM uho.chunk WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND {attempt} = %s"
    ).format(**_columns(stage))
    with connection.transaction():
        row = connection.execute(query, [*_key(program, chunk), attempt]).fetchone()
    if row is None:
        raise AttemptFencedError(program.key, chunk, stage)


def finish_records(
    connection: Connection, program: Program, chunk: Chunk, attempt: uuid.UUID, certificate: dict[str, Any]
) -> None:
    """Mark the chunk's records complete, with their certificate.

    Raises:
        AttemptFencedError: a later attempt owns the chunk.
    """
    digest = certificate["programs"][program.program_id]["digest"]
    with connection.transaction():
        updated = connection.execute(
            "UPDATE uho.chunk SET records_state = 'complete', records_finished_at = now(), records_error = NULL, "
            "certificate = %s, records_digest = %s "
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND records_attempt = %s",
            [Jsonb(certificate), digest, *_key(program, chunk), attempt],
        )
        if updated.rowcount == 0:
            raise AttemptFencedError(program.key, chunk, "records")


def fail_attempt(
    connection: Connection,
    program: Program,
    chunk: Chunk,
    attempt: uuid.UUID,
    stage: Stage,
    error: str,
    counts: dict[str, Any] | None = None,
) -> None:
    """Mark the stage failed with its error, and keep the counts; nothing if a later attempt owns the stage."""
    assignments: list[sql.Composable] = [
        sql.SQL("{state} = 'failed', {finished} = now(), {error} = %s").format(**_columns(stage))
    ]
    values: list[Any] = [error[:ERROR_CHARACTERS]]
    if counts is not None:
        assignments.append(sql.SQL("events_counts = %s"))
        values.append(Jsonb(counts))
    query = sql.SQL(
        "UPDATE uho.chunk SET {assignments} "
        "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND {attempt} = %s"
    ).format(assignments=sql.SQL(", ").join(assignments), **_columns(stage))
    with connection.transaction():
        connection.execute(query, [*values, *_key(program, chunk), attempt])


def _key(program: Program, chunk: Chunk) -> list[Any]:
    return [program.network, program.owner, program.name, chunk.start]


def _columns(stage: Stage) -> dict[str, sql.Identifier]:
    names = {
        "attempt": "attempt",
        "state": "state",
        "started": "started_at",
        "finished": "finished_at",
        "error": "error",
    }
    return {name: sql.Identifier(f"{stage}_{column}") for name, column in names.items()}


def _one(connection: Connection, query: str, values: list[Any]) -> Any:  # noqa: ANN401 - a column's value
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None, query  # noqa: S101 - the row was written in this transaction
    return row[0]

"""The ledger, schema `uho`: what is known of networks, programs and chunks, and which attempt owns a chunk now.

What belongs here: reading and writing the ledger's rows. What a chunk's rows are is `load.py`'s business.

Every attempt at a chunk's stage has an id. The newest attempt owns the stage: an older one, believed dead or beside it,
finds its id gone at its next write and ends (`AttemptFencedError`), having changed nothing that counts.

A chunk's row says two things apart. `…_state`, `…_attempt`, `…_error` tell of the latest attempt, which may be running,
dead or failed. What holds, whatever became of that attempt, is in `certificate` and `records_digest` (the lake) and
`loaded_…` (the event tables); only an attempt that completes replaces it. The view `uho.chunk_status` reads those.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import sql
from psycopg.types.json import Jsonb

from uho_pipelines.chunks import Chunk
from uho_pipelines.errors import UhoError
from uho_pipelines.redaction import redact
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


class CertificateMismatchError(UhoError):
    """A certificate that proves another slot range, or says nothing of the program."""

    def __init__(self, program: str, chunk: Chunk, reason: str) -> None:
        self.program = program
        self.chunk = chunk
        self.reason = reason
        super().__init__(
            f"{program} chunk {chunk.key}: the certificate {reason}, so it does not prove {chunk}. "
            "Materialize the chunk's records again"
        )


def fix_chunk_slots(connection: Connection, network: str, chunk_slots: int) -> None:
    """Fix the chunk size of `network` (slots) at its first use.

    Raises:
        ChunkSlotsFixedError: it is fixed already, at another size.
    """
    with connection.transaction():
        fixed = _first(connection, "SELECT chunk_slots FROM uho.network WHERE network = %s", [network])
        if fixed is None:
            # Only now: an update would lock the network's row, and every chunk begins here.
            fixed = _first(
                connection,
                "INSERT INTO uho.network (network, chunk_slots) VALUES (%s, %s) ON CONFLICT (network) DO UPDATE "
                "SET chunk_slots = coalesce(network.chunk_slots, excluded.chunk_slots) RETURNING chunk_slots",
                [network, chunk_slots],
            )
    if fixed != chunk_slots:
        raise ChunkSlotsFixedError(network, int(fixed), chunk_slots)


def get_tip(connection: Connection, network: str) -> int | None:
    """Return the end slot (exclusive) of the newest epoch of `network` known to be published whole."""
    with connection.transaction():
        return _first(connection, "SELECT tip FROM uho.network WHERE network = %s", [network])


def set_tip(connection: Connection, network: str, slot: int) -> None:
    """Move the tip of `network` to `slot` (exclusive end); it never moves back."""
    with connection.transaction():
        connection.execute(
            "INSERT INTO uho.network (network, tip) VALUES (%s, %s) "
            "ON CONFLICT (network) DO UPDATE SET tip = greatest(network.tip, excluded.tip)",
            [network, slot],
        )


def register_program(connection: Connection, program: Program) -> None:
    """Have the program in the ledger. Its network's chunk size must be fixed before.

    Raises:
        ProgramChangedError: it is there with another program id.
    """
    key = chunk_key(program)
    with connection.transaction():
        connection.execute(
            # Of any constraint: of two at once, the second may meet the first one's schema name before its key.
            "INSERT INTO uho.program (network, owner, program, program_id, schema_name) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            [*key, program.program_id, program.schema_name],
        )
        kept = _first(
            connection, "SELECT program_id FROM uho.program WHERE (network, owner, program) = (%s, %s, %s)", key
        )
    if kept != program.program_id:
        raise ProgramChangedError(program.key, str(kept), program.program_id)


def begin_attempt(connection: Connection, program: Program, chunk: Chunk, stage: Stage) -> uuid.UUID:
    """Begin an attempt at a stage of a chunk and return its id; every earlier attempt is fenced from now on.

    What an earlier attempt completed stays, and stays visible, until this one completes. While a load of the chunk is
    under way this waits for its end.

    Raises:
        ChunkSlotsFixedError, ProgramChangedError
    """
    attempt = uuid.uuid4()
    # Transactions of their own: nobody shall wait for the network's or program's row while this waits for the chunk's.
    fix_chunk_slots(connection, program.network, chunk.slots)
    register_program(connection, program)
    query = sql.SQL(
        "INSERT INTO uho.chunk (network, owner, program, chunk_start, chunk_end, {attempt}, {state}, {started}) "
        "VALUES (%s, %s, %s, %s, %s, %s, 'running', now()) "
        "ON CONFLICT (network, owner, program, chunk_start) DO UPDATE "
        "SET {attempt} = excluded.{attempt}, {state} = 'running', {started} = now(), {finished} = NULL, {error} = NULL"
    ).format(**_columns(stage))
    with connection.transaction():
        connection.execute(query, [*chunk_key(program, chunk), chunk.end, attempt])
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
        row = connection.execute(query, [*chunk_key(program, chunk), attempt]).fetchone()
    if row is None:
        raise AttemptFencedError(program.key, chunk, stage)


def finish_records(
    connection: Connection, program: Program, chunk: Chunk, attempt: uuid.UUID, certificate: Mapping[str, Any]
) -> None:
    """Mark the chunk's records complete, and append their certificate to the program's chain.

    Rows of earlier records stay in the event tables. Where the new records differ, the chunk is `outdated` until its
    events are loaded again.

    Raises:
        AttemptFencedError: a later attempt owns the chunk.
        CertificateMismatchError: the certificate is not of this chunk and program.
    """
    of_program = certificate.get("programs", {}).get(program.program_id)
    if of_program is None:
        raise CertificateMismatchError(program.key, chunk, f"says nothing of {program.program_id}")
    start, end = certificate.get("startSlot"), certificate.get("endSlot")
    if (start, end) != (chunk.start, chunk.end):
        raise CertificateMismatchError(program.key, chunk, f"is of slots [{start}, {end})")
    with connection.transaction():
        updated = connection.execute(
            "UPDATE uho.chunk SET records_state = 'complete', records_finished_at = now(), records_error = NULL, "
            "certificate = %s, record_count = %s, records_digest = %s, records_completed_at = now() "
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND records_attempt = %s",
            [
                *(as_jsonb(certificate), of_program["records"], of_program["digest"]),
                *(*chunk_key(program, chunk), attempt),
            ],
        )
        if updated.rowcount == 0:
            raise AttemptFencedError(program.key, chunk, "records")
        # Its number and hashes are the chain's business: a trigger sets them.
        connection.execute(
            "WITH line AS (INSERT INTO uho.certificate (network, owner, program, chunk_start, chunk_end, attempt, "
            "record_count, records_digest, certificate) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING number) "
            "UPDATE uho.chunk SET certificate_number = line.number FROM line "
            "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s)",
            [
                *(*chunk_key(program, chunk), chunk.end, attempt),
                *(of_program["records"], of_program["digest"], as_jsonb(certificate)),
                *chunk_key(program, chunk),
            ],
        )


def fail_attempt(
    connection: Connection,
    program: Program,
    chunk: Chunk,
    attempt: uuid.UUID,
    stage: Stage,
    error: str,
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Mark the stage failed with its error, and keep the counts.

    Nothing changes when a later attempt owns the stage, or when this one completed: what failed came after.
    """
    assignments: list[sql.Composable] = [
        sql.SQL("{state} = 'failed', {finished} = now(), {error} = %s").format(**_columns(stage))
    ]
    values: list[Any] = [_as_kept(error)]
    if counts is not None:
        assignments.append(sql.SQL("events_counts = %s"))
        values.append(as_jsonb(counts))
    query = sql.SQL(
        "UPDATE uho.chunk SET {assignments} "
        "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND {attempt} = %s AND {state} = 'running'"
    ).format(assignments=sql.SQL(", ").join(assignments), **_columns(stage))
    with connection.transaction():
        connection.execute(query, [*values, *chunk_key(program, chunk), attempt])


def leave_attempt(connection: Connection, program: Program, chunk: Chunk, attempt: uuid.UUID, stage: Stage) -> None:
    """Mark the stage pending: somebody ended the attempt, and what it kept waits for the next one.

    Nothing changes when a later attempt owns the stage, or when this one completed.
    """
    query = sql.SQL(
        "UPDATE uho.chunk SET {state} = 'pending', {error} = NULL "
        "WHERE (network, owner, program, chunk_start) = (%s, %s, %s, %s) AND {attempt} = %s AND {state} = 'running'"
    ).format(**_columns(stage))
    with connection.transaction():
        connection.execute(query, [*chunk_key(program, chunk), attempt])


@dataclass(frozen=True)
class ChunkState:
    """What the ledger says of a chunk that was begun: see the view `uho.chunk_status`."""

    status: str
    tail: str | None
    """Whether the block after the chunk proved its end; None without a certificate."""
    failed: bool
    """Whether the latest attempt at either stage failed."""

    @property
    def loaded(self) -> bool:
        """Whether the event tables hold the chunk as the lake does."""
        return self.status in {"proven", "unproven"}


def chunk_states(connection: Connection, program: Program) -> dict[int, ChunkState]:
    """Return what is known of the program's chunks, by their first slot; chunks never begun are not in it."""
    with connection.transaction():
        rows = connection.execute(
            "SELECT chunk_start, status, certificate ->> 'tail', "
            "s.records_state = 'failed' OR s.events_state = 'failed' "
            "FROM uho.chunk_status s JOIN uho.chunk USING (network, owner, program, chunk_start) "
            "WHERE (network, owner, program) = (%s, %s, %s)",
            chunk_key(program),
        ).fetchall()
    return {int(start): ChunkState(status, tail, failed) for start, status, tail, failed in rows}


def set_halt(connection: Connection, program: Program, chunk: Chunk, reason: str) -> None:
    """Halt the program's events for as long as its IDL versions are these: decoding on would only fail again.

    `chunk` is where it showed. A halt that stands keeps its first reason.
    """
    with connection.transaction():
        connection.execute(
            "INSERT INTO uho.halt (network, owner, program, idl_hash, chunk_start, reason) "
            "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [
                *(*chunk_key(program), program.idl_hash, chunk.start),
                _as_kept(reason),
            ],
        )


def get_halt(connection: Connection, program: Program) -> str | None:
    """Return why the program's events are halted under its IDL versions; None when they are not."""
    with connection.transaction():
        return _first(
            connection,
            "SELECT reason FROM uho.halt WHERE (network, owner, program, idl_hash) = (%s, %s, %s, %s)",
            [*chunk_key(program), program.idl_hash],
        )


def clear_halt(connection: Connection, program: Program, person: str, reason: str) -> bool:
    """Lift the program's halt, of whatever IDL versions, and keep who did and why; return whether there was one."""
    with connection.transaction():
        lifted = connection.execute(
            "DELETE FROM uho.halt WHERE (network, owner, program) = (%s, %s, %s) "
            "RETURNING idl_hash, chunk_start, reason",
            chunk_key(program),
        ).fetchall()
        if lifted:
            halts = [{"idlHash": idl, "chunkStart": start, "reason": why} for idl, start, why in lifted]
            audit(connection, program, person, "clear halt", reason, {"halts": halts})
    return bool(lifted)


def audit(
    connection: Connection, program: Program, person: str, action: str, reason: str, details: Mapping[str, Any]
) -> None:
    """Keep what a person decided against what was found, in the caller's transaction."""
    connection.execute(
        "INSERT INTO uho.audit (person, network, owner, program, action, reason, details) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [person, *chunk_key(program), action, _as_kept(reason), as_jsonb(details)],
    )


def chunk_key(program: Program, chunk: Chunk | None = None) -> list[Any]:
    """Return the values of `(network, owner, program)` and, with a chunk, its `chunk_start`."""
    return [program.network, program.owner, program.name, *([] if chunk is None else [chunk.start])]


def as_jsonb(document: Mapping[str, Any] | Sequence[Any]) -> Jsonb:
    """Return `document` as jsonb, which takes no U+0000: as everywhere, it becomes the six characters."""
    return Jsonb(document, dumps=_dumps)


def _as_kept(text: str) -> str:
    """Return an error or reason without credentials and U+0000, cut: everybody who may read the ledger reads it."""
    return redact(text).replace("\0", "\\u0000")[:ERROR_CHARACTERS]


def _dumps(document: Any) -> str:  # noqa: ANN401 - any JSON
    # A backslash of the text itself is doubled in JSON, so only an escape's own is alone.
    text = json.dumps(document)
    parts = text.split("\\\\")
    return "\\\\".join(part.replace("\\u0000", "\\\\u0000") for part in parts)


def _columns(stage: Stage) -> dict[str, sql.Identifier]:
    names = {
        "attempt": "attempt",
        "state": "state",
        "started": "started_at",
        "finished": "finished_at",
        "error": "error",
    }
    return {name: sql.Identifier(f"{stage}_{column}") for name, column in names.items()}


def _first(connection: Connection, query: str, values: list[Any]) -> Any:  # noqa: ANN401 - a column's value
    """Return the first column of the first row; None without one."""
    row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None

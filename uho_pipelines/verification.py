"""Verification: is what was proved and loaded still there, as it was?

What belongs here: comparing ledger, certificates, lake, quarantine and tables with each other, chunk by chunk, and
naming the command that mends what differs. It reads; the one thing that it writes is when it last looked, and, in a
manifest of the lake, which part is damaged, so that the mending command trusts nothing of it.

Row digests and certificates find damage: a slip of the hand, a bad disk, a backup that is older than it should be. Who
owns the database and wishes to deceive can compute them all anew.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import uho_native
from psycopg import sql
from psycopg.rows import namedtuple_row
from rich.console import Console
from rich.status import Status

from uho_pipelines.chunks import SLOT_LIMIT, Chunk, chunk_of, program_chunks, select_chunks
from uho_pipelines.errors import UhoError
from uho_pipelines.lake import WITHOUT_INSTRUCTIONS, Lake, LakeChunk, Manifest, PartAlteredError
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import running_warehouse
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, WarehousePlan, connect, read_plan
from uho_pipelines.warehouse.chain import Chain, read_chain
from uho_pipelines.warehouse.digest import damage_in_snapshot, quarantine_digest
from uho_pipelines.warehouse.ledger import chunk_key, get_tip

Part = Literal["ledger", "certificate", "lake", "tables", "quarantine"]

LOOKS = 3
"""A chunk that another attempt changes while it is looked at is looked at so many times."""

FROM_ARCHIVE: frozenset[Part] = frozenset({"ledger", "certificate", "lake"})
"""What only reading the archive again mends; the rest is mended from the lake."""


class NothingToVerifyError(UhoError):
    """A slot range of which nothing was ever kept."""

    def __init__(self, program: str, from_slot: int | None, to_slot: int | None) -> None:
        self.program = program
        where = "" if from_slot is None and to_slot is None else f" between slots {from_slot} and {to_slot} (inclusive)"
        super().__init__(
            f"{program}: nothing was read or loaded{where}, so there is nothing to verify. "
            f"`uho backfill {program}` begins"
        )


@dataclass(frozen=True)
class Finding:
    """One thing that differs."""

    part: Part
    text: str


@dataclass
class ChunkVerification:
    """What looking at one chunk found; `records` and `rows` were read for it."""

    program: str
    chunk: Chunk
    findings: list[Finding] = field(default_factory=list[Finding])
    busy: str | None = None
    """Why nothing can be said of it now."""
    records: int = 0
    rows: int = 0
    command: str | None = None
    """What mends it, when something differs."""

    @property
    def damaged(self) -> bool:
        """Whether something differs."""
        return bool(self.findings)

    def find(self, part: Part, text: str) -> None:
        """Note a difference, and the command that mends all of them."""
        self.findings.append(Finding(part, text))
        from_archive = any(finding.part in FROM_ARCHIVE for finding in self.findings)
        self.command = f"uho {'backfill' if from_archive else 'replay'} {self.program} {self.chunk.options}"

    def as_json(self) -> dict[str, Any]:
        """Return what was found; `lastSlot` is inclusive."""
        return {
            "chunk": self.chunk.key,
            "startSlot": self.chunk.start,
            "lastSlot": self.chunk.end - 1,
            "findings": [{"part": finding.part, "text": finding.text} for finding in self.findings],
            "busy": self.busy,
            "command": self.command,
        }


@dataclass
class ProgramVerification:
    """What verifying a program found."""

    program: str
    chunks: list[ChunkVerification] = field(default_factory=list[ChunkVerification])
    """Those that are damaged or busy."""
    verified: int = 0
    records: int = 0
    rows: int = 0
    lines: int = 0
    """Of the chain of certificates."""
    scars: list[str] = field(default_factory=list[str])
    """Damaged lines of the chain that hold for no chunk any more: a later certificate took their place."""
    seconds: float = 0.0

    @property
    def damaged(self) -> list[ChunkVerification]:
        """The chunks of which something differs."""
        return [chunk for chunk in self.chunks if chunk.damaged]

    def add(self, found: ChunkVerification) -> None:
        """Count a chunk, and keep it if there is something to say of it."""
        self.verified += not found.busy
        self.records += found.records
        self.rows += found.rows
        if found.damaged or found.busy:
            self.chunks.append(found)

    def as_json(self) -> dict[str, Any]:
        """Return what was found."""
        return {
            "program": self.program,
            "chunksVerified": self.verified,
            "recordsRead": self.records,
            "rowsRead": self.rows,
            "certificates": self.lines,
            "damaged": [chunk.as_json() for chunk in self.damaged],
            "busy": [chunk.as_json() for chunk in self.chunks if chunk.busy],
            "scars": self.scars,
            "seconds": round(self.seconds, 3),
        }


def verify_program(
    settings: Settings,
    program: Program,
    from_slot: int | None,
    to_slot: int | None,
    say: Callable[[ChunkVerification, int], None] = lambda _chunk, _of: None,
) -> ProgramVerification:
    """Verify the chunks of `program` that hold slots of `from_slot` to `to_slot` (inclusive; None: no bound).

    `say` is told of every chunk that was looked at, and how many there are. Memory is bounded by a row group of the
    lake, whatever the size of the program.
    """
    started = time.monotonic()
    result = ProgramVerification(program.key)
    with connect(warehouse_url(settings), application_name=f"uho verify {program.key}") as connection:
        plan = read_plan(connection, program)
        chain = read_chain(connection, program)
        result.lines, result.scars = chain.lines, chain.scars
        known = _known_chunks(connection, settings, program)
        chosen = select_chunks(known, from_slot, to_slot)
        for chunk in chosen:
            found = verify_chunk(connection, settings, program, chunk, plan, chain)
            result.add(found)
            say(found, len(chosen))
        start = 0 if from_slot is None else from_slot
        end = SLOT_LIMIT if to_slot is None else to_slot + 1
        for found in _stray_rows(connection, settings, program, plan, _gaps(known, start, end)):
            result.add(found)
            say(found, len(chosen))
    result.seconds = time.monotonic() - started
    return result


def verify_chunk(
    connection: Connection,
    settings: Settings,
    program: Program,
    chunk: Chunk,
    plan: WarehousePlan | None = None,
    chain: Chain | None = None,
) -> ChunkVerification:
    """Compare all that is kept of one chunk, and note in the ledger that it was verified.

    A chunk that an attempt changes meanwhile is looked at again, and at last called busy.
    """
    plan = plan or read_plan(connection, program)
    chain = chain or read_chain(connection, program)
    folder = Lake(settings).chunk(program, chunk)
    found = ChunkVerification(program.key, chunk)
    for _ in range(LOOKS):
        row, found = _look_at_ledger_and_tables(connection, program, chunk, plan, chain)
        if row is not None:
            _look_at_lake(folder, row, found)
        if not found.damaged or _attempts(connection, program, chunk) == _attempts_of(row):
            break
        chain = read_chain(connection, program)
    else:
        found.findings, found.command = [], None
        found.busy = "attempts at it change it while it is looked at; verify it again later"
    if found.busy is None:
        _note(connection, program, found)
    return found


def due_chunks(connection: Connection, program: Program, age_seconds: float, most: int) -> list[tuple[float, Chunk]]:
    """Return up to `most` chunks with records that were not verified for `age_seconds`, the longest ago first.

    Each with the time (seconds since 1970) at which it was verified last; 0 for never.
    """
    with connection.transaction():
        rows = connection.execute(
            "SELECT coalesce(extract(epoch FROM v.verified_at)::float8, 0), c.chunk_start, c.chunk_end - c.chunk_start "
            "FROM uho.chunk c LEFT JOIN uho.verification v USING (network, owner, program, chunk_start) "
            "WHERE (c.network, c.owner, c.program) = (%s, %s, %s) AND c.records_digest IS NOT NULL "
            "AND coalesce(v.verified_at < now() - make_interval(secs => %s), TRUE) "
            "ORDER BY v.verified_at NULLS FIRST, c.chunk_start LIMIT %s",
            [*chunk_key(program), age_seconds, most],
        ).fetchall()
    return [(at, Chunk(start, slots)) for at, start, slots in rows]


# The ledger, the certificates and the tables, in one snapshot.


def _look_at_ledger_and_tables(
    connection: Connection, program: Program, chunk: Chunk, plan: WarehousePlan, chain: Chain
) -> tuple[Any, ChunkVerification]:
    found = ChunkVerification(program.key, chunk)
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = _ledger_row(connection, program, chunk)
        if row is None:
            found.find("ledger", "there are certificates of this chunk, and the ledger has no line for it")
            return None, found
        if row.records_digest is not None:
            _look_at_certificate(row, program, chunk, chain, found)
        _look_at_tables(connection, row, program, chunk, plan, found)
    return row, found


def _ledger_row(connection: Connection, program: Program, chunk: Chunk) -> Any:  # noqa: ANN401 - columns as named
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(
            """
            SELECT c.chunk_end, c.certificate, c.record_count, c.records_digest, c.certificate_number, c.records_state,
                   c.records_attempt, c.records_started_at, c.events_attempt, c.loaded_digest, c.loaded_counts,
                   c.quarantine_digest, l.number, l.chunk_start AS line_start, l.chunk_end AS line_end,
                   l.records_digest AS line_digest, l.record_count AS line_count, l.certificate AS line_certificate,
                   l.attempt AS line_attempt,
                   (SELECT jsonb_object_agg(event, row_count) FROM uho.chunk_table t
                     WHERE (t.network, t.owner, t.program, t.chunk_start)
                         = (c.network, c.owner, c.program, c.chunk_start)) AS tables
              FROM uho.chunk c
              LEFT JOIN uho.certificate l
                ON (l.network, l.owner, l.program, l.number) = (c.network, c.owner, c.program, c.certificate_number)
             WHERE (c.network, c.owner, c.program, c.chunk_start) = (%s, %s, %s, %s)""",
            chunk_key(program, chunk),
        ).fetchone()


def _look_at_certificate(row: Any, program: Program, chunk: Chunk, chain: Chain, found: ChunkVerification) -> None:  # noqa: ANN401
    if row.number is None:
        found.find("certificate", f"line {row.certificate_number} of uho.certificate, which holds for it, is gone")
        return
    fault = chain.faults.get(row.number)
    if fault is not None:
        found.find("certificate", fault)
    of_line = (row.line_start, row.line_end, row.line_digest, row.line_count, row.line_certificate)
    of_chunk = (chunk.start, chunk.end, row.records_digest, row.record_count, row.certificate)
    if (row.chunk_end, *of_line) != (chunk.end, *of_chunk):
        found.find("ledger", f"its line in uho.chunk and line {row.number} of uho.certificate differ")
    try:
        fault = uho_native.certificate_fault(json.dumps(row.certificate))
        counts = row.certificate["programs"][program.program_id]
        if fault is None and (counts["digest"], counts["records"]) != (row.records_digest, row.record_count):
            fault = "it counts other records than the ledger"
    except (ValueError, KeyError, TypeError):
        fault = "it is no certificate of this program"
    if fault is not None:
        found.find("certificate", f"the ledger's certificate does not hold: {fault}")


def _look_at_tables(
    connection: Connection,
    row: Any,  # noqa: ANN401
    program: Program,
    chunk: Chunk,
    plan: WarehousePlan,
    found: ChunkVerification,
) -> None:
    for damage in damage_in_snapshot(connection, plan, program, chunk):
        found.find("tables", str(damage))
    tables: dict[str, int] = row.tables or {}
    found.rows += sum(tables.values())
    quarantined, digest = quarantine_digest(connection, program, chunk)
    if row.loaded_digest is None:
        if quarantined:
            found.find("quarantine", f"it was never loaded, and uho.quarantine has {quarantined:,} rows of it")
        return
    if row.loaded_digest != row.records_digest:
        found.find("tables", "its rows were decoded from other records than the lake has now")
    counts: dict[str, Any] = row.loaded_counts
    expected = counts.get("undecodable", 0)
    if quarantined != expected:
        found.find("quarantine", f"uho.quarantine has {quarantined:,} rows of it, loaded were {expected:,}")
    elif row.quarantine_digest is not None and digest != row.quarantine_digest:
        found.find("quarantine", f"uho.quarantine has {quarantined:,} rows of it, as many as loaded, with other values")
    decoded: dict[str, int] = {}
    for entry in counts.get("decoded_by", []):
        decoded[entry["event"]] = decoded.get(entry["event"], 0) + entry["count"]
    if decoded != {event: rows for event, rows in tables.items() if rows} or counts.get("records") != row.record_count:
        found.find("tables", "the ledger's counts of the load, of its tables and of its records do not add up")


# The lake.


def _look_at_lake(folder: LakeChunk, row: Any, found: ChunkVerification) -> None:  # noqa: ANN401
    manifest = folder.manifest()
    if row.records_digest is None:
        return
    if row.records_state == "running" and (manifest is None or manifest.attempt == str(row.records_attempt)):
        # What is read again is compared with the certificate when it is complete.
        found.busy = (
            f"an attempt reads it again since {row.records_started_at:%Y-%m-%d %H:%M:%S} UTC. If its process is gone: "
            f"uho backfill {folder.program.key} {folder.chunk.options}"
        )
        return
    if manifest is None:
        found.find("lake", f"lake file {folder.folder}/manifest.json is missing or cannot be read")
        return
    if not manifest.complete:
        found.find("lake", f"the lake has its records only up to slot {manifest.position}")
        return
    if folder.program.instructions and not manifest.instructions:
        found.find("lake", WITHOUT_INSTRUCTIONS)
    if manifest.certificate != row.certificate:
        found.find("lake", "the lake's certificate is not the ledger's")
    _look_at_parts(folder, manifest, found)
    if manifest.digest != row.records_digest:
        found.find("lake", "the parts that the lake's manifest names are not the records of the ledger")


def _look_at_parts(folder: LakeChunk, manifest: Manifest, found: ChunkVerification) -> None:
    for stretch in manifest.stretches:
        if stretch.file is None:
            continue
        try:
            for batch in folder.read_part(stretch):
                found.records += batch.num_rows
        except PartAlteredError as error:
            found.find("lake", f"lake file {error.file} is not what was written: {error.reason}")
            folder.mark_damaged(manifest, stretch)
            manifest = folder.manifest() or manifest


# Around them.


def _known_chunks(connection: Connection, settings: Settings, program: Program) -> list[Chunk]:
    """Return, ascending, the chunks of which the ledger or the certificates know."""
    with connection.transaction():
        rows = connection.execute(
            "SELECT chunk_start FROM uho.chunk WHERE (network, owner, program) = (%s, %s, %s) UNION "
            "SELECT chunk_start FROM uho.certificate WHERE (network, owner, program) = (%s, %s, %s)",
            [*chunk_key(program), *chunk_key(program)],
        ).fetchall()
    slots = settings.network(program.network).chunk_slots
    # A line that was edited may name a slot at which no chunk begins; the chain tells of it.
    return sorted({Chunk(start, slots) for (start,) in rows if start % slots == 0 and 0 <= start < SLOT_LIMIT})


def _gaps(chunks: Sequence[Chunk], start: int, end: int) -> Iterable[tuple[int, int]]:
    """Yield the ranges `[start, end)` between chunks."""
    for chunk in chunks:
        if start < chunk.start:
            yield start, min(chunk.start, end)
        start = max(start, chunk.end)
    if start < end:
        yield start, end


def _stray_rows(
    connection: Connection,
    settings: Settings,
    program: Program,
    plan: WarehousePlan,
    gaps: Iterable[tuple[int, int]],
) -> Iterable[ChunkVerification]:
    """Yield the chunks of which the ledger knows nothing and a table has rows."""
    slots = settings.network(program.network).chunk_slots
    readable = set(program_chunks(settings, program, get_tip(connection, program.network)))
    for start, end in gaps:
        position = start
        while (stray := _next_stray(connection, program, plan, position, end)) is not None:
            slot, table = stray
            chunk = chunk_of(slot, slots)
            found = ChunkVerification(program.key, chunk)
            found.find("ledger", f"table {table} has rows of it, and it was never loaded")
            if chunk not in readable:
                where = f"slot >= {chunk.start} AND slot < {chunk.end}"
                found.command = f"psql: DELETE FROM {table} WHERE {where}"  # noqa: S608 - a person reads it
            yield found
            position = chunk.end


def _next_stray(
    connection: Connection, program: Program, plan: WarehousePlan, start: int, end: int
) -> tuple[int, str] | None:
    """Return the first slot in `[start, end)` of which a table has a row, and the table."""
    nothing = sql.SQL("SELECT min(slot) FROM {} WHERE slot >= %s AND slot < %s")
    queries = [
        (f"{table.schema}.{table.name}", nothing.format(sql.Identifier(table.schema, table.name)), [start, end])
        for table in plan.tables.values()
    ]
    own = sql.SQL(" AND (network, owner, program) = (%s, %s, %s)")
    quarantine = nothing.format(sql.Identifier("uho", "quarantine")) + own
    queries.append(("uho.quarantine", quarantine, [start, end, *chunk_key(program)]))
    found: list[tuple[int, str]] = []
    with connection.transaction():
        for name, query, values in queries:
            row = connection.execute(query, values).fetchone()
            if row is not None and row[0] is not None:
                found.append((row[0], name))
    return min(found, default=None)


def _attempts(connection: Connection, program: Program, chunk: Chunk) -> tuple[Any, ...] | None:
    with connection.transaction():
        return _attempts_of(_ledger_row(connection, program, chunk))


def _attempts_of(row: Any) -> tuple[Any, ...] | None:  # noqa: ANN401 - a row of the ledger
    return None if row is None else (row.records_attempt, row.events_attempt, row.certificate_number, row.loaded_digest)


def _note(connection: Connection, program: Program, found: ChunkVerification) -> None:
    with connection.transaction():
        connection.execute(
            "INSERT INTO uho.verification (network, owner, program, chunk_start, verified_at, findings) "
            "VALUES (%s, %s, %s, %s, clock_timestamp(), %s) ON CONFLICT (network, owner, program, chunk_start) "
            "DO UPDATE SET verified_at = excluded.verified_at, findings = excluded.findings",
            [*chunk_key(program, found.chunk), json.dumps(found.as_json()["findings"])],
        )


def run_verify(
    settings: Settings, name: str, from_slot: int | None, to_slot: int | None, console: Console, *, as_json: bool
) -> bool:
    """Verify the program `name` and tell of it, in JSON or in sentences; return whether all is as it was loaded.

    Raises:
        UnknownProgramError, NothingToVerifyError, and what starting Postgres can raise.
    """
    program = load_registry(settings).program(name)
    with running_warehouse(settings) as running, Status("verifying", console=Console(stderr=True)) as status:
        looked_at = 0

        def say(found: ChunkVerification, of: int) -> None:
            nonlocal looked_at
            looked_at += 1
            status.update(f"verifying {program.key}: chunk {found.chunk.key} ({looked_at} of {of})")

        result = verify_program(running, program, from_slot, to_slot, say)
    if not result.verified and not result.chunks:
        raise NothingToVerifyError(program.key, from_slot, to_slot)
    if as_json:
        console.print_json(data=result.as_json())
    else:
        for line in _sentences(result):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return not result.damaged


def _sentences(result: ProgramVerification) -> Iterable[str]:
    for found in result.chunks:
        for finding in found.findings:
            yield f"chunk {found.chunk.key}: {finding.part}: {finding.text}"
        if found.command:
            yield f"chunk {found.chunk.key}: mend it with: {found.command}"
        if found.busy:
            yield f"chunk {found.chunk.key}: not verified: {found.busy}"
    for scar in result.scars:
        yield f"{scar}; no chunk depends on it any more"
    yield (
        f"{result.program}: {result.verified:,} chunks verified, {len(result.damaged):,} damaged; "
        f"{result.rows:,} rows, {result.records:,} records and {result.lines:,} certificates in {result.seconds:.1f} s"
    )

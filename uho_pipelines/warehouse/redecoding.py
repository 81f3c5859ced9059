"""Who decodes a program's records again now, and how far that is: one replay or repair at a time per program.

What belongs here: the lock, and the line in the ledger that says how far it is. The lock is the database's, held by a
session: when the process dies, or its machine does, the next start is not kept waiting.
"""

import os
import socket
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg.rows import namedtuple_row

from uho_pipelines.errors import UhoError
from uho_pipelines.redaction import redact
from uho_pipelines.registry import Program
from uho_pipelines.warehouse.connection import Connection, connect
from uho_pipelines.warehouse.ledger import ERROR_CHARACTERS, chunk_key

Kind = Literal["replay", "repair"]

DIED = "its process ended without a word"


@dataclass(frozen=True)
class RedecodingStatus:
    """The newest replay or repair of a program. `rows` are records that are decoded again; `end_slot` is exclusive."""

    kind: Kind
    start_slot: int
    end_slot: int
    process: str
    running: bool
    state: str
    error: str | None
    started_at: datetime
    updated_at: datetime
    total_chunks: int
    chunks_done: int
    total_rows: int
    rows_done: int

    @property
    def estimated_completion(self) -> datetime | None:
        """When it will be done, at the rate that it had so far; None when it does not run or nothing is done yet."""
        if not self.running or self.rows_done <= 0:
            return None
        seconds = (self.updated_at - self.started_at).total_seconds()
        return self.started_at + timedelta(seconds=seconds * self.total_rows / self.rows_done)

    def as_json(self) -> dict[str, Any]:
        """Return the status as other programs read it; `lastSlot` is inclusive, times are ISO 8601."""
        estimate = self.estimated_completion
        return {
            "kind": self.kind,
            "isReplaying": self.running,
            "rowsReplayed": self.rows_done,
            "rowsRemaining": self.total_rows - self.rows_done,
            "totalRows": self.total_rows,
            "estimatedCompletion": estimate.isoformat() if estimate else None,
            "startedAt": self.started_at.isoformat(),
            "chunksDone": self.chunks_done,
            "totalChunks": self.total_chunks,
            "startSlot": self.start_slot,
            "lastSlot": self.end_slot - 1,
            "process": self.process,
            "state": self.state,
            "error": self.error,
        }


class AlreadyRunningError(UhoError):
    """A replay or repair of the program runs already."""

    def __init__(self, program: str, running: RedecodingStatus | None) -> None:
        self.program = program
        self.running = running
        what = "a replay or repair of it has just begun"
        if running is not None:
            what = (
                f"a {running.kind} of slots {running.start_slot} to {running.end_slot - 1} runs since "
                f"{running.started_at:%Y-%m-%d %H:%M:%S} UTC ({running.process}; {running.chunks_done} of "
                f"{running.total_chunks} chunks done)"
            )
        super().__init__(f"{program}: {what}. Wait for its end (`uho status {program}`), or end that process")


class Redecoding:
    """The line in the ledger of a replay or repair that runs here."""

    def __init__(self, url: str, program: Program) -> None:
        self.url = url
        self.program = program
        self.id: uuid.UUID | None = None
        self._session = self._lock()

    def begin(self, kind: Kind, start_slot: int, end_slot: int, chunks: int, rows: int) -> None:
        """Write the line; one that a dead process left is ended."""
        self._session.execute(
            "UPDATE uho.redecoding SET state = 'failed', error = %s "
            "WHERE (network, owner, program) = (%s, %s, %s) AND state = 'running'",
            [DIED, *chunk_key(self.program)],
        )
        self.id = uuid.uuid4()
        self._session.execute(
            "INSERT INTO uho.redecoding (id, network, owner, program, kind, start_slot, end_slot, process, "
            "total_chunks, total_rows) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                *(self.id, *chunk_key(self.program), kind, start_slot, end_slot),
                *(f"process {os.getpid()} on {socket.gethostname()}", chunks, rows),
            ],
        )

    def advance(self, chunks: int, rows: int) -> None:
        """Write how many chunks and records are done.

        Raises:
            AlreadyRunningError: the lock was lost with the connection, and another process has it now.
        """
        update = (
            "UPDATE uho.redecoding SET chunks_done = %s, rows_done = %s, updated_at = clock_timestamp() WHERE id = %s"
        )
        try:
            self._session.execute(update, [chunks, rows, self.id])
        except psycopg.OperationalError:
            self._session.close()
            self._session = self._lock()
            self._session.execute(update, [chunks, rows, self.id])

    def end(self, error: str | None) -> None:
        """Write how it ended, and release the lock."""
        if self.id is not None:
            self._session.execute(
                "UPDATE uho.redecoding SET state = %s, error = %s, updated_at = clock_timestamp() WHERE id = %s",
                ["failed" if error else "complete", redact(error)[:ERROR_CHARACTERS] if error else None, self.id],
            )
        self._session.close()

    def close(self) -> None:
        """Release the lock."""
        self._session.close()

    def _lock(self) -> Connection:
        session = connect(self.url, application_name=f"uho redecoding {self.program.key}")
        session.autocommit = True
        row = session.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [_lock_name(self.program)])
        if row.fetchone() != (True,):
            running = redecoding_status(session, self.program)
            session.close()
            raise AlreadyRunningError(self.program.key, running if running is not None and running.running else None)
        return session


@contextmanager
def redecoding(
    url: str, program: Program, kind: Kind, start_slot: int, end_slot: int, chunks: int, rows: int
) -> Generator[Redecoding]:
    """Be the one that decodes the program's records again, in `[start_slot, end_slot)`: so many chunks and records.

    The program must be in the ledger.

    Raises:
        AlreadyRunningError: another process is.
    """
    running = Redecoding(url, program)
    try:
        running.begin(kind, start_slot, end_slot, chunks, rows)
        yield running
    except BaseException as error:
        try:
            running.end(str(error) or type(error).__name__)
        except psycopg.Error:
            running.close()  # the line is ended by who comes next
        raise
    finally:
        running.close()


def redecoding_status(connection: Connection, program: Program) -> RedecodingStatus | None:
    """Return the newest replay or repair of the program; None when there was none."""
    with connection.transaction(), connection.cursor(row_factory=namedtuple_row) as cursor:
        row: Any = cursor.execute(
            """
            SELECT kind, start_slot, end_slot, process, error, started_at, updated_at, total_chunks, chunks_done,
                   total_rows, rows_done, state,
                   EXISTS (SELECT 1 FROM pg_locks, hashtextextended(%s, 0) AS key
                            WHERE locktype = 'advisory' AND objsubid = 1 AND granted
                              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                              AND (classid::bigint << 32) | objid::bigint = key) AS held
              FROM uho.redecoding WHERE (network, owner, program) = (%s, %s, %s)
             ORDER BY started_at DESC LIMIT 1""",
            [_lock_name(program), *chunk_key(program)],
        ).fetchone()
    if row is None:
        return None
    died = row.state == "running" and not row.held
    return RedecodingStatus(
        kind=row.kind,
        start_slot=row.start_slot,
        end_slot=row.end_slot,
        process=row.process,
        running=row.state == "running" and row.held,
        state="failed" if died else row.state,
        error=DIED if died else row.error,
        started_at=row.started_at,
        updated_at=row.updated_at,
        total_chunks=row.total_chunks,
        chunks_done=row.chunks_done,
        total_rows=row.total_rows,
        rows_done=row.rows_done,
    )


def _lock_name(program: Program) -> str:
    return f"uho redecoding {program.key}"

"""`uho status`: what is known of programs, for people and, in JSON, for other programs.

What belongs here: reading the ledger and telling. Nothing is looked at but the ledger: `uho verify` looks at the rest.
"""

import getpass
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from uho_pipelines.errors import UhoError
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.progress import BackfillState, ProgramProgress, backfills_under_way, program_progress
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import running_warehouse
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, connect
from uho_pipelines.warehouse.alerts import undelivered
from uho_pipelines.warehouse.ledger import chunk_key, clear_halt, get_halt
from uho_pipelines.warehouse.redecoding import RedecodingStatus, redecoding_status
from uho_pipelines.warehouse.stall import Lag, Stall, get_stall, measure_lag

NO_REDECODING: dict[str, Any] = {
    "isReplaying": False,
    "rowsReplayed": 0,
    "rowsRemaining": 0,
    "totalRows": 0,
    "estimatedCompletion": None,
    "startedAt": None,
}


@dataclass(frozen=True)
class ProgramStatus:
    """What the ledger knows of a program. Ranges are (first slot, last slot inclusive)."""

    program: str
    chunks: dict[str, int]
    """By their status: proven, unproven, outdated, not loaded, no records."""
    running: int
    """Chunks at which an attempt is under way, or died."""
    failed: int
    events: int
    quarantined: int
    proven: list[tuple[int, int]]
    halted: str | None
    redecoding: RedecodingStatus | None
    lag: Lag | None
    """None for a program that does not follow the archive, and while the archive has no chunk of it."""
    stalled: Stall | None
    progress: ProgramProgress
    not_ready: list[str]
    """Why what is served of the program is not what it should be; nothing: it is ready."""

    def as_json(self) -> dict[str, Any]:
        """Return the status; that of a replay or repair is under `replay`, the newest one."""
        return {
            "program": self.program,
            "chunks": self.chunks,
            "running": self.running,
            "failed": self.failed,
            "events": self.events,
            "quarantined": self.quarantined,
            "provenRanges": [{"startSlot": start, "lastSlot": last} for start, last in self.proven],
            "halted": self.halted,
            "progress": self.progress.as_json(),
            "lagSlots": self.lag.slots if self.lag else None,
            "stalled": str(self.stalled) if self.stalled else None,
            "ready": not self.not_ready,
            "replay": self.redecoding.as_json() if self.redecoding else NO_REDECODING,
        }


def program_status(connection: Connection, settings: Settings, program: Program) -> ProgramStatus:
    """Return what the ledger knows of `program`."""
    key = chunk_key(program)
    with connection.transaction():
        counted = connection.execute(
            "SELECT status, count(*), count(*) FILTER (WHERE 'running' IN (records_state, events_state)), "
            "count(*) FILTER (WHERE 'failed' IN (records_state, events_state)), coalesce(sum(event_count), 0)::bigint "
            "FROM uho.chunk_status WHERE (network, owner, program) = (%s, %s, %s) GROUP BY status ORDER BY status",
            key,
        ).fetchall()
        proven = connection.execute(
            "SELECT start_slot, last_slot FROM uho.proven_ranges WHERE (network, owner, program) = (%s, %s, %s)", key
        ).fetchall()
        quarantined = connection.execute(
            "SELECT coalesce(sum((loaded_counts ->> 'undecodable')::bigint), 0)::bigint FROM uho.chunk "
            "WHERE (network, owner, program) = (%s, %s, %s)",
            key,
        ).fetchone()
    halted, stalled = get_halt(connection, program), get_stall(connection, program)
    lag = measure_lag(connection, settings, program) if program.follow else None
    not_ready = [f"{program.key} is halted: {halted}"] if halted else []
    if stalled is not None:
        not_ready.append(f"{program.key} {stalled}")
    elif lag is not None and lag.slots > settings.stall_slots:
        not_ready.append(f"{program.key} is behind: {lag}")
    return ProgramStatus(
        program=program.key,
        chunks={status: count for status, count, _, _, _ in counted},
        running=sum(row[2] for row in counted),
        failed=sum(row[3] for row in counted),
        events=sum(row[4] for row in counted),
        quarantined=quarantined[0] if quarantined else 0,
        proven=[(start, last) for start, last in proven],
        halted=halted,
        redecoding=redecoding_status(connection, program),
        lag=lag,
        stalled=stalled,
        progress=program_progress(connection, settings, program),
        not_ready=not_ready,
    )


def run_status(
    settings: Settings,
    name: str | None,
    console: Console,
    *,
    as_json: bool,
    watch: float | None = None,
    looks: Iterator[int] | None = None,
) -> None:
    """Tell the status of the program `name`, or of all that are registered; with `watch`, again every so many seconds.

    `looks` ends the watching when it does; by default it goes on until interrupted.

    Raises:
        UnknownProgramError, and what starting Postgres can raise.
    """
    registry = load_registry(settings)
    programs = registry.programs if name is None else [registry.program(name)]
    if not programs:
        raise NoProgramsError
    with (
        running_warehouse(settings) as running,
        connect(warehouse_url(running), application_name="uho status") as connection,
    ):

        def look() -> list[ProgramStatus]:
            return [program_status(connection, running, program) for program in programs]

        def document() -> Any:  # noqa: ANN401 - JSON
            documents = [status.as_json() for status in look()]
            return documents if name is None else documents[0]

        if watch is None:
            if as_json:
                console.print_json(data=document())
            else:
                console.print(_shown(look(), None))
                _tell_undelivered(connection, console)
            return
        looks = itertools.count() if looks is None else looks
        if as_json:
            for _ in _every(watch, looks):
                console.print(json.dumps(document()), soft_wrap=True, markup=False, highlight=False)
            return
        with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
            for _ in _every(watch, looks):
                live.update(_shown(look(), backfills_under_way(running)), refresh=True)


def _every(seconds: float, looks: Iterator[int]) -> Iterator[int]:
    """Yield each of `looks`, so many seconds apart."""
    for number, look in enumerate(looks):
        if number:
            time.sleep(seconds)
        yield look


def _tell_undelivered(connection: Connection, console: Console) -> None:
    waiting = undelivered(connection)
    if waiting:
        latest = waiting[-1].error
        told = f"{len(waiting)} deliveries of alerts fail, the latest: {latest}. See `uho alerts`"
        console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)


def run_ready(settings: Settings, name: str | None, console: Console) -> bool:
    """Say what keeps the program `name`, or any that is registered, from being ready; return whether nothing does.

    Raises:
        UnknownProgramError, and what starting Postgres can raise.
    """
    registry = load_registry(settings)
    programs = registry.programs if name is None else [registry.program(name)]
    with (
        running_warehouse(settings) as running,
        connect(warehouse_url(running), application_name="uho ready") as connection,
    ):
        reasons = [reason for program in programs for reason in program_status(connection, running, program).not_ready]
    for reason in reasons:
        console.print(reason, highlight=False, markup=False, soft_wrap=True)
    if not reasons:
        console.print("ready")
    return not reasons


def run_clear_halt(settings: Settings, name: str, reason: str, console: Console) -> None:
    """Lift the halt of the program `name`, in the name of who runs this, and say so.

    Raises:
        UnknownProgramError, NotHaltedError, and what starting Postgres can raise.
    """
    program = load_registry(settings).program(name)
    if not reason.strip():
        raise ReasonMissingError
    with (
        running_warehouse(settings) as running,
        connect(warehouse_url(running), application_name="uho clear-halt") as connection,
    ):
        if not clear_halt(connection, program, getpass.getuser(), reason):
            raise NotHaltedError(program.key)
    console.print(f"{program.key} is no longer halted; kept in uho.audit. Its events can be materialized again")


class ReasonMissingError(UhoError):
    """A decision without a reason."""

    def __init__(self) -> None:
        super().__init__("--reason is empty: say why, for who reads uho.audit")


class NotHaltedError(UhoError):
    """There is no halt to lift."""

    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(f"{program} is not halted")


class NoProgramsError(UhoError):
    """No program is registered."""

    def __init__(self) -> None:
        super().__init__("no program is registered: add a folder to UHO_PROGRAMS_DIR")


def _shown(found: Sequence[ProgramStatus], backfills: Sequence[BackfillState] | None) -> Group:
    """Return what a person sees of programs and, where Dagster was asked, of the backfills that have not ended."""
    tables = [_table(status) for status in found]
    if backfills:
        table = Table(title="backfills under way", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for backfill in backfills:
            table.add_row(Text(f"{backfill.id} {backfill.title}"), Text(backfill.sentence))
        tables.insert(0, table)
    return Group(*tables)


def _table(status: ProgramStatus) -> Table:
    table = Table(title=status.program, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    chunks = ", ".join(f"{count:,} {name}" for name, count in status.chunks.items()) or "none begun"
    table.add_row("chunks", f"{chunks}; {status.running:,} running, {status.failed:,} failed at their latest attempt")
    table.add_row("progress", status.progress.sentence)
    table.add_row("proven slots", ", ".join(f"{start} to {last}" for start, last in status.proven) or "none")
    table.add_row("events", f"{status.events:,}")
    table.add_row("quarantined", f"{status.quarantined:,} records" if status.quarantined else "none")
    if status.lag is not None:
        table.add_row("behind the archive", str(status.lag))
    if status.halted:
        table.add_row("[red]halted[/red]", status.halted)
    if status.stalled is not None:
        table.add_row("[red]stalled[/red]", status.stalled.reason)
    if status.redecoding is not None:
        table.add_row(status.redecoding.kind, _sentence(status.redecoding))
    return table


def _sentence(status: RedecodingStatus) -> str:
    chunks = f"{status.chunks_done:,} of {status.total_chunks:,} chunks"
    done = f"{status.rows_done:,} of {status.total_rows:,} records, {chunks}"
    if not status.running:
        ended = f"{status.state}: {status.error}" if status.error else status.state
        return f"{ended}; {done}; begun {status.started_at:%Y-%m-%d %H:%M:%S} UTC"
    estimate = status.estimated_completion
    until = f"done about {estimate:%Y-%m-%d %H:%M:%S} UTC" if estimate else "no estimate yet"
    return f"running since {status.started_at:%Y-%m-%d %H:%M:%S} UTC ({status.process}); {done}; {until}"

"""`uho backfill`: a program's chunks one after another in this process, by the same assets and checks as in Dagster.

What belongs here: which chunks, and what a person sees. Runs are recorded in the same Dagster instance, so that the UI
shows them; many small chunks go faster here, where Dagster is imported once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dagster import DagsterEvent, DagsterInstance, ExecuteInProcessResult
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from uho_pipelines.chunks import Chunk, parse_key
from uho_pipelines.definitions import build_definitions
from uho_pipelines.errors import UhoError
from uho_pipelines.materialization import Progress as ChunkProgress
from uho_pipelines.materialization import listening
from uho_pipelines.redaction import redact
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import backing_services, prepare_dagster
from uho_pipelines.settings import Settings

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run configuration: events go to the instance; the terminal shows a progress bar and a table."""


class NoChunksError(UhoError):
    """A slot range in which a program has no chunk."""

    def __init__(self, program: str, from_slot: int | None, to_slot: int | None, chunks: Sequence[Chunk]) -> None:
        self.program = program
        self.from_slot = from_slot
        self.to_slot = to_slot
        has = f"its chunks cover slots {chunks[0].start} to {chunks[-1].end - 1}" if chunks else "it has no chunk"
        super().__init__(
            f"{program} has no chunk between slots {from_slot} and {to_slot} (inclusive): {has}. A chunk exists "
            "once the archive has all of its epochs"
        )


@dataclass
class ChunkResult:
    """What became of one chunk."""

    chunk: Chunk
    succeeded: bool
    seconds: float
    matched: int = 0
    rows: int = 0
    findings: list[str] = field(default_factory=list[str])
    """What failed or warned, in sentences."""


def select_chunks(chunks: Sequence[Chunk], from_slot: int | None, to_slot: int | None) -> list[Chunk]:
    """Return the chunks that hold slots of `from_slot` to `to_slot` (inclusive), rounded outward; None: no bound."""
    return [
        chunk
        for chunk in chunks
        if (from_slot is None or chunk.end > from_slot) and (to_slot is None or chunk.start <= to_slot)
    ]


def run_backfill(settings: Settings, name: str, from_slot: int | None, to_slot: int | None, console: Console) -> bool:
    """Backfill the chunks of the program `name`; return whether all succeeded and no check failed.

    Raises:
        UnknownProgramError, NoChunksError, and what starting Postgres and the sidecar can raise.
    """
    program = load_registry(settings).program(name)
    with backing_services(settings, console.print) as stack:
        prepare_dagster(stack.environment)
        job = build_definitions(stack.settings).resolve_job_def(program.schema_name)
        slots = stack.settings.network(program.network).chunk_slots
        keys = job.partitions_def.get_partition_keys() if job.partitions_def else []
        every = [parse_key(key, slots) for key in keys]
        chunks = select_chunks(every, from_slot, to_slot)
        if not chunks:
            raise NoChunksError(program.key, from_slot, to_slot, every)
        console.print(
            f"{program.key}: {len(chunks)} chunks of {slots:,} slots, "
            f"{chunks[0].start} to {chunks[-1].end - 1} (inclusive)"
        )
        with DagsterInstance.from_config(stack.environment["DAGSTER_HOME"]) as instance:
            results = _run_chunks(job, instance, program, chunks, console)
    _show(program, results, console)
    return all(result.succeeded for result in results)


def _run_chunks(
    job: Any,  # noqa: ANN401 - Dagster's JobDefinition
    instance: DagsterInstance,
    program: Program,
    chunks: Sequence[Chunk],
    console: Console,
) -> list[ChunkResult]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[ChunkResult] = []
    with Progress(*columns, console=console) as bar:
        slots = bar.add_task("slots", total=sum(chunk.slots for chunk in chunks))
        for done, chunk in enumerate(chunks):
            bar.update(slots, description=f"chunk {chunk.key} ({done + 1} of {len(chunks)})")
            started = time.monotonic()
            with listening(_advance(bar, slots, chunk, sum(before.slots for before in chunks[:done]))):
                outcome = job.execute_in_process(
                    partition_key=chunk.key,
                    instance=instance,
                    raise_on_error=False,
                    run_config=QUIET,
                    tags={"uho/started_by": "uho backfill"},
                )
            results.append(_result(program, chunk, outcome, time.monotonic() - started))
            bar.update(slots, completed=sum(before.slots for before in chunks[: done + 1]))
            for finding in results[-1].findings:
                console.print(f"chunk {chunk.key}: {finding}", highlight=False, markup=False, soft_wrap=True)
    return results


def _advance(bar: Progress, task: TaskID, chunk: Chunk, before: int) -> Any:  # noqa: ANN401 - a listener
    def advance(progress: ChunkProgress) -> None:
        bar.update(task, completed=before + progress.current_slot - chunk.start)

    return advance


def _result(program: Program, chunk: Chunk, outcome: ExecuteInProcessResult, seconds: float) -> ChunkResult:
    result = ChunkResult(chunk, outcome.success, seconds)
    checks = outcome.get_asset_check_evaluations()
    for check in checks:
        if not check.passed:
            result.findings.append(f"{check.check_name} {check.severity.value}: {check.description or ''}")
            result.succeeded = result.succeeded and check.severity.value != "ERROR"
    for event in outcome.all_events:
        if event.is_step_materialization and event.asset_key is not None:
            metadata = event.step_materialization_data.materialization.metadata
            if event.asset_key.path[-1] == f"{program.name}_events":
                result.rows = int(str(metadata["events"].value))
            else:
                result.matched = int(str(metadata["transactions matched"].value))
        elif event.is_step_failure:
            reason = redact(_reason(event))
            if not any(check.description and reason.endswith(check.description) for check in checks):
                result.findings.append(reason)
    return result


def _reason(event: DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else "failed without a reason"


def _show(program: Program, results: Sequence[ChunkResult], console: Console) -> None:
    table = Table(title=f"{program.key}", title_justify="left")
    table.add_column("chunk")
    for heading in ("transactions matched", "events", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("outcome")
    for result in results:
        outcome = "[green]complete[/green]" if not result.findings else "[yellow]complete, with warnings[/yellow]"
        if not result.succeeded:
            outcome = "[red]failed[/red]"
        table.add_row(result.chunk.key, f"{result.matched:,}", f"{result.rows:,}", f"{result.seconds:.1f}", outcome)
    console.print(table)
    rows, seconds = sum(result.rows for result in results), sum(result.seconds for result in results)
    failed = sum(not result.succeeded for result in results)
    rate = rows / seconds if seconds else 0.0
    console.print(
        f"{rows:,} events in {seconds:.1f} s ({rate:,.0f} events/s); {failed} of {len(results)} chunks failed"
    )

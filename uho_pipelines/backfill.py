"""`uho backfill`: a program's chunks one after another in this process, by the same assets and checks as in Dagster.

What belongs here: which chunks, and what a person sees. Runs are recorded in the same Dagster instance, so that the UI
shows them; many small chunks go faster here, where Dagster is imported once.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dagster import AssetKey, DagsterEvent, DagsterInstance, ExecuteInProcessResult, JobDefinition
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from uho_pipelines.assets import JOB_TAG
from uho_pipelines.checks import INTEGRITY
from uho_pipelines.chunks import Chunk, parse_key, select_chunks
from uho_pipelines.decoding import decoder_for
from uho_pipelines.definitions import build_definitions
from uho_pipelines.errors import UhoError
from uho_pipelines.integrity.outcome import OUTCOMES
from uho_pipelines.materialization import Progress as ChunkProgress
from uho_pipelines.materialization import listening, warehouse_url
from uho_pipelines.redaction import redact
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.abandoned import PROCESS_TAG, this_process
from uho_pipelines.runtime.stack import Stack, backing_services, prepare_dagster
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import connect, ensure_tables
from uho_pipelines.warehouse.indexes import asked_indexes, ensure_indexes
from uho_pipelines.warehouse.ledger import fix_chunk_slots, register_program

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
    integrity: Counter[str] = field(default_factory=Counter[str])
    """Samples by outcome."""
    findings: list[str] = field(default_factory=list[str])
    """What failed or warned, in sentences."""


def run_backfill(settings: Settings, name: str, from_slot: int | None, to_slot: int | None, console: Console) -> bool:
    """Backfill the chunks of the program `name`; return whether all succeeded and no check failed.

    Raises:
        UnknownProgramError, NoChunksError, and what starting Postgres and the sidecar can raise.
    """
    program = load_registry(settings).program(name)
    with backing_services(settings, console.print) as stack:
        job = _program_job(stack, program)
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
        results = run_chunks(stack, program, chunks, console, job=job)
    show_results(program, results, console)
    return all(result.succeeded for result in results)


def run_index(settings: Settings, name: str, console: Console) -> bool:
    """Have exactly the indexes that the program `name` asks for; return whether all of them are there.

    Raises:
        UnknownProgramError, ProgramRefusedError, and what starting Postgres can raise.
    """
    program = load_registry(settings).program(name)
    tables = decoder_for(program).tables()
    asked_indexes(program, tables)
    with backing_services(settings, console.print, sidecar=False) as stack:
        url = warehouse_url(stack.settings)
        with connect(url, application_name=f"uho index {program.key}") as connection:
            fix_chunk_slots(connection, program.network, stack.settings.network(program.network).chunk_slots)
            register_program(connection, program)
            changes = ensure_indexes(connection, program, ensure_tables(connection, program, tables), tables)
    for what, names in (("built", changes.built), ("dropped", changes.dropped), ("failed", changes.faults)):
        for changed in names:
            console.print(f"{what}: {changed}", highlight=False, markup=False, soft_wrap=True)
    if not (changes.built or changes.dropped or changes.faults):
        console.print(f"{program.key}: nothing to change")
    return not changes.faults


def run_chunks(
    stack: Stack,
    program: Program,
    chunks: Sequence[Chunk],
    console: Console,
    *,
    job: JobDefinition | None = None,
    assets: Sequence[AssetKey] | None = None,
    started_by: str = "uho backfill",
    within: Callable[[ChunkProgress], None] = lambda _: None,
    done: Callable[[ChunkResult], None] = lambda _: None,
) -> list[ChunkResult]:
    """Materialize `assets` (None: records and events) of one chunk after another, in this process.

    `within` is told of progress in a chunk, `done` of every chunk's end.
    """
    job = job or _program_job(stack, program)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[ChunkResult] = []
    name, said = str(uuid.uuid4()), set[str]()
    with (
        DagsterInstance.from_config(stack.environment["DAGSTER_HOME"]) as instance,
        Progress(*columns, console=console) as bar,
    ):
        slots = bar.add_task("slots", total=sum(chunk.slots for chunk in chunks))
        for place, chunk in enumerate(chunks):
            bar.update(slots, description=f"chunk {chunk.key} ({place + 1} of {len(chunks)})")
            before = sum(earlier.slots for earlier in chunks[:place])

            def advance(progress: ChunkProgress, before: int = before, chunk: Chunk = chunk) -> None:
                bar.update(slots, completed=before + progress.current_slot - chunk.start)
                within(progress)

            started = time.monotonic()
            with listening(advance):
                outcome = job.execute_in_process(
                    partition_key=chunk.key,
                    asset_selection=assets,
                    instance=instance,
                    raise_on_error=False,
                    run_config=QUIET,
                    tags={
                        "uho/started_by": started_by,
                        JOB_TAG: f"{name}/{place}/{len(chunks)}",
                        PROCESS_TAG: this_process(),
                    },
                )
            results.append(_result(program, chunk, outcome, time.monotonic() - started))
            bar.update(slots, completed=before + chunk.slots)
            for finding in (text for text in results[-1].findings if text not in said):
                said.add(finding)  # what holds for every chunk is said once
                console.print(f"chunk {chunk.key}: {finding}", highlight=False, markup=False, soft_wrap=True)
            done(results[-1])
    return results


def _program_job(stack: Stack, program: Program) -> JobDefinition:
    prepare_dagster(stack.settings, stack.environment)
    return build_definitions(stack.settings).resolve_job_def(program.schema_name)


def _result(program: Program, chunk: Chunk, outcome: ExecuteInProcessResult, seconds: float) -> ChunkResult:
    result = ChunkResult(chunk, outcome.success, seconds)
    checks = outcome.get_asset_check_evaluations()
    for check in checks:
        if check.check_name == INTEGRITY:
            counts = {outcome: check.metadata.get(outcome) for outcome in OUTCOMES}
            result.integrity.update({name: int(str(count.value)) for name, count in counts.items() if count})
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


def failures(run: ExecuteInProcessResult) -> list[str]:
    """Return why steps of a run failed, in sentences."""
    return [redact(_reason(event)) for event in run.all_events if event.is_step_failure]


def _reason(event: DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return error.message.strip() if error is not None else "failed without a reason"


def show_results(program: Program, results: Sequence[ChunkResult], console: Console) -> None:
    """Print a table of what became of every chunk."""
    table = Table(title=f"{program.key}", title_justify="left")
    table.add_column("chunk")
    for heading in ("transactions matched", "events", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("integrity")
    table.add_column("outcome")
    for result in results:
        outcome = "[green]complete[/green]" if not result.findings else "[yellow]complete, with warnings[/yellow]"
        if not result.succeeded:
            outcome = "[red]failed[/red]"
        counts = (f"{result.matched:,}", f"{result.rows:,}", f"{result.seconds:.1f}")
        table.add_row(result.chunk.key, *counts, _samples(result.integrity), outcome)
    console.print(table)
    compared = sum((result.integrity for result in results), Counter[str]())
    console.print(f"integrity, {compared.total():,} transactions against the RPC node: {_samples(compared)}")
    rows, seconds = sum(result.rows for result in results), sum(result.seconds for result in results)
    failed = sum(not result.succeeded for result in results)
    rate = rows / seconds if seconds else 0.0
    console.print(
        f"{rows:,} events in {seconds:.1f} s ({rate:,.0f} events/s); {failed} of {len(results)} chunks failed"
    )


def _samples(counts: Counter[str]) -> str:
    """Return samples by outcome, those that there are."""
    return ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in OUTCOMES if counts[outcome]) or "nothing compared"

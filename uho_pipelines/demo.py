"""`uho demo`: the main job end to end on an archive whose contents are known.

What belongs here: making the simulated archive, launching a real Dagster backfill over it through GraphQL as a person
does in the UI, comparing every row with the truth, and showing what happened.
"""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from uho_pipelines.chunks import program_chunks
from uho_pipelines.graphql import BackfillProgress, backfill_progress, launch_backfill
from uho_pipelines.integrity.outcome import OUTCOMES
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import Stack, built_program, running_stack
from uho_pipelines.settings import Settings
from uho_pipelines.truth import TableComparison, compare_program, truth_of
from uho_pipelines.warehouse import connect, read_plan

SEED = 20_260_101
"""The demo's archive is made from this seed: the same bytes on every machine."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: equal or not, and how long the backfill took (seconds, from launch to its end)."""

    progress: BackfillProgress
    comparisons: list[TableComparison]
    integrity: Mapping[str, Counter[str]]
    """Samples by outcome, by program."""
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether the backfill succeeded, every table equals the truth, and the RPC node says the same."""
        return (
            self.progress.status == "COMPLETED_SUCCESS"
            and bool(self.comparisons)
            and all(comparison.equal for comparison in self.comparisons)
            and all(counts["verified"] and not counts["mismatch"] for counts in self.integrity.values())
        )


def run_demo(settings: Settings, console: Console) -> bool:
    """Run the demo and show its result; return whether it succeeded. Everything it started is stopped."""
    console.print("writing the simulated archive")
    simulated_archive(settings)
    console.print("starting Postgres, the sidecar and Dagster")
    with running_stack(settings, console.print) as stack:
        programs = demo_programs(stack.settings)
        backfill, progress, seconds = backfill_all(stack, programs, console)
        compared = compare_with_truth(stack.settings, programs)
        integrity = {program.name: samples_of(stack.settings, program, backfill) for program in programs}
        result = DemoResult(progress, compared, integrity, seconds)
    show_result(settings, result, console)
    return result.succeeded


def simulated_archive(settings: Settings) -> Path:
    """Return the folder of the simulated archive of network `sim`, written now if it is not there whole."""
    folder = settings.home / "sim"
    summary = folder / "truth" / "summary.json"
    if not summary.exists() or json.loads(summary.read_text(encoding="utf-8")).get("seed") != SEED:
        command = [str(built_program("archive-sim")), "write", "--out", str(folder), "--seed", str(SEED)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def demo_programs(settings: Settings) -> list[Program]:
    """Return the registered programs of network `sim`."""
    return [program for program in load_registry(settings).programs if program.network == "sim"]


def backfill_all(dagster: Stack, programs: list[Program], console: Console) -> tuple[str, BackfillProgress, float]:
    """Launch the backfill of every chunk of `programs` and wait for its end; return its id, progress and seconds."""
    assets = [[p.network, p.owner, f"{p.name}_{stage}"] for p in programs for stage in ("records", "events")]
    keys = sorted({chunk.key for p in programs for chunk in program_chunks(dagster.settings, p, tip=None)})
    started = time.monotonic()
    backfill = launch_backfill(dagster.url, assets, keys, title="uho demo")
    console.print(
        f"backfill [bold]{backfill}[/bold]: {len(assets)} assets, {len(keys)} chunks · {dagster.url}/runs/b/{backfill}"
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("materialized", total=len(assets) * len(keys))
        while True:
            progress = backfill_progress(dagster.url, backfill)
            bar.update(task, completed=progress.materialized)
            if progress.ended:
                return backfill, progress, time.monotonic() - started
            dagster.watch()
            time.sleep(1)


def compare_with_truth(settings: Settings, programs: list[Program]) -> list[TableComparison]:
    """Compare every event table of `programs` with the simulator's truth."""
    archive = settings.home / "sim"
    with connect(warehouse_url(settings), application_name="uho demo") as connection:
        return [
            comparison
            for program in programs
            for comparison in compare_program(
                connection, program, read_plan(connection, program), truth_of(archive, program)
            )
        ]


def samples_of(settings: Settings, program: Program, job: str) -> Counter[str]:
    """Return how many of a job's transactions were compared with the RPC node, by outcome."""
    query = (
        "SELECT outcome, count(*) FROM uho.integrity_sample "
        "WHERE (network, owner, program) = (%s, %s, %s) AND job = %s GROUP BY outcome"
    )
    with connect(warehouse_url(settings), application_name="uho demo") as connection:
        values = [program.network, program.owner, program.name, job]
        return Counter(dict(connection.execute(query, values).fetchall()))


def show_result(settings: Settings, result: DemoResult, console: Console) -> None:
    """Print what the simulated archive held, what was loaded, and whether they are equal."""
    summary: dict[str, Any] = json.loads((settings.home / "sim" / "truth" / "summary.json").read_text(encoding="utf-8"))
    traps = Table(title="What the archive holds, on purpose", title_justify="left")
    traps.add_column("trap")
    traps.add_column("times", justify="right")
    for name, count in summary["traps"].items():
        traps.add_row(name.replace("_", " "), f"{count:,}")
    console.print(traps)

    tables = Table(title="Postgres against the truth, field by field", title_justify="left")
    for heading in ("program", "event"):
        tables.add_column(heading)
    for heading in ("rows", "rows in truth", "differences"):
        tables.add_column(heading, justify="right")
    for comparison in result.comparisons:
        style = "green" if comparison.equal else "red"
        cells = (
            comparison.program,
            comparison.event,
            f"{comparison.rows:,}",
            f"{comparison.rows_in_truth:,}",
            f"{comparison.differing:,}",
        )
        tables.add_row(*cells, style=style)
    console.print(tables)
    for comparison in result.comparisons:
        for difference in comparison.differences[:5]:
            console.print(f"[red]{comparison.program} {comparison.event}[/red] {difference}", highlight=False)

    integrity = Table(title="Random transactions against an RPC node, decoded by anchorpy", title_justify="left")
    integrity.add_column("program")
    for outcome in OUTCOMES:
        integrity.add_column(outcome, justify="right")
    for program, counts in result.integrity.items():
        style = "green" if counts["verified"] and not counts["mismatch"] else "red"
        integrity.add_row(program, *(f"{counts[outcome]:,}" for outcome in OUTCOMES), style=style)
    console.print(integrity)

    rows = sum(comparison.rows for comparison in result.comparisons)
    console.print(
        f"{result.progress.status}: {rows:,} events in {result.seconds:.0f} s "
        f"({rows / result.seconds:,.0f} events/s, a process a chunk)"
    )
    if result.succeeded:
        console.print(
            "[bold green]Every row equals the truth.[/bold green] Look at it in the browser: [bold]make up[/bold]"
        )
    else:
        console.print(
            f"[bold red]The demo failed.[/bold red] Its logs: {settings.home / 'logs'}; its runs: [bold]make up[/bold]"
        )

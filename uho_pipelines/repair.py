"""`uho repair`: the job `repair` in this process.

What belongs here: what a person sees. What is done is `quarantine.py`'s business, how Dagster shows it `upkeep.py`'s.
"""

import dagster as dg
from rich.console import Console
from rich.table import Table

from uho_pipelines.backfill import QUIET, failures
from uho_pipelines.decoding import events_by_discriminator
from uho_pipelines.quarantine import RepairOutcome
from uho_pipelines.registry import load_registry
from uho_pipelines.runtime.stack import backing_services, prepare_dagster
from uho_pipelines.settings import Settings
from uho_pipelines.upkeep import repair_job


def run_repair(settings: Settings, name: str, from_slot: int | None, to_slot: int | None, console: Console) -> bool:
    """Run the job `repair` for the program `name` in this process, and tell what it came to; return whether it did.

    Raises:
        UnknownProgramError, and what starting Postgres can raise.
    """
    program = load_registry(settings).program(name)
    outcomes: list[RepairOutcome] = []
    with backing_services(settings, console.print, sidecar=False) as stack:
        prepare_dagster(stack.settings, stack.environment)
        job = repair_job(stack.settings, [program], outcomes.append)
        config = {"program": program.key, "from_slot": from_slot, "to_slot": to_slot}
        with dg.DagsterInstance.from_config(stack.environment["DAGSTER_HOME"]) as instance:
            run = job.execute_in_process(
                instance=instance,
                raise_on_error=False,
                run_config={**QUIET, "ops": {"repair_quarantined": {"config": config}}},
                tags={"uho/started_by": "uho repair"},
            )
    for outcome in outcomes:
        show_repair(outcome, console)
    for fault in failures(run):
        console.print(fault, highlight=False, markup=False, soft_wrap=True)
    return run.success


def show_repair(outcome: RepairOutcome, console: Console) -> None:
    """Print what was quarantined before and after, by discriminator and reason."""
    events = events_by_discriminator(outcome.program)
    table = Table(title="Quarantined records", title_justify="left")
    for heading in ("discriminator", "event", "reason"):
        table.add_column(heading)
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for key in sorted(outcome.before.keys() | outcome.after.keys()):
        discriminator, reason = key
        counts = (f"{outcome.before[key]:,}", f"{outcome.after[key]:,}")
        table.add_row(discriminator, events.get(discriminator, "unknown"), reason, *counts)
    if table.row_count:
        console.print(table)
    for sentence in outcome.sentences:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

"""Is a program that follows the archive up to date: a check in Dagster, the sensor that evaluates it, and readiness.

What belongs here: who is told of a lag, and in which words. Measuring and latching is `warehouse/stall.py`'s business.
"""

import getpass
import json
import time
from collections.abc import Sequence

import dagster as dg
from rich.console import Console

from uho_pipelines.assets import events_key
from uho_pipelines.checks import Verdict
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.stack import running_warehouse
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.stall import Lag, Stall, clear_stall, latch_stall, measure_lag

FRESHNESS = "freshness"

SENSOR_SECONDS = 60
"""The sensor looks so often; less where the archive's tip is looked at more often."""

SAID_AGAIN_SECONDS = 3600.0
"""A check whose outcome does not change is evaluated again after this: its page shows when it was last looked at."""


def freshness_check(settings: Settings, program: Program) -> dg.AssetChecksDefinition:
    """Return the check of a followed program's `events` that they reach as far as the archive does."""

    @dg.asset_check(
        asset=events_key(program),
        name=FRESHNESS,
        description=(
            f"At most {settings.stall_slots:,} slots lie between the newest complete chunk and the archive's newest. "
            "A program that was once further behind is stalled until `uho stall clear`."
        ),
        op_tags={"uho/stage": FRESHNESS, "uho/network": program.network, "uho/owner": program.owner},
    )
    def check() -> dg.AssetCheckResult:
        return look(settings, program).result(events_key(program), FRESHNESS)

    return check


def freshness_sensor(settings: Settings, programs: Sequence[Program]) -> dg.SensorDefinition:
    """Return the sensor that evaluates the check of every followed program, without a run."""

    @dg.sensor(
        name=FRESHNESS,
        minimum_interval_seconds=min(SENSOR_SECONDS, settings.archive_tip_seconds),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks how far programs with `follow: true` are behind the archive; too far is a stall.",
    )
    def sense(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if settings.postgres_url is None:
            return dg.SkipReason("no warehouse is set, so nothing says which chunks are complete")
        said: dict[str, list[str | float]] = json.loads(context.cursor or "{}")
        now = time.time()
        evaluations: list[dg.AssetCheckEvaluation] = []
        for program in programs:
            verdict = look(settings, program)
            before = said.get(program.key)
            if before and before[0] == verdict.text and now - float(before[1]) < SAID_AGAIN_SECONDS:
                continue
            said[program.key] = [verdict.text, now]
            evaluations.append(_evaluation(program, verdict))
        if not evaluations:
            return dg.SkipReason(f"nothing changed for {len(programs)} programs")
        return dg.SensorResult(asset_events=evaluations, cursor=json.dumps(said))

    return sense


def look(settings: Settings, program: Program) -> Verdict:
    """Measure the program's lag, latch a stall if it is one, and return what is to be said."""
    with connect(warehouse_url(settings), application_name="uho freshness") as connection:
        lag = measure_lag(connection, settings, program)
        stall = latch_stall(connection, settings, program, lag)
    return freshness(settings, program, lag, stall)


def freshness(settings: Settings, program: Program, lag: Lag | None, stall: Stall | None) -> Verdict:
    """Return whether a program is up to date."""
    if lag is None:
        verdict = Verdict(metadata={"lag in slots": "not known: the archive has no chunk of this program yet"})
    else:
        verdict = Verdict(
            metadata={
                "lag in slots": lag.slots,
                "allowed": settings.stall_slots,
                "complete up to slot": lag.complete_end - 1,
                "archive's newest chunk ends at slot": lag.end - 1,
                "chunks missing": lag.missing,
            }
        )
    behind = lag is not None and lag.slots > settings.stall_slots
    if stall is not None:
        verdict.metadata["stalled since"] = dg.MetadataValue.timestamp(stall.since)
        if behind:
            advice = "Look why its chunks fail: the sensor that follows it says so. Then clear the stall"
        else:
            advice = "It has caught up since: clear the stall"
        verdict.errors.append(f"{program.key} {stall}. {advice} with `uho stall clear {program.key}`.")
    return verdict


def run_stall_clear(settings: Settings, name: str, reason: str, console: Console) -> None:
    """Clear the stall of the program `name`, in the name of who runs this, and say so.

    Raises:
        UnknownProgramError, NotStalledError, StillLaggingError, and what starting Postgres can raise.
    """
    program = load_registry(settings).program(name)
    with (
        running_warehouse(settings) as running,
        connect(warehouse_url(running), application_name="uho stall clear") as connection,
    ):
        clear_stall(connection, running, program, getpass.getuser(), reason)
    console.print(f"{program.key} is no longer stalled; kept in uho.audit")


def _evaluation(program: Program, verdict: Verdict) -> dg.AssetCheckEvaluation:
    result = verdict.result(events_key(program), FRESHNESS)
    return dg.AssetCheckEvaluation(
        asset_key=events_key(program),
        check_name=FRESHNESS,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )

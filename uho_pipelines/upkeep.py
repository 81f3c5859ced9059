"""Jobs of Dagster that look after what is loaded: verification, little by little, and targeted repair.

What belongs here: jobs, their configuration and schedule, and what their pages show. They claim no pool and go before
what waits, so that they never wait behind streams. What is done is `verification.py`'s and `quarantine.py`'s business.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from pydantic import Field

from uho_pipelines.assets import events_key
from uho_pipelines.checks import SKIP_RATE, skip_rate, table_metadata
from uho_pipelines.chunks import Chunk
from uho_pipelines.decoding import events_by_discriminator
from uho_pipelines.errors import UhoError
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.quarantine import RepairOutcome, repair_program
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.verification import ChunkVerification, due_chunks, verify_chunk
from uho_pipelines.warehouse import connect
from uho_pipelines.warehouse.repair import RepairResult

VERIFY_AGAIN_SECONDS = 7 * 24 * 3600.0
"""A chunk is verified again by the schedule when its last verification is so old."""

FIRST = {"dagster/priority": "10"}
"""Before the backfills that wait; these runs are short."""


class UnknownProgramHereError(UhoError):
    """A job was asked for a program that the code location does not have."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no program {name!r} here; there are: {', '.join(known)}")


class VerifyConfig(dg.Config):
    """What can be said when chunks are verified."""

    chunks: int = Field(default=8, ge=1, description="So many chunks, of all programs, the longest unverified first.")
    older_than_seconds: float = Field(
        default=VERIFY_AGAIN_SECONDS, ge=0, description="Only chunks whose last verification is so long ago."
    )


class RepairConfig(dg.Config):
    """Whose quarantined records are decoded again."""

    program: str = Field(description="The program: network/owner/name.")
    from_slot: int | None = Field(default=None, ge=0, description="First slot; default: the program's first.")
    to_slot: int | None = Field(default=None, ge=0, description="Last slot, inclusive; default: the last there is.")


def verify_job(settings: Settings, programs: Sequence[Program]) -> dg.JobDefinition:
    """Return the job that verifies the chunks that were not verified for longest, of all programs."""

    @dg.op(description="Compares ledger, certificates, lake, quarantine and tables of a few chunks.")
    def verify_chunks(context: dg.OpExecutionContext, config: VerifyConfig) -> None:
        found = _verify_due(settings, programs, config)
        damaged = [chunk for _, chunk in found if chunk.damaged]
        for program, chunk in found:
            context.log_event(
                dg.AssetObservation(
                    events_key(program),
                    partition=chunk.chunk.key,
                    metadata={
                        "verified": chunk.busy or ("damaged" if chunk.damaged else "as it was loaded"),
                        **({"mend it with": chunk.command} if chunk.command else {}),
                    },
                )
            )
        rows = [
            {
                "program": chunk.program,
                "chunk": chunk.chunk.key,
                "found": finding.text,
                "mend it with": chunk.command or "",
            }
            for chunk in damaged
            for finding in chunk.findings
        ]
        metadata: dict[str, Any] = {"chunks verified": len(found), "damaged": table_metadata(rows)}
        if damaged:
            told = "; ".join(f"{chunk.program} chunk {chunk.chunk.key}: `{chunk.command}`" for chunk in damaged[:20])
            raise dg.Failure(
                description=f"{len(damaged)} of {len(found)} chunks are damaged. Mend them with {told}",
                metadata=metadata,
                allow_retries=False,
            )
        context.add_output_metadata(metadata)

    @dg.job(
        name="verify",
        description="Is what was proved and loaded still there? A few chunks, the longest unverified first.",
        tags=FIRST,
        executor_def=dg.in_process_executor,
    )
    def verify() -> None:
        verify_chunks()

    return verify


def verify_schedule(settings: Settings, programs: Sequence[Program], job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Return the schedule that verifies little by little. Where nothing is due, it says so and starts no run."""

    @dg.schedule(
        name="verify_little_by_little",
        job=job,
        cron_schedule="*/15 * * * *",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Eight chunks every quarter of an hour, each chunk about once a week.",
    )
    def verify_little_by_little(_context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        with connect(warehouse_url(settings), application_name="uho verify schedule") as connection:
            if any(due_chunks(connection, program, VERIFY_AGAIN_SECONDS, 1) for program in programs):
                return dg.RunRequest()
        return dg.SkipReason("every chunk was verified within a week")

    return verify_little_by_little


def repair_job(
    settings: Settings, programs: Sequence[Program], done: Callable[[RepairOutcome], None] = lambda _: None
) -> dg.JobDefinition:
    """Return the job that decodes a program's quarantined records again; `done` is told of the outcome."""
    by_key: Mapping[str, Program] = {program.key: program for program in programs}

    @dg.op(description="Decodes exactly the quarantined records again, by the present IDL versions.")
    def repair_quarantined(context: dg.OpExecutionContext, config: RepairConfig) -> None:
        program = by_key.get(config.program)
        if program is None:
            raise UnknownProgramHereError(config.program, sorted(by_key))

        def tell(result: RepairResult) -> None:
            # It is taken, and shown on the check's page, though the annotation knows no check.
            context.log_event(_check_after(context, program, result))  # pyright: ignore[reportArgumentType]
            counts = {
                "quarantined before": result.before.undecodable,
                "quarantined after": result.after.undecodable,
                "decoded": result.repaired.decoded,
            }
            context.log_event(dg.AssetObservation(events_key(program), partition=result.chunk.key, metadata=counts))

        outcome = repair_program(settings, program, config.from_slot, config.to_slot, tell)
        for sentence in outcome.sentences:
            context.log.info(sentence)
        context.add_output_metadata({**outcome.as_json(), "what it came to": " ".join(outcome.sentences)})
        done(outcome)

    @dg.job(
        name="repair",
        description="A new IDL version decodes exactly the quarantined records again. No archive is read.",
        tags=FIRST,
        executor_def=dg.in_process_executor,
    )
    def repair() -> None:
        repair_quarantined()

    return repair


def _verify_due(
    settings: Settings, programs: Sequence[Program], config: VerifyConfig
) -> list[tuple[Program, ChunkVerification]]:
    with connect(warehouse_url(settings), application_name="uho verify") as connection:
        due: list[tuple[float, str, Chunk, Program]] = []
        for program in programs:
            for at, chunk in due_chunks(connection, program, config.older_than_seconds, config.chunks):
                due.append((at, program.key, chunk, program))
        due.sort(key=lambda item: item[:3])
        return [
            (program, verify_chunk(connection, settings, program, chunk))
            for _, _, chunk, program in due[: config.chunks]
        ]


def _check_after(context: dg.OpExecutionContext, program: Program, result: RepairResult) -> dg.AssetCheckEvaluation:
    """Return `skip_rate` of a chunk after its repair, on the materialization that it repaired."""
    key = events_key(program)
    verdict = skip_rate(result.after, events_by_discriminator(program))
    check = verdict.result(key, SKIP_RATE, result.chunk)
    latest = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[result.chunk.key]), limit=1
    ).records
    target = None
    if latest:
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=latest[0].storage_id, run_id=latest[0].run_id, timestamp=latest[0].timestamp
        )
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=SKIP_RATE,
        passed=check.passed,
        metadata=check.metadata,
        severity=check.severity,
        description=check.description,
        blocking=True,
        partition=result.chunk.key,
        target_materialization_data=target,
    )

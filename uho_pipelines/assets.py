"""The assets: a scan group becomes its programs' `records`, a program becomes its `events`, each partition a chunk.

What belongs here: keys, dependencies, limits, metadata, and how an outcome becomes Dagster's events. What is done for a
chunk is `materialization.py`'s business, what passes is `checks.py`'s.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster import AssetExecutionContext
from pydantic import Field

from uho_pipelines.checks import (
    COMPLETENESS,
    INTEGRITY,
    INTEGRITY_DESCRIPTION,
    SKIP_RATE,
    Verdict,
    certificate_table,
    completeness,
    completeness_spec,
    integrity,
    skip_rate_spec,
)
from uho_pipelines.chunks import Chunk, parse_key, program_chunks
from uho_pipelines.decoding import code_version, decoder_for
from uho_pipelines.integrity.sampling import Job
from uho_pipelines.lake import SCHEMA_VERSION
from uho_pipelines.materialization import (
    EventsOutcome,
    ProgramHaltedError,
    Progress,
    RecordsOutcome,
    Reporter,
    load_events,
    read_records,
    tell_listener,
    warehouse_url,
)
from uho_pipelines.redaction import redact
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings

ARCHIVE_POOL = "archive"
"""Ops that hold an archive stream claim a slot of this pool."""

WAREHOUSE_POOL = "warehouse"
"""Ops that write to Postgres claim a slot of this pool."""

BACKFILL_TAG = "dagster/backfill"
"""The tag that names a run's backfill."""

JOB_TAG = "uho/job"
"""The tag that says which part of a job a run is that no backfill of Dagster's started: `<name>/<place>/<chunks>`."""

DATA_VERSION_TAG = "dagster/data_version"
"""The tag by which an observation tells an asset's data version."""

OBSERVED_EVERY_SECONDS = 60.0
"""While a chunk's stage is under way, its page shows how far it is so often."""

EventsOfOp = Generator[dg.MaterializeResult[Any] | dg.AssetCheckResult | dg.AssetObservation]
"""What an op yields."""


class RecordsConfig(dg.Config):
    """What can be said when records are materialized."""

    start_over: bool = Field(
        default=False,
        description="Forget what is kept of the chunk and read all of it again. Otherwise only its last stretch is "
        "read again, to see that what is kept is still true.",
    )


@dataclass(frozen=True)
class ScanGroup:
    """Programs of one owner and network that share a pass over the archive, and their chunks."""

    network: str
    owner: str
    name: str
    programs: tuple[Program, ...]
    partitions: dg.StaticPartitionsDefinition

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        return len(self.partitions.get_partition_keys())


def archive_key(network: str) -> dg.AssetKey:
    """Return the key of a network's archive."""
    return dg.AssetKey([network, "archive"])


def records_key(program: Program) -> dg.AssetKey:
    """Return the key of a program's records."""
    return dg.AssetKey([program.network, program.owner, f"{program.name}_records"])


def events_key(program: Program) -> dg.AssetKey:
    """Return the key of a program's events."""
    return dg.AssetKey([program.network, program.owner, f"{program.name}_events"])


def idl_key(program: Program) -> dg.AssetKey:
    """Return the key of a program's IDL."""
    return dg.AssetKey([program.network, program.owner, f"{program.name}_idl"])


def scan_groups(settings: Settings, programs: Iterable[Program], tips: Mapping[str, int | None]) -> list[ScanGroup]:
    """Return the scan groups of `programs`; `tips` maps networks to the end (exclusive) of what is published whole."""
    members: dict[tuple[str, str, str], list[Program]] = {}
    for program in programs:
        members.setdefault((program.network, program.owner, program.scan_group), []).append(program)
    groups: list[ScanGroup] = []
    for (network, owner, name), group in members.items():
        chunks = {chunk.key for program in group for chunk in program_chunks(settings, program, tips.get(network))}
        partitions = dg.StaticPartitionsDefinition(sorted(chunks))
        groups.append(ScanGroup(network, owner, name, tuple(group), partitions))
    return groups


def archive_asset(settings: Settings, network: str) -> dg.AssetSpec:
    """Return the external asset that stands for a network's archive."""
    url = settings.network(network).archive_url
    return dg.AssetSpec(
        archive_key(network),
        group_name="archive",
        kinds={"solana"},
        description=f"The Old Faithful archive of {network}, epoch by epoch, read by the sidecar.",
        metadata={"archive": redact(url) if url else "not set here: the sidecar knows it"},
    )


def idl_asset(program: Program) -> dg.SourceAsset:
    """Return a program's IDL: its data version is the hash of its versions; a new one puts events out of date."""

    @dg.observable_source_asset(
        key=idl_key(program),
        group_name=program.name,
        description=f"The Anchor IDL of {program.name}, {program.program_id}, version by version.",
        metadata={version.label: f"in force from slot {version.from_slot}" for version in program.idls},
        tags={"dagster/kind/json": ""},
    )
    def observe_idl() -> dg.DataVersion:
        return dg.DataVersion(program.idl_hash)

    return observe_idl


def records_asset(settings: Settings, group: ScanGroup) -> dg.AssetsDefinition:
    """Return a scan group's `records`: whichever are selected are read in one stream."""
    by_key = {records_key(program): program for program in group.programs}
    specs = [
        dg.AssetSpec(
            key,
            deps=[archive_key(group.network)],
            skippable=True,
            group_name=program.name,
            owners=[f"team:{program.owner}"],
            kinds={"solana", "parquet"},
            code_version=f"records-{SCHEMA_VERSION}{'-instructions' if program.instructions else ''}",
            description=f"What {program.name} said, as Parquet with a certificate that nothing is missing.",
            metadata=_program_metadata(program),
        )
        for key, program in by_key.items()
    ]

    @dg.multi_asset(
        name=f"{group.owner}_{group.network}_{group.name}_records",
        specs=specs,
        check_specs=[completeness_spec(key, group.partitions) for key in by_key],
        partitions_def=group.partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        can_subset=True,
        pool=ARCHIVE_POOL,
        op_tags={"uho/stage": "records", "uho/network": group.network, "uho/owner": group.owner},
    )
    def records(context: AssetExecutionContext, config: RecordsConfig) -> EventsOfOp:
        programs = [program for key, program in by_key.items() if key in context.selected_asset_keys]
        chunk = parse_key(context.partition_key, settings.network(group.network).chunk_slots)
        observe = Observer(context, chunk, {program.key: key for key, program in by_key.items()})
        outcomes = read_records(settings, programs, chunk, _reporter(context, observe), start_over=config.start_over)
        failed: list[str] = []
        for outcome in outcomes:
            yield from _records_events(outcome, chunk, failed)
        if failed:
            # The others' results are out already: the executor lets what depends on them go on.
            raise dg.Failure(description=" ".join(failed), allow_retries=False)

    return records


def events_asset(
    settings: Settings, program: Program, partitions: dg.StaticPartitionsDefinition
) -> dg.AssetsDefinition:
    """Return a program's `events`.

    Raises:
        ProgramRefusedError: its IDL cannot be used.
    """
    key = events_key(program)

    @dg.asset(
        key=key,
        deps=[records_key(program), idl_key(program)],
        check_specs=[skip_rate_spec(key, partitions)],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        group_name=program.name,
        owners=[f"team:{program.owner}"],
        kinds={"postgres"},
        code_version=code_version(program),
        pool=WAREHOUSE_POOL,
        op_tags={"uho/stage": "events", "uho/network": program.network, "uho/owner": program.owner},
        description=f"{program.name}'s events, a table each, in the Postgres schema {program.schema_name}.",
        metadata={**_program_metadata(program), "dagster/column_schema": column_schema(program)},
    )
    def events(context: AssetExecutionContext) -> EventsOfOp:
        chunk = parse_key(context.partition_key, settings.network(program.network).chunk_slots)
        yield from _observe_idl(context, program)
        try:
            reporter = _reporter(context, Observer(context, chunk, {program.key: key}))
            outcome = load_events(settings, program, chunk, reporter, context.run.run_id)
        except ProgramHaltedError as error:
            raise dg.Failure(description=str(error), allow_retries=False) from None
        check = outcome.verdict.result(key, SKIP_RATE, chunk)
        if outcome.result is None:
            yield check
            raise dg.Failure(
                description=f"{program.key} chunk {chunk.key}: {outcome.verdict.text}",
                metadata=_counts_metadata(outcome),
                allow_retries=False,
            )
        yield dg.MaterializeResult(asset_key=key, metadata=_events_metadata(outcome, chunk), check_results=[check])

    return events


class IntegrityConfig(dg.Config):
    """What can be said when integrity is checked."""

    seed: int | None = Field(
        default=None,
        description="Draw by this seed what an earlier check drew by it (its metadata has it). Otherwise anew.",
    )


def integrity_check(
    settings: Settings, program: Program, partitions: dg.StaticPartitionsDefinition
) -> dg.AssetChecksDefinition:
    """Return the check of a program's `events` against an RPC node; it can be executed without materializing them."""
    key = events_key(program)

    @dg.asset_check(
        asset=key,
        name=INTEGRITY,
        description=INTEGRITY_DESCRIPTION,
        partitions_def=partitions,
        op_tags={"uho/stage": INTEGRITY, "uho/network": program.network, "uho/owner": program.owner},
    )
    def check(context: dg.AssetCheckExecutionContext, config: IntegrityConfig) -> dg.AssetCheckResult:
        # anchorpy takes half a second to import, and only this needs it.
        from uho_pipelines.integrity.check import check_chunk

        chunk = parse_key(context.partition_key, settings.network(program.network).chunk_slots)
        job = job_of_run(context.run, context.instance, key, context.partition_key)
        outcome = check_chunk(settings, warehouse_url(settings), program, chunk, job, seed=config.seed)
        return integrity(outcome).result(key, INTEGRITY, chunk)

    return check


def job_of_run(run: dg.DagsterRun, instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> Job:
    """Return the job that a run is part of: its Dagster backfill, the `uho backfill` that tags it, or the run alone."""
    name, place, chunks = run.tags.get(JOB_TAG, "//").split("/")
    if name:
        return Job(name, int(place), int(chunks))
    backfill_id = run.tags.get(BACKFILL_TAG)
    backfill = instance.get_backfill(backfill_id) if backfill_id else None
    if backfill is None:
        return Job(run.run_id)
    if backfill.asset_backfill_data is not None:
        partitions = sorted(backfill.asset_backfill_data.get_target_partitions_subset(key).get_partition_keys())
    else:
        partitions = sorted(backfill.partition_names or [])
    if partition not in partitions:
        return Job(run.run_id)
    return Job(backfill.backfill_id, partitions.index(partition), len(partitions))


def column_schema(program: Program) -> dg.TableSchema:
    """Return the columns of all of a program's event tables: the fixed ones once, fields as `Event.field`."""
    columns: dict[str, dg.TableColumn] = {}
    for table in decoder_for(program).tables():
        fixed = 1 + table.schema.names.index("block_time")
        for index, field in enumerate(table.schema):
            name = field.name if index < fixed else f"{table.name}.{field.name}"
            described = (field.metadata or {}).get(b"uho:docs", b"").decode() or None
            kind = (field.metadata or {}).get(b"uho:postgres", b"text").decode()
            columns.setdefault(name, dg.TableColumn(name, kind, description=described))
    return dg.TableSchema(columns=list(columns.values()))


def set_pool_limits(instance: dg.DagsterInstance, settings: Settings) -> None:
    """Have the instance run at most so many ops of each pool at once as the settings say.

    Called where the stack is started: `dagster.yaml` cannot say it per pool.
    """
    for pool, limit in ((ARCHIVE_POOL, settings.archive_streams), (WAREHOUSE_POOL, settings.warehouse_writers)):
        instance.event_log_storage.set_concurrency_slots(pool, limit)


def _records_events(outcome: RecordsOutcome, chunk: Chunk, failed: list[str]) -> EventsOfOp:
    """Yield one program's result and check; a program without result is appended to `failed`.

    A program whose certificate does not hold gets its failed check and no materialization: nothing may be built on it.
    """
    key = records_key(outcome.program)
    if outcome.manifest is None or outcome.manifest.certificate is None:
        failed.append(redact(f"{outcome.program.key}: {outcome.error}"))
        return
    verdict: Verdict = completeness(outcome.manifest.certificate, chunk)
    check = verdict.result(key, COMPLETENESS, chunk)
    if verdict.blocks:
        yield check
        failed.append(f"{outcome.program.key}: {verdict.text}")
        return
    yield dg.MaterializeResult(asset_key=key, metadata=_records_metadata(outcome, chunk), check_results=[check])


def _observe_idl(context: AssetExecutionContext, program: Program) -> EventsOfOp:
    """Record the IDL's data version if the newest observation has another one, or there is none.

    Otherwise events would carry the version of an observation that is yet to come as unknown, and be out of date from
    the moment it is made.
    """
    record = context.instance.get_latest_data_version_record(idl_key(program))
    tags = (record.asset_event.tags if record is not None and record.asset_event is not None else None) or {}
    if tags.get(DATA_VERSION_TAG) != program.idl_hash:
        yield dg.AssetObservation(idl_key(program), tags={DATA_VERSION_TAG: program.idl_hash})
    # The versions of a step's inputs are read before it begins; this one may have come after, from another run even.
    context.get_step_execution_context().fetch_external_input_asset_version_info()


class Observer:
    """Shows on a chunk's page how far it is, while it takes long: now and then, since each event costs Dagster work."""

    def __init__(self, context: AssetExecutionContext, chunk: Chunk, keys: Mapping[str, dg.AssetKey]) -> None:
        self.context = context
        self.chunk = chunk
        self.keys = keys
        self.said_at: dict[str, float] = {}
        """Seconds of the stage at which each program was last shown; a stage that is shorter is not shown at all."""

    def __call__(self, progress: Progress) -> None:
        """Show the progress, unless the last one was shown a moment ago."""
        if progress.elapsed - self.said_at.get(progress.program, 0.0) < OBSERVED_EVERY_SECONDS:
            return
        self.said_at[progress.program] = progress.elapsed
        share = (progress.current_slot - self.chunk.start) / self.chunk.slots
        seconds = max(progress.elapsed, 1e-9)
        what = "records" if progress.stage == "records" else "events"
        metadata: dict[str, Any] = {
            "stage": progress.stage,
            "slot reached": progress.current_slot,
            "done %": round(100 * share, 1),
            f"{what} so far": progress.events_written,
            f"{what}/s": round(progress.events_written / seconds),
            "seconds so far": round(progress.elapsed, 1),
        }
        if progress.bytes_read:
            metadata["archive bytes/s"] = round(progress.bytes_read / seconds)
        key = self.keys[progress.program]
        self.context.log_event(dg.AssetObservation(key, partition=self.chunk.key, metadata=metadata))


def _reporter(context: AssetExecutionContext, observe: Observer) -> Reporter:
    def tell(progress: Progress) -> None:
        context.log.info(progress.as_json())
        observe(progress)
        tell_listener(progress)

    return Reporter(
        progress=tell,
        notice=lambda text: context.log.warning(redact(text)),
    )


def _program_metadata(program: Program) -> dict[str, Any]:
    slots = f"{program.first_slot} to {program.last_slot if program.last_slot is not None else 'the tip'}"
    return {"program id": program.program_id, "slots": slots, "Postgres schema": program.schema_name}


def _records_metadata(outcome: RecordsOutcome, chunk: Chunk) -> dict[str, Any]:
    manifest = outcome.manifest
    assert manifest is not None and manifest.certificate is not None  # noqa: S101, PT018 - the caller looked
    certificate = manifest.certificate
    counts = certificate["programs"][outcome.program.program_id]
    seconds = max(outcome.seconds, 1e-9)
    metadata: dict[str, Any] = {
        "records": manifest.records,
        "dagster/partition_row_count": manifest.records,
        "slots": chunk.slots,
        "blocks": certificate["blocks"],
        "transactions scanned": certificate["transactions"],
        "transactions matched": counts["matched"],
        "seconds": round(outcome.seconds, 3),
        "archive bytes read": outcome.bytes_read,
        "archive bytes/s": round(outcome.bytes_read / seconds),
        "records/s": round(manifest.records / seconds),
        "lake bytes": manifest.bytes,
        "records digest": manifest.digest,
        "certificate": certificate_table(certificate),
        "sidecar job": outcome.job_id,
    }
    if outcome.restarts:
        metadata["started over"] = "; ".join(outcome.restarts)
    return metadata


def _counts_metadata(outcome: EventsOutcome) -> dict[str, Any]:
    counts = outcome.counts
    return {
        "events": counts.events_decoded,
        **({"instructions": counts.instructions.decoded} if counts.instructions.records else {}),
        "rows per event": counts.rows_by_event(),
        "undecodable": counts.undecodable,
        "skip rate": round(counts.skip_rate, 4),
        "twins folded": counts.twins_folded,
        "failed left out": counts.failed_left_out,
        "foreign": counts.foreign,
        "records": counts.records,
        "seconds": round(outcome.seconds, 3),
    }


def _events_metadata(outcome: EventsOutcome, chunk: Chunk) -> dict[str, Any]:
    seconds = max(outcome.seconds, 1e-9)
    certificate = outcome.manifest.certificate or {}
    changed = {
        "indexes built": ", ".join(outcome.indexes.built),
        "indexes dropped": ", ".join(outcome.indexes.dropped),
        "index faults": "; ".join(outcome.indexes.faults),
        "Parquet files": outcome.parquet_files,
    }
    matched: Sequence[int] = [counts["matched"] for counts in certificate.get("programs", {}).values()]
    return {
        **_counts_metadata(outcome),
        "dagster/partition_row_count": outcome.counts.decoded,
        "slots": chunk.slots,
        "blocks": certificate.get("blocks", 0),
        "transactions scanned": certificate.get("transactions", 0),
        "transactions matched": sum(matched),
        "events/s": round(outcome.counts.decoded / seconds),
        "lake bytes/s": round(outcome.manifest.bytes / seconds),
        "quarantined": outcome.result.quarantined if outcome.result else 0,
        **{name: value for name, value in changed.items() if value},
        "certificate": certificate_table(certificate),
    }

"""The one Definitions object: everything that Dagster shows, read from top to bottom.

What belongs here: putting together. `build_definitions(settings)` is what tests call with other settings; `defs` is
what Dagster loads. The sidecar need not run for that; the ledger must answer where a warehouse is set.
"""

import logging
import warnings
from collections.abc import Iterable

import dagster as dg
import psycopg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from uho_pipelines.alerts import alerts_sensor
from uho_pipelines.archive import ArchiveStreamError, archive_tip
from uho_pipelines.assets import (
    archive_asset,
    events_asset,
    events_key,
    idl_asset,
    integrity_check,
    records_asset,
    records_key,
    scan_groups,
)
from uho_pipelines.chunks import SLOTS_PER_EPOCH, program_chunks
from uho_pipelines.errors import UhoError
from uho_pipelines.freshness import FRESHNESS, freshness_check, freshness_sensor
from uho_pipelines.pool_waiting import sleep_while_waiting
from uho_pipelines.progress import progress_sensor
from uho_pipelines.redaction import redact
from uho_pipelines.registration import usable_programs
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.retention import retention_job, retention_schedule
from uho_pipelines.sensors import follow_sensor, tip_sensor
from uho_pipelines.settings import Settings, load_settings
from uho_pipelines.slots_job import slots_job
from uho_pipelines.upkeep import repair_job, verify_job, verify_schedule
from uho_pipelines.warehouse import Connection, connect, is_migrated, migrate
from uho_pipelines.warehouse.ledger import fix_chunk_slots, get_tip, set_tip

log = logging.getLogger(__name__)

# Partition-aware checks and backfill policies are preview and beta in Dagster 1.13; both are chosen, not stumbled into.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

sleep_while_waiting()

EXECUTOR = dg.in_process_executor.configured({"step_dependency_config": {"require_upstream_step_success": False}})
"""One process a run, and a step begins when what it needs is there: in a scan group, a program whose records are
complete gets its events even when another program's records failed."""


class LedgerUnreachableError(UhoError):
    """The ledger, which says how far the archive goes, cannot be read."""

    def __init__(self, url: str, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the warehouse at {redact(url)} cannot be reached ({reason}), so the chunks of programs are not known. "
            "Start Postgres (`uho up` does) or correct UHO_POSTGRES_URL, then reload the code location"
        )


@dg.definitions
def defs() -> dg.Definitions:
    """Return what Dagster loads: the definitions for the settings in the environment."""
    return build_definitions(load_settings())


def build_definitions(settings: Settings) -> dg.Definitions:
    """Return the definitions for the programs that the settings name.

    Raises:
        LedgerUnreachableError: a warehouse is set and does not answer.
    """
    registry = load_registry(settings)
    programs, refused = usable_programs(registry.programs)
    faults = [*registry.faults, *refused]
    for fault in faults:
        log.error("program refused: %s", fault)

    tips = read_tips(settings, programs)
    groups = scan_groups(settings, programs, tips)
    verification = verify_job(settings, programs)
    retention = retention_job(settings)
    networks = sorted({program.network for program in programs})
    followed = [program for program in programs if program.follow]

    return dg.Definitions(
        assets=[
            *(archive_asset(settings, network) for network in networks),
            *(idl_asset(program) for program in programs),
            *(records_asset(settings, group) for group in groups),
            *(events_asset(settings, program, group.partitions) for group in groups for program in group.programs),
        ],
        asset_checks=[
            *(integrity_check(settings, program, group.partitions) for group in groups for program in group.programs),
            *(freshness_check(settings, program) for program in followed),
        ],
        jobs=[
            *(chunk_job(program) for program in programs),
            *([slots_job(settings, groups)] if groups else []),
            verification,
            repair_job(settings, programs),
            retention,
        ],
        schedules=[verify_schedule(settings, programs, verification), retention_schedule(retention)],
        sensors=[
            *(
                tip_sensor(settings, network, first_slot, tips[network])
                for network, first_slot in open_ended(programs).items()
            ),
            *(
                follow_sensor(settings, program, program_chunks(settings, program, tips[program.network]))
                for program in followed
            ),
            *([freshness_sensor(settings, followed)] if followed else []),
            alerts_sensor(settings, programs),
            progress_sensor(settings, programs),
        ],
        executor=EXECUTOR,
        metadata={
            "programs": len(programs),
            "refused programs": dg.MetadataValue.md("\n".join(f"* {fault}" for fault in faults) or "none"),
        },
    )


def open_ended(programs: Iterable[Program]) -> dict[str, int]:
    """Return the networks with programs that need the archive's tip, and the first slot of any of those.

    They are the ones that go up to it, and those that follow it to their `last_slot`.
    """
    first_slots: dict[str, int] = {}
    for program in programs:
        if program.last_slot is None or program.follow:
            first_slots[program.network] = min(program.first_slot, first_slots.get(program.network, program.first_slot))
    return first_slots


def chunk_job(program: Program) -> UnresolvedAssetJobDefinition:
    """Return the job that materializes a program's records and events of one chunk in one run."""
    selection = dg.AssetSelection.assets(records_key(program), events_key(program))
    if program.follow:
        # How far the program is as a whole is its sensor's business, not that of each chunk's run.
        selection = selection - dg.AssetSelection.checks(dg.AssetCheckKey(events_key(program), FRESHNESS))
    return dg.define_asset_job(
        program.schema_name,
        selection=selection,
        description=f"Reads and loads one chunk of {program.name} ({program.network}, {program.owner}).",
        executor_def=EXECUTOR,
        tags={"uho/program": program.key},
    )


def read_tips(settings: Settings, programs: Iterable[Program]) -> dict[str, int | None]:
    """Return the tip of every network of `programs` from the ledger; None where it is not known.

    Without a warehouse nothing is known, and only programs with a `last_slot` have chunks. Where a program needs a tip
    that the ledger does not have yet, the sidecar is asked, and its answer kept; if it does not run, that is logged.
    """
    programs = list(programs)
    first_slots = {**dict.fromkeys(program.network for program in programs), **open_ended(programs)}
    if settings.postgres_url is None:
        log.warning(
            "no warehouse is set: the tips of archives are not known; only programs with a last_slot have chunks"
        )
        return dict.fromkeys(first_slots)
    url = settings.postgres_url.get_secret_value()
    try:
        with connect(url, application_name="uho definitions") as connection:
            if not is_migrated(connection):
                migrate(url)
            return {network: _tip(settings, connection, network, first) for network, first in first_slots.items()}
    except psycopg.Error as error:
        raise LedgerUnreachableError(url, type(error).__name__) from None


def _tip(settings: Settings, connection: Connection, network: str, first_slot: int | None) -> int | None:
    tip = get_tip(connection, network)
    connection.rollback()
    if tip is not None or first_slot is None:
        return tip
    try:
        tip = archive_tip(settings, network, first_slot // SLOTS_PER_EPOCH)
    except ArchiveStreamError as error:
        log.warning("the tip of %s is not known, and the sidecar cannot tell: %s. Reload when it runs", network, error)
        return None
    if tip is not None:
        fix_chunk_slots(connection, network, settings.network(network).chunk_slots)
        set_tip(connection, network, tip)
    return tip

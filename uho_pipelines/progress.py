"""How far programs and backfills are, how fast it goes, and when it ends: for `uho status` and for Dagster's pages.

What belongs here: figures and the sentences around them. Speed is measured on the chunks that were completed in the
last hour: what was fast yesterday says nothing of tonight. An estimate names what it rests on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import requests

from uho_pipelines.assets import events_key
from uho_pipelines.chunks import program_chunks
from uho_pipelines.graphql import DagsterRefusedError, ask
from uho_pipelines.materialization import warehouse_url
from uho_pipelines.registry import Program
from uho_pipelines.settings import Settings
from uho_pipelines.warehouse import Connection, connect
from uho_pipelines.warehouse.ledger import chunk_key, get_tip

WINDOW = timedelta(hours=1)

SENSOR_SECONDS = 60

BACKFILLS = """
query Backfills { partitionBackfillsOrError(limit: 20) { ... on PartitionBackfills { results {
  id title status timestamp tags { key value } assetBackfillData { assetBackfillStatuses {
    ... on AssetPartitionsStatusCounts {
      numPartitionsTargeted numPartitionsInProgress numPartitionsMaterialized numPartitionsFailed } } } } } } }"""

UNENDED_BACKFILLS = {"REQUESTED", "CANCELING", "FAILING"}


@dataclass(frozen=True)
class ProgramProgress:
    """How far a program is. Speeds are of the chunks completed within `WINDOW`; None: there were none."""

    total: int
    """Chunks that the archive has."""
    done: int
    """Of them, those that are complete."""
    running: int
    failed: int
    """Of those that are not complete, the ones whose latest attempt failed."""
    chunks_lately: int
    """Completed within the window."""
    seconds_lately: float
    """That they took, from the beginning of the first within the window until now."""
    events_per_second: float | None
    bytes_per_second: float | None

    @property
    def left(self) -> int:
        """Chunks that are not complete."""
        return self.total - self.done

    @property
    def seconds_left(self) -> float | None:
        """Until all chunks are complete at the present speed; None: nothing tells the speed."""
        if not self.left:
            return 0.0
        return self.left * self.seconds_lately / self.chunks_lately if self.chunks_lately else None

    @property
    def basis(self) -> str:
        """What the estimate rests on, in a sentence."""
        if not self.left:
            return "every chunk that the archive has is complete"
        if not self.chunks_lately:
            return f"no chunk was completed within the last {WINDOW.seconds // 60} minutes, so nothing tells the speed"
        return f"{self.chunks_lately:,} chunks in the last {_duration(self.seconds_lately)}, {self.left:,} are left"

    @property
    def sentence(self) -> str:
        """All of it."""
        counts = f"{self.done:,} of {self.total:,} chunks done, {self.running:,} running, {self.failed:,} failed"
        if self.events_per_second is not None and self.bytes_per_second is not None:
            counts += f"; {self.events_per_second:,.0f} events/s, {self.bytes_per_second / 1e6:,.1f} MB/s of archive"
        if self.seconds_left:
            counts += f"; done in about {_duration(self.seconds_left)}"
        return f"{counts} ({self.basis})"

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "chunks": self.total,
            "done": self.done,
            "running": self.running,
            "failed": self.failed,
            "left": self.left,
            "eventsPerSecond": _rounded(self.events_per_second),
            "archiveBytesPerSecond": _rounded(self.bytes_per_second),
            "secondsLeft": _rounded(self.seconds_left),
            "estimatedCompletion": _at(self.seconds_left),
            "basis": self.basis,
        }


@dataclass(frozen=True)
class BackfillState:
    """How far a Dagster backfill is that has not ended, counted in (asset, partition) pairs."""

    id: str
    title: str
    user: str | None
    status: str
    targeted: int
    done: int
    failed: int
    running: int
    seconds: float
    """Since it was launched."""

    @property
    def sentence(self) -> str:
        """All of it."""
        by = f" by {self.user}" if self.user else ""
        told = (
            f"{self.done:,} of {self.targeted:,} partitions done, {self.running:,} in runs, {self.failed:,} failed; "
            f"launched{by} {_duration(self.seconds)} ago"
        )
        ended = self.done + self.failed
        if not ended:
            return f"{told}; no estimate: nothing of it has ended yet"
        left = (self.targeted - ended) * self.seconds / ended
        return f"{told}; done in about {_duration(left)} (at the speed since it was launched)"


def program_progress(connection: Connection, settings: Settings, program: Program) -> ProgramProgress:
    """Return how far the program is, by the ledger."""
    chunks = program_chunks(settings, program, get_tip(connection, program.network))
    reach = (chunks[0].start, chunks[-1].end) if chunks else (0, 0)
    with connection.transaction():
        row = connection.execute(
            """
            SELECT count(*) FILTER (WHERE s.loaded),
                   count(*) FILTER (WHERE s.running),
                   count(*) FILTER (WHERE NOT s.loaded AND NOT s.running AND s.failed),
                   count(*) FILTER (WHERE s.lately),
                   extract(epoch FROM now() - greatest(now() - %(window)s, min(s.begun) FILTER (WHERE s.lately))),
                   (sum(s.events) FILTER (WHERE s.lately))::double precision,
                   (sum(s.bytes) FILTER (WHERE s.lately))::double precision
              FROM (SELECT v.status IN ('proven', 'unproven') AS loaded,
                           'running' IN (c.records_state, c.events_state) AS running,
                           'failed' IN (c.records_state, c.events_state) AS failed,
                           v.status IN ('proven', 'unproven') AND c.loaded_at > now() - %(window)s AS lately,
                           coalesce(c.records_started_at, c.events_started_at) AS begun,
                           v.event_count AS events, (c.certificate ->> 'bytes')::bigint AS bytes
                      FROM uho.chunk_status v JOIN uho.chunk c USING (network, owner, program, chunk_start)
                     WHERE (network, owner, program) = (%(network)s, %(owner)s, %(program)s)
                       AND chunk_start >= %(start)s AND chunk_start < %(end)s) s""",
            {
                "window": WINDOW,
                **dict(zip(("network", "owner", "program"), chunk_key(program), strict=True)),
                **dict(zip(("start", "end"), reach, strict=True)),
            },
        ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has a row
    done, running, failed, lately, seconds, events, read = row
    took = max(float(seconds or 0), 1e-3)
    return ProgramProgress(
        total=len(chunks),
        done=done,
        running=running,
        failed=failed,
        chunks_lately=lately,
        seconds_lately=took,
        events_per_second=(events or 0) / took if lately else None,
        bytes_per_second=(read or 0) / took if lately else None,
    )


def backfills_under_way(settings: Settings) -> list[BackfillState] | None:
    """Return the backfills that have not ended, the newest first; None where no Dagster answers."""
    try:
        answer = ask(f"http://127.0.0.1:{settings.webserver_port}", BACKFILLS, {})["partitionBackfillsOrError"]
    except (requests.RequestException, DagsterRefusedError, ValueError):
        return None
    return [_backfill(found) for found in answer.get("results", []) if found["status"] in UNENDED_BACKFILLS]


def progress_sensor(settings: Settings, programs: Sequence[Program]) -> dg.SensorDefinition:
    """Return the sensor that shows how far each program is on the page of its events, while something happens."""

    @dg.sensor(
        name="progress",
        minimum_interval_seconds=SENSOR_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Shows on each program's events how many chunks are done, how fast it goes and when it ends.",
    )
    def sense(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if settings.postgres_url is None:
            return dg.SkipReason("no warehouse is set, so nothing says which chunks are complete")
        said: dict[str, str] = json.loads(context.cursor or "{}")
        observations: list[dg.AssetObservation] = []
        with connect(warehouse_url(settings), application_name="uho progress") as connection:
            for program in programs:
                progress = program_progress(connection, settings, program)
                state = f"{progress.total} {progress.done} {progress.failed}"
                if said.get(program.key, f"{progress.total} 0 0") != state:
                    said[program.key] = state
                    observations.append(dg.AssetObservation(events_key(program), metadata=_metadata(progress)))
        if not observations:
            return dg.SkipReason("no chunk has ended since the last look")
        return dg.SensorResult(asset_events=observations, cursor=json.dumps(said))

    return sense


def _metadata(progress: ProgramProgress) -> dict[str, Any]:
    figures: Mapping[str, float | None] = {
        "events/s": progress.events_per_second,
        "archive bytes/s": progress.bytes_per_second,
        "hours left": None if progress.seconds_left is None else progress.seconds_left / 3600,
    }
    return {
        "chunks done": progress.done,
        "chunks running": progress.running,
        "chunks failed": progress.failed,
        "chunks left": progress.left,
        **{name: round(value, 3) for name, value in figures.items() if value is not None},
        "estimate": progress.sentence,
    }


def _backfill(found: Mapping[str, Any]) -> BackfillState:
    counts = [count for count in ((found["assetBackfillData"] or {}).get("assetBackfillStatuses") or []) if count]

    def total(name: str) -> int:
        return sum(count.get(name, 0) for count in counts)

    return BackfillState(
        id=found["id"],
        title=found["title"] or "",
        user=next((tag["value"] for tag in found["tags"] if tag["key"] == "uho/user"), None),
        status=found["status"],
        targeted=total("numPartitionsTargeted"),
        done=total("numPartitionsMaterialized"),
        failed=total("numPartitionsFailed"),
        running=total("numPartitionsInProgress"),
        seconds=max(0.0, datetime.now(UTC).timestamp() - float(found["timestamp"])),
    )


def _duration(seconds: float) -> str:
    """Return a duration as people say it: its two largest units."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _at(seconds: float | None) -> str | None:
    return None if seconds is None else (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")

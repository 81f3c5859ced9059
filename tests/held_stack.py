"""`uho up` over an archive that can hold its bytes back: a run is under way for as long as a test needs it.

A module of tests has one of these for all its tests, since it takes half a minute to start.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import short_home
from services import HeldArchive, built, held_archive, simulate, wait_until
from stack import Dagster, uho_up

from uho_pipelines.chunks import Chunk, program_chunks
from uho_pipelines.graphql import backfill_progress
from uho_pipelines.registry import Program, load_registry
from uho_pipelines.runtime.postgres import EmbeddedPostgres
from uho_pipelines.settings import NetworkSettings, Settings
from uho_pipelines.truth import compare_program, truth_by_event
from uho_pipelines.warehouse import connect, read_plan

CHUNK_SLOTS, CHECKPOINT_SLOTS = 350, 50
FIRST_SLOT, LAST_SLOT = 1_292_200, 1_294_299  # six chunks
MEBIBYTE = 1024 * 1024
FOUND_SECONDS = 600
"""So soon a worker that vanished is found and its chunk taken up; with the settings of this stack it is much sooner."""


@dataclass
class HeldStack:
    """The stack, the folder of its archive, and the server that can hold the archive's bytes back."""

    dagster: Dagster
    folder: Path
    archive: HeldArchive

    @property
    def settings(self) -> Settings:
        """The stack's settings, as far as tests need them."""
        return Settings(
            home=self.dagster.home,
            programs_dir=self.folder / "programs",
            networks={"sim": NetworkSettings(chunk_slots=CHUNK_SLOTS, checkpoint_slots=CHECKPOINT_SLOTS)},
        )

    @property
    def program(self) -> Program:
        """The program whose chunks are read."""
        return load_registry(self.settings).program("orderbook")

    def chunk(self, place: int) -> Chunk:
        """Return one of the program's chunks."""
        return program_chunks(self.settings, self.program, tip=None)[place]

    def launch(self, place: int) -> str:
        """Launch a chunk; return the backfill's id."""
        started = self.dagster.launch("alice", "orderbook", [f"{FIRST_SLOT + place * CHUNK_SLOTS:010d}"])
        assert started["__typename"] == "LaunchBackfillSuccess", started
        return started["backfillId"]

    def launch_held(self, place: int) -> tuple[str, str]:
        """Launch a chunk; return its backfill and its run, when the sidecar streams and waits for the archive."""
        self.archive.hold_after(MEBIBYTE // 4)
        backfill = self.launch(place)
        wait_until(lambda: self.archive.waiting > 0, "the archive is read")
        (run,) = self.dagster.runs(dagster__backfill=backfill)
        assert run["status"] == "STARTED"
        return backfill, run["runId"]

    def wait_for_the_end(self, backfill: str) -> None:
        """Wait until Dagster calls the backfill ended."""
        wait_until(
            lambda: backfill_progress(self.dagster.url, backfill).ended,
            "the backfill ends",
            seconds=FOUND_SECONDS,
            pause=0.5,
        )

    def wait_for_runs(self, backfill: str, *statuses: str) -> None:
        """Wait until the runs of a backfill have these statuses: sooner than Dagster looks whether it has ended."""
        wait_until(
            lambda: [run["status"] for run in self.dagster.runs(dagster__backfill=backfill)] == [*statuses],
            f"the backfill's runs are {', '.join(statuses)}",
            seconds=FOUND_SECONDS,
            pause=0.5,
        )

    def require_true_rows(self, place: int) -> None:
        """Compare the rows of a chunk with the simulator's truth; the chunk must be proven."""
        chunk = self.chunk(place)
        truth = {
            event: {key: line for key, line in lines.items() if chunk.start <= key[0] < chunk.end}
            for event, lines in truth_by_event(self.folder, self.program).items()
        }
        everything = f"slot >= {chunk.start} AND slot < {chunk.end}"
        with connect(EmbeddedPostgres(self.dagster.home).url("uho"), application_name="test") as connection:
            plan = read_plan(connection, self.program)
            for table in plan.tables.values():  # the other chunks of other tests are theirs
                connection.execute(f'DELETE FROM "{table.schema}"."{table.name}" WHERE NOT ({everything})'.encode())
            for comparison in compare_program(connection, self.program, plan, truth):
                assert comparison.equal, comparison.differences[:3]
            connection.rollback()
        status = f"SELECT status FROM uho.chunk_status WHERE chunk_start = {chunk.start}"
        assert self.dagster.query(status) == [("proven",)]


@contextmanager
def held_stack(folder: Path) -> Iterator[HeldStack]:
    """Simulate an archive in `folder` and run `uho up` over it; it looks after its workers every few seconds."""
    built("uho-sidecar", "UHO_SIDECAR_BINARY")
    simulate(folder, first_slot=FIRST_SLOT, last_slot=LAST_SLOT)
    with held_archive(folder) as archive, short_home() as home:
        network = {"archive_url": archive.url, "chunk_slots": CHUNK_SLOTS, "checkpoint_slots": CHECKPOINT_SLOTS}
        environment = {
            "UHO_NETWORKS": json.dumps({"sim": network}),
            "UHO_WORKER_CHECK_SECONDS": "3",
            "UHO_BACKFILL_START_SECONDS": "0",
            # One small segment after another, so that a stream can be held anywhere.
            "UHO_SIDECAR_CONNECTIONS": "1",
            "UHO_SIDECAR_SEGMENT_MEBIBYTES": "1",
        }
        with uho_up(home, folder / "programs", **environment) as dagster:
            yield HeldStack(dagster, folder, archive)

"""Dagster's UI in a real browser, as a person uses it: one stack, and a story that goes from test to test.

`vault` changes the layout of its most frequent event at a slot where its program folder has no IDL version for it: the
first chunk decodes, the second has some of the new layout and warns, of the third half is lost and the program halts.
With UHO_SCREENSHOTS set to a folder, what was seen is kept there.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import short_home
from playwright.sync_api import Error, Page, expect, sync_playwright
from services import built, held_archive, simulate, wait_until
from stack import Dagster, uho_up

from uho_pipelines.graphql import backfill_progress
from uho_pipelines.sensors import PARTITION_TAGS

CHUNK_SLOTS = 350
FIRST_SLOT = 1_292_200
KEYS = [f"{FIRST_SLOT + place * CHUNK_SLOTS:010d}" for place in range(4)]
CHANGED = FIRST_SLOT + CHUNK_SLOTS + 260
"""Where the layout changes: late in the second chunk, so that a tenth of its events has the new one."""
HELD_AFTER = 256 * 1024
"""Bytes that the archive gives before it holds back: a chunk has several times as many."""
PATIENCE = 600_000
"""Milliseconds that the page is given to show something."""
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@pytest.fixture(scope="module")
def page():
    """A window of Debian's Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no Chromium: `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        window = browser.new_page(viewport={"width": 1600, "height": 1000})
        window.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield window
        browser.close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    built("uho-sidecar", "UHO_SIDECAR_BINARY")
    options = ["--layout-changes", f"{CHANGED}..{CHANGED + 100 * CHUNK_SLOTS}", "--undecodable", "0"]
    last = FIRST_SLOT + len(KEYS) * CHUNK_SLOTS - 1
    return simulate(tmp_path_factory.mktemp("sim"), first_slot=FIRST_SLOT, last_slot=last, options=options)


@pytest.fixture(scope="module")
def held(archive):
    """The archive, behind a server that can hold its bytes back."""
    with held_archive(archive) as server:
        yield server


@pytest.fixture(scope="module")
def stack(page, archive, held):
    """`uho up`, with only the first IDL version in vault's folder; without a browser it is not started."""
    with short_home() as home:
        programs = home / "programs"
        shutil.copytree(archive / "programs", programs)
        vault = programs / "vault" / "program.yaml"
        lines = vault.read_text().splitlines()
        vault.write_text("\n".join(line for line in lines if "idl/vault-" not in line))
        networks = {"sim": {"archive_url": held.url, "chunk_slots": CHUNK_SLOTS, "checkpoint_slots": 50}}
        with uho_up(
            home,
            programs,
            UHO_NETWORKS=json.dumps(networks),
            UHO_BACKFILL_START_SECONDS="0",
            # One small segment after another, so that a stream can be held anywhere.
            UHO_SIDECAR_CONNECTIONS="1",
            UHO_SIDECAR_SEGMENT_MEBIBYTES="1",
        ) as running:
            yield running


@contextmanager
def seen(page: Page, name: str) -> Iterator[None]:
    """Keep what the page shows at the end, however it ends, where somebody wants to look at it."""
    try:
        yield
    finally:
        folder = os.environ.get("UHO_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png")


def partitions(page: Page, stack: Dagster, asset: str, partition: str = "") -> None:
    """Open an asset's page of partitions, at one of them."""
    page.goto(f"{stack.url}/assets/sim/demo/{asset}?view=partitions&partition={partition}")


def launch(page: Page, *keys: str) -> None:
    """Press Materialize on the page, choose partitions unless the page's own is meant, and launch."""
    dialog = page.get_by_role("dialog").filter(has_text="Launch runs to materialize")

    def opened() -> bool:
        # What is pressed while a page still loads may come to nothing.
        page.get_by_role("button", name="Materialize").first.click()
        with suppress(Error):
            dialog.wait_for(timeout=20_000)
        return dialog.is_visible()

    wait_until(opened, "the dialog opens")
    if keys:
        dialog.get_by_text("Select a partition or create one").click()
        for key in keys:
            page.get_by_role("menuitem").filter(has_text=key).locator("label").click()
            expect(dialog.get_by_text(key).first).to_be_visible()
        page.keyboard.press("Escape")
    dialog.get_by_role("button", name=re.compile(r"^Launch (\d+ runs?|backfill)")).click()
    expect(dialog).to_be_hidden()


def runs_of(stack: Dagster, key: str) -> list[dict[str, Any]]:
    """Return the runs of a partition, the newest first."""
    tags = [{"key": tag, "value": key} for tag in PARTITION_TAGS]
    return [run for run in stack.runs() if any(tag in run["tags"] for tag in tags)]


def backfill_of(stack: Dagster, key: str) -> str:
    """Return the newest backfill that has a run of this partition, once there is one."""
    (found, *_) = wait_until(lambda: runs_of(stack, key), "a run of the backfill", pause=0.5)
    return next(tag["value"] for tag in found["tags"] if tag["key"] == "dagster/backfill")


def test_a_backfill_of_a_range_turns_partitions_and_a_halt_leaves_the_other_program_alone(stack, page):
    page.goto(f"{stack.url}/asset-groups")
    with seen(page, "dialog"):
        launch(page, *KEYS[:3])
    with seen(page, "partitions-of-the-other-program"):
        partitions(page, stack, "orderbook_events")
        expect(page.get_by_text("Materialized (3)")).to_be_visible()
    with seen(page, "partitions-mixed"):
        partitions(page, stack, "vault_events", KEYS[1])
        expect(page.get_by_text("Failed (1)")).to_be_visible()
        expect(page.get_by_text("Materialized (2)")).to_be_visible()
        expect(page.get_by_text("Missing (1)")).to_be_visible()
        expect(page.get_by_text("skip rate")).to_be_visible()
        # Both first chunks may have begun before either recorded the IDL: neither is out of date for that.
        expect(page.get_by_text("Unsynced")).to_have_count(0)
    backfill = backfill_of(stack, KEYS[2])
    wait_until(lambda: backfill_progress(stack.url, backfill).ended, "the backfill ends", pause=0.5)
    with seen(page, "backfill"):
        page.goto(f"{stack.url}/runs/b/{backfill}")
        expect(page.get_by_text("100% completed")).to_have_count(4)
    with seen(page, "asset-graph"):
        page.goto(f"{stack.url}/asset-groups")
        expect(page.get_by_text("vault", exact=True).first).to_be_visible()
        expect(page.get_by_text("fetching statuses")).to_have_count(0)
        page.keyboard.press("Alt+e")  # expands all groups
        expect(page.get_by_text("vault_events", exact=True).first).to_be_visible()
        expect(page.get_by_text("orderbook_records", exact=True).first).to_be_visible()


def test_a_failed_check_gives_its_reason_and_the_run_of_a_halted_program_the_way_out(stack, page):
    with seen(page, "check-failed"):
        page.goto(f"{stack.url}/assets/sim/demo/vault_events?view=checks&checkDetail=skip_rate")
        expect(page.get_by_text("decode by no IDL version").first).to_be_visible()
        expect(page.get_by_text("Add the IDL version in force at these slots").first).to_be_visible()
        expect(page.get_by_text("trailing_bytes").first).to_be_visible()
    with seen(page, "plots"):
        # Figures of the chunks' checks, drawn over time.
        plot = page.locator("canvas").first
        plot.scroll_into_view_if_needed()
        expect(plot).to_be_visible()
    before = len(runs_of(stack, KEYS[2]))
    partitions(page, stack, "vault_events", KEYS[2])
    launch(page)

    def failed_again() -> str | None:
        runs = runs_of(stack, KEYS[2])
        return runs[0]["runId"] if len(runs) > before and runs[0]["status"] == "FAILURE" else None

    run = wait_until(failed_again, "the run of the halted program fails", pause=0.5)
    with seen(page, "run-halted"):
        page.goto(f"{stack.url}/runs/{run}")
        expect(page.get_by_text("sim/demo/vault is halted").first).to_be_visible()
        expect(page.get_by_text("uho clear-halt sim/demo/vault").first).to_be_visible()


def test_the_missing_idl_version_lifts_the_halt_and_puts_what_was_loaded_out_of_date(stack, page, archive):
    shutil.copy(archive / "programs" / "vault" / "program.yaml", stack.home / "programs" / "vault" / "program.yaml")
    page.goto(f"{stack.url}/asset-groups")
    page.get_by_role("button", name="Reload definitions").click()
    expect(page.get_by_text("Definitions reloaded")).to_be_visible()
    partitions(page, stack, "vault_events", KEYS[2])
    launch(page)
    with seen(page, "halt-lifted"):
        expect(page.get_by_text("Materialized (3)")).to_be_visible()
    with seen(page, "out-of-date"):
        partitions(page, stack, "vault_events", KEYS[0])
        expect(page.get_by_text("Unsynced").first).to_be_visible()


def test_a_backfill_is_cancelled_and_a_partition_of_it_executed_again(stack, page, held):
    page.goto(f"{stack.url}/asset-groups")
    held.hold_after(HELD_AFTER)
    launch(page, *KEYS[2:])
    wait_until(lambda: held.waiting > 0, "the archive is read")
    backfill = backfill_of(stack, KEYS[3])
    with seen(page, "partition-under-way"):
        partitions(page, stack, "vault_records", KEYS[3])
        expect(page.get_by_text(re.compile(r"^Materializing \([12]\)$"))).to_be_visible()
    with seen(page, "backfill-cancelled"):
        page.goto(f"{stack.url}/runs/b/{backfill}")
        page.get_by_role("button", name="expand_more").click()  # the menu's icon
        page.get_by_role("menuitem").filter(has_text="Cancel backfill").click()
        sure = page.get_by_role("dialog").filter(has_text="In progress runs associated with this backfill")
        sure.get_by_role("button", name="Cancel backfill").click()
        expect(page.get_by_text("Canceled", exact=True)).to_be_visible()
    wait_until(
        lambda: {run["status"] for run in stack.runs(dagster__backfill=backfill)} <= {"CANCELED", "SUCCESS"},
        "the backfill's runs are cancelled",
        pause=0.5,
    )
    # The archive still holds its bytes: the sidecar's jobs ended because their clients went.
    wait_until(lambda: stack.sidecar_jobs() == 0, "the sidecar's jobs end", pause=0.2)
    state = f"SELECT DISTINCT records_state FROM uho.chunk WHERE chunk_start = {int(KEYS[3])}"
    assert stack.query(state) == [("pending",)]
    held.release()
    cancelled, *_ = runs_of(stack, KEYS[3])
    assert cancelled["status"] == "CANCELED"
    page.goto(f"{stack.url}/runs/{cancelled['runId']}")
    page.get_by_role("button", name="Re-execute all").click()
    page.get_by_role("dialog").get_by_role("button", name="Confirm").click()

    def executed_again() -> str | None:
        newest = runs_of(stack, KEYS[3])[0]
        return newest["runId"] if newest["runId"] != cancelled["runId"] and newest["status"] == "SUCCESS" else None

    again = wait_until(executed_again, "the run that was executed again succeeds", pause=0.5)
    with seen(page, "executed-again"):
        page.goto(f"{stack.url}/runs/{again}")
        expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    with seen(page, "partitions-complete"):
        partitions(page, stack, "vault_events", KEYS[3])
        expect(page.get_by_text("Materialized (4)")).to_be_visible()
    complete = "SELECT program FROM uho.chunk_status WHERE status = 'proven' GROUP BY 1 HAVING count(*) = 4 ORDER BY 1"
    assert stack.query(complete) == [("orderbook",), ("vault",)]

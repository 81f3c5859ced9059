"""A run that waits for a slot of a pool sleeps, and Dagster still needs to be told so."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from dagster import DagsterRun
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.test_utils import instance_for_test
from dagster._utils.interrupts import capture_interrupts
from services import PROJECT, fresh_database

from uho_pipelines.pool_waiting import LONGEST_SLEEP_SECONDS, seconds_to_sleep, sleep_while_waiting

ORIGINAL = """
import time
from types import SimpleNamespace
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext as Context

waiting = SimpleNamespace(_pending_claims={"step"}, _pending_timeouts={"step": time.time() + 60})
print(Context.interval_to_next_pending_claim_check(waiting))
"""


@pytest.fixture
def waiting(postgres, monkeypatch):
    """A step that asked for a slot of a pool that has none."""
    url = fresh_database(postgres, "pool_waiting").replace("postgresql://", "postgresql+psycopg2://")
    monkeypatch.setenv("UHO_DAGSTER_POSTGRES_URL", url)
    configured = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    with instance_for_test(overrides={key: configured[key] for key in ("storage", "concurrency")}) as instance:
        instance.event_log_storage.set_concurrency_slots("archive", 0)
        with InstanceConcurrencyContext(instance, DagsterRun(job_name="chunk")) as context:
            assert not context.claim("archive", "step")
            yield context


def test_a_step_that_waits_for_a_slot_sleeps_until_it_may_ask_again(waiting):
    sleep_while_waiting()
    assert 0 < waiting.interval_to_next_pending_claim_check() <= LONGEST_SLEEP_SECONDS
    for step in waiting._pending_timeouts:
        waiting._pending_timeouts[step] = time.time() - 1
    assert seconds_to_sleep(waiting) == 0


def test_a_run_that_is_cancelled_while_it_waits_ends(waiting):
    with capture_interrupts():  # as the worker of a run does
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(DagsterExecutionInterruptedError):
            seconds_to_sleep(waiting)


def test_dagster_has_not_corrected_it():
    said = subprocess.run([sys.executable, "-c", ORIGINAL], capture_output=True, text=True, check=True).stdout
    assert float(said) <= 0, "Dagster sleeps by itself now: delete uho_pipelines/pool_waiting.py and this"

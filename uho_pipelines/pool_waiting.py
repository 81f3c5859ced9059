"""Runs that wait for a slot of a pool sleep meanwhile, and can be cancelled.

What belongs here: one correction of Dagster. A run's executor asks how long it may sleep until it can ask for the slot
again, and Dagster's answer is the least of 0 and the seconds left, so never anything but 0: each run that waits for an
archive stream keeps a core busy for as long as a chunk takes. Nor does it look there whether it was cancelled: such a
run is "canceling" until a slot is free, or the daemon loses patience. tests/test_pool_waiting.py fails once Dagster
corrects this; then this module goes.
"""

import time

from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._utils.interrupts import pop_captured_interrupt

LONGEST_SLEEP_SECONDS = 1.0
"""A run that is cancelled while it waits notices it after so long."""


def seconds_to_sleep(self: InstanceConcurrencyContext) -> float:
    """Return how long the executor may sleep.

    Raises:
        DagsterExecutionInterruptedError: the run is being cancelled.
    """
    if pop_captured_interrupt():
        raise DagsterExecutionInterruptedError
    waiting_until = self._pending_timeouts.values()  # pyright: ignore[reportPrivateUsage]
    left = min(waiting_until, default=0.0) - time.time()
    return max(0.0, min(LONGEST_SLEEP_SECONDS, left))


def sleep_while_waiting() -> None:
    """Have the executors of this process sleep while they wait for a slot."""
    InstanceConcurrencyContext.interval_to_next_pending_claim_check = seconds_to_sleep

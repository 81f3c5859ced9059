"""Which faults pass by themselves, and what is said of either kind.

What belongs here: trying again where Postgres ended something, and the sentence that a fault carries to the page of its
run: whether it was tried again. Faults of streams say themselves whether they can pass (`archive.py`).
"""

from collections.abc import Callable
from typing import TypeVar

import psycopg
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from uho_pipelines.warehouse.connection import WarehouseUnreachableError

Result = TypeVar("Result")

POSTGRES_ATTEMPTS = 6
"""What Postgres ends for a reason that can pass is done so many times in all, over about half a minute: so long a
server takes to recover from its log."""

PASSING_POSTGRES_ERRORS = (
    psycopg.OperationalError,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)

GIVEN_UP = "This can pass, but did not however often it was tried: materialize the chunk again once its cause is gone."
"""What a fault says that could have passed."""

NOT_TRIED_AGAIN = "This does not pass by itself, so it was not tried again: it needs a person."
"""What every other fault says."""


def postgres_fault_can_pass(error: BaseException) -> bool:
    """Return whether what ended so is worth doing again: Postgres restarts, but it does not change its mind."""
    if isinstance(error, WarehouseUnreachableError):
        return error.can_pass
    return isinstance(error, PASSING_POSTGRES_ERRORS)


def postgres_again(step: Callable[[], Result], what: str, notice: Callable[[str], None]) -> Result:
    """Do `step`, again where Postgres ends it for a reason that can pass; `notice` is told each time.

    Its last fault carries the sentence that says whether it was tried again.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        notice(
            f"Postgres ended {what} ({' '.join(str(error).split())}); it is done again, attempt "
            f"{state.attempt_number + 1} of {POSTGRES_ATTEMPTS}"
        )

    again = Retrying(
        retry=retry_if_exception(postgres_fault_can_pass),
        wait=wait_exponential_jitter(initial=1, max=20),
        stop=stop_after_attempt(POSTGRES_ATTEMPTS),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return again(step)
    except psycopg.Error as error:
        error.add_note(GIVEN_UP if postgres_fault_can_pass(error) else NOT_TRIED_AGAIN)
        raise

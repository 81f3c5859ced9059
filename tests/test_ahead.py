"""The next things are made while one is used; never more than asked for, in order, and errors where they belong."""

import threading
from contextlib import closing
from itertools import count

import pytest
from services import wait_until

from uho_pipelines.ahead import made_ahead


def test_items_come_in_order_and_end():
    assert list(made_ahead(iter(range(100)), 3)) == list(range(100))
    assert list(made_ahead(iter([]), 3)) == []
    assert list(made_ahead(iter([None, None]), 3)) == [None, None]


@pytest.mark.parametrize("most", [1, 3])
def test_the_next_items_are_made_while_one_is_used_and_only_those(most):
    made = []

    def items():
        for number in count():
            made.append(number)
            yield number

    with closing(made_ahead(items(), most)) as ahead:
        for number in range(3):
            assert next(ahead) == number
            wait_until(lambda number=number: made[-1] == number + most, "the next ones")
    assert made == list(range(3 + most))


def test_an_error_comes_after_what_was_made_before_it():
    def items():
        yield 1
        raise LookupError("a part is damaged")

    ahead = made_ahead(items(), 3)
    assert next(ahead) == 1
    with pytest.raises(LookupError, match="a part is damaged"):
        next(ahead)


def test_leaving_early_waits_for_what_is_being_made():
    begun, release, done = threading.Event(), threading.Event(), []

    def items():
        yield 1
        begun.set()
        release.wait(60)
        done.append(True)
        yield 2

    with closing(made_ahead(items(), 3)) as ahead:
        next(ahead)
        begun.wait(60)
        release.set()
    assert done == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("made-ahead")]

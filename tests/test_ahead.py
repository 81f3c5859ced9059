"""One thing is made while the one before is used; never more, in order, and errors come where they belong."""

import threading
from contextlib import closing
from itertools import count

import pytest
from services import wait_until

from uho_pipelines.ahead import one_ahead


def test_items_come_in_order_and_end():
    assert list(one_ahead(iter(range(100)))) == list(range(100))
    assert list(one_ahead(iter([]))) == []
    assert list(one_ahead(iter([None, None]))) == [None, None]


def test_the_next_item_is_made_while_one_is_used_and_only_that_one():
    made = []

    def items():
        for number in count():
            made.append(number)
            yield number

    with closing(one_ahead(items())) as ahead:
        for number in range(3):
            assert next(ahead) == number
            wait_until(lambda number=number: made[-1] == number + 1, "the next one")
    assert made == [0, 1, 2, 3]


def test_an_error_comes_after_what_was_made_before_it():
    def items():
        yield 1
        raise LookupError("a part is damaged")

    ahead = one_ahead(items())
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

    with closing(one_ahead(items())) as ahead:
        next(ahead)
        begun.wait(60)
        release.set()
    assert done == [True]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("one-ahead")]

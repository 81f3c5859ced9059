"""Making the next thing while this one is used.

What belongs here: one thread, one item ahead. It pays where both sides leave the interpreter's lock: the native module
decodes and encodes while Postgres takes rows.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterator[Item]) -> Generator[Item]:
    """Yield `items` in order; each is made in a thread while its predecessor is used, and never more than one.

    An error of `items` is raised here, in its place. Closing waits for the item that is being made.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item  # pyright: ignore[reportReturnType] - it is not the end

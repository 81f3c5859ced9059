"""Making the next things while this one is used.

What belongs here: one thread, a few items ahead. It pays where both sides leave the interpreter's lock: the native
module decodes and encodes while Postgres takes rows.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def made_ahead(items: Iterator[Item], most: int) -> Generator[Item]:
    """Yield `items` in order; while one is used, the next are made in a thread, and never more than `most` of them.

    An error of `items` is raised here, in its place. Closing waits for the item that is being made.
    """
    end = object()
    thread = ThreadPoolExecutor(1, thread_name_prefix="made-ahead")
    try:
        following = deque(thread.submit(next, items, end) for _ in range(most))
        while (item := following.popleft().result()) is not end:
            following.append(thread.submit(next, items, end))
            yield item  # pyright: ignore[reportReturnType] - it is not the end
    finally:
        thread.shutdown(cancel_futures=True)

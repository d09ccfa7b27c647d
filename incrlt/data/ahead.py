"""Work done a few items ahead in threads, handed on in order. Torch is not needed.

Threads, since Pillow lets go of Python's lock while it decodes and NumPy while it copies.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

CHUNK: Final = 4
"""Items that are begun ahead for each worker."""
MOST_WORKERS: Final = 8
"""Threads where nobody says how many."""


def workers(asked: int | None) -> int:
    """Return how many threads work: as many as are asked for, else a few of the cores this process may use."""
    if asked is not None:
        return asked
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield what a function makes of each item, in their order, worked out a few items ahead.

    Args:
        function: Called in threads.
        items: What it is called with.
        workers: Threads; 0 calls it in this one.
    """
    if not workers:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="incrlt-pictures")
    try:
        begun: deque[Future[R]] = deque()
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > CHUNK * workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

"""Reads ahead of a loop and writes behind it, in threads, at most a bounded number of items apart.

  with behind() as later, ahead(read()) as items:
      for item in items:
          later(write, compute(item))

While item k is computed, k + 1 is read and k - 1 is written, each in its order. At most NUM_WAITING
items wait on either side, so memory does not grow. An error of the reader is raised by the loop
over the items; one of the writer by a later call or at the end. However the block ends (Ctrl-C
included), no thread is left running and no queued item is started.
"""

import collections
import contextlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NUM_WAITING = 1  # on either side, unless said otherwise; 0: all in sequence
_END = object()


@contextlib.contextmanager
def ahead(items: Generator[Any, None, None], count: int | None = None) -> Iterator[Iterator[Any]]:
    """Yields the items, which a thread makes up to `count` ahead; 0: without a thread."""
    count = NUM_WAITING if count is None else count
    with contextlib.closing(items):
        if not count:
            yield items
            return
        with _one_thread() as pool:
            yield _taken(pool, items, count)


def _taken(pool: ThreadPoolExecutor, items: Iterator[Any], count: int) -> Iterator[Any]:
    waiting = collections.deque(pool.submit(next, items, _END) for _ in range(count))
    while (item := waiting.popleft().result()) is not _END:
        waiting.append(pool.submit(next, items, _END))
        yield item


@contextlib.contextmanager
def behind(count: int | None = None) -> Iterator[Callable[..., None]]:
    """Yields a function that calls its first argument with the others, later, in a thread.

    It waits while more than `count` calls are not done; 0: it calls at once, without a thread. The
    block ends when all are done.
    """
    count = NUM_WAITING if count is None else count
    if not count:
        yield lambda function, *args: function(*args)
        return
    waiting: collections.deque = collections.deque()
    with _one_thread() as pool:

        def later(function: Callable[..., None], *args: Any) -> None:
            while len(waiting) > count:
                waiting.popleft().result()
            waiting.append(pool.submit(function, *args))

        yield later
        while waiting:
            waiting.popleft().result()


@contextlib.contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

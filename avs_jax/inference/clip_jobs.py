"""What programs that write files for the clips of a dataset share: reading ahead, and progress."""

import collections
import concurrent.futures
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import NamedTuple, TypeVar

from avs_jax.data.flow_files import FlowClip
from avs_jax.progress import clock

_SAY_EVERY = 5.0  # seconds
_READERS = 2  # threads that decode ahead

T = TypeVar("T")


class Outcome(NamedTuple):
    """What a run did."""

    written: int  # files
    kept: int  # clips that were complete before
    failed: list[str]  # a line per clip


def read_ahead(
    read: Callable[[FlowClip], T], clips: Iterable[FlowClip], workers: int = 1
) -> Iterator[tuple[FlowClip, Callable[[], T]]]:
    """(clip, () -> read(clip)) in order, read a few clips ahead in threads.

    With several workers it is read in that many processes, to which `read` is sent.
    """
    count = _READERS if workers <= 1 else workers
    read = read if workers <= 1 else functools.partial(_with_plain_errors, read)
    with _make_pool(workers) as pool:
        queue: collections.deque = collections.deque()
        try:
            for clip in clips:
                queue.append((clip, pool.submit(read, clip)))
                if len(queue) > 2 * count:
                    clip, future = queue.popleft()
                    yield clip, future.result
            while queue:
                clip, future = queue.popleft()
                yield clip, future.result
        finally:
            pool.shutdown(cancel_futures=True)


def _with_plain_errors(read: Callable[[FlowClip], T], clip: FlowClip) -> T:
    """Some exceptions of decoders cannot leave a process, and their pool would end with them."""
    try:
        return read(clip)
    except Exception as error:
        raise RuntimeError(str(error) or type(error).__name__) from None


def _make_pool(workers: int) -> concurrent.futures.Executor:
    if workers <= 1:
        return concurrent.futures.ThreadPoolExecutor(_READERS)
    # Spawned, not forked: this process may hold threads (jax does).
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)


def _start_worker() -> None:
    """Leaves Ctrl-C to the program, which then ends this process; so does its end, even a kill."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_program, daemon=True).start()


def _end_with_program() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class Progress:
    """A line every few seconds: clips, files, speed and the remaining time."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self._total, self._say = total, say
        self._shown, self._start = monotonic(), None

    def start(self) -> None:
        """The first clip that needs work."""
        self._start = self._start or monotonic()

    def show(self, done: int, written: int, kept: int, is_last: bool = False) -> None:
        now = monotonic()
        if now - self._shown < _SAY_EVERY and not is_last:
            return
        self._shown = now
        left, speed = "0:00:00" if done == self._total else "?", 0.0
        if self._start is not None and now > self._start and done > kept:
            speed = written / (now - self._start)
            left = clock((now - self._start) / (done - kept) * (self._total - done))
        self._say(
            f"clip {done}/{self._total} ({kept} were complete)  {written} files  "
            f"{speed:.2f} files/s  {left} left"
        )

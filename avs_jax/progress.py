"""Progress of long work on stderr: how much is done, how fast, and how long the rest will take.

On a terminal, one line is replaced; a log file gets a new line from time to time, and none of work
that ends within FIRST_SECONDS. The speed is that since the first item: it may have compiled.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

FIRST_SECONDS, LOG_SECONDS = 10.0, 30.0  # until the first line of a log file; between two of them
TERMINAL_SECONDS = 0.2  # between two states of the line on a terminal
CLEAR = "\r\x1b[K"

T = TypeVar("T")


class Progress:
    """Counts items of one piece of work.

    Use it as a context, so that its line leaves the terminal at the end.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0, is_shown: bool = True):
        """`done`: items of an earlier run."""
        self._title, self._total, self._done = title, total, done
        self._units = unit + ("es" if unit.endswith("ch") else "s")
        self._is_shown, self._on_terminal = is_shown, sys.stderr.isatty()
        self._timed: tuple[float, int] | None = None  # when the first item was done, count then
        wait = TERMINAL_SECONDS if self._on_terminal else FIRST_SECONDS
        self._next = time.monotonic() + wait
        if self._on_terminal:
            self._show(time.monotonic())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        if self._is_shown and self._on_terminal:
            print(CLEAR, end="", file=sys.stderr, flush=True)

    def add(self, count: int = 1) -> None:
        """`count` more items are done."""
        now = time.monotonic()
        self._done += count
        if self._timed is None:
            self._timed = now, self._done
        if now >= self._next:
            self._next = now + (TERMINAL_SECONDS if self._on_terminal else LOG_SECONDS)
            self._show(now)

    def _show(self, now: float) -> None:
        if not self._is_shown:
            return
        line = f"{self._title}: {self._done}/{self._total} {self._units}"
        start, before = self._timed or (now, self._done)
        if now > start and self._done > before:
            each = (now - start) / (self._done - before)
            speed = f"{1 / each:.1f} {self._units}/s" if each < 1 else f"{each:.1f} s each"
            line += f"  {speed}  {clock(each * (self._total - self._done))} left"
        ends = (CLEAR, "") if self._on_terminal else ("", "\n")
        print(f"{ends[0]}{line}", end=ends[1], file=sys.stderr, flush=True)


def tracked(
    items: Iterable[T],
    title: str,
    total: int,
    unit: str,
    is_shown: bool = True,
    size: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """The items; each counts as done, by its size, when the next one is asked for."""
    with Progress(title, total, unit, is_shown=is_shown) as progress:
        for item in items:
            yield item
            progress.add(size(item))


def clock(seconds: float) -> str:
    """Such as 1:02:03."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"

"""How a program with workers or temporary files ends when it is asked to.

By default SIGTERM ends Python at once, without closing anything: worker processes and temporary
files stay, and shared memory is reported as leaked. A handler waits for what runs in C++, such as a
compilation of minutes, so only programs that have something to close install one.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

WATCH_SECONDS = 1.0
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception."""


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raises Terminated on SIGTERM, as Ctrl-C raises KeyboardInterrupt; only once.

    Does nothing outside of the main thread, or where SIGTERM already has a handler.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def stop_status(error: KeyboardInterrupt) -> tuple[str, int]:
    """What to print, and the exit status by the shell's convention: 128 + signal."""
    if isinstance(error, Terminated):
        return "terminated", 128 + signal.SIGTERM
    return "interrupted", 128 + signal.SIGINT


def run_as_program(main: Callable[..., int | None], *argv: Sequence[str]) -> NoReturn:
    """Calls main and exits with its status; a stopped program skips the interpreter's cleanup.

    After an interrupted compilation, that cleanup crashes in XLA, which hides the exit status. By
    then main has closed its files, locks and workers.
    """
    try:
        status = main(*argv)
    except SystemExit as error:
        status = error.code
    if status in STOPPED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def leave_stopping_to(parent: int) -> None:
    """For a worker process: ignores SIGINT and SIGTERM, and ends when its parent has ended.

    A terminal or a batch system signals every process of a group. The parent closes its workers
    in order; a worker that died by itself would leave shared memory behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

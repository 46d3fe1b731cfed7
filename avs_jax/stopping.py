"""How a program with workers or temporary files ends when it is asked to.

By default SIGTERM ends Python at once, without closing anything: worker processes and temporary
files stay, and shared memory is reported as leaked. A handler waits for what runs in C++, such as a
compilation of minutes, so only programs that have something to close install one.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

WATCH_SECONDS = 1.0
AGAIN_SECONDS = 0.1  # from an ignored interrupt to the next one
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

    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def stop_status(error: KeyboardInterrupt) -> tuple[str, int]:
    """What to print, and the exit status by the shell's convention: 128 + signal."""
    if isinstance(error, Terminated):
        return "terminated", 128 + signal.SIGTERM
    return "interrupted", 128 + signal.SIGINT


def run_as_program(main: Callable[..., int | None], *argv: Sequence[str]) -> NoReturn:
    """Calls main and exits with its status; a stopped program skips the interpreter's cleanup.

    After an interrupted compilation, that cleanup crashes in XLA, which hides the exit status. By
    then main has closed its files, locks and workers.

    Ctrl-C also stops where the interpreter is in a function that C++ called, as it often is while
    JAX traces: there a KeyboardInterrupt is ignored, or becomes the cause of another exception.
    """
    sys.unraisablehook = functools.partial(_interrupt_again, sys.unraisablehook)
    try:
        status = main(*argv)
    except SystemExit as error:
        status = error.code
    except (Exception, KeyboardInterrupt) as error:
        interrupt = _find_interrupt(error)
        if interrupt is None:
            raise
        line, status = stop_status(interrupt)
        print(line, file=sys.stderr)
    if status in STOPPED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _interrupt_again(hook: Callable, unraisable) -> None:
    """Of an interrupt that would be ignored, raises another one soon; leaves the rest to `hook`."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        hook(unraisable)
        return
    number = signal.SIGINT
    if issubclass(unraisable.exc_type, Terminated):
        number = signal.SIGTERM
        signal.signal(number, _terminate)
    # At once, it would be raised in this function, and be ignored too.
    main = threading.main_thread().ident
    again = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, [main, number])
    again.daemon = True
    again.start()


def _find_interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an exception comes from, if any."""
    if error is None or isinstance(error, KeyboardInterrupt):
        return error
    return _find_interrupt(error.__cause__) or _find_interrupt(error.__context__)


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

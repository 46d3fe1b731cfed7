"""Several processes of one job: how they connect, and how they end when one of them is gone.

Each process has its own devices. All run the same program on the same mesh, read their own rows of
each batch, and take part in every checkpoint. The working directory and the records must be the
same files for all of them. When one process ends early, the collectives of the others fail: at once
if its connections are closed, otherwise when JAX's service has missed its heartbeat for too long.
None of them can continue, so each says so and ends.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax

from avs_jax.spec import InputError

HEARTBEAT_TIMEOUT_SECONDS = 60
INTERRUPTED = 130  # exit status after Ctrl-C
# Words in the errors of collectives and of JAX's service.
PEER_FAILURES = ("gloo", "nccl", "coordination service", "heartbeat", "connection reset")
MESSAGE = """error: process {process} of {count}: another process of this job has ended or cannot \
be reached; its own log says why.
This one stops as well. Give the same command to all of them again to resume from the last complete
checkpoint. ({reason})"""


@contextlib.contextmanager
def distributed_job(
    coordinator: str | None,
    num_processes: int | None = None,
    process_id: int | None = None,
    expected: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Connects the processes of the job for a block; does nothing without a coordinator.

    An error in the block ends this process at once with status 1, after one message; Ctrl-C ends it
    with status 130. JAX would wait for the other processes at the end of the program until it gives
    them up.

    Args:
      coordinator: "HOST:PORT" of process 0, the same for all; "auto" where JAX can find out this
        and the rest (Slurm, Open MPI, TPU, Kubernetes).
      expected: exceptions whose message is for the user; others keep their traceback.
    """
    _check_flags(coordinator, num_processes, process_id)
    if not coordinator:
        yield
        return
    # For CPU devices; other platforms have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        None if coordinator == "auto" else coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        print(_describe(error, expected), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error, or what caused it, comes from another process that is gone."""
    # When JAX waits during dispatch, it raises a ValueError instead of its own error.
    is_from_jax = isinstance(error, RuntimeError | ValueError) and not isinstance(error, InputError)
    if is_from_jax and any(sign in str(error).lower() for sign in PEER_FAILURES):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_peer_failure(cause)


def _describe(error: BaseException, expected: tuple[type[Exception], ...]) -> str:
    if is_peer_failure(error):
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        process, count = jax.process_index(), jax.process_count()
        return MESSAGE.format(process=process, count=count, reason=reason)
    if isinstance(error, KeyboardInterrupt):
        return "error: interrupted"
    if isinstance(error, expected):
        return f"error: {error}"
    return "".join(traceback.format_exception(error))


def _check_flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    given = {"--num_processes": num_processes, "--process_id": process_id}
    named = [name for name, value in given.items() if value is not None]
    if not coordinator:
        if named:
            raise InputError(f"{named[0]} is for several processes and needs --coordinator")
        return
    if coordinator == "auto":
        return
    if len(named) < len(given):
        raise InputError(
            f"--coordinator={coordinator} needs --num_processes and --process_id; where JAX can "
            "detect these, --coordinator=auto needs neither"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--coordinator={coordinator!r}: expected HOST:PORT or auto")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} of --num_processes={num_processes}: expected 0 to "
            f"{num_processes - 1}"
        )

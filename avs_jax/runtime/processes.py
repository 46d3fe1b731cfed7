"""Several processes of one job: how they meet, and how they end when one of them is gone.

Each process has its own devices; every one runs the same program on the same mesh, reads its own
rows of each batch, and takes part in every checkpoint. The working directory and the records must
be the same files for all of them. Where one ends early, the collectives of the others fail, at once
where its connections are closed and otherwise when its heartbeat has been missing for so long that
JAX's service ends them. None of them can go on, so each says so and ends.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax

from avs_jax.spec import InputError

HEARTBEAT_TIMEOUT_SECONDS = 60  # without a sign of life, a process is gone
# How the errors of collectives and of JAX's service name what they are about.
SIGNS_OF_LOSS = ("gloo", "nccl", "coordination service", "heartbeat", "connection reset")
LOST = """error: process {process} of {count}: another process of this job has ended or cannot be \
reached; its own log says why.
This one stops as well. The same command, given to all of them again, goes on from the last
complete checkpoint. ({reason})"""


@contextlib.contextmanager
def joined(
    coordinator: str | None,
    num_processes: int | None = None,
    process_id: int | None = None,
    expected: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """The job's processes are connected inside; one process alone where there is no coordinator.

    An error inside ends this process with status 1 at once, after one message: waiting for the
    others, as JAX does at the end of a program, would last until they are given up.

    Args:
      coordinator: "HOST:PORT" of process 0, the same for all; "auto" where JAX can find out this
        and the rest (Slurm, Open MPI, TPU, Kubernetes).
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      expected: exceptions whose message is for the user; others keep their traceback.

    Raises:
      ValueError: flags that do not make a job.
    """
    _check_flags(coordinator, num_processes, process_id)
    if not coordinator:
        yield
        return
    # Of CPU devices; others have their own.
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
        os._exit(1)


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether an error comes from a process that is gone, itself or by what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        # JAX raises a ValueError instead of its own error where it waits as it dispatches.
        is_of_jax = isinstance(seen, (RuntimeError, ValueError)) and not isinstance(
            seen, InputError
        )
        if is_of_jax and any(sign in str(seen).lower() for sign in SIGNS_OF_LOSS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _describe(error: BaseException, expected: tuple[type[Exception], ...]) -> str:
    if is_loss_of_a_process(error):
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        process, count = jax.process_index(), jax.process_count()
        return LOST.format(process=process, count=count, reason=reason)
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
            "find these out, --coordinator=auto needs neither"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--coordinator={coordinator!r}: expected HOST:PORT or auto")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} of --num_processes={num_processes}: expected 0 to "
            f"{num_processes - 1}"
        )

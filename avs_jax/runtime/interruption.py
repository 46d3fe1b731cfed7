"""What stops a run early: a request to stop, or non-finite numbers."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

import jax
from jax.experimental import multihost_utils

from avs_jax.runtime.run_checkpoints import Checkpoints


class NotFiniteError(FloatingPointError):
    """The loss or its gradient is NaN or infinite."""


class FiniteCheck:
    """Stops a run whose loss or gradient is NaN or infinite.

    It checks one step late, so the next step runs while the host waits, but at once before anything
    of the step is stored.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._unchecked: tuple[int, Mapping[str, jax.Array]] | None = None

    def check(self, step: int, metrics: Mapping[str, jax.Array], at_once: bool) -> None:
        """Raises NotFiniteError for the previous step, and for this one if `at_once`."""
        if self._unchecked is not None:
            self._raise_unless_finite(*self._unchecked)
        self._unchecked = None if at_once else (step, metrics)
        if at_once:
            self._raise_unless_finite(step, metrics)

    def _raise_unless_finite(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        if jax.device_get(metrics["finite"]):
            return
        self._checkpoints.wait()
        good = self._checkpoints.latest_step
        where = "there is none yet" if good is None else self._checkpoints.directory / str(good)
        terms = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "finite"}
        raise NotFiniteError(
            f"step {step}: the loss or its gradient is not finite; last good checkpoint: {where}; "
            f"terms: {terms}"
        )


@contextlib.contextmanager
def sigterm_as_request() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that says whether any process of the job got SIGTERM."""
    if jax.process_count() > 1:  # JAX's service makes all processes stop at the same step
        yield multihost_utils.reached_preemption_sync_point
        return
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: requested.is_set()
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: requested.set())
    try:
        yield lambda step: requested.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)

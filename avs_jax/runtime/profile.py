"""Where training time goes: a trace of some steps, speed, and time spent waiting for data.

  tensorboard --logdir=WORKDIR/tensorboard

shows the trace under "Profile" (with the plugin from the package xprof).
"""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

WARM_UP = 3  # steps before the trace: the first ones compile and fill the loader's buffers


class StepProfiler:
    """Traces `num_steps` steps after the warm-up, or the last ones if fewer are left.

    Call `before` and `after` around every step. Enable it in one process only.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        num_steps: int,
        start_step: int,
        total_steps: int,
        enabled: bool = True,
    ):
        """`start_step` steps are done; 0 `num_steps` trace nothing."""
        self.directory = pathlib.Path(workdir).expanduser() / "tensorboard"
        after_warm_up = min(start_step + WARM_UP, total_steps - num_steps)
        self._first = max(start_step, after_warm_up) + 1
        self._last = min(self._first + num_steps - 1, total_steps)
        self._enabled, self._is_tracing = enabled and num_steps > 0, False

    def before(self, step: int) -> None:
        """Starts the trace if `step` is the first one to trace."""
        if self._enabled and step == self._first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # tracing Python calls takes tens of MB per step
            jax.profiler.start_trace(self.directory, profiler_options=options)
            self._is_tracing = True

    def after(self, step: int, outputs) -> pathlib.Path | None:
        """Ends the trace, once `outputs` are ready, if `step` is the last one; then its folder."""
        if not self._is_tracing or step != self._last:
            return None
        jax.block_until_ready(outputs)
        self.close()
        return max((self.directory / "plugins" / "profile").iterdir())

    def close(self) -> None:
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False


class DataWaitTimer:
    """Takes batches from a loader and adds up how long the devices waited for them."""

    def __init__(self, batches: Iterator[Any]):
        self._batches, self._seconds = batches, 0.0

    def next(self, running=None) -> Any:
        """The next batch.

        Args:
          running: outputs of the last dispatched step. If they are still pending when the batch
            arrives, the devices did not wait. Otherwise the whole time counts, an upper bound.
        """
        begun = time.monotonic()
        batch = next(self._batches)
        if all(leaf.is_ready() for leaf in jax.tree.leaves(running)):
            self._seconds += time.monotonic() - begun
        return batch

    def take(self) -> float:
        """Seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class StepSpeed:
    """Speed and share of time spent waiting for data, since the last `restart`.

    Nothing before the first `restart` counts, in particular not the first step.
    """

    def __init__(self, waits: DataWaitTimer, batch_size: int):
        self._waits, self._batch_size = waits, batch_size
        self._begun: float | None = None  # seconds, of the monotonic clock
        self._first_step = 0

    @property
    def is_measuring(self) -> bool:
        return self._begun is not None

    def restart(self, step: int) -> None:
        """Starts measuring; `step` steps are done and none is running."""
        self._begun, self._first_step = time.monotonic(), step
        self._waits.take()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside."""
        begun = time.monotonic()
        yield
        self._begun += time.monotonic() - begun

    def at(self, step: int) -> tuple[dict[str, float], float | None]:
        """The speed up to `step`, whose outputs are ready, and seconds per step.

        {"clips_per_second", "data_wait": fraction of the time}; ({}, None) before a `restart`.
        """
        if self._begun is None:
            return {}, None
        elapsed = time.monotonic() - self._begun
        seconds = elapsed / (step - self._first_step)
        measured = {
            "clips_per_second": self._batch_size / seconds,
            "data_wait": self._waits.take() / elapsed,
        }
        return measured, seconds

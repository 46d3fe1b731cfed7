"""Where the time of training goes: a trace of some steps, speed, time spent waiting for data.

  tensorboard --logdir=WORKDIR/tensorboard

shows the trace under "Profile" (TensorBoard's plugin for it is the package xprof).
"""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from avs_jax.spec import InputError

WARM_UP = 3  # steps that pass before: the first ones compile, and fill the loader's buffers


class StepProfiler:
    """Traces `num_steps` steps after the warm-up, or the last ones where fewer are left.

    Call `before` and `after` around every step. One process is traced: name it by `enabled`.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        num_steps: int,
        start_step: int,
        total_steps: int,
        enabled: bool = True,
    ):
        """Prepares; nothing is traced yet.

        Args:
          workdir: the run's directory; the trace goes to its tensorboard/plugins/profile.
          num_steps: of config.profile_steps; 0 traces nothing.
          start_step: steps done before.
          total_steps: of the whole run.
          enabled: False traces nothing.

        Raises:
          ValueError: a negative number of steps.
        """
        if num_steps < 0:
            raise InputError(f"config.profile_steps = {num_steps}: expected 0 (off) or more")
        self.directory = pathlib.Path(workdir).expanduser() / "tensorboard"
        after_warm_up = min(start_step + WARM_UP, total_steps - num_steps)
        self._first = max(start_step, after_warm_up) + 1
        self._last = min(self._first + num_steps - 1, total_steps)
        self._enabled, self._is_tracing = enabled and num_steps > 0, False

    def before(self, step: int) -> None:
        """Starts the trace where `step` is the first to be traced."""
        if self._enabled and step == self._first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of Python: tens of megabytes a step
            jax.profiler.start_trace(self.directory, profiler_options=options)
            self._is_tracing = True

    def after(self, step: int, outputs) -> pathlib.Path | None:
        """Ends the trace where `step` is the last to be traced.

        Args:
          step: that has been asked for.
          outputs: of the step; waited for before the trace ends.

        Returns:
          The folder of the trace that has just been written, else None.
        """
        if not self._is_tracing or step != self._last:
            return None
        jax.block_until_ready(outputs)
        self.close()
        return max((self.directory / "plugins" / "profile").iterdir())

    def close(self) -> None:
        """Ends a trace that is under way."""
        if self._is_tracing:
            jax.profiler.stop_trace()
            self._is_tracing = False


class DataWaitTimer:
    """Takes batches from a loader and adds up how long the devices had to wait for them."""

    def __init__(self, batches: Iterator[Any]):
        """Starts at zero.

        Args:
          batches: of the loader.
        """
        self._batches, self._seconds = batches, 0.0

    def next(self, running=None) -> Any:
        """The next batch.

        Args:
          running: outputs of the step that was asked for last. If they are not there when the batch
            is, nobody has waited. If they are, the whole time counts: at most that was lost.
        """
        begun = time.monotonic()
        batch = next(self._batches)
        if all(leaf.is_ready() for leaf in jax.tree.leaves(running)):
            self._seconds += time.monotonic() - begun
        return batch

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class StepSpeed:
    """How fast the steps go and how much of it is waiting for data, since the last `restart`.

    The first step, before the first `restart`, does not count.
    """

    def __init__(self, waits: DataWaitTimer, batch_size: int):
        """Measures nothing yet.

        Args:
          waits: gives the batches; its time starts again with each `restart`.
          batch_size: clips per step.
        """
        self._waits, self._batch_size = waits, batch_size
        self._begun: float | None = None  # seconds, of the monotonic clock
        self._first_step = 0

    @property
    def is_measuring(self) -> bool:
        """Whether `restart` has been called."""
        return self._begun is not None

    def restart(self, step: int) -> None:
        """Measures from here: `step` steps are done, and nothing is under way."""
        self._begun, self._first_step = time.monotonic(), step
        self._waits.take()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        begun = time.monotonic()
        yield
        self._begun += time.monotonic() - begun

    def at(self, step: int) -> tuple[dict[str, float], float | None]:
        """The speed up to `step`, whose outputs are there.

        Returns:
          ({"clips_per_second", "data_wait": share of the time}, seconds per step); ({}, None)
          before the first `restart`.
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

"""What a run says: scalars as JSON lines and for TensorBoard, pictures, and a line of progress.

  WORKDIR/metrics.jsonl   one object per line: {"step": 20, "total_loss": 63.1, ...}
  WORKDIR/tensorboard/    the same scalars, and validation pictures

A run that goes on from step s drops the lines and events after s, so none is there twice.
"""

import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

SHOWN_TERMS = ("total_loss", "loss_ce", "loss_mask", "loss_dice", "loss_proto", "loss_boundary")
PACE_MEMORY = 0.1  # weight of the last interval in the running mean


class Log:
    """The log of one run; only the first of several processes writes."""

    def __init__(
        self,
        workdir: str | pathlib.Path,
        total_steps: int,
        batch_size: int,
        start_step: int = 0,
        enabled: bool = True,
    ):
        """Opens the log.

        Args:
          workdir: the run's directory; made if need be.
          total_steps: of the whole run, for the remaining time.
          batch_size: clips per step, for the speed.
          start_step: the step the run goes on from; what was logged after it is dropped.
          enabled: False writes nothing.
        """
        self._total, self._batch_size, self._enabled = total_steps, batch_size, enabled
        self._pace: float | None = None  # seconds per step, running mean
        if not enabled:
            return
        directory = pathlib.Path(workdir).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        _drop_lines_after(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes named numbers; names with a "/" are grouped by TensorBoard."""
        if not self._enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes named pictures for TensorBoard: uint8 [H, W, 3]."""
        if not self._enabled:
            return
        for name, picture in pictures.items():
            picture = np.asarray(picture)
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
                raise ValueError(
                    f"picture {name}: {picture.dtype} {picture.shape}, expected uint8 [H, W, 3]"
                )
            self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def progress(self, step: int, values: Mapping[str, Any], seconds_per_step: float | None):
        """Prints step, loss terms, speed and the time that is left, to stderr.

        Args:
          step: steps done.
          values: metrics of this step.
          seconds_per_step: since the last line, without compilation and evaluation; None where
            there is no such time. What is left is estimated from its running mean.
        """
        line = [f"step {step}/{self._total}"]
        line += [f"{name} {float(values[name]):.4f}" for name in SHOWN_TERMS if name in values]
        if seconds_per_step is not None:
            if self._pace is None:
                self._pace = seconds_per_step
            self._pace += PACE_MEMORY * (seconds_per_step - self._pace)
            line.append(f"{self._batch_size / seconds_per_step:.2f} clips/s")
            line.append(f"{_duration(self._pace * (self._total - step))} left")
        if "data_wait" in values:
            line.append(f"{float(values['data_wait']):.0%} waiting for data")
        self.say("  ".join(line))

    def say(self, text: str) -> None:
        """Prints a line to stderr."""
        if self._enabled:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Writes what is buffered."""
        if self._enabled:
            self._file.close()
            self._writer.close()


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
    """Rewrites a JSONL without the lines after `step` and without one that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the process ended while it wrote this line
        if record["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"

"""What a run reports: scalars as JSON lines and for TensorBoard, images, and lines of progress.

  WORKDIR/metrics.jsonl   one object per line: {"step": 20, "total_loss": 63.1, ...}
  WORKDIR/tensorboard/    the same scalars, and validation images

A run that resumes from step s drops the lines and events after s. What it logs at s itself replaces
the lines of that step with the same names, so metrics.jsonl repeats nothing.
"""

import datetime
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from avs_jax.files import write_atomically

EMA_WEIGHT = 0.1  # of the last interval, in the running mean of the time per step
SHOWN_TERM = r"loss_[a-z_]+"  # in addition to the total; loss_ce_0 is one layer's


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
        """Opens the log of a run that resumes from `start_step`."""
        self._total, self._batch_size, self._enabled = total_steps, batch_size, enabled
        self._start_step = start_step
        self._seconds_per_step: float | None = None  # running mean
        if not enabled:
            return
        directory = pathlib.Path(workdir).expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        _drop_lines(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes named numbers; names with a "/" are grouped by TensorBoard."""
        if not self._enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        if step <= self._start_step:
            self._file.close()
            _drop_lines(self._path, self._start_step, step, values)
            self._file = self._path.open("a", encoding="utf-8")
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
        """Prints step, loss terms, speed and remaining time to stderr.

        Args:
          seconds_per_step: since the last line, without compilation and evaluation; None if there
            is no such time. The remaining time is estimated from its running mean.
        """
        line = [f"step {step}/{self._total}"]
        shown = [name for name in values if re.fullmatch(SHOWN_TERM, name)]
        shown = ["total_loss", *shown] if "total_loss" in values else shown
        line += [f"{name} {float(values[name]):.4f}" for name in shown]
        if seconds_per_step is not None:
            mean = self._seconds_per_step or seconds_per_step
            self._seconds_per_step = mean + EMA_WEIGHT * (seconds_per_step - mean)
            line.append(f"{self._batch_size / seconds_per_step:.2f} clips/s")
            left = datetime.timedelta(seconds=int(self._seconds_per_step * (self._total - step)))
            line.append(f"{left} left")
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


def _drop_lines(
    path: pathlib.Path, last_step: int, step: int | None = None, names: Iterable[str] = ()
) -> None:
    """Rewrites a JSONL without the lines after `last_step` and without incomplete lines.

    Lines of `step` that share a name with `names` are dropped too.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the process was killed while it wrote this line
        is_replaced = record["step"] == step and not record.keys().isdisjoint(names)
        if record["step"] <= last_step and not is_replaced:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))

"""The checkpoints of a run: saved in the background, restored on any mesh, the best one kept.

A save counts only once it is complete: the next start ignores an interrupted one. The newest N are
kept, and the best by the task's measure on the validation split: of the average of the parameters
if there is one (ema.py), of the parameters otherwise. checkpoint.py describes the files.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import sys
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from avs_jax.runtime.checkpoint import (
    FIRST_MEASURE,
    FOLDER,
    INDEX,
    Checkpoint,
    DamagedCheckpoint,
    score_of,
    step_directories,
)
from avs_jax.runtime.orbax_items import (
    full_disk_is_not_logged,
    full_disk_is_os_error,
    item_handlers,
    save_args,
)
from avs_jax.runtime.step import TrainState
from avs_jax.runtime.stored_config import check_same_config, plain_config
from avs_jax.spec import InputError

STATE_FIELDS = ("step", "params", "batch_stats", "opt_state", "ema")


@dataclasses.dataclass(frozen=True)
class Validation:
    """The outcome of a run's evaluations so far."""

    best: float | None = None  # the best score, None before the first evaluation
    best_step: int | None = None
    since_best: int = 0  # evaluations since then, none of which was better

    def after(self, step: int, score: float) -> "Validation":
        """With one more evaluation."""
        if self.best is None or score > self.best:
            return Validation(score, step)
        return dataclasses.replace(self, since_best=self.since_best + 1)


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
      directory: WORKDIR/checkpoints.
      validation: the history of evaluations. It is saved and restored with the state, so a resumed
        run loses patience at the step where an uninterrupted one does.
    """

    def __init__(
        self, workdir: str | pathlib.Path, config: ConfigDict, measure: str = FIRST_MEASURE
    ):
        """Opens the checkpoints of a working directory and removes interrupted saves.

        Args:
          config: saved with every checkpoint.
          measure: the validation result that chooses the best checkpoint; larger is better.
        """
        self.directory = pathlib.Path(workdir).expanduser().resolve() / FOLDER
        self.validation = Validation()
        self._config, self._measure = config, measure
        for directory in step_directories(self.directory):
            checkpoint = Checkpoint(directory)
            try:  # Orbax reads these files of all checkpoints as it opens them
                checkpoint.score(measure)
                if (directory / INDEX).exists():
                    checkpoint.read_json(INDEX)
            except DamagedCheckpoint as error:
                self._set_aside(directory, error)
        self._manager = self._open()
        self._log_filter = contextlib.ExitStack()  # a save logs until it is complete
        self._log_filter.enter_context(full_disk_is_not_logged())

    def _open(self) -> ocp.CheckpointManager:
        score = functools.partial(score_of, measure=self._measure)
        best = checkpoint_managers.BestN(
            get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
        )
        newest = checkpoint_managers.LatestN(self._config.train.keep_latest)
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
                best_fn=score,
                cleanup_tmp_directories=True,
            ),
            handler_registry=item_handlers(),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def restore(self, target: TrainState) -> tuple[TrainState, int] | None:
        """Reads the newest complete checkpoint onto the mesh of `target`.

        A damaged one is set aside as STEP.damaged, and the next older one is read.

        Returns:
          (state, position of the loader), or None if nothing has been saved.
        """
        self.wait()  # a step that is being saved counts as the latest
        while (step := self.latest_step) is not None:
            try:
                return self._restore(Checkpoint(self.directory / str(step)), target)
            except DamagedCheckpoint as error:
                self._set_aside(self.directory / str(step), error)
                self._manager.reload()
        return None

    def _restore(self, checkpoint: Checkpoint, target: TrainState) -> tuple[TrainState, int]:
        check_same_config(checkpoint.config, self._config, checkpoint.directory)
        if checkpoint.measure != self._measure:
            raise InputError(
                f"{checkpoint.directory}: the best checkpoint of this run has the best "
                f"{checkpoint.measure}, not {self._measure}; use another --workdir"
            )
        wanted = _as_dict(target)
        if not jax.tree.leaves(wanted["ema"]):
            del wanted["ema"]  # very old checkpoints have no entry for averages
        elif "ema" not in checkpoint.available_weights:
            raise InputError(
                f"{checkpoint.directory} has no average of the parameters to resume from: set "
                "config.train.ema_decay=0, or use another --workdir with config.train.init_from"
            )
        restored = {"ema": {}} | checkpoint.restore(wanted)
        if (checkpoint.directory / "validation").is_dir():  # old checkpoints have none
            with checkpoint.reading("validation"):
                values = checkpoint.read_json("validation")
                values.pop("measure", None)
                self.validation = Validation(**values)
        if checkpoint.step is None:
            raise DamagedCheckpoint(f"{checkpoint.directory} is damaged: loader is missing")
        return TrainState(**restored), checkpoint.step

    def _set_aside(self, directory: pathlib.Path, error: DamagedCheckpoint) -> None:
        """Renames a damaged checkpoint, so that the run resumes from an older one, if any."""
        step = int(directory.name)
        others = [int(x.name) for x in step_directories(self.directory) if x != directory]
        if not others:
            raise InputError(
                f"{error}; the run has no other checkpoint to resume from: use another --workdir, "
                "or remove that folder to start again"
            ) from error
        aside = directory.with_name(f"{step}.damaged")
        multihost_utils.sync_global_devices(f"damaged {step}")  # every process has read it
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier save of this step
            directory.rename(aside)
            repeated = f"; {step - max(others)} steps are repeated" if max(others) < step else ""
            print(f"{error}\nset aside as {aside}{repeated}", file=sys.stderr)
        multihost_utils.sync_global_devices(f"set aside {step}")

    def save(self, state: TrainState, position: int, metrics: Mapping[str, float] | None = None):
        """Saves in the background; the state may be donated to the next step at once.

        Args:
          position: batches that the loader has given, the steps of the state.
          metrics: validation results with the run's measure, if any. They replace a checkpoint of
            the same step that was saved without results.
        """
        step = int(position)
        if metrics is not None:
            metrics = {name: float(value) for name, value in metrics.items()}
            self.validation = self.validation.after(step, score_of(metrics, self._measure))
            if step == self.latest_step:
                self.wait()
                if not self.is_evaluated(step):
                    self._manager.delete(step)
        values = {
            "loader": {"position": step},
            "config": plain_config(self._config),
            "validation": dataclasses.asdict(self.validation) | {"measure": self._measure},
        }
        items = save_args({"state": _as_dict(state)}, values, metrics)
        with full_disk_is_os_error(self.directory):
            saved = self._manager.save(step, args=items, metrics=metrics)
        if not saved:
            raise RuntimeError(
                f"{self.directory}: step {step} was not saved; existing steps: "
                f"{list(self._manager.all_steps())}"
            )

    def is_evaluated(self, step: int) -> bool:
        """Whether the checkpoint of a step holds validation results."""
        return (self.directory / str(step) / "metrics").is_dir()

    def wait(self) -> None:
        """Returns when the running save is complete."""
        with full_disk_is_os_error(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the running save and releases the threads."""
        with self._log_filter, full_disk_is_os_error(self.directory):
            self._manager.close()


def _as_dict(state: TrainState) -> dict:
    return {name: getattr(state, name) for name in STATE_FIELDS}

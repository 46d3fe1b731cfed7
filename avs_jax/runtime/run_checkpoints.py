"""The checkpoints of a run: saved in the background, restored on any mesh, the best ones kept.

Saves count only once they are complete: one that was cut off is not seen by the next start. The
newest N are kept, and the best by validation mIoU: of the average of the parameters where there is
one (ema.py), else of the parameters. What a checkpoint holds: checkpoint.py.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from avs_jax.runtime.checkpoint import (
    FOLDER,
    full_disk_is_os_error,
    read_state,
    score,
    stored_shapes,
)
from avs_jax.runtime.step import TrainState
from avs_jax.runtime.stored_config import check_same_config, plain_config, read_config
from avs_jax.spec import InputError

STATE_FIELDS = ("step", "params", "batch_stats", "opt_state", "ema")


@dataclasses.dataclass(frozen=True)
class Validation:
    """What a run's evaluations came to so far.

    Attributes:
      best: the best score, None before the first evaluation.
      best_step: the step that had it.
      since_best: evaluations since, none of which was better.
    """

    best: float | None = None
    best_step: int | None = None
    since_best: int = 0

    def after(self, step: int, score: float) -> "Validation":
        """With one evaluation more."""
        if self.best is None or score > self.best:
            return Validation(score, step)
        return dataclasses.replace(self, since_best=self.since_best + 1)


class Checkpoints:
    """The checkpoints of one run.

    Attributes:
      directory: WORKDIR/checkpoints.
      validation: the history of evaluations; saved and restored with the state, so a run that goes
        on runs out of patience where one that never stopped does.
    """

    def __init__(self, workdir: str | pathlib.Path, config: ConfigDict):
        """Opens the checkpoints of a working directory; leftovers of interrupted saves are ignored.

        Args:
          workdir: the run's directory; made if need be.
          config: the run's configuration, saved with every checkpoint.
        """
        self.directory = pathlib.Path(workdir).expanduser().resolve() / FOLDER
        self.validation = Validation()
        self._config = config
        policies = [
            checkpoint_managers.LatestN(config.train.keep_latest),
            checkpoint_managers.BestN(
                get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=score,
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None where there is none."""
        return self._manager.latest_step()

    def restore(self, target: TrainState) -> tuple[TrainState, int] | None:
        """The newest complete checkpoint, on the mesh of `target`.

        Args:
          target: ShapeDtypeStructs with shardings; any mesh, not only the one that saved.

        Returns:
          (state, position of the loader), or None where nothing has been saved.

        Raises:
          ValueError: the checkpoint was made by another configuration, or holds other tensors.
        """
        step = self.latest_step
        if step is None:
            return None
        directory = self.directory / str(step)
        check_same_config(read_config(directory), self._config, directory)
        restored = {"ema": {}} | read_state(directory, _with_ema_or_without(target, directory))
        loader = self._manager.restore(
            step, args=ocp.args.Composite(loader=ocp.args.JsonRestore())
        )["loader"]
        if (directory / "validation").is_dir():  # an older checkpoint has none
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
                self.validation = Validation(**checkpointer.restore(directory / "validation"))
        return TrainState(**restored), loader["position"]

    def save(self, state: TrainState, position: int, metrics: Mapping[str, float] | None = None):
        """Saves in the background; the state may be donated to the next step at once.

        Args:
          state: the state after `position` steps.
          position: batches that the loader has given.
          metrics: validation results, with `mIoU`, if there are any. A checkpoint of the same step
            that was saved without any is replaced.

        Raises:
          RuntimeError: Orbax declined the step, as it does for one that exists already.
        """
        step = int(position)
        if metrics is not None:
            self.validation = self.validation.after(step, float(score(metrics)))
            if step == self.latest_step:
                self.wait()
                if not self.is_evaluated(step):
                    self._manager.delete(step)
        with full_disk_is_os_error(self.directory):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_as_dict(state)),
                    loader=ocp.args.JsonSave({"position": step}),
                    config=ocp.args.JsonSave(plain_config(self._config)),
                    validation=ocp.args.JsonSave(dataclasses.asdict(self.validation)),
                ),
                metrics=None if metrics is None else {k: float(v) for k, v in metrics.items()},
            )
        if not saved:
            raise RuntimeError(
                f"{self.directory}: step {step} was not saved; there are "
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
        with full_disk_is_os_error(self.directory):
            self._manager.close()


def _as_dict(state: TrainState) -> dict:
    return {name: getattr(state, name) for name in STATE_FIELDS}


def _with_ema_or_without(target: TrainState, directory: pathlib.Path) -> dict:
    """What to read of a checkpoint, which has no average if it is older than averages."""
    wanted = _as_dict(target)
    if not jax.tree.leaves(wanted["ema"]):
        del wanted["ema"]
    elif not jax.tree.leaves(stored_shapes(directory).get("ema", {})):
        raise InputError(
            f"{directory} has no average of the parameters to go on with: set "
            "config.train.ema_decay=0, or use another --workdir with config.train.init_from"
        )
    return wanted

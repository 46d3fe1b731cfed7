"""Checkpoints: what a run leaves in its directory, and how it is found again.

  WORKDIR/checkpoints/STEP/   state (step, params, batch_stats, opt_state[, ema]), loader, config,
                              validation (the best score so far), metrics
  DIR/                        state (params, batch_stats), config: what a converter leaves, and
                              `kept`, tensors of its source that the model does not have

Both are Orbax composites with the same item names, so whoever wants parameters reads either. Saves
run in the background and count only once they are complete: one that was cut off is not seen by the
next start. The newest N and the best by validation mIoU are kept: of the average of the parameters
where there is one (ema.py), else of the parameters.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from avs_jax.runtime.ema import ema_variables
from avs_jax.runtime.optim import flatten, unflatten
from avs_jax.runtime.step import TrainState
from avs_jax.runtime.stored_config import check_same_config, plain_config, read_config
from avs_jax.spec import InputError, nearest

FOLDER = "checkpoints"
FULL_DISK = "No space left on device"
KEPT = "kept"  # item of converted weights
METRIC = "mIoU"  # what "best" means
STATE_FIELDS = ("step", "params", "batch_stats", "opt_state", "ema")
WEIGHTS = ("raw", "ema")  # the parameters, and their average


def _write_one_copy() -> None:
    """Of an array that several devices hold.

    By default each of them writes a slice, cut by a program of its own: hundreds of compilations
    for the first save.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that a handler is replaced
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    logger.setLevel(level)


_write_one_copy()


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
                get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=_score,
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
        restored = {"ema": {}} | _read_state(directory, _with_ema_or_without(target, directory))
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
            self.validation = self.validation.after(step, float(metrics[METRIC]))
            if step == self.latest_step:
                self.wait()
                if not self.is_evaluated(step):
                    self._manager.delete(step)
        with _full_disk_is_os_error(self.directory):
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
        with _full_disk_is_os_error(self.directory):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the running save and releases the threads."""
        with _full_disk_is_os_error(self.directory):
            self._manager.close()


@contextlib.contextmanager
def _full_disk_is_os_error(
    directory: pathlib.Path,
    advice: str = "the last complete one is kept, and the same command goes on from it once there "
    "is room",
) -> Iterator[None]:
    """Orbax reports a full disk as a ValueError of many lines, from its background thread.

    Each of its threads logs the same error with its traceback as well: those records are dropped,
    for the error itself arrives here at the next save, wait or close.
    """
    logging.getLogger("absl").addFilter(_is_not_a_full_disk)  # once, however often it is added
    try:
        yield
    except Exception as error:
        if FULL_DISK not in str(error):
            raise
        raise OSError(f"{directory}: no space left for a checkpoint; {advice}") from error


def _is_not_a_full_disk(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return FULL_DISK not in record.getMessage() and FULL_DISK not in str(error)


def save_variables(
    directory: str | pathlib.Path,
    variables: Mapping,
    config: ConfigDict,
    kept: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes parameters alone, for `load_variables`.

    Args:
      directory: must not exist.
      variables: {"params": ..., "batch_stats": ...}, nested dicts of arrays; batch_stats optional.
      config: the configuration they belong to.
      kept: name -> array, tensors of a foreign file that no parameter takes, for `load_kept`.

    Raises:
      OSError: the disk is full.
    """
    directory = pathlib.Path(directory).expanduser().resolve()
    state = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    items = {
        "state": ocp.args.PyTreeSave(state),
        "config": ocp.args.JsonSave(plain_config(config)),
    }
    if kept:
        items[KEPT] = ocp.args.PyTreeSave(dict(kept))
    with (
        _full_disk_is_os_error(directory, "nothing was written; make room and run it again"),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
    ):
        checkpointer.save(directory, args=ocp.args.Composite(**items))


def load_kept(directory: str | pathlib.Path) -> dict[str, np.ndarray]:
    """What `save_variables` kept aside: name -> array, {} where it kept nothing.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    directory = find_checkpoint(directory)
    if not (directory / KEPT).is_dir():
        return {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(directory / KEPT).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        args = ocp.args.PyTreeRestore(restore_args=as_numpy)
        return checkpointer.restore(directory / KEPT, args=args)


def load_variables(
    directory: str | pathlib.Path, weights: str = "auto"
) -> tuple[dict, dict, ConfigDict]:
    """Reads the parameters of a checkpoint, whatever devices wrote it.

    Args:
      directory: a run's working directory (its best checkpoint by validation mIoU, or its newest
        where none was evaluated), one step's directory, or parameters written by `save_variables`.
      weights: "raw": the parameters; "ema": their average; "auto": the average where there is one.

    Returns:
      (params, batch_stats, config): nested dicts of numpy arrays, and the configuration saved.

    Raises:
      FileNotFoundError: naming what was looked for and what is there.
      ValueError: `weights` is something else, or the checkpoint does not have them.
    """
    directory = find_checkpoint(directory)
    chosen = stored_weights(directory, weights)[-1]
    stored = _stored_shapes(directory)
    names = ("params", "batch_stats", "ema") if chosen == "ema" else ("params", "batch_stats")
    wanted = {name: stored.get(name, {}) for name in names}
    wanted = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), wanted)
    wanted = {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)}
    state = _read_state(directory, wanted)
    params, batch_stats = state.get("params", {}), state.get("batch_stats", {})
    if chosen == "ema":
        params, batch_stats = ema_variables(params, state["ema"])
    return params, batch_stats, read_config(directory)


def stored_weights(directory: str | pathlib.Path, weights: str = "auto") -> tuple[str, ...]:
    """Which of WEIGHTS a checkpoint has and `weights` ("auto": all) asks for.

    Raises:
      FileNotFoundError: as `load_variables`.
      ValueError: `weights` is none of WEIGHTS and "auto", or the checkpoint does not have them.
    """
    directory = find_checkpoint(directory)
    if weights not in ("auto", *WEIGHTS):
        raise InputError(f"config.evaluate.weights = {weights!r}: choose auto, raw or ema")
    there = WEIGHTS if jax.tree.leaves(_stored_shapes(directory).get("ema", {})) else ("raw",)
    if weights == "auto":
        return there
    if weights not in there:
        raise InputError(
            f"config.evaluate.weights = {weights!r}: {directory} has no average of the parameters "
            "(config.train.ema_decay was 0)"
        )
    return (weights,)


def find_checkpoint(directory: str | pathlib.Path) -> pathlib.Path:
    """The directory that holds the items of the checkpoint that `load_variables` would read."""
    directory = pathlib.Path(directory).expanduser().resolve()
    if _is_checkpoint(directory):
        return directory
    folder = directory / FOLDER
    if folder.is_dir():
        options = ocp.CheckpointManagerOptions(best_fn=_score, read_only=True)
        with ocp.CheckpointManager(folder, options=options) as manager:
            best = manager.best_step()
            step = manager.latest_step() if best is None else best
        if step is not None:
            return folder / str(step)
    there = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"{directory}: no checkpoint; looked for {folder}/STEP (a working directory) and for "
        f"{directory}/state (one step, or converted weights); found: {there}"
    )


def fill_variables(
    params: Mapping,
    batch_stats: Mapping,
    directory: str | pathlib.Path,
    fresh: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> tuple[dict, dict, list[str]]:
    """Replaces initial values by those of a checkpoint, placed as the initial ones are.

    Args:
      params: nested, initial.
      batch_stats: nested, initial.
      directory: as in `load_variables`.
      fresh: path regexes that keep their initial value.
      dropped: path regexes of the checkpoint's tensors that are not taken.

    Returns:
      (params, batch_stats, the paths that were not taken or kept their initial value).

    Raises:
      ValueError: listing every tensor that is missing, superfluous or of another shape.
    """
    loaded_params, loaded_stats, _ = load_variables(directory)
    filled, problems, aside = [], [], []
    for initial, loaded in ((params, loaded_params), (batch_stats, loaded_stats)):
        initial, loaded = flatten(initial), flatten(loaded)
        keep = {path for path in initial if any(re.fullmatch(rule, path) for rule in fresh)}
        drop = {path for path in loaded if any(re.fullmatch(rule, path) for rule in dropped)}
        aside += sorted(keep | drop)
        problems += _differences(
            {path: x.shape for path, x in loaded.items() if path not in keep | drop},
            {path: x.shape for path, x in initial.items() if path not in keep},
        )
        filled.append((initial, loaded, keep))
    if problems:
        raise InputError(
            f"config.train.init_from={str(directory)!r}: {len(problems)} tensor(s) do not fit "
            "(config.train.init_fresh names those to leave as initialised, "
            "config.train.init_dropped those of the checkpoint to leave out):\n  "
            + "\n  ".join(problems)
        )
    trees = (
        unflatten({p: x if p in keep else place_like(loaded[p], x) for p, x in initial.items()})
        for initial, loaded, keep in filled
    )
    return *trees, aside


def _score(metrics: Mapping[str, float]) -> float:
    return metrics[METRIC]


def _as_dict(state: TrainState) -> dict:
    return {name: getattr(state, name) for name in STATE_FIELDS}


def _with_ema_or_without(target: TrainState, directory: pathlib.Path) -> dict:
    """What to read of a checkpoint, which has no average if it is older than averages."""
    wanted = _as_dict(target)
    if not jax.tree.leaves(wanted["ema"]):
        del wanted["ema"]
    elif not jax.tree.leaves(_stored_shapes(directory).get("ema", {})):
        raise InputError(
            f"{directory} has no average of the parameters to go on with: set "
            "config.train.ema_decay=0, or use another --workdir with config.train.init_from"
        )
    return wanted


def _is_checkpoint(directory: pathlib.Path) -> bool:
    return (directory / "state" / "_METADATA").is_file() and (directory / "config").is_dir()


def _stored_shapes(directory: pathlib.Path):
    return _read_shapes(directory, (directory / "state" / "_METADATA").stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)  # a checkpoint is asked several times, and answers in seconds
def _read_shapes(directory: pathlib.Path, written: int):
    del written  # another checkpoint where it differs
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.metadata(directory / "state").item_metadata.tree


def _paths(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _differences(stored: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> list[str]:
    problems = [f"{p} {s}: not in the checkpoint" for p, s in wanted.items() if p not in stored]
    for path, shape in stored.items():
        if path not in wanted:
            near = nearest(path, list(wanted), 1)
            problems.append(f"{path} {shape}: the model has none (nearest: {near})")
        elif shape != wanted[path]:
            problems.append(f"{path}: {shape} in the checkpoint, the model wants {wanted[path]}")
    return problems


def _read_state(directory: pathlib.Path, target: dict) -> dict:
    """Restores the top-level items of `target`, leaf by leaf onto its shardings (numpy: numpy)."""
    stored = {name: tree for name, tree in _stored_shapes(directory).items() if name in target}
    problems = _differences(_paths(stored), _paths(target))
    if problems:
        raise InputError(f"{directory} holds other tensors:\n  " + "\n  ".join(problems))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            directory / "state",
            args=ocp.args.PyTreeRestore(
                item=target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=True,
            ),
        )
    absent = [  # a key that is missing on disk comes back as its description, without an error
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
        if not isinstance(leaf, (jax.Array, np.ndarray))
    ]
    if absent:
        raise ValueError(f"{directory}: not restored: {absent}")
    return restored


def place_like(value: np.ndarray, like: jax.Array) -> jax.Array:
    """The value with dtype and sharding of another array of its shape."""
    value = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])

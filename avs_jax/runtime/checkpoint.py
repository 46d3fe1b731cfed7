"""What a checkpoint is on disk: how it is found, read and written.

  WORKDIR/checkpoints/STEP/   state (step, params, batch_stats, opt_state[, ema]), loader, config,
                              validation (the best score so far), metrics: run_checkpoints.py
  DIR/                        state (params, batch_stats), config: what a converter leaves, and
                              `kept`, tensors of its source that the model does not have

Both are Orbax composites with the same item names, so whoever wants parameters reads either.
"""

import contextlib
import functools
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from avs_jax.runtime.ema import ema_variables
from avs_jax.runtime.stored_config import plain_config, read_config
from avs_jax.spec import InputError, nearest

FOLDER = "checkpoints"
FULL_DISK = "No space left on device"
KEPT = "kept"  # item of converted weights
METRIC = "mIoU"  # what "best" means
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


def find_checkpoint(directory: str | pathlib.Path) -> pathlib.Path:
    """The directory that holds the items of the checkpoint that `load_variables` would read."""
    directory = pathlib.Path(directory).expanduser().resolve()
    if _is_checkpoint(directory):
        return directory
    folder = directory / FOLDER
    if folder.is_dir():
        options = ocp.CheckpointManagerOptions(best_fn=score, read_only=True)
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


def _is_checkpoint(directory: pathlib.Path) -> bool:
    return (directory / "state" / "_METADATA").is_file() and (directory / "config").is_dir()


def stored_weights(directory: str | pathlib.Path, weights: str = "auto") -> tuple[str, ...]:
    """Which of WEIGHTS a checkpoint has and `weights` ("auto": all) asks for.

    Raises:
      FileNotFoundError: as `load_variables`.
      ValueError: `weights` is none of WEIGHTS and "auto", or the checkpoint does not have them.
    """
    directory = find_checkpoint(directory)
    if weights not in ("auto", *WEIGHTS):
        raise InputError(f"config.evaluate.weights = {weights!r}: choose auto, raw or ema")
    there = WEIGHTS if jax.tree.leaves(stored_shapes(directory).get("ema", {})) else ("raw",)
    if weights == "auto":
        return there
    if weights not in there:
        raise InputError(
            f"config.evaluate.weights = {weights!r}: {directory} has no average of the parameters "
            "(config.train.ema_decay was 0)"
        )
    return (weights,)


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
    stored = stored_shapes(directory)
    names = ("params", "batch_stats", "ema") if chosen == "ema" else ("params", "batch_stats")
    wanted = {name: stored.get(name, {}) for name in names}
    wanted = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), wanted)
    wanted = {name: tree for name, tree in wanted.items() if jax.tree.leaves(tree)}
    state = read_state(directory, wanted)
    params, batch_stats = state.get("params", {}), state.get("batch_stats", {})
    if chosen == "ema":
        params, batch_stats = ema_variables(params, state["ema"])
    return params, batch_stats, read_config(directory)


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
        full_disk_is_os_error(directory, "nothing was written; make room and run it again"),
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


def score(metrics: Mapping[str, float]) -> float:
    """The number by which one checkpoint is better than another."""
    return metrics[METRIC]


def stored_shapes(directory: pathlib.Path) -> dict[str, Any]:
    """What the state of one checkpoint holds: a tree of leaves with shape and dtype.

    Args:
      directory: of one checkpoint, as `find_checkpoint` gives it.
    """
    return _read_shapes(directory, (directory / "state" / "_METADATA").stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)  # a checkpoint is asked several times, and answers in seconds
def _read_shapes(directory: pathlib.Path, written: int) -> dict[str, Any]:
    del written  # another checkpoint where it differs
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.metadata(directory / "state").item_metadata.tree


def read_state(directory: pathlib.Path, target: dict) -> dict:
    """Reads the top-level items of `target` from one checkpoint.

    Args:
      directory: of one checkpoint, as `find_checkpoint` gives it.
      target: leaves are ShapeDtypeStructs with shardings, or numpy arrays where numpy is wanted.

    Returns:
      `target` with the stored values.

    Raises:
      ValueError: the checkpoint holds other tensors, which are all named.
    """
    stored = {name: tree for name, tree in stored_shapes(directory).items() if name in target}
    problems = differences(_paths(stored), _paths(target))
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


def _paths(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def differences(
    stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """A line per tensor that is missing, superfluous or of another shape.

    Args:
      stored: path -> shape, of the checkpoint.
      wanted: path -> shape, of the model.
    """
    problems = [f"{p} {s}: not in the checkpoint" for p, s in wanted.items() if p not in stored]
    for path, shape in stored.items():
        if path not in wanted:
            near = nearest(path, list(wanted), 1)
            problems.append(f"{path} {shape}: the model has none (nearest: {near})")
        elif shape != wanted[path]:
            problems.append(f"{path}: {shape} in the checkpoint, the model wants {wanted[path]}")
    return problems


@contextlib.contextmanager
def full_disk_is_os_error(
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

"""One checkpoint on disk: found once, then asked for its configuration, shapes and values.

  WORKDIR/checkpoints/STEP/   state (step, params, batch_stats, opt_state[, ema]), loader, config,
                              validation (the best score so far), metrics (run_checkpoints.py)
  DIR/                        state (params, batch_stats), config: converted weights, and `kept`,
                              tensors of the source file that the model does not have

Both are Orbax composites with the same item names, so every reader of parameters accepts either.
Both have the item `checksums` (checksums.py), which every read is compared with; checkpoints that
are older than checksums are read without.
"""

import contextlib
import functools
import json
import math
import operator
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from avs_jax.runtime.checksums import changed_arrays, json_checksum, leaves_by_path
from avs_jax.runtime.ema import ema_variables
from avs_jax.runtime.orbax_items import (
    CHECKSUMS,
    KEPT,
    ArrayError,
    full_disk_is_os_error,
    item_handlers,
    save_args,
    state_handler,
)
from avs_jax.runtime.stored_config import plain_config, update_stored
from avs_jax.spec import Array, InputError, nearest

FOLDER = "checkpoints"
INDEX = "_CHECKPOINT_METADATA"  # Orbax's own note of the items
JSON_FILES = {INDEX: INDEX, "metrics": "metrics/metrics"}  # the file of other items is "metadata"
WEIGHTS = ("raw", "ema")  # the parameters, and their average
FIRST_MEASURE = "mIoU"  # chooses the best checkpoint of runs that do not say which measure does
MAX_LINES = 20  # of tensors listed where a checkpoint does not fit
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NOT_DAMAGE = "PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED"


class DamagedCheckpoint(InputError):
    """A checkpoint whose files are not what was written: one line that names it and the damage."""


class Checkpoint:
    """One checkpoint of a run, or converted weights. Build it with `Checkpoint.find`.

    Attributes:
      directory: holds the items `state` and `config`.
    """

    def __init__(self, directory: pathlib.Path):
        """A checkpoint in exactly this directory, which is not read yet."""
        self.directory = directory

    @classmethod
    def find(cls, path: str | pathlib.Path) -> "Checkpoint":
        """Resolves a path: a run's working directory, one step's directory, or converted weights.

        A working directory stands for its best checkpoint by the run's measure, or for its newest
        if none was evaluated. FileNotFoundError names the places that were searched.
        """
        path = pathlib.Path(path).expanduser().resolve()
        if (path / "state").is_dir() and (path / "config").is_dir():
            return cls(path)
        checkpoints = [cls(directory) for directory in step_directories(path / FOLDER)]
        if checkpoints:
            try:
                measure = checkpoints[-1].measure
                scores = [checkpoint.score(measure) for checkpoint in checkpoints]
            except DamagedCheckpoint as error:
                raise DamagedCheckpoint(f"{error}; rename that folder to leave it out") from error
            best = max(range(len(scores)), key=lambda i: (scores[i], i))
            return checkpoints[best]
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{path}: no checkpoint; looked for {path / FOLDER}/STEP (a working directory) and for "
            f"{path}/state (one step, or converted weights); found: {found}"
        )

    @functools.cached_property
    def step(self) -> int | None:
        """Training steps done, None for converted weights."""
        if not (self.directory / "loader").is_dir():
            return None
        with self.reading("loader"):
            return operator.index(self.read_json("loader")["position"])

    @property
    def name(self) -> str:
        """The step, or "converted"."""
        return "converted" if self.step is None else str(self.step)

    @property
    def run_directory(self) -> pathlib.Path:
        """The working directory of a run's checkpoint, the directory itself otherwise."""
        if self.directory.parent.name == FOLDER and self.step is not None:
            return self.directory.parent.parent
        return self.directory

    @functools.cached_property
    def config(self) -> ConfigDict:
        """The stored configuration, in today's keys (stored_config.py)."""
        values = self.read_json("config")
        with self.reading("config"):
            return update_stored(ConfigDict(values))

    @functools.cached_property
    def checksum(self) -> str | None:
        """Eight hex digits that identify the state, None for a checkpoint without checksums."""
        return json_checksum(self._checksums["state"]) if "state" in self._checksums else None

    @property
    def measure(self) -> str:
        """Name of the measure by which the best checkpoint of the run is chosen."""
        if not (self.directory / "validation").is_dir():
            return FIRST_MEASURE
        return self.read_json("validation").get("measure", FIRST_MEASURE)

    def score(self, measure: str) -> float:
        """The validation result by one measure, -inf without one."""
        if not (self.directory / "metrics").is_dir():
            return -math.inf
        with self.reading("metrics"):
            return score_of(self.read_json("metrics"), measure)

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """The stored state as a tree whose leaves have shape and dtype."""
        with self.reading("state"):
            return dict(state_handler().metadata(self.directory / "state").tree)

    @property
    def available_weights(self) -> tuple[str, ...]:
        """WEIGHTS that are stored."""
        return WEIGHTS if jax.tree.leaves(self.shapes.get("ema", {})) else WEIGHTS[:1]

    def choose_weights(self, weights: str = "auto") -> tuple[str, ...]:
        """The available weights that config.evaluate.weights asks for; "auto" asks for all."""
        if weights not in ("auto", *WEIGHTS):
            raise InputError(f"config.evaluate.weights = {weights!r}: choose auto, raw or ema")
        if weights == "auto":
            return self.available_weights
        if weights not in self.available_weights:
            raise InputError(
                f"config.evaluate.weights = {weights!r}: {self.directory} has no average of the "
                "parameters (config.train.ema_decay was 0)"
            )
        return (weights,)

    def variables(self, weights: str = "auto") -> tuple[dict, dict]:
        """Reads (params, batch_stats), nested dicts of numpy arrays.

        Args:
          weights: "raw": the parameters; "ema": their average; "auto": the average if available.
        """
        chosen = self.choose_weights(weights)[-1]
        names = ("params", "batch_stats", "ema") if chosen == "ema" else ("params", "batch_stats")
        target = {k: self.shapes[k] for k in names if jax.tree.leaves(self.shapes.get(k, {}))}
        state = self.restore(
            jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), target)
        )
        params, batch_stats = state.get("params", {}), state.get("batch_stats", {})
        if chosen == "ema":
            params, batch_stats = ema_variables(params, state["ema"])
        return params, batch_stats

    def kept(self) -> dict[str, np.ndarray]:
        """The tensors that `save_variables` kept aside by name, {} if there are none."""
        if not (self.directory / KEPT).is_dir():
            return {}
        with self.reading(KEPT):
            handler, folder = state_handler(), self.directory / KEPT
            tree = handler.metadata(folder).tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            kept = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        self._check_arrays(KEPT, kept)
        return kept

    def restore(self, target: Mapping[str, Any]) -> dict[str, Any]:
        """`target`, top-level entries of the state, with the stored values.

        Its leaves are ShapeDtypeStructs with shardings, or numpy arrays to read numpy arrays.
        InputError lists tensors that do not fit, DamagedCheckpoint names one that changed.
        """
        target = dict(target)
        stored = leaves_by_path({k: tree for k, tree in self.shapes.items() if k in target})
        wanted = leaves_by_path(target)
        problems = shape_mismatches(stored, wanted) or [
            f"{path}: {stored[path].dtype} in the checkpoint, {leaf.dtype} in the model"
            for path, leaf in wanted.items()
            if stored[path].dtype != leaf.dtype
        ]
        if problems:
            raise misfit(self.directory, "the configuration", problems)
        with self.reading("state"):
            restored = state_handler().restore(
                self.directory / "state",
                args=ocp.args.PyTreeRestore(
                    item=target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
            )
        self._check_arrays("state", restored)
        return restored

    def _check_arrays(self, item: str, tree: Any) -> None:
        # Orbax returns the description of an array that is missing on disk, without an error.
        arrays = (jax.Array, np.ndarray)
        bad = [path for path, leaf in leaves_by_path(tree).items() if not isinstance(leaf, arrays)]
        if not bad and item in self._checksums:
            bad = changed_arrays(tree, self._checksums[item])
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise DamagedCheckpoint(
                f"{self.directory} is damaged: {item}/{bad[0]}{more} changed since it was saved"
            )

    @functools.cached_property
    def _checksums(self) -> dict[str, Any]:
        """What the item CHECKSUMS records, {} for a checkpoint that is older than it."""
        return self.read_json(CHECKSUMS) if (self.directory / CHECKSUMS).is_dir() else {}

    def check_fits(
        self, params: Mapping, batch_stats: Mapping, model_name: str = "config.model"
    ) -> None:
        """Raises InputError that lists tensors missing, superfluous or of another shape."""
        problems = []
        for name, wanted in (("params", params), ("batch_stats", batch_stats)):
            stored = leaves_by_path(self.shapes.get(name, {}))
            problems += shape_mismatches(stored, leaves_by_path(wanted))
        if problems:
            raise misfit(self.directory, model_name, problems)

    def read_json(self, item: str) -> dict[str, Any]:
        """Reads an item that is a JSON object, such as `config`."""
        with self.reading(item):
            file = self.directory / JSON_FILES.get(item, f"{item}/metadata")
            value = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise TypeError(f"expected a JSON object, found a {type(value).__name__}")
            if item != CHECKSUMS and self._checksums.get(item) not in (None, json_checksum(value)):
                raise ValueError("it changed since it was saved")
            return value

    @contextlib.contextmanager
    def reading(self, item: str) -> Iterator[None]:
        """Turns errors of reading an item into one line that names it.

        Raises:
          DamagedCheckpoint: the files of the item are not what was written.
          OSError: they cannot be read now, for another reason.
        """
        try:
            yield
        except (InputError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            if isinstance(error, ArrayError):
                item = f"{item}/{error}"
            cause: BaseException = error
            while type(cause) in (Exception, ArrayError) and cause.__cause__:  # wrapped by Orbax
                cause = cause.__cause__
            if isinstance(error, OSError) and not isinstance(error, MISSING):
                raise
            reason = (str(cause) or type(cause).__name__).splitlines()[0]
            reason = reason.partition(" [tensorstore_spec")[0]
            if re.match(NOT_DAMAGE, reason):
                raise OSError(f"{self.directory}: {item} cannot be read: {reason}") from error
            raise DamagedCheckpoint(f"{self.directory} is damaged: {item}: {reason}") from error


def score_of(metrics: Mapping[str, float], measure: str) -> float:
    """The number by which one checkpoint is better than another; NaN and none count as -inf."""
    score = float(metrics.get(measure, -math.inf))
    return -math.inf if math.isnan(score) else score


def step_directories(folder: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints in WORKDIR/checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    steps = (p for p in folder.iterdir() if p.name.isdigit() and p.is_dir())
    return sorted(steps, key=lambda p: int(p.name))


def newest_config(workdir: pathlib.Path) -> ConfigDict | None:
    """The configuration of a run's newest readable checkpoint, None for a new run."""
    for directory in reversed(step_directories(workdir / FOLDER)):
        with contextlib.suppress(DamagedCheckpoint):
            return Checkpoint(directory).config
    return None


def save_variables(
    directory: str | pathlib.Path,
    variables: Mapping,
    config: ConfigDict,
    kept: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes parameters alone.

    Args:
      directory: must not exist.
      variables: {"params": ..., "batch_stats": ...}, nested dicts of arrays; batch_stats optional.
      kept: name -> array, tensors of a foreign file that no parameter takes.
    """
    directory = pathlib.Path(directory).expanduser().resolve()
    state = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    trees = {"state": state, KEPT: dict(kept)} if kept else {"state": state}
    items = save_args(trees, {"config": plain_config(config)})
    with (
        full_disk_is_os_error(directory, "nothing was written; make room and run it again"),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler(handler_registry=item_handlers())) as saver,
    ):
        saver.save(directory, args=items)


def shape_mismatches(stored: Mapping[str, Array], wanted: Mapping[str, Array]) -> list[str]:
    """A line per tensor by path that is missing, superfluous or of another shape."""
    stored, wanted = ({p: tuple(x.shape) for p, x in xs.items()} for xs in (stored, wanted))
    problems = [f"{p} {s}: not in the checkpoint" for p, s in wanted.items() if p not in stored]
    for path, shape in stored.items():
        if path not in wanted:
            near = ", ".join(nearest(path, list(wanted), 1)) or "nothing"
            problems.append(f"{path} {shape}: not in the model (nearest: {near})")
        elif shape != wanted[path]:
            problems.append(f"{path}: {shape} in the checkpoint, {wanted[path]} in the model")
    return problems


def misfit(
    directory: str | pathlib.Path, model_name: str, problems: list[str], advice: str = ""
) -> InputError:
    """The error for a checkpoint whose tensors are not the model's, by `shape_mismatches`."""
    shown = problems[:MAX_LINES]
    if len(problems) > MAX_LINES:
        shown.append(f"and {len(problems) - MAX_LINES} more")
    lines = "".join(f"\n  {line}" for line in shown)
    return InputError(
        f"{directory} does not fit {model_name}, {len(problems)} tensor(s){advice}:{lines}"
    )

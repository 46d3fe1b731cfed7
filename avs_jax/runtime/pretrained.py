"""Pretrained weights that a training run starts from: a whole model, or single components.

Later steps override earlier ones: random values of the seed; the whole model of
config.train.init_from, if any; the components of config.init. A folder of config.init holds a
converted component, or a whole model with that component, of any task.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from avs_jax.runtime.checkpoint import Checkpoint, misfit, shape_mismatches
from avs_jax.runtime.optim import flatten, split_frozen, unflatten
from avs_jax.runtime.stored_config import plain_config
from avs_jax.spec import InputError

SAME = "same"  # value of config.init.pre_sam_backbone: the folder of the first backbone
SECTIONS = {"pre_sam_backbone": "backbone"}  # component -> section of config.model, if not its own
# Of a section: no weight depends on them.
FREE_KEYS = (
    "remat",
    "drop_path_rate",
    "dtype",
    "memory_dtype",
    "prompt_slots",
    "stability_threshold",
    "hard_prompts",
    "hides_absent",
)
ADVICE = (
    " (config.train.init_fresh names those to keep as initialized, config.train.init_dropped those "
    "of the checkpoint to leave out)"
)


def init_from_checkpoint(
    params: Mapping,
    batch_stats: Mapping,
    directory: str | pathlib.Path,
    fresh: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> tuple[dict, dict, list[str]]:
    """Replaces nested initial values by those of a checkpoint.

    Args:
      directory: as in `Checkpoint.find`.
      fresh: path regexes that keep their initial value.
      dropped: path regexes of the checkpoint's tensors to leave out.

    Returns:
      (params, batch_stats, the paths that were left out or kept their initial value). Arrays have
      the dtype and sharding of those they replace.
    """
    checkpoint = Checkpoint.find(directory)
    filled, problems, aside = [], [], []
    for initial, loaded in zip((params, batch_stats), checkpoint.variables(), strict=True):
        initial, loaded = flatten(initial), flatten(loaded)
        keep = {path for path in initial if any(re.fullmatch(rule, path) for rule in fresh)}
        drop = {path for path in loaded if any(re.fullmatch(rule, path) for rule in dropped)}
        aside += sorted(keep | drop)
        problems += shape_mismatches(
            {path: x for path, x in loaded.items() if path not in keep | drop},
            {path: x for path, x in initial.items() if path not in keep},
        )
        filled.append((initial, loaded, keep))
    if problems:
        raise misfit(checkpoint.directory, "config.model", problems, ADVICE)
    trees = (
        unflatten({p: x if p in keep else _place_like(loaded[p], x) for p, x in initial.items()})
        for initial, loaded, keep in filled
    )
    return *trees, aside


def check_sources(config: ConfigDict) -> None:
    """Raises FileNotFoundError if what a new run starts from does not exist."""
    for path in (config.train.init_from, *config.init.values()):
        if path and path != SAME:
            Checkpoint.find(path)


def load_parts(
    params: Mapping, batch_stats: Mapping, config: ConfigDict
) -> tuple[dict, dict, list[str]]:
    """Replaces whole components of the model by those of config.init.

    Returns:
      (params, batch_stats, a line per component: how many tensors of which folder). Arrays have the
      dtype and sharding of those they replace.

    Raises:
      InputError: the folder holds another component or a whole model without it, a component of
        another configuration, or other tensors; or the model has no such component.
    """
    params, batch_stats, lines = dict(params), dict(batch_stats), []
    for part, directory in _folders(params, config).items():
        checkpoint, section = Checkpoint.find(directory), SECTIONS.get(part, part)
        is_whole = _is_whole(section, checkpoint, config)
        _check_section(part, section, checkpoint, config, is_whole)
        ours = params[part], batch_stats.get(part, {})
        theirs = _read_component(part, section, checkpoint, ours, is_whole)
        count = len(jax.tree.leaves(theirs))
        for tree, new, old in zip((params, batch_stats), theirs, ours, strict=True):
            if jax.tree.leaves(old):
                new = flatten(new)
                tree[part] = unflatten({k: _place_like(new[k], x) for k, x in flatten(old).items()})
        lines.append(f"{part}: {count} tensors of {directory}")
    return params, batch_stats, lines


def frozen_at_random(params: Mapping, config: ConfigDict) -> list[str]:
    """A line per component that is frozen, at least in part, but that nothing was loaded for."""
    if config.train.init_from:
        return []
    held, loaded = split_frozen(params, config.optim.frozen)[1], _folders(params, config)
    names = sorted({path.split("/")[0] for path in held} - set(loaded))
    return [
        f"{name} is frozen, but has random values: "
        f"--config.{f'init.{name}' if name in config.init else 'train.init_from'}=DIR loads weights"
        for name in names
    ]


def _read_component(
    part: str, section: str, checkpoint: Checkpoint, ours: tuple[Mapping, Mapping], is_whole: bool
) -> tuple[Mapping, Mapping]:
    """(params, batch_stats) of a component, of the shapes that `ours` has."""
    name = f"config.model.{section} (config.init.{part})"
    if "part" in checkpoint.config or is_whole:
        checkpoint.check_fits(*ours, name)
        return checkpoint.variables()
    theirs = tuple(tree.get(section, {}) for tree in checkpoint.variables())
    problems = []
    for stored, wanted in zip(theirs, ours, strict=True):
        problems += shape_mismatches(flatten(stored), flatten(wanted))
    if problems:
        raise misfit(checkpoint.directory, name, problems)
    return theirs


def _is_whole(section: str, checkpoint: Checkpoint, config: ConfigDict) -> bool:
    """Whether a checkpoint's whole model is the component: its keys are those of the section."""
    theirs = set(checkpoint.config.get("model", {})) - set(FREE_KEYS)
    return bool(theirs) and theirs <= set(config.model[section])


def _place_like(value: np.ndarray, like: jax.Array) -> jax.Array:
    """The value with the dtype and sharding of another array of its shape."""
    value = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


def _folders(params: Mapping, config: ConfigDict) -> dict[str, pathlib.Path]:
    """Component of the parameter tree -> folder."""
    wanted = config.init.to_dict()
    if wanted.get("pre_sam_backbone") == SAME:
        wanted["pre_sam_backbone"] = wanted["backbone"] if "pre_sam_backbone" in params else ""
    for part, directory in wanted.items():
        if directory and part not in params:
            raise InputError(
                f"config.init.{part}={directory!r}: the model has no {part}; it has "
                f"{sorted(set(params) & set(wanted))}"
            )
    return {part: pathlib.Path(folder).expanduser() for part, folder in wanted.items() if folder}


def _check_section(
    part: str, section: str, checkpoint: Checkpoint, config: ConfigDict, is_whole: bool
) -> None:
    """Compares what shapes do not tell, such as the number of attention heads.

    A key that the folder's configuration lacks is newer than the folder: its present value holds.
    """
    stored, where = checkpoint.config, f"config.init.{part}={str(checkpoint.directory)!r}"
    kind, holder = stored.get("part"), stored
    if is_whole:
        kind, holder = section, {section: stored.model}
    elif kind is None and section in stored.get("model", {}):
        kind, holder = section, stored.model
    if kind != section:
        what = "a whole model without one" if kind is None else f"a {kind}"
        raise InputError(f"{where}: the folder holds {what}, expected a {section}")
    theirs, ours = plain_config(holder[section]), plain_config(config.model[section])
    differing = [
        f"{key}: {theirs[key]!r} in the folder, {ours.get(key, 'absent')!r} now"
        for key in sorted(theirs)
        if key not in FREE_KEYS and theirs[key] != ours.get(key, "absent")
    ]
    if differing:
        raise InputError(
            f"{where}: made for another config.model.{section}; convert the file again with this "
            "configuration:\n  " + "\n  ".join(differing)
        )

"""Pretrained weights that a training run starts from: a whole model, or parts of it.

The order, in which the more particular wins: random values of the seed; then the whole model of
config.train.init_from, where there is one; then the parts of config.init.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from avs_jax.runtime.checkpoint import load_variables, shape_mismatches
from avs_jax.runtime.optim import flatten, unflatten
from avs_jax.spec import InputError

SAME = "same"  # value of config.init.pre_sam_backbone: the folder of the first backbone
# part of the parameter tree -> section of config.model that describes it
SECTIONS = {
    "backbone": "backbone",
    "pre_sam_backbone": "backbone",
    "audio_backbone": "audio_backbone",
}
FREE_KEYS = ("remat", "drop_path_rate")  # of a section: no weight depends on them


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
        problems += shape_mismatches(
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
        unflatten({p: x if p in keep else _place_like(loaded[p], x) for p, x in initial.items()})
        for initial, loaded, keep in filled
    )
    return *trees, aside


def fill_parts(
    params: Mapping, batch_stats: Mapping, config: ConfigDict
) -> tuple[dict, dict, list[str]]:
    """Replaces whole parts of the model by those of config.init.

    Args:
      params: nested.
      batch_stats: nested.
      config: the whole configuration; reads `init` and `model`.

    Returns:
      (params, batch_stats, a line per part: how many tensors of which folder). Arrays have dtype
      and sharding of those they replace.

    Raises:
      InputError: the folder holds another part or whole model, a part of another configuration, or
        other tensors; or the model has no such part.
      FileNotFoundError: there is no checkpoint.
    """
    flat = {"params": flatten(params), "batch_stats": flatten(batch_stats)}
    lines = []
    for part, directory in _folders(params, config).items():
        loaded_params, loaded_stats, stored = load_variables(directory)
        where = f"config.init.{part}={str(directory)!r}"
        _check_section(where, part, stored, config)
        loaded = {"params": flatten(loaded_params), "batch_stats": flatten(loaded_stats)}
        problems, count = [], 0
        for kind, leaves in loaded.items():
            theirs = {f"{part}/{path}": value for path, value in leaves.items()}
            ours = {p: x for p, x in flat[kind].items() if p.startswith(f"{part}/")}
            for path in sorted(set(ours) ^ set(theirs)):
                lacking = "the folder has none" if path in ours else "the model has none"
                problems.append(f"{kind} {path}: {lacking}")
            for path in sorted(set(ours) & set(theirs)):
                if ours[path].shape != theirs[path].shape:
                    problems.append(
                        f"{kind} {path}: {theirs[path].shape} in the folder, the model wants "
                        f"{ours[path].shape}"
                    )
                elif not problems:
                    flat[kind][path] = _place_like(theirs[path], ours[path])
                    count += 1
        if problems:
            raise InputError(
                f"{where}: {len(problems)} tensor(s) do not fit:\n  " + "\n  ".join(problems)
            )
        lines.append(f"{part}: {count} tensors of {directory}")
    return unflatten(flat["params"]), unflatten(flat["batch_stats"]), lines


def _place_like(value: np.ndarray, like: jax.Array) -> jax.Array:
    """The value with dtype and sharding of another array of its shape."""
    value = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])


def _folders(params: Mapping, config: ConfigDict) -> dict[str, pathlib.Path]:
    """Part of the parameter tree -> folder."""
    wanted = {part: config.init[part] for part in SECTIONS}
    if wanted["pre_sam_backbone"] == SAME:
        wanted["pre_sam_backbone"] = wanted["backbone"] if "pre_sam_backbone" in params else ""
    for part, directory in wanted.items():
        if directory and part not in params:
            raise InputError(
                f"config.init.{part}={directory!r}: the model has no {part}; it has "
                f"{sorted(set(params) & set(SECTIONS))}"
            )
    return {part: pathlib.Path(folder).expanduser() for part, folder in wanted.items() if folder}


def _check_section(where: str, part: str, stored: ConfigDict, config: ConfigDict) -> None:
    """Shapes do not tell everything: the number of heads, for one, is in the configuration only.

    A key that the folder's configuration lacks is younger than the folder: its present value holds.
    """
    section = SECTIONS[part]
    kind = stored.get("part")
    if kind != section:
        what = "a whole model; config.train.init_from takes those" if kind is None else f"a {kind}"
        raise InputError(f"{where}: the folder holds {what}, expected a {section}")
    theirs, ours = stored[section].to_dict(), config.model[section].to_dict()
    differing = [
        f"{key}: {theirs[key]!r} in the folder, {ours.get(key, 'absent')!r} now"
        for key in sorted(theirs)
        if key not in FREE_KEYS and _plain(theirs[key]) != _plain(ours.get(key, "absent"))
    ]
    if differing:
        raise InputError(
            f"{where}: made for another config.model.{section}; convert the file again with this "
            "configuration:\n  " + "\n  ".join(differing)
        )


def _plain(value):
    """Tuples as the lists that JSON makes of them."""
    return list(value) if isinstance(value, tuple) else value

"""The configuration that a checkpoint carries, and whether a run may go on under another one."""

import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from avs_jax.spec import InputError

# Keys that a resumed run may change: they leave every update of the parameters as it was, the mesh
# up to the order of float32 sums.
HARMLESS_KEYS = (
    r"data\.(num_workers|prefetch|data_dir)",
    r"data\.motion\.(model|pairs)",  # of own videos
    r"train\.(log_every|eval_every|checkpoint_every|keep_latest|num_pictures|compilation_cache)",
    r"train\.(patience|final_splits)",
    r"profile_steps",
    r"train\.mesh\..*",
    r"model\.remat",
    r"evaluate\..*",
)
# Keys that configurations once had: a checkpoint that holds them can still be resumed.
REMOVED_KEYS = (r"model\.backbone\.remat",)  # now model.remat


def plain_config(config: ConfigDict) -> dict:
    """The configuration as JSON would give it back: references resolved, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def read_config(directory: pathlib.Path) -> ConfigDict:
    """The configuration stored in one checkpoint."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return ConfigDict(checkpointer.restore(directory / "config"))


def check_same_config(stored: ConfigDict, config: ConfigDict, directory: pathlib.Path) -> None:
    """Raises where a run would go on under another configuration.

    A key that the stored configuration lacks is younger than the checkpoint: its present value
    holds, and stderr says so in one line.

    Raises:
      ValueError: listing each key that differs with both values, HARMLESS_KEYS aside; a key that
        is stored and exists no more differs, unless REMOVED_KEYS has it.
    """
    old, new = _flat_config(stored), _flat_config(config)
    old = {k: v for k, v in old.items() if k in new or not _matches(k, REMOVED_KEYS)}
    younger = sorted(set(new) - set(old))
    lines = [
        f"{key}: {old[key]!r} in the checkpoint, {new.get(key, 'absent')!r} now"
        for key in sorted(old)
        if old[key] != new.get(key, "absent") and not _matches(key, HARMLESS_KEYS)
    ]
    if lines:
        raise InputError(
            f"{directory} was made by another configuration; use another --workdir, or the same "
            "values:\n  " + "\n  ".join(lines)
        )
    if younger and jax.process_index() == 0:
        values = ", ".join(f"{key} = {new[key]!r}" for key in younger)
        print(
            f"{directory} is older than these keys, which hold as given: {values}", file=sys.stderr
        )


def _matches(key: str, rules: Sequence[str]) -> bool:
    return any(re.fullmatch(rule, key) for rule in rules)


def _flat_config(config: ConfigDict) -> dict[str, Any]:
    def walk(prefix, value):
        if not isinstance(value, dict):
            return {prefix: value}
        return {k: v for name in value for k, v in walk(f"{prefix}.{name}", value[name]).items()}

    return {key.removeprefix("."): value for key, value in walk("", plain_config(config)).items()}

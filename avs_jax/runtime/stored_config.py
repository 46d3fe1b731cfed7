"""The configuration stored with a checkpoint: brought up to date, compared with today's, digested.

A stored configuration has the keys of the day it was written. `update_stored` renames, drops and
adds keys so that it means today what it meant then.
"""

import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import empty_node, flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from avs_jax.spec import InputError

# Keys that change a number of a report; not where records are, how they are loaded, or what only
# training reads.
NUMBER_KEYS = (
    r"task",
    r"host",
    r"model\.(?!remat$).*",
    r"data\.(?!(data_dir|num_workers|prefetch|train_frames|num_supervised|supervised_choice"
    r"|max_targets|square_first|prototype_target|num_prototypes)$|augment\.|false_sounds\."
    r"|motion\.(model|pairs)$|track\.model$|frame_offset$).*",
    r"evaluate\.(?!(batch_size|num_pictures|split|weights|manifest)$).*",
)
# Keys that a resumed run may change. No parameter update depends on them, except that the mesh
# changes the order of float32 sums; nor do the numbers by which validation finds the best step.
HARMLESS_KEYS = (
    r"data\.(num_workers|prefetch|data_dir)",
    r"data\.trunk_features",  # data.trunk_key stands for the folder
    r"data\.(motion\.(model|pairs)|track\.model|frame_offset)",  # of own videos
    r"train\.(log_every|eval_every|checkpoint_every|keep_latest|num_pictures|compilation_cache)",
    r"train\.(patience|final_splits)",
    r"(init\..*|train\.init_(from|fresh|dropped))",  # read before step 1 only
    r"profile_steps",
    r"train\.mesh\..*",
    r"model\.remat",
    r"evaluate\.(?!(score_size|relevant|protocol|fallback|presence_threshold|post_process\..*)$).*",
)
# Regexes of keys that no longer exist.
REMOVED_KEYS = (r"model\.backbone\.remat",)  # now model.remat
# The same, where another key has a value.
REMOVED_UNDER: dict[tuple[str, str], tuple[str, ...]] = {
    # inherited from segment; the task never read them
    ("task", "refer"): (r"data\.false_sounds\..*", r"evaluate\.(audio|moving_threshold)"),
}
# Old key -> new key. The value stays the same.
RENAMED_KEYS: dict[str, str] = {"model.fusion.lambda_init": "model.decoder.lambda_init"}
# Key that was added later -> the value that reproduces what happened before it existed.
ADDED_KEYS: dict[str, Any] = {"task": "segment", "host": "vct"}
# The same, where another key has a value.
ADDED_UNDER: dict[tuple[str, str], dict[str, Any]] = {
    ("task", "segment"): {
        "data.false_sounds.share": 0.0,
        "data.false_sounds.types": "silence,noise,offscreen",
        "data.track.source": "none",
        "data.track.rate": 25.0,
        "data.track.window_seconds": 2.0,
        "data.track.model": "lucas_kanade",
    },
    ("host", "vct"): {
        "loss.consistency.kind": "contrast",
        "loss.consistency.weight": 0.1,
        "loss.consistency.tau": 0.07,
        "loss.consistency.tau_motion": 0.04,
        "loss.synchrony.weight": 0.2,
        "loss.synchrony.rank_weight": 0.2,
        "loss.synchrony.margin": 0.2,
    },
    ("host", "sam2"): {
        "data.trunk_features": "",
        "data.trunk_key": "",
        "loss.candidates": "best",
        "model.sam2.language_dim": 0,
        "model.sam2.hides_absent": True,
    },
    ("task", "refer"): {"evaluate.presence_threshold": 0.5, "data.frame_offset": 0.0},
    ("task", "describe"): {"data.frame_offset": 0.0},
    ("task", "track"): {"model.language_dim": 0, "model.hides_absent": True},
    ("task", "align"): {"model.bias_init": None, "model.levels": ["res5"]},
    ("model.fusion.name", "cma"): {"model.fusion.hidden_dim": 0, "model.fusion.raw_text": False},
    ("model.fusion.name", "ama"): {
        "model.fusion.at": "queries",
        "model.fusion.gate": False,
        "model.fusion.gate_temperature": 1.0,
        "model.fusion.levels": [],
        "model.fusion.temporal": "none",
        "model.fusion.causal": False,
        "model.fusion.consistency": False,
        "model.fusion.consistency_warmup": 0.2,
    },
}


def plain_config(config: ConfigDict) -> dict:
    """The configuration as JSON would return it: references resolved, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def update_stored(config: ConfigDict) -> ConfigDict:
    """A stored configuration in today's keys: renamed, removed, then added, by the tables above.

    A key is added where its section exists; top-level keys are added to whole configurations that
    are older than tasks.
    The configuration of a component's weights ({"part": "backbone", "backbone": {...}}) holds
    sections of config.model, and changes as those do.
    """
    is_component, has_task = "part" in config, "task" in config
    flat = flat_config(config)
    if is_component:
        flat = {k if k == "part" else f"model.{k}": value for k, value in flat.items()}
    flat = {RENAMED_KEYS.get(key, key): value for key, value in flat.items()}
    removed = list(REMOVED_KEYS)
    for (key, wanted), rules in REMOVED_UNDER.items():
        removed += rules if flat.get(key) == wanted else ()
    flat = {key: value for key, value in flat.items() if not _matches(key, removed)}
    flat = {key: value for key, value in flat.items() if not _is_of_no_component(key, flat)}
    for key, value in ADDED_KEYS.items():
        section = key.rpartition(".")[0] or "model"
        is_known = any(other.startswith(f"{section}.") for other in flat)
        if is_known and ("." in key or not (is_component or has_task)):
            flat.setdefault(key, value)
    for (key, wanted), added in ADDED_UNDER.items():
        for name, value in added.items() if flat.get(key) == wanted else ():
            if any(other.startswith(f"{name.split('.')[0]}.") for other in flat):
                flat.setdefault(name, value)
    if is_component:
        flat = {key.removeprefix("model."): value for key, value in flat.items()}
    return ConfigDict(unflatten_dict(flat, sep="."))


def check_same_config(stored: ConfigDict, config: ConfigDict, directory: pathlib.Path) -> None:
    """Raises if a run would resume under another configuration.

    InputError lists each key that differs with both values, HARMLESS_KEYS aside. A key that the
    stored configuration lacks is newer than the checkpoint: its present value holds, and stderr
    says so in one line.
    """
    old, new = flat_config(update_stored(stored)), flat_config(config)
    newer = sorted(set(new) - set(old))
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
    if newer and jax.process_index() == 0:
        values = ", ".join(f"{key} = {new[key]!r}" for key in newer)
        print(f"{directory} is older than these keys, used as given: {values}", file=sys.stderr)


def digest(config: ConfigDict, keys: Iterable[str]) -> str:
    """sha256 over some keys of a configuration, in hex.

    It depends neither on the order of keys nor on whether a sequence is a tuple or a list. `keys`
    are regexes of dotted keys or of sections: r"data\\.motion" takes all keys of a section.
    """
    rules = [rf"(?:{rule})(\..*)?" for rule in keys]
    chosen = {key: value for key, value in flat_config(config).items() if _matches(key, rules)}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def changes_a_number(key: str) -> bool:
    """Whether a number of a report depends on a dotted key."""
    return _matches(key, NUMBER_KEYS)


def flat_config(config: ConfigDict) -> dict[str, Any]:
    """Dotted key -> plain value. An empty section is a value."""

    flat = flatten_dict(plain_config(config), keep_empty_nodes=True, sep=".")
    return {key: {} if value is empty_node else value for key, value in flat.items()}


def _is_of_no_component(key: str, flat: Mapping[str, Any]) -> bool:
    """Whether a key describes a component that is absent, whose keys once stood there anyway."""
    section, _, name = key.rpartition(".")
    return name != "name" and flat.get(f"{section}.name") == "none"


def _matches(key: str, rules: Sequence[str]) -> bool:
    return any(re.fullmatch(rule, key) for rule in rules)

"""Rules for the values of a run's configuration, checked before anything is written.

models/rules.py checks those of the model.
"""

import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from avs_jax.runtime.stored_config import flat_config
from avs_jax.spec import InputError

Rule = tuple[Callable[[Any], bool], str]  # predicate, the allowed values in words


def _count(least: int) -> Rule:
    def holds(value):
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return holds, f"a whole number, at least {least}"


def _number(wanted: str, least: float = 0, most: float = sys.float_info.max) -> Rule:
    return lambda value: isinstance(value, (int, float)) and least <= value <= most, wanted


# (key regex, rule). Keys that a task lacks are not checked.
RULES: tuple[tuple[str, Rule], ...] = (
    (r"train\.(steps|batch_size|accumulate|keep_latest|mesh\.fsdp)", _count(1)),
    (r"train\.(log|eval|checkpoint)_every", _count(1)),
    (r"train\.(patience|num_pictures)", _count(0)),
    (r"train\.ema_decay", (lambda x: 0 <= x < 1, "0 (off) <= decay < 1")),
    (r"train\.mesh\.data", (lambda x: x == -1 or _count(1)[0](x), "-1 or at least 1")),
    (r"optim\.(learning_rate|weight_decay|clip_norm|power)", _number("a number, at least 0")),
    (r"optim\.moment_dtype", (lambda x: x in ("float32", "bfloat16"), "float32 or bfloat16")),
    (r"optim\.warmup_steps|data\.num_workers|profile_steps", _count(0)),
    (r"seed", (lambda x: _count(0)[0](x) and x < 2**32, "a whole number, 0 to 2**32 - 1")),
    (r"data\.(prefetch|image_size|num_frames|num_supervised|max_targets)", _count(1)),
    (r"data\.num_classes", _count(2)),
    (r"data\.text\.num_asked", _count(1)),
    (r"data\.augment\.flip", _number("a share, 0..1", most=1)),
    (r"data\.augment\.max_size|loss\.num_points|evaluate\.(batch_size|score_size)", _count(1)),
    (r"evaluate\.num_pictures", _count(0)),
    (r"evaluate\.weights", (lambda x: x in ("auto", "raw", "ema"), "auto, raw or ema")),
    (r"evaluate\.manifest", (lambda x: not x or _is_file(x), "a file that exists")),
    (r"evaluate\.moving_threshold", _number("a number, at least 0")),
    (r"loss\..*(weight|ratio|share|temperature|margin)", _number("a number, at least 0")),
)


def _is_file(path: str) -> bool:
    return pathlib.Path(path).expanduser().is_file()


def check_run_config(config: ConfigDict) -> None:
    """Raises InputError that lists every invalid key, its value and the allowed values."""
    flat = flat_config(config)
    problems = [
        f"config.{key} = {value!r}: expected {wanted}"
        for key, value in flat.items()
        for pattern, (holds, wanted) in RULES
        if re.fullmatch(pattern, key) and not _try(holds, value)
    ]
    if flat.get("evaluate.weights") == "ema" and not flat.get("train.ema_decay"):
        problems.append("config.evaluate.weights = 'ema' needs config.train.ema_decay above 0")
    if problems:
        raise InputError("\n  ".join(["the configuration cannot be run:", *problems]))


def _try(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(holds(value))
    except TypeError:
        return False

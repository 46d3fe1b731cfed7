"""Rules for the values of a run's configuration, checked before anything is written.

models/rules.py checks those of the model.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from avs_jax.runtime.stored_config import flat_config
from avs_jax.spec import InputError


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(least: float, most: float = sys.float_info.max) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and least <= value <= most


# (key regex, predicate, the predicate in words). Keys that a task lacks are not checked.
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (r"train\.(steps|batch_size|accumulate)", _is_count(1), "a whole number, at least 1"),
    (r"train\.(log|eval|checkpoint)_every", _is_count(1), "a whole number, at least 1"),
    (r"train\.(keep_latest|patience|num_pictures)", _is_count(0), "a whole number, at least 0"),
    (r"train\.ema_decay", lambda x: 0 <= x < 1, "0 (off) <= decay < 1"),
    (r"train\.mesh\.data", lambda x: x == -1 or _is_count(1)(x), "-1 or at least 1"),
    (r"train\.mesh\.fsdp", _is_count(1), "a whole number, at least 1"),
    (r"optim\.(learning_rate|weight_decay|clip_norm|power)", _is_number(0), "a number, at least 0"),
    (r"optim\.warmup_steps", _is_count(0), "a whole number, at least 0"),
    (r"data\.num_workers", _is_count(0), "a whole number, at least 0"),
    (r"data\.prefetch", _is_count(1), "a whole number, at least 1"),
    (r"data\.(image_size|num_frames|num_supervised|max_targets)", _is_count(1), "at least 1"),
    (r"data\.num_classes", _is_count(2), "a whole number, at least 2"),
    (r"data\.augment\.(flip)", _is_number(0, 1), "a share, 0..1"),
    (r"data\.augment\.max_size", _is_count(1), "a whole number, at least 1"),
    (r"evaluate\.(batch_size|score_size)", _is_count(1), "a whole number, at least 1"),
    (r"evaluate\.num_pictures", _is_count(0), "a whole number, at least 0"),
    (r"evaluate\.moving_threshold", _is_number(0), "a number, at least 0"),
    (r"loss\..*(weight|ratio|share|temperature|margin)", _is_number(0), "a number, at least 0"),
    (r"loss\.num_points", _is_count(1), "a whole number, at least 1"),
    (r"profile_steps|seed", _is_count(0), "a whole number, at least 0"),
)


def check_run_config(config: ConfigDict) -> None:
    """Raises InputError that lists every invalid key, its value and the allowed values."""
    problems = []
    for key, value in flat_config(config).items():
        for pattern, holds, wanted in RULES:
            if re.fullmatch(pattern, key) and not _try(holds, value):
                problems.append(f"config.{key} = {value!r}: expected {wanted}")
    if problems:
        raise InputError("\n  ".join(["the configuration cannot be run:", *problems]))


def _try(holds: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(holds(value))
    except TypeError:
        return False

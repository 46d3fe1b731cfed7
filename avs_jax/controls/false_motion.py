"""False motion for a model that reads motion: the controls of audio-motion alignment.

  zero_flow      the motion map is zero everywhere: a still clip
  shuffled_flow  the motion map of another clip of the split; its frames in turn where it is shorter

Sound, frames and ground truth stay the clip's own. The manifest of false_sounds.py says who gets
whose motion.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.altered import Altered
from avs_jax.spec import InputError

MOTION_CONTROLS = {"zero": "zero_flow", "shuffled": "shuffled_flow"}


def motion_controls(names: str) -> list[str]:
    """Conditions of a comma-separated list of "zero" and "shuffled".

    Raises:
      ValueError: another word, or one twice.
    """
    asked = [word.strip() for word in names.split(",") if word.strip()]
    if set(asked) - MOTION_CONTROLS.keys() or len(set(asked)) < len(asked):
        raise InputError(
            f"config.evaluate.motion is {names!r}, expected {', '.join(MOTION_CONTROLS)}, each "
            "once at most, joined by commas"
        )
    return [condition for name, condition in MOTION_CONTROLS.items() if name in asked]


def with_false_motion(
    records: Sequence[Mapping[str, Any]],
    ids: Sequence[str],
    manifest: Mapping[str, Any],
    condition: str,
    motion_maps: Callable[[Mapping[str, Any]], np.ndarray],
) -> Altered:
    """The records of a split whose motion maps are those of one condition.

    Args:
      ids: clip id of every record.
      manifest: of exactly these clips, two at least if their motion is to be shuffled.
      condition: value of MOTION_CONTROLS.
      motion_maps: record -> float32 [T, H, W, C], its own.
    """
    place = {clip: i for i, clip in enumerate(ids)}

    def replace(record: Mapping[str, Any], item: int) -> dict[str, Any]:
        if condition == "shuffled_flow":
            giver = records[place[manifest["clips"][ids[item]]["motion"]]]
            return {"motion": motion_maps(giver)}
        return {"motion": np.zeros((1, 1, 1, 1), np.float32)}

    return Altered(records, range(len(ids)), replace)

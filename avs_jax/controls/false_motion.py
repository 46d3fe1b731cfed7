"""False motion, a control for models that read motion.

  zero_flow        the motion map is zero everywhere: a still clip; there is no motion track
  shuffled_flow    the motion maps of another clip of the split, repeated if it is shorter, and its
                   motion track
  scrambled_track  the samples of the clip's own motion track in a random order; its maps stay

Sound, frames and ground truth are unchanged. The manifest of false_sounds.py pairs the clips, and
seeds the order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.controls.altered import Altered
from avs_jax.spec import InputError

TRACK_FIELDS = ("motion_track", "motion_track_rate")
MOTION_CONTROLS = {
    "zero": "zero_flow",
    "shuffled": "shuffled_flow",
    "scrambled": "scrambled_track",
}


def motion_controls(names: str) -> list[str]:
    """Conditions of a comma-separated list of keys of MOTION_CONTROLS."""
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
    """The records, with clip ids `ids`, with the motion maps of a value of MOTION_CONTROLS.

    `motion_maps` gives a record's own maps, float32 [T, H, W, C]. Shuffling needs two clips.
    """
    place = {clip: i for i, clip in enumerate(ids)}

    def replace(record: Mapping[str, Any], item: int) -> dict[str, Any]:
        if condition == "scrambled_track":
            track = np.asarray(record.get(TRACK_FIELDS[0], ()))
            rng = np.random.default_rng(manifest["clips"][ids[item]]["noise_seed"])
            return {TRACK_FIELDS[0]: rng.permutation(track, axis=0)}
        if condition == "shuffled_flow":
            giver = records[place[manifest["clips"][ids[item]]["motion"]]]
            tracks = {name: giver[name] for name in TRACK_FIELDS if name in giver}
            return {"motion": motion_maps(giver)} | tracks
        return {
            "motion": np.zeros((1, 1, 1, 1), np.float32),
            "motion_track": np.zeros((0, 0, 0, 0), np.float16),
        }

    return Altered(records, range(len(ids)), replace)

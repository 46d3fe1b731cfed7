"""False motion for a model that reads motion: the controls of audio-motion alignment.

  zero_flow      the motion map is zero everywhere: a still clip
  shuffled_flow  the motion map of another clip of the split; its frames in turn where it is shorter

Sound, pictures and ground truth stay the clip's own. Who gets whose motion is in the manifest of
negative_audio.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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


class FalseMotion(Sequence):
    """The records of a split with the motion of one condition."""

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        ids: Sequence[str],
        manifest: Mapping[str, Any],
        condition: str,
    ):
        """ids: clip id of every record; manifest: of exactly these clips, two at least if their
        motion is to be shuffled."""
        self._records, self._ids, self._condition = records, ids, condition
        self._clips = manifest["clips"]
        self._place = {clip: i for i, clip in enumerate(ids)}

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, item: int) -> dict[str, Any]:
        giver = None
        if self._condition == "shuffled_flow":
            giver = self._records[self._place[self._clips[self._ids[item]]["motion"]]]
        return {**self._records[item], "motion_of": giver}

"""The ground truth of the referring-video sets: masks of what their expressions mean.

  mevis     {train,valid_u}/mask_dict.json
  revos     mask_dict.json, mask_dict_foreground.json
  davis17   {train,valid}/mask_dict.json
  ytvos     {train}/mask_dict.json

mask_dict: {annotation id: [RLE or null per entry of the video's sorted frames]}; null is an empty
mask. The foreground of ReVOS is {video: {"masks_rle": [..]}}, elsewhere the union of the video's
objects.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from avs_jax.data.input_files import read_json
from avs_jax.data.rvos_folders import SPLITS, Expression, VideoSet, decode_masks, rle_size
from avs_jax.spec import InputError

MASKS = {name: "{split}/mask_dict.json" for name in SPLITS} | {"revos": "mask_dict.json"}
FOREGROUND = "mask_dict_foreground.json"


class Truth:
    """The masks of a split."""

    def __init__(self, videos: VideoSet):
        """Reads the files.

        Raises:
          InputError: a split without masks, a missing or damaged file, or expressions without
            masks.
        """
        self._videos = videos
        file = videos.root / MASKS[videos.name].format(split=videos.split)
        if not file.is_file():
            raise InputError(
                f"{file}: missing, so split {videos.split!r} of {videos.name!r} cannot be scored; "
                f"the split with public masks is {SPLITS[videos.name]!r}"
            )
        self._file, self._masks = file, read_json(file)
        is_revos = videos.name == "revos"
        self._foreground = read_json(videos.root / FOREGROUND) if is_revos else {}
        used = {a for e in videos.expressions for a in e.annotations}
        lacking = sorted(used - self._masks.keys())
        if lacking:
            raise InputError(f"{file}: no masks of the annotations {lacking[:5]}")

    def objects(self, expression: Expression) -> np.ndarray:
        """Masks of what an expression means, bool [objects, T, H, W].

        Raises:
          InputError: masks of different sizes, or not one per frame.
        """
        return self._decode(expression.video, expression.annotations)

    def foreground(self, video: str) -> np.ndarray:
        """The union of a video's objects, bool [T, H, W]."""
        if self._foreground:
            coded = self._foreground.get(video, {}).get("masks_rle")
            return self._decode_list(video, coded, f"{FOREGROUND}, {video}")
        mine = {a for e in self._videos.expressions if e.video == video for a in e.annotations}
        return self._decode(video, sorted(mine)).any(axis=0)

    def size(self, video: str) -> tuple[int, int]:
        """(H, W) of a video's masks."""
        for expression in self._videos.expressions:
            if expression.video == video:
                for coded in itertools.chain.from_iterable(
                    self._masks[a] for a in expression.annotations
                ):
                    if coded is not None:
                        return rle_size(coded, self._file.name)
        raise InputError(f"{self._file}: {video} has no mask that tells its size")

    def _decode(self, video: str, annotations: Sequence[str]) -> np.ndarray:
        shape = (len(annotations), len(self._videos.frames[video]), *self.size(video))
        found = np.zeros(shape, bool)
        for i, key in enumerate(annotations):
            found[i] = self._decode_list(video, self._masks[key], f"{self._file}, {key}")
        return found

    def _decode_list(self, video: str, coded: Any, where: str) -> np.ndarray:
        return decode_masks(coded, len(self._videos.frames[video]), self.size(video), where)

"""The ground truth of the referring-video sets: masks of what their expressions mean.

  mevis     {train,valid_u}/mask_dict.json
  revos     mask_dict.json, mask_dict_foreground.json
  davis17   {split}/mask_dict.json or mask_dict.pkl, or {split}/Annotations/{video}/{frame}.png
  ytvos     as davis17, or mask_dict.pkl in the set's folder, which is that of train

The first that is there counts. mask_dict: {annotation id: [RLE or null per entry of the video's
sorted frames]}; null is an empty mask. The foreground of ReVOS is {video: {"masks_rle": [..]}},
elsewhere the union of the video's objects that expressions mean.

The value of a pixel in Annotations (the index, not the color of the palette) is the obj_id of the
object there; 0 is background. 255 is void, as in DAVIS's unsupervised annotations, of which
Ref-DAVIS17 is made: no object, and left out of the protocol `merged`, as DAVIS's evaluation does.
"""

import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data.decode import decode_labels
from avs_jax.data.input_files import read_bytes, read_json
from avs_jax.data.rvos_folders import SPLITS, Expression, VideoSet, decode_masks, rle_size
from avs_jax.spec import InputError

_PUBLISHED = ("{split}/mask_dict.json", "{split}/mask_dict.pkl", "{split}/Annotations")
MASKS = {
    "mevis": ("{split}/mask_dict.json",),
    "revos": ("mask_dict.json",),
    "davis17": _PUBLISHED,
    "ytvos": (*_PUBLISHED[:2], "mask_dict.pkl", _PUBLISHED[2]),
}
FOREGROUND = "mask_dict_foreground.json"
VOID = 255


class Truth:
    """The masks of a split.

    Attributes:
      place: the file or folder they are read from.
    """

    def __init__(self, videos: VideoSet, place: pathlib.Path):
        self.place, self._videos, self._of_videos = place, videos, videos.of_videos()

    def objects(self, expression: Expression) -> np.ndarray:
        """Masks of what an expression means, bool [objects, T, H, W].

        Raises:
          InputError: masks of different sizes, or not one per frame.
        """
        raise NotImplementedError

    def size(self, video: str) -> tuple[int, int]:
        """(H, W) of a video's masks."""
        raise NotImplementedError

    def foreground(self, video: str) -> np.ndarray:
        """The union of a video's objects, bool [T, H, W]."""
        raise NotImplementedError

    def void(self, video: str) -> np.ndarray:
        """The pixels that are not annotated, bool [T, H, W]."""
        return np.zeros((len(self._videos.frames[video]), *self.size(video)), bool)


class CodedTruth(Truth):
    """RLEs of a mask_dict."""

    def __init__(self, videos: VideoSet, place: pathlib.Path, masks: Mapping[str, Any]):
        """InputError: expressions without masks."""
        super().__init__(videos, place)
        self._masks = masks
        is_revos = videos.name == "revos"
        self._foreground = read_json(videos.root / FOREGROUND) if is_revos else {}
        used = {a for e in videos.expressions for a in e.annotations}
        lacking = sorted(used - masks.keys())
        if lacking:
            raise InputError(f"{place}: no masks of the annotations {lacking[:5]}")

    def objects(self, expression: Expression) -> np.ndarray:
        return self._decode(expression.video, expression.annotations)

    def foreground(self, video: str) -> np.ndarray:
        if self._foreground:
            coded = self._foreground.get(video, {}).get("masks_rle")
            return self._decode_list(video, coded, f"{FOREGROUND}, {video}")
        mine = {a for e in self._of_videos[video] for a in e.annotations}
        return self._decode(video, sorted(mine)).any(axis=0)

    def size(self, video: str) -> tuple[int, int]:
        for expression in self._of_videos[video]:
            for coded in itertools.chain.from_iterable(
                self._masks[a] for a in expression.annotations
            ):
                if coded is not None:
                    return rle_size(coded, self.place.name)
        raise InputError(f"{self.place}: {video} has no mask that tells its size")

    def _decode(self, video: str, annotations: Sequence[str]) -> np.ndarray:
        shape = (len(annotations), len(self._videos.frames[video]), *self.size(video))
        found = np.zeros(shape, bool)
        for i, key in enumerate(annotations):
            found[i] = self._decode_list(video, self._masks[key], f"{self.place}, {key}")
        return found

    def _decode_list(self, video: str, coded: Any, where: str) -> np.ndarray:
        return decode_masks(coded, len(self._videos.frames[video]), self.size(video), where)


class PaintedTruth(Truth):
    """Label images of Annotations; those of one video are in memory."""

    def __init__(self, videos: VideoSet, place: pathlib.Path):
        """InputError: expressions without an object that a pixel can name."""
        super().__init__(videos, place)
        self._read: tuple[str, np.ndarray] | None = None
        for e in videos.expressions:
            for name in e.objects or ("",):
                if not name.isdecimal() or not 0 < int(name) < VOID:
                    raise InputError(
                        f"{e.video}, expression {e.id}: means object {name!r}, expected 1 to "
                        f"{VOID - 1}, a value of the pixels of {place}"
                    )

    def objects(self, expression: Expression) -> np.ndarray:
        labels = self._labels(expression.video)
        return np.stack([labels == int(name) for name in expression.objects])

    def foreground(self, video: str) -> np.ndarray:
        mine = {int(name) for e in self._of_videos[video] for name in e.objects}
        return np.isin(self._labels(video), sorted(mine))

    def size(self, video: str) -> tuple[int, int]:
        return self._labels(video).shape[1:]

    def void(self, video: str) -> np.ndarray:
        return self._labels(video) == VOID

    def _labels(self, video: str) -> np.ndarray:
        """The values of a video's pixels, uint8 [T, H, W]."""
        if self._read is None or self._read[0] != video:
            self._read = None  # before the next one takes memory
            frames = self._videos.frames[video]
            labels = [_read_labels(self.place / video / f"{frame}.png") for frame in frames]
            for frame, found in zip(frames, labels, strict=True):
                if found.shape != labels[0].shape:
                    raise InputError(
                        f"{self.place / video / frame}.png: {found.shape}, but the first frame has "
                        f"{labels[0].shape}"
                    )
            self._read = video, np.stack(labels)
        return self._read[1]


def open_truth(
    videos: VideoSet, read_pickle: Callable[[pathlib.Path], Mapping[str, Any]]
) -> CodedTruth | PaintedTruth:
    """The masks of a split, from where they are.

    Args:
      read_pickle: path -> mask_dict, of a .pkl; it must not execute the pickle.

    Raises:
      InputError: a split without masks, a missing or damaged file, or expressions without masks.
    """
    candidates = [file.format(split=videos.split) for file in MASKS[videos.name]]
    if videos.split != "train":
        candidates = [file for file in candidates if file != "mask_dict.pkl"]
    places = [videos.root / file for file in candidates if (videos.root / file).exists()]
    if not places:
        raise InputError(
            f"{videos.root}: {' and '.join(candidates)} missing, so split {videos.split!r} of "
            f"{videos.name!r} cannot be scored; the split with public masks is "
            f"{SPLITS[videos.name]!r}"
        )
    place = places[0]
    if place.suffix == ".pkl":
        return CodedTruth(videos, place, read_pickle(place))
    return (
        CodedTruth(videos, place, read_json(place)) if place.suffix else PaintedTruth(videos, place)
    )


def _read_labels(path: pathlib.Path) -> np.ndarray:
    """A label image, uint8 [H, W]."""
    data = read_bytes(path)
    try:
        return decode_labels(data, VOID + 1)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error

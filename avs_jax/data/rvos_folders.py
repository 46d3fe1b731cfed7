"""Where the referring-video sets keep expressions and masks, and how their masks are coded.

  mevis     {train,valid_u}/meta_expressions.json, mask_dict.json
  revos     meta_expressions_{train,valid}_.json, mask_dict.json, mask_dict_foreground.json
  davis17   meta_expressions/{train,valid}/meta_expressions.json, {train,valid}/mask_dict.json
  ytvos     meta_expressions/{train,valid}/meta_expressions.json, {train,valid}/mask_dict.json

meta_expressions: {"videos": {video: {"expressions": {id: {"exp", "obj_id", "anno_id", "type_id"}},
"frames": [..]}}}. mask_dict: {annotation id: [RLE or null per entry of `frames`]}; null is an empty
mask. The foreground of ReVOS is {video: {"masks_rle": [..]}}, elsewhere the union of the video's
objects.

Frames are sorted, expressions sorted as strings ("10" before "2"). davis17 and ytvos say no
anno_id: it is the running count of expressions over sorted videos and sorted expressions. Their
published mask_dict.pkl is a pickle, which may run code: convert it to JSON first.

RLE is COCO's: column by column, runs of background and foreground in turn, as text or as numbers.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.data.input_files import read_json
from avs_jax.label_images import MAX_PIXELS
from avs_jax.spec import InputError

SPLITS = {"mevis": "valid_u", "revos": "valid", "davis17": "valid", "ytvos": "train"}  # defaults
_COMMON = ("meta_expressions/{split}/meta_expressions.json", "{split}/mask_dict.json")
FILES = {
    "mevis": ("{split}/meta_expressions.json", "{split}/mask_dict.json"),
    "revos": ("meta_expressions_{split}_.json", "mask_dict.json"),
    "davis17": _COMMON,
    "ytvos": _COMMON,
}
FOREGROUND = "mask_dict_foreground.json"


@dataclasses.dataclass(frozen=True)
class Expression:
    """One expression of a video.

    Attributes:
      video, id, text: id is unique in its video.
      objects: ids of what it means; several or none.
      annotations: keys of the masks, one per object.
      type: of ReVOS; -1 elsewhere.
    """

    video: str
    id: str
    text: str
    objects: tuple[str, ...]
    annotations: tuple[str, ...]
    type: int = -1


class VideoSet:
    """The expressions of a split and the masks of what they mean.

    Attributes:
      expressions: in the order of the original scripts.
      frames: video -> sorted names.
    """

    def __init__(self, name: str, root: pathlib.Path, split: str = ""):
        """Reads the json files.

        Raises:
          InputError: an unknown set, a missing or damaged file, or expressions without masks.
        """
        if name not in FILES:
            raise InputError(f"set {name!r}: choose one of {sorted(FILES)}")
        split = split or SPLITS[name]
        meta_file, mask_file = (root / file.format(split=split) for file in FILES[name])
        self._mask_file, self._masks = mask_file, read_json(mask_file)
        self._foreground = read_json(root / FOREGROUND) if name == "revos" else {}
        self.name, self.frames, self.expressions = name, {}, []
        videos = read_json(meta_file).get("videos")
        if not isinstance(videos, dict):
            raise InputError(f"{meta_file}: has no videos")
        count = itertools.count()
        for video in sorted(videos):
            try:
                self._add(video, videos[video], count)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(f"{meta_file}: video {video!r} is damaged ({error})") from error
        used = {a for e in self.expressions for a in e.annotations}
        lacking = sorted(used - self._masks.keys())
        if lacking:
            raise InputError(f"{mask_file}: no masks of the annotations {lacking[:5]}")

    def _add(self, video: str, content: Mapping[str, Any], count: Iterator[int]) -> None:
        if not is_safe(video):
            raise ValueError("its name leaves the folder")
        self.frames[video] = sorted(map(str, content["frames"]))
        for key in sorted(content["expressions"]):
            values = content["expressions"][key]
            objects = _as_list(values.get("obj_id", []))
            annotations = [next(count)] if "anno_id" not in values else values["anno_id"]
            self.expressions.append(
                Expression(
                    video,
                    str(key),
                    str(values["exp"]),
                    tuple(map(str, objects)),
                    tuple(map(str, _as_list(annotations))),
                    int(values.get("type_id", -1)),
                )
            )

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
        mine = {a for e in self.expressions if e.video == video for a in e.annotations}
        return self._decode(video, sorted(mine)).any(axis=0)

    def size(self, video: str) -> tuple[int, int]:
        """(H, W) of a video's masks."""
        for expression in self.expressions:
            if expression.video == video:
                for coded in itertools.chain.from_iterable(
                    self._masks[a] for a in expression.annotations
                ):
                    if coded is not None:
                        return rle_size(coded, self._mask_file.name)
        raise InputError(f"{self._mask_file}: {video} has no mask that tells its size")

    def _decode(self, video: str, annotations: Sequence[str]) -> np.ndarray:
        shape = (len(annotations), len(self.frames[video]), *self.size(video))
        found = np.zeros(shape, bool)
        for i, key in enumerate(annotations):
            found[i] = self._decode_list(video, self._masks[key], f"{self._mask_file}, {key}")
        return found

    def _decode_list(self, video: str, coded: Any, where: str) -> np.ndarray:
        return decode_masks(coded, len(self.frames[video]), self.size(video), where)


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def is_safe(name: str) -> bool:
    """Whether a video's name, which may hold folders, stays below the folder it is joined to."""
    path = pathlib.PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def decode_masks(coded: Any, count: int, size: tuple[int, int], where: str) -> np.ndarray:
    """A list of RLEs or nulls as bool [T, H, W].

    Raises:
      InputError: not one per frame, of another size, or damaged.
    """
    if not isinstance(coded, list) or len(coded) != count:
        found = len(coded) if isinstance(coded, list) else type(coded).__name__
        raise InputError(f"{where}: {found} masks for {count} frames")
    masks = np.zeros((count, *size), bool)
    for t, rle in enumerate(coded):
        if rle is None:
            continue
        found = rle_size(rle, where)
        if found != size:
            raise InputError(f"{where}, frame {t}: a mask of {found}, expected {size}")
        masks[t] = decode_rle(rle, f"{where}, frame {t}")
    return masks


def rle_size(rle: Any, where: str) -> tuple[int, int]:
    """(H, W) of an RLE."""
    try:
        height, width = (int(n) for n in rle["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not an RLE ({str(rle)[:80]})") from error
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(f"{where}: an RLE of {height} x {width} pixels")
    return height, width


def decode_rle(rle: Mapping[str, Any], where: str = "RLE") -> np.ndarray:
    """A COCO RLE as bool [H, W]; InputError if its runs do not fill it."""
    height, width = rle_size(rle, where)
    counts = rle.get("counts")
    runs = _unpack(counts, where) if isinstance(counts, (str, bytes)) else counts
    if not isinstance(runs, list) or not all(isinstance(n, int) and n >= 0 for n in runs):
        raise InputError(f"{where}: counts are {str(counts)[:80]!r}, expected runs")
    if sum(runs) != height * width:
        raise InputError(f"{where}: runs of {sum(runs)} pixels, expected {height} x {width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _unpack(counts: str | bytes, where: str) -> list[int]:
    """COCO's text: 5 bits per character; from the third run on, differences to two runs before."""
    data = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 60:
            raise InputError(f"{where}: counts hold {chr(byte)!r}, no character of an RLE")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError(f"{where}: counts end in the middle of a run")
    return runs


def read_predictions(path: pathlib.Path) -> dict[str, dict[str, list]]:
    """{video: {expression: [RLE per frame]}} of a file of that form, as Sa2VA's."""
    found = {}
    for video, expressions in read_json(path).items():
        try:
            found[video] = {str(e): values["prediction_masks"] for e, values in expressions.items()}
        except (AttributeError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}: {video!r} has no expressions with prediction_masks"
            ) from error
    return found

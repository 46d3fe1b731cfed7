"""Where the referring-video sets keep their frames and expressions, and how masks are coded.

  mevis     {train,valid_u,valid}/meta_expressions.json, {split}/JPEGImages/{video}/{frame}.jpg
  revos     meta_expressions_{train,valid}_.json, {video}/{frame}.jpg; the names of its videos begin
            with JPEGImages/
  davis17   meta_expressions/{train,valid}/meta_expressions.json, {split}/JPEGImages as mevis
  ytvos     as davis17

meta_expressions: {"videos": {video: {"expressions": {id: {"exp", "obj_id", "anno_id", "type_id"}},
"frames": [..]}}}. rvos_truth.py reads the masks, which not every split has.

Frames are sorted, expressions sorted as strings ("10" before "2"). davis17 and ytvos say no
anno_id: it is the running count of expressions over sorted videos and sorted expressions.

RLE is COCO's: column by column, runs of background and foreground in turn, as text or as numbers.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from avs_jax.data.decode import decode_rgb
from avs_jax.data.input_files import read_image, read_json
from avs_jax.label_images import MAX_PIXELS
from avs_jax.spec import InputError

SPLITS = {"mevis": "valid_u", "revos": "valid", "davis17": "valid", "ytvos": "train"}  # with masks
FILES = {
    "mevis": "{split}/meta_expressions.json",
    "revos": "meta_expressions_{split}_.json",
    "davis17": "meta_expressions/{split}/meta_expressions.json",
    "ytvos": "meta_expressions/{split}/meta_expressions.json",
}
FRAMES = {name: "" if name == "revos" else "{split}/JPEGImages" for name in FILES}


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
    """The videos of a split and the expressions about them.

    Attributes:
      name, root, split: of the set.
      expressions: in the order of the original scripts.
      frames: video -> sorted names.
    """

    def __init__(self, name: str, root: pathlib.Path, split: str = ""):
        """Reads the json file; no frame and no mask.

        Args:
          split: by default the one with public masks, SPLITS.

        Raises:
          InputError: an unknown set, a missing or damaged file.
        """
        if name not in FILES:
            raise InputError(f"set {name!r}: choose one of {sorted(FILES)}")
        self.name, self.root, self.split = name, root, split or SPLITS[name]
        self.frames: dict[str, list[str]] = {}
        self.expressions: list[Expression] = []
        file = root / FILES[name].format(split=self.split)
        videos = read_json(file).get("videos")
        if not isinstance(videos, dict):
            raise InputError(f"{file}: has no videos")
        count = itertools.count()
        for video in sorted(videos):
            try:
                self._add(video, videos[video], count)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise InputError(f"{file}: video {video!r} is damaged ({error})") from error

    def _add(self, video: str, content: Mapping[str, Any], count: Iterator[int]) -> None:
        if not is_safe(video):
            raise ValueError("its name leaves the folder")
        names = sorted(map(str, content["frames"]))
        if not names or len(set(names)) != len(names):
            raise ValueError("without frames, or with a frame twice")
        for part in (*names, *content["expressions"]):
            if not is_safe(part) or "/" in part:
                raise ValueError(f"{part!r} is no name of a frame or expression")
        self.frames[video] = names
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

    def of_videos(self) -> dict[str, list[Expression]]:
        """Video -> its expressions, in order; videos without expressions are there, too."""
        found: dict[str, list[Expression]] = {video: [] for video in self.frames}
        for expression in self.expressions:
            found[expression.video].append(expression)
        return found

    def folder(self, video: str) -> pathlib.Path:
        """The folder of a video's frames."""
        return self.root / FRAMES[self.name].format(split=self.split) / video

    def windows(self, video: str, num_frames: int) -> Iterator[np.ndarray]:
        """Reads the frames of a video once, uint8 RGB [t, H, W, 3], t <= num_frames; memory of one.

        Raises:
          InputError: a frame is missing, damaged, or of another size than the first.
        """
        names, size = self.frames[video], None
        for start in range(0, len(names), num_frames):
            frames = []
            for name in names[start : start + num_frames]:
                path = self.folder(video) / f"{name}.jpg"
                data, image = read_image(path)
                size = size or image.size
                if image.size != size:
                    found, wanted = (f"{w}x{h}" for w, h in (image.size, size))
                    raise InputError(f"{path}: {found} px, but the first frame has {wanted}")
                frames.append(decode_rgb(data))
            yield np.stack(frames)


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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
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

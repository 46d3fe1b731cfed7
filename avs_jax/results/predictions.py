"""Predictions as files in AVSBench's layout: reads those of any method, writes ours.

Names below the folder, without the suffix; `number` counts a clip's frames from 1, `t` from 0:

  S4    <category>/<clip>/<clip>_<number>
  MS3   <clip>/<clip>_<number>
  AVSS  <clip>/<t>

One file, png or npy, for each frame that has ground truth; other frames of a clip may have one.

  binary    png  gray, any bit depth: if no gray png of the folder has a value other than 0 and the
                 largest of its depth (255, 65535), they are masks; otherwise they are all
                 probabilities, value / largest. Palette: a mask, by the index, 0 or one other
                 value (1 or 255)
            npy  [H, W], float: probability; bool, or integers 0 and 1: a mask
  semantic  png  gray or palette: the value, or index, is the class; RGB: AVSBench's class colors
            npy  [H, W], integers: classes; [H, W, K], float: scores, the largest is the class

Refused, because it could be read in two ways: a folder whose gray pngs have no value above 1
(above 255 in 16 bits), which are masks stored as 0 and 1 or probabilities near 0; and an alpha
channel that differs from the color. A palette's colors mean nothing: the report notes palette
masks whose index 0, the background, is the brighter color.

Files may have any size, the same within a clip. They are resized to the score size, masks and
classes by the nearest pixel, probabilities and scores bilinearly (pixel centers, no antialiasing),
and the report counts them.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from avs_jax.array_files import parse_npy
from avs_jax.files import atomic_file, read_regular
from avs_jax.label_images import (
    CLASS_PALETTE,
    indexed_image,
    is_index_0_brighter,
    label_pixels,
    open_image,
)
from avs_jax.spec import InputError, first_line

SUFFIXES = (".png", ".npy")
MAX_FILE_BYTES = 1 << 30


class Layout(NamedTuple):
    """What files of predictions look like.

    Attributes:
      template: of a frame's name below the folder, without the suffix, from {name} of the clip,
        {category}, {number} of the frame from 1 and {t} from 0.
      num_classes: K, background included; 2 is the binary task.
      score_size: S, in px.
    """

    template: str
    num_classes: int
    score_size: int

    def stem(self, clip_id: str, category: str, t: int) -> str:
        """Name of frame t of a clip."""
        return self.template.format(name=clip_id, category=category, number=t + 1, t=t)


def write_batch(
    directory: pathlib.Path, layout: Layout, pred: np.ndarray, batch: Mapping[str, Any]
) -> None:
    """Writes a batch's existing frames: npy of the probability, palette png of the classes.

    `pred` is [B, T, S, S]: float32 probability of the object, or class of each pixel.
    """
    for b, clip_id in enumerate(batch["clip_id"]):
        for row in np.flatnonzero(batch["valid"][b]) if clip_id else ():
            t = int(batch["frame_index"][b, row])
            stem = directory / layout.stem(clip_id, batch["category"][b], t)
            if layout.num_classes == 2:
                with atomic_file(f"{stem}.npy") as file:
                    np.save(file, pred[b, row])
            else:
                with atomic_file(f"{stem}.png") as file:
                    indexed_image(pred[b, row], CLASS_PALETTE).save(file, "PNG")


class PredictionFiles:
    """A folder of predictions, read clip by clip; its problems are reported at the end.

    Attributes:
      num_read: files read so far.
      num_resized: those of another size than the score size.
    """

    def __init__(self, directory: str | os.PathLike, layout: Layout):
        """Lists the folder and, in the binary task, looks at all pngs to learn what they hold."""
        self._root, self._layout = pathlib.Path(directory).expanduser(), layout
        self.num_read = self.num_resized = 0
        self._problems: list[str] = []
        self._known: set[str] = set()
        self._inverted: list[pathlib.Path] = []
        self._unreadable: dict[pathlib.Path, str] = {}  # file -> why
        self._files: dict[str, pathlib.Path] = {}
        for path in sorted(p for p in self._root.rglob("*") if p.suffix.lower() in SUFFIXES):
            stem = path.relative_to(self._root).with_suffix("").as_posix()
            if stem in self._files:
                self._problems.append(f"twice: {self._files[stem]} and {path.name}")
            self._files[stem] = path
        if not self._files:
            raise FileNotFoundError(f"{self._root}: no such folder, or no png and no npy in it")
        self._are_masks = True  # the gray pngs of the binary task
        if layout.num_classes == 2:
            self._survey_pngs()

    def read_clip(self, truth: Mapping[str, Any]) -> np.ndarray:
        """The predictions of one clip, with `truth` from `data.clip.ClipRows.prepare_labels`.

        float32 [T, S, S] probabilities, or int32 classes; zero where there is no ground truth, and
        for files that `finish` will report.
        """
        binary, size = self._layout.num_classes == 2, self._layout.score_size
        pred = np.zeros((len(truth["valid"]), size, size), np.float32 if binary else np.int32)
        first = None
        for t in np.flatnonzero(truth["valid"]):
            stem = self._layout.stem(truth["clip_id"], truth["category"], int(t))
            self._known.add(stem)
            if not truth["supervised"][t]:
                if (path := self._files.get(stem)) in self._unreadable:
                    self._problems.append(f"{path}: {self._unreadable[path]}")
                continue
            if stem not in self._files:
                self._problems.append(f"missing: {self._root / stem}.png or .npy")
                continue
            try:
                values = self._load(self._files[stem])
                first = first or values.shape[:2]
                if values.shape[:2] != first:
                    raise InputError(f"{values.shape[:2]}, the clip's first file is {first}")
                pred[t] = self._probability(values) if binary else self._classes(values)
            # Pillow and numpy answer damaged files with many kinds of exceptions.
            except Exception as error:
                self._problems.append(f"{self._files[stem]}: {first_line(error)}")
        return pred

    def finish(self) -> None:
        """Call this after the last clip: InputError lists every problem of the files."""
        extra = sorted(self._files.keys() - self._known)
        self._problems += [f"of no frame of this split: {self._files[stem]}" for stem in extra]
        if self._problems:
            listed = "".join(f"\n  {problem}" for problem in self._problems)
            raise InputError(f"{self._root}: {len(self._problems)} problem(s){listed}")

    def notes(self) -> list[str]:
        """Sentences for the report on how files were read."""
        notes = []
        if self.num_resized:
            notes.append(
                f"{self.num_resized} of {self.num_read} files resized to "
                f"{self._layout.score_size} px: masks and classes by the nearest pixel, "
                "probabilities and scores bilinearly"
            )
        if self._inverted:
            notes.append(
                f"{len(self._inverted)} palette masks look inverted, as their index 0 is the "
                f"brighter color; the index counts (first: {self._inverted[0]})"
            )
        return notes

    def _survey_pngs(self) -> None:
        """Decides what the gray pngs are; `read_clip` reports those that cannot be read."""
        brightest: dict[int, tuple[int, pathlib.Path]] = {}  # by the largest value of the depth
        for path in self._files.values():
            if path.suffix.lower() != ".png":
                continue
            try:
                with _open_image(path) as image:
                    values = label_pixels(image)
                    if is_index_0_brighter(image):
                        self._inverted.append(path)
                    largest = _largest_gray(image)
            except Exception as error:
                self._unreadable[path] = first_line(error)
                continue
            if largest is not None:
                self._are_masks &= bool(np.isin(values, (0, largest)).all())
                here = (int(values.max(initial=0)), path)
                brightest[largest] = max(brightest.get(largest, here), here, key=lambda x: x[0])
        for largest, (value, path) in brightest.items():
            limit = 1 if largest == 255 else 255
            if 0 < value <= limit < largest:
                self._problems.append(
                    f"no gray png has a value above {limit} (brightest: {path}); masks are written "
                    f"as 0 and {largest}, probabilities as 0 to {largest}"
                )

    def _load(self, path: pathlib.Path) -> np.ndarray:
        """[H, W] or [H, W, K]: bool or integers for masks and classes, float32 otherwise."""
        self.num_read += 1
        if path.suffix.lower() == ".npy":
            values = parse_npy(read_regular(path, MAX_FILE_BYTES))
            is_float = np.issubdtype(values.dtype, np.floating)
            return values.astype(np.float32) if is_float else values
        with _open_image(path) as image:
            values, mode, largest = label_pixels(image), image.mode, _largest_gray(image)
        if self._layout.num_classes > 2:
            return _classes_of_colors(values) if values.ndim == 3 else values
        if largest is not None:
            if self._are_masks:
                return values == largest
            return (values / np.float32(largest)).astype(np.float32)
        if mode in ("P", "PA"):
            return values == 255 if np.isin(values, (0, 255)).all() else values
        raise InputError(f"mode {mode}, expected gray or palette")

    def _probability(self, values: np.ndarray) -> np.ndarray:
        if values.ndim != 2:
            raise InputError(f"shape {values.shape}, expected [H, W]")
        if values.dtype == np.float32:
            if not np.all((values >= 0) & (values <= 1)):
                raise InputError("probabilities outside 0..1, or NaN")
            return self._resized(values).clip(0, 1)
        if not np.isin(values, (0, 1)).all():
            raise InputError(f"values {np.unique(values)[:5].tolist()}, expected 0 and 1")
        return self._resized(values.astype(np.uint8)).astype(np.float32)

    def _classes(self, values: np.ndarray) -> np.ndarray:
        num_classes = self._layout.num_classes
        if values.dtype == np.float32:
            if values.ndim != 3 or values.shape[2] != num_classes or not np.isfinite(values).all():
                raise InputError(
                    f"shape {values.shape}, expected finite scores [H, W, {num_classes}]"
                )
            return self._resized(values).argmax(axis=2)
        if values.ndim != 2:
            raise InputError(f"shape {values.shape}, expected [H, W]")
        strange = [int(v) for v in np.unique(values) if not 0 <= v < num_classes]
        if strange:
            raise InputError(f"classes {strange[:5]}, expected 0 to {num_classes - 1}")
        return self._resized(values.astype(np.uint8))

    def _resized(self, values: np.ndarray) -> np.ndarray:
        size = self._layout.score_size
        height, width = values.shape[:2]
        if (height, width) == (size, size):
            return values
        self.num_resized += 1
        if values.dtype == np.float32:
            factors = (size / height, size / width, 1)[: values.ndim]
            return ndimage.zoom(values, factors, order=1, mode="nearest", grid_mode=True)
        return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.NEAREST))


def _open_image(path: pathlib.Path) -> Image.Image:
    return open_image(read_regular(path, MAX_FILE_BYTES))


def _largest_gray(image: Image.Image) -> int | None:
    """The largest value of a gray image's depth; None for other images."""
    if image.mode.startswith("I"):
        return 65535
    return {"1": 1, "L": 255, "LA": 255}.get(image.mode)


def _classes_of_colors(colors: np.ndarray) -> np.ndarray:
    """Classes [H, W] of AVSBench's colors [H, W, 3]; raises on a color of no class."""
    weights = np.array([1 << 16, 1 << 8, 1])
    code, codes = colors @ weights, CLASS_PALETTE @ weights
    order = np.argsort(codes)
    found = order[np.searchsorted(codes, code, sorter=order).clip(max=len(codes) - 1)]
    if not np.array_equal(codes[found], code):
        strange = colors[codes[found] != code][0].tolist()
        raise InputError(f"color {strange}, which no class has")
    return found

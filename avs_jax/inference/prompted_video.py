"""Prediction of task `track`: objects followed through a video, or a folder of images.

--points, --boxes, --masks and --language say what to follow and on which frames, numbered from 0;
one object may have several prompts. Coordinates are px of the video. Vectors of a language
model (--language) act on the first frames. The output is

  masks/OBJECT/00000.png ...  one per frame at the video's size: 255 on the object
  overlay/00000.jpg ...       the frames with the objects in color
  results.json                per frame and object: area (fraction of the frame), iou (predicted)
                              and visible (logit, above 0 if the object is visible)
"""

import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.array_files import read_npz
from avs_jax.data.input_files import read_image, read_json
from avs_jax.data.prompts import Prompt
from avs_jax.data.video import frame_span, read_frames
from avs_jax.files import atomic_folder
from avs_jax.inference.predictor import Predictor
from avs_jax.inference.sam2 import Prompts, Sam2
from avs_jax.progress import tracked
from avs_jax.results.visualize import overlay
from avs_jax.spec import InputError

NAME = re.compile(r"\w[\w .-]{0,99}")  # of objects, which become folders
FRAME = re.compile(r"[0-9]{1,9}")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LANGUAGE_FRAMES = 5  # that language prompts, the first ones; as in Sa2VA
COLORS = ((255, 140, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (240, 228, 66))

_Path = str | os.PathLike


def predict_prompted(
    predictor: Predictor,
    path: _Path,
    output: _Path,
    points: _Path | None = None,
    boxes: _Path | None = None,
    masks: _Path | None = None,
    language: _Path | None = None,
) -> list[str]:
    """Writes masks, overlays and results.json; see the module.

    Args:
      path: a video, or a folder of images, sorted by name.
      output: folder, replaced as a whole at the end.

    Returns:
      lines to print.
    """
    sam2, frames = Sam2(predictor.config, predictor.variables[0]), Frames(path)
    num_first = sum(1 for _ in itertools.islice(frames, LANGUAGE_FRAMES)) if language else 0
    prompts = read_prompts(points, boxes, masks, language, num_first)
    names = sorted({name for found in prompts.values() for name in found})
    lines: list[dict[str, Any]] = []
    with atomic_folder(output) as folder:
        for kind in ("overlay", *(f"masks/{name}" for name in names)):
            (folder / kind).mkdir(parents=True)
        pairs = zip(frames, sam2.track(frames, prompts), strict=True)
        for frame, found in tracked(pairs, frames.name, frames.count(), "frame"):
            predictor.step()
            file, shown = f"{found.number:05d}", frame
            for i, name in enumerate(names):
                mask = found.masks[name]
                Image.fromarray(mask.astype(np.uint8) * 255).save(
                    folder / "masks" / name / f"{file}.png"
                )
                shown = overlay(shown, mask, COLORS[i % len(COLORS)])
            Image.fromarray(shown).save(folder / "overlay" / f"{file}.jpg")
            objects = {
                name: {
                    "area": float(found.masks[name].mean()),
                    "iou": found.ious[name],
                    "visible": found.object_scores[name],
                }
                for name in names
            }
            lines.append({"frame": found.number, "objects": objects})
        results = {"video": str(path), "objects": names, "frames": lines}
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    count = f"{len(lines)} frames, {len(names)} objects"
    return [f"{output}: {count}: masks, overlay, results.json"]


class Frames:
    """The frames of a video file or of a folder, uint8 RGB [H, W, 3]; readable several times.

    Attributes:
      name: of the file or folder.
    """

    def __init__(self, path: _Path):
        self._path = pathlib.Path(path).expanduser()
        self.name, self._files = self._path.name, []
        if self._path.is_dir():
            files = (file for file in self._path.iterdir() if file.suffix.lower() in IMAGES)
            self._files = sorted(files, key=lambda file: (len(file.name), file.name))
            if not self._files:
                raise InputError(f"{path}: no images ({', '.join(IMAGES)}) in it")

    def __iter__(self) -> Iterator[np.ndarray]:
        if not self._files:
            return read_frames(self._path)
        return self._images()

    def count(self) -> int:
        """How many there are."""
        return len(self._files) or frame_span(self._path).num_frames

    def _images(self) -> Iterator[np.ndarray]:
        size = None
        for file in self._files:
            frame = _read_image(file, "RGB")
            if frame.shape != (size or frame.shape):
                raise InputError(f"{file}: {frame.shape[:2]} px after frames of {size[:2]}")
            size = frame.shape
            yield frame


def read_prompts(
    points: _Path | None,
    boxes: _Path | None,
    masks: _Path | None,
    language: _Path | None = None,
    num_first: int = LANGUAGE_FRAMES,
) -> Prompts:
    """The prompts of the flags, frame -> object -> prompt; see predict's --help.

    Language acts on the first `num_first` frames.

    Raises:
      InputError: naming the file, the object and the frame.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for path, field in ((points, "points"), (boxes, "box")):
        for name, frame, value in _entries(path):
            fields, place = found.setdefault((frame, name), {}), f"{path}: {name}, frame {frame}"
            if field in fields:
                raise InputError(f"{place}: given twice")
            fields[field] = (value, place)
    for frame, file in _mask_files(masks):
        index = _read_index(file)
        for number in np.unique(index[index > 0]).tolist():
            fields = found.setdefault((frame, str(number)), {})
            fields["mask"] = (index == number, f"{file}: object {number}")
    for name, tokens in _language(language):
        for frame in range(num_first):
            here = found.setdefault((frame, name), {})
            here["language"] = (tokens, f"{language}: {name}")
    if not found:
        given = [str(path) for path in (points, boxes, masks, language) if path is not None]
        if given:
            raise InputError(f"nothing to follow: no object in {', '.join(given)}")
        raise InputError("nothing to follow: give --points, --boxes, --masks or --language")
    prompts: dict[int, dict[str, Prompt]] = {}
    for (frame, name), fields in found.items():
        places = "; ".join(place for _, place in fields.values())
        try:
            prompt = _make_prompt({field: value for field, (value, _) in fields.items()})
        except InputError as error:
            raise InputError(f"{places}: {error}") from error
        prompts.setdefault(frame, {})[name] = prompt
    return prompts


def _make_prompt(fields: dict[str, Any]) -> Prompt:
    points = fields.pop("points", [])
    if not isinstance(points, list) or not all(_is_list_of(3, point) for point in points):
        raise InputError("expected points [[x, y, 1 or 0], ..]")
    if "box" in fields and not _is_list_of(4, fields["box"]):
        raise InputError("expected a box [left, top, right, bottom]")
    labels = [label for _, _, label in points]
    return Prompt(points=[(x, y) for x, y, _ in points], labels=labels, **fields)


def _is_list_of(count: int, value: Any) -> bool:
    return isinstance(value, list) and len(value) == count


def _entries(path: _Path | None) -> Iterator[tuple[str, int, Any]]:
    """Object, frame and value of each entry of a JSON file of prompts."""
    if path is None:
        return
    content = read_json(pathlib.Path(path).expanduser())
    if not all(isinstance(x, dict) for x in content.values()):
        raise InputError(f"{path}: expected {{object: {{frame: ..}}}}")
    for name, frames in content.items():
        _check_name(path, name)
        for frame, value in frames.items():
            if not FRAME.fullmatch(frame):
                raise InputError(
                    f"{path}: {name}: frame {frame[:40]!r} is not a whole number from 0 up"
                )
            yield name, int(frame), value


def _language(path: _Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """Object and tokens float [L, D] of each array of an npz; a vector [D] is one token."""
    if path is None:
        return
    for name, array in read_npz(pathlib.Path(path).expanduser()).items():
        _check_name(path, name)
        yield name, array[None] if array.ndim == 1 else array


def _check_name(path: _Path, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InputError(
            f"{path}: object {name[:40]!r}: letters, digits, '_', spaces, '.' and '-' only, at "
            "most 100, and first a letter or a digit"
        )


def _mask_files(folder: _Path | None) -> list[tuple[int, pathlib.Path]]:
    """Number of the frame and file of each index image."""
    if folder is None:
        return []
    files = sorted(pathlib.Path(folder).expanduser().glob("*.png"))
    if not files:
        raise InputError(f"{folder}: no PNG in it")
    found: dict[int, pathlib.Path] = {}
    for file in files:
        if not FRAME.fullmatch(file.stem):
            raise InputError(f"{file}: expected the number of a frame, such as 00000.png")
        other = found.setdefault(int(file.stem), file)
        if other != file:
            raise InputError(f"{file}: {other.name} is of the same frame")
    return list(found.items())


def _read_index(file: pathlib.Path) -> np.ndarray:
    """Numbers of objects [H, W]; 0 is none. An image of one bit has object 1."""
    index = _read_image(file, None)
    if index.ndim != 2:
        raise InputError(f"{file}: {index.shape}, expected one channel of object numbers")
    return index.astype(np.uint8) if index.dtype == bool else index


def _read_image(path: pathlib.Path, mode: str | None) -> np.ndarray:
    _, image = read_image(path)
    return np.asarray(image.convert(mode) if mode else image)

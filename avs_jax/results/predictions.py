"""Predictions as files, laid out as AVSBench: anybody's are read, ours are written.

Names below the folder, without the ending; `number` counts a clip's frames from 1, `t` from 0:

  S4    <category>/<clip>/<clip>_<number>
  MS3   <clip>/<clip>_<number>
  AVSS  <clip>/<t>

One file per frame that has ground truth, png or npy; other frames of a clip may have one.

  binary    png  grey, 8 or 16 bit: probability = value / 255 (/ 65535), so that 0 and 255 are a
                 mask; 1 bit, or palette with the indices 0 and 1: a mask
            npy  [H, W], float: probability; bool, or integers 0 and 1: a mask
  semantic  png  grey or palette: the value, or index, is the class; RGB: AVSBench's class colours
            npy  [H, W], integers: classes; [H, W, K], float: scores, the largest is the class

Files may have any size, the same within a clip. They are resized to the size at which is scored:
masks and classes by the nearest pixel, probabilities and scores bilinearly (pixel centres, no
antialiasing), and the report counts them.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.palette import CLASS_PALETTE, indexed_image
from avs_jax.spec import InputError

LAYOUTS = {
    "avsbench_s4": "{category}/{clip_id}/{clip_id}_{number}",
    "avsbench_ms3": "{clip_id}/{clip_id}_{number}",
    "avsbench_semantic": "{clip_id}/{t}",
}
ENDINGS = (".png", ".npy")


def file_stem(config: Any, clip_id: str, category: str, t: int) -> str:
    """Name of frame t of a clip below the folder of predictions, without its ending.

    Raises:
      InputError: config.data.dataset is none of AVSBench's settings.
    """
    setting = config.data.dataset.split("/")[0]
    if setting not in LAYOUTS:
        raise InputError(
            f"config.data.dataset is {config.data.dataset!r}: predictions are laid out for "
            f"{', '.join(LAYOUTS)}"
        )
    return LAYOUTS[setting].format(clip_id=clip_id, category=category, number=t + 1, t=t)


def write_batch(
    directory: pathlib.Path, config: Any, pred: np.ndarray, batch: Mapping[str, Any]
) -> None:
    """Writes a batch's existing frames: npy of the probability, palette png of the classes.

    Args:
      directory: made if need be.
      config: the whole configuration; reads data.dataset and data.num_classes.
      pred: [B, T, S, S], float32 probability of the object, or class of each pixel.
      batch: evaluation batch (spec.py); reads clip_id, category, valid and frame_index.
    """
    for b, clip_id in enumerate(batch["clip_id"]):
        for row in np.flatnonzero(batch["valid"][b]) if clip_id else ():
            t = int(batch["frame_index"][b, row])
            path = directory / file_stem(config, clip_id, batch["category"][b], t)
            path.parent.mkdir(parents=True, exist_ok=True)
            if config.data.num_classes == 2:
                np.save(f"{path}.npy", pred[b, row])
            else:
                indexed_image(pred[b, row], CLASS_PALETTE).save(f"{path}.png")


class PredictionFiles:
    """A folder of predictions, read clip by clip; what is wrong with it is told at the end.

    Attributes:
      num_read: files read so far.
      num_resized: those of another size than is scored.
    """

    def __init__(self, directory: str | pathlib.Path, config: Any):
        """Lists the folder.

        Args:
          directory: laid out as said above.
          config: the whole configuration; reads data.dataset, data.num_classes and
            evaluate.score_size.

        Raises:
          FileNotFoundError: no such folder, or neither png nor npy in it.
        """
        self._root, self._config = pathlib.Path(directory).expanduser(), config
        self.num_read = self.num_resized = 0
        self._problems: list[str] = []
        self._known: set[str] = set()
        self._brightest = 0  # value of 8 bit grey pngs
        self._files: dict[str, pathlib.Path] = {}
        for path in sorted(p for p in self._root.rglob("*") if p.suffix.lower() in ENDINGS):
            stem = path.relative_to(self._root).with_suffix("").as_posix()
            if stem in self._files:
                self._problems.append(f"twice: {self._files[stem]} and {path.name}")
            self._files[stem] = path
        if not self._files:
            raise FileNotFoundError(f"{self._root}: no such folder, or no png and no npy in it")

    def read_clip(self, truth: Mapping[str, Any]) -> np.ndarray:
        """The predictions of one clip, zero where there is no ground truth.

        Args:
          truth: of the clip, from `data.clip.prepare_labels`.

        Returns:
          float32 [T, S, S] probabilities, or int32 classes; zero too where `finish` will complain.
        """
        binary = self._config.data.num_classes == 2
        size = self._config.evaluate.score_size
        pred = np.zeros((len(truth["valid"]), size, size), np.float32 if binary else np.int32)
        first = None
        for t in np.flatnonzero(truth["valid"]):
            stem = file_stem(self._config, truth["clip_id"], truth["category"], int(t))
            self._known.add(stem)
            if not truth["supervised"][t]:
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
                self._problems.append(f"{self._files[stem]}: {error}")
        return pred

    def finish(self) -> None:
        """Call it after the last clip.

        Raises:
          InputError: naming every file that is missing, belongs to no frame, is there twice, cannot
            be read, or has another size than the rest of its clip.
        """
        extra = sorted(self._files.keys() - self._known)
        self._problems += [f"of no frame of this split: {self._files[stem]}" for stem in extra]
        if self._brightest == 1:
            self._problems.append("no png has a grey value above 1; masks are written as 0 and 255")
        if self._problems:
            listed = "".join(f"\n  {problem}" for problem in self._problems)
            raise InputError(f"{self._root}: {len(self._problems)} problem(s){listed}")

    def _load(self, path: pathlib.Path) -> np.ndarray:
        """[H, W] or [H, W, K]: bool or integers for masks and classes, float32 otherwise."""
        self.num_read += 1
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
            is_float = np.issubdtype(values.dtype, np.floating)
            return values.astype(np.float32) if is_float else values
        with Image.open(path) as image:
            values = np.asarray(image)
            mode = image.mode
        if self._config.data.num_classes > 2:
            return _classes_of_colours(values) if values.ndim == 3 else values
        if mode == "L":
            self._brightest = max(self._brightest, int(values.max(initial=0)))
            is_mask = np.isin(values, (0, 255)).all()
            return values == 255 if is_mask else (values / np.float32(255)).astype(np.float32)
        if mode.startswith("I"):
            return (values / np.float32(65535)).astype(np.float32)
        if mode in ("1", "P"):
            return values
        raise InputError(f"mode {mode}, expected grey, 1 bit or palette")

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
        num_classes = self._config.data.num_classes
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
        size = (self._config.evaluate.score_size,) * 2
        if values.shape[:2] == size:
            return values
        self.num_resized += 1
        if values.dtype == np.float32:
            return _interpolate(_interpolate(values, 0, size[0]), 1, size[1])
        return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))


def _classes_of_colours(colours: np.ndarray) -> np.ndarray:
    """Classes [H, W] of AVSBench's colours [H, W, 3 or 4]; raises on a colour of no class."""
    weights = np.array([1 << 16, 1 << 8, 1])
    code, codes = colours[..., :3] @ weights, CLASS_PALETTE @ weights
    order = np.argsort(codes)
    found = order[np.searchsorted(codes, code, sorter=order).clip(max=len(codes) - 1)]
    if not np.array_equal(codes[found], code):
        strange = colours[codes[found] != code][0, ...].tolist()
        raise InputError(f"colour {strange}, which no class has")
    return found


def _interpolate(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Linear interpolation along an axis at `size` pixel centres, clamped to the edge."""
    position = (np.arange(size) + 0.5) * (x.shape[axis] / size) - 0.5
    position = position.clip(0, x.shape[axis] - 1)
    low = position.astype(int)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [size if a == axis else 1 for a in range(x.ndim)]
    fraction = (position - low).astype(np.float32).reshape(shape)
    below, above = x.take(low, axis), x.take(high, axis)
    return below + fraction * (above - below)

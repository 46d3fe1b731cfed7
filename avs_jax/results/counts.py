"""What a segmentation evaluation stores of every frame: integers, from which all scores follow.

Each frame is reduced to counts of pixels (`count_frame`, `count_frame_classes`): intersections,
areas, agreement of the outlines, and for f_beta the true and predicted positives at 255 thresholds.
results/metrics.py computes scores from stored counts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from avs_jax.results import boundary
from avs_jax.results.table import Table
from avs_jax.spec import IGNORE_LABEL

NUM_THRESHOLDS = 255


def _thresholds() -> np.ndarray:
    # linspace(0, 1 - 1e-10) as torch rounds it: the end is 1.0 in float32, and multiples of a
    # float32 step count up from 0 in the first half and down from 1 in the second.
    step, i = float(np.float32(1 / (NUM_THRESHOLDS - 1))), np.arange(NUM_THRESHOLDS)
    up, down = step * i, 1 - step * (NUM_THRESHOLDS - 1 - i)
    return np.where(i < NUM_THRESHOLDS // 2, up, down).astype(np.float32)


THRESHOLDS = _thresholds()


# ---- counting ----


def count_frame(prob: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The counts of one frame of the binary task.

    Args:
      prob: float32 [S, S], probability of the object; `>=` of the float32 thresholds is exact.
      labels: uint8 [S, S], 0 background, 1 object, 255 unknown (excluded from every count).

    Returns:
      int64 scalars inter, union, gt, pred (p > 0.5), pixels (known ones), those of
      `boundary.count_boundary` (p > 0.5), and int64 [255] tp and pp: true and predicted positives
      at p >= THRESHOLDS[i].
    """
    if prob.dtype != np.float32:
        raise TypeError(f"prob: dtype {prob.dtype}, expected float32 (thresholds are float32)")
    if prob.shape != labels.shape:
        raise ValueError(f"prob {prob.shape} and labels {labels.shape}: shapes differ")
    known = labels != IGNORE_LABEL
    p, g = prob[known], labels[known]
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("prob: values outside [0, 1] or NaN; did the model diverge?")
    if g.size and g.max() > 1:
        raise ValueError(f"labels: class {g.max()} in the binary task, expected 0, 1 or 255")
    g = g.astype(bool)
    positive = p > 0.5
    # A pixel is positive at the first `passed` thresholds, so the tail sums of the histogram of
    # `passed` are the positives at each threshold.
    passed = np.searchsorted(THRESHOLDS, p, side="right")

    def positives(which):
        histogram = np.bincount(which, minlength=NUM_THRESHOLDS + 1)
        return np.cumsum(histogram[::-1])[::-1][1:]

    return {
        "inter": np.int64((positive & g).sum()),
        "union": np.int64((positive | g).sum()),
        "gt": np.int64(g.sum()),
        "pred": np.int64(positive.sum()),
        "pixels": np.int64(g.size),
        **boundary.count_boundary(prob > 0.5, labels == 1, known),
        "tp": positives(passed[g]),
        "pp": positives(passed),
    }


def count_frame_classes(
    pred: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """The counts of one frame of the semantic task.

    Integers [S, S] -> int64 [K] inter, gt and pred. As in the originals, an unknown pixel (255) is
    in no class's ground truth but still counts as predicted area.
    """
    if pred.shape != labels.shape:
        raise ValueError(f"pred {pred.shape} and labels {labels.shape}: shapes differ")
    known = labels != IGNORE_LABEL
    highest = max(int(pred.max(initial=0)), int(labels[known].max(initial=0)))
    if highest >= num_classes:
        raise ValueError(f"class {highest} in prediction or labels, expected < {num_classes}")

    def areas(which):
        return np.bincount(which.ravel(), minlength=num_classes).astype(np.int64)

    return {
        "inter": areas(pred[known & (pred == labels)]),
        "gt": areas(labels[known]),
        "pred": areas(pred),
    }


# ---- the counts of a whole split ----


class FrameCounts(Table):
    """Counts of N frames, clip after clip; a frame without ground truth has no row.

    Columns:
      clip_id, category: str [N], of the clip.
      frame_index: int32 [N], place of the frame in its clip.
      valid: bool [N]; False marks a frame that does not exist but pads a short clip to the
        configured clip length: background everywhere, in ground truth and prediction.
      counts/NAME: int64 [N, ...], what `count_frame` or `count_frame_classes` returns.
    """

    schema = {"clip_id": str, "category": str, "frame_index": np.int32, "valid": bool}

    @property
    def clip_id(self) -> np.ndarray:
        return self["clip_id"]

    @property
    def category(self) -> np.ndarray:
        return self["category"]

    @property
    def valid(self) -> np.ndarray:
        return self["valid"]

    @property
    def counts(self) -> dict[str, np.ndarray]:
        """The counts by name."""
        prefix = "counts/"
        of_pixels = (name for name in self.columns if name.startswith(prefix))
        return {name.removeprefix(prefix): self[name] for name in of_pixels}

    @property
    def is_semantic(self) -> bool:
        """Whether the counts are per class."""
        return "counts/tp" not in self.columns

    def clips(self) -> list[slice]:
        """The rows of each clip, in order."""
        return self.groups("clip_id")

    def batches(self, size: int) -> list[slice]:
        """The rows of each batch of `size` clips in order; the last batch may have fewer."""
        clips = self.clips()
        firsts = range(0, len(clips), size)
        return [slice(clips[i].start, clips[i : i + size][-1].stop) for i in firsts]

    def batch_of_rows(self, size: int, chosen: np.ndarray | bool = True) -> np.ndarray:
        """int64 [N]: which of `batches` of the chosen frames that exist has a row; -1: none."""
        rows = np.flatnonzero(self.valid & chosen)
        result = np.full(len(self), -1)
        for i, batch in enumerate(self.take(rows).batches(size)):
            result[rows[batch]] = i
        return result

    def scored(self) -> "FrameCounts":
        """The frames that exist."""
        return self.take(self.valid)


class FrameCounter:
    """Collects the counts of an evaluation, batch by batch."""

    def __init__(self, num_classes: int, facts: Mapping[str, Any] | None = None):
        """num_classes: K, background included; 2 is the binary task."""
        self._num_classes = num_classes
        self._facts = dict(facts or {})
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        pred: np.ndarray,
        batch: Mapping[str, Any],
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Counts one batch; clips without a clip_id only pad the batch and are skipped.

        Args:
          pred: [B, T, S, S]: float32 probability of the object, or the integer class of each pixel
            where num_classes > 2. Read where a frame exists and has ground truth.
          more: further counts by name, int [B, T, ...]; 0 where a frame does not exist.
        """
        labels, valid = batch["labels"], np.asarray(batch["valid"])
        supervised = np.asarray(batch["supervised"])
        if pred.shape != labels.shape or pred.shape[:2] != valid.shape:
            raise ValueError(
                f"pred {pred.shape}, labels {labels.shape}, valid {valid.shape}: expected "
                "[B, T, S, S] twice and [B, T]"
            )
        for b, clip_id in enumerate(batch["clip_id"]):
            for t in np.flatnonzero(supervised[b] | ~valid[b]) if clip_id else ():
                exists = bool(valid[b, t])
                if exists:
                    counts = self._count(pred[b, t], labels[b, t])
                else:
                    empty = np.zeros(labels.shape[2:], np.uint8)
                    counts = self._count(empty.astype(pred.dtype), empty)
                counts |= {name: x[b, t] * exists for name, x in (more or {}).items()}
                self._rows.append(
                    {
                        "clip_id": str(clip_id),
                        "category": str(batch["category"][b]),
                        "frame_index": batch["frame_index"][b, t] if exists else t,
                        "valid": exists,
                        **{f"counts/{name}": np.int64(count) for name, count in counts.items()},
                    }
                )

    def result(self) -> FrameCounts:
        """The counts so far; a process that was given no clip has no row and no counts.

        Raises:
          ValueError: a clip came twice.
        """
        result = FrameCounts.from_rows(self._rows, self._facts)
        result.clips()
        return result

    def _count(self, pred: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        if self._num_classes == 2:
            return count_frame(pred, labels)
        return count_frame_classes(pred, labels, self._num_classes)

"""What an evaluation stores of every frame: integers, from which all scores follow.

Each frame is reduced to counts of pixels (`count_frame`, `count_frame_classes`): intersections,
areas, the outlines' agreement, and for f_beta the true and predicted positives at 255 thresholds.
results/metrics.py turns stored counts into numbers. So no score depends on how the evaluation was
run, and a score that nobody asked for yet needs no second run.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from avs_jax.results import boundary
from avs_jax.spec import IGNORE_LABEL, InputError

NUM_THRESHOLDS = 255
FILE_VERSION = 2  # 1 had neither the outlines' counts nor padded frames
_ROW_FIELDS = ("clip_id", "category", "frame_index", "valid")


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
      prob: float32 [S, S], probability of the object. Other dtypes raise: the 255 thresholds are
        float32 numbers and `>=` must be exact.
      labels: uint8 [S, S], 0 background, 1 object, 255 unknown (left out of every count).

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
    # A pixel is positive at the first `passed` thresholds; the tail sums of its histogram are
    # therefore the positives at each threshold.
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

    Args:
      pred: integer [S, S], class of each pixel.
      labels: uint8 [S, S]; 255 is unknown: like the originals, such a pixel is in no class's
        ground truth but stays in the predicted area.
      num_classes: K.

    Returns:
      int64 [K] inter, gt and pred.
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


@dataclasses.dataclass(frozen=True)
class FrameCounts:
    """Counts of N frames, clip after clip in dataset order.

    Frames that exist but have no ground truth are in no row.

    Attributes:
      clip_id: str [N].
      category: str [N], of the clip.
      frame_index: int32 [N], place of the frame in its clip.
      valid: bool [N]; False = the frame does not exist, it fills a short clip up to the clip length
        of the configuration: background everywhere, in ground truth and prediction.
      counts: name -> int64 [N, ...], what `count_frame` or `count_frame_classes` returns.
      facts: what identifies the run: checkpoint, configuration, dataset, split, score size, source
        of the ground truth, condition of the audio. Strings and numbers.
    """

    clip_id: np.ndarray
    category: np.ndarray
    frame_index: np.ndarray
    valid: np.ndarray
    counts: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_semantic(self) -> bool:
        """Whether the counts are by class."""
        return "tp" not in self.counts

    def clips(self) -> list[slice]:
        """The rows of each clip, in order."""
        ids = self.clip_id
        starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]
        if len({str(ids[i]) for i in starts}) != len(starts):
            raise ValueError("a clip is counted twice, or its frames are not together")
        ends = [*starts[1:], len(ids)] if starts else []
        return [slice(a, b) for a, b in zip(starts, ends, strict=True)]

    def take(self, rows: np.ndarray | slice) -> "FrameCounts":
        """The same counts with only these rows, in this order."""
        fields = {name: getattr(self, name)[rows] for name in _ROW_FIELDS}
        counts = {name: array[rows] for name, array in self.counts.items()}
        return FrameCounts(**fields, counts=counts, facts=self.facts)

    def scored(self) -> "FrameCounts":
        """The frames that exist."""
        return self.take(self.valid)

    def save(self, path: str | pathlib.Path | BinaryIO) -> None:
        """Writes one compressed .npz that `load` reads; equal counts give equal bytes."""
        fields = {name: getattr(self, name) for name in _ROW_FIELDS}
        counts = {f"counts/{name}": array for name, array in self.counts.items()}
        facts = np.array(json.dumps(dict(self.facts), sort_keys=True))
        np.savez_compressed(path, version=FILE_VERSION, **fields, **counts, facts_json=facts)

    @classmethod
    def load(cls, path: str | pathlib.Path | BinaryIO) -> "FrameCounts":
        """Reads what `save` wrote; executes nothing that is in the file.

        Raises:
          InputError: not such a file, or one of another version of this program.
        """
        with np.load(path, allow_pickle=False) as file:
            missing = {*_ROW_FIELDS, "facts_json"} - set(file.files)
            if missing:
                raise InputError(f"{path}: not a file of counts, lacks {sorted(missing)}")
            version = int(file["version"]) if "version" in file.files else 1
            if version != FILE_VERSION:
                raise InputError(
                    f"{path}: counts of version {version}, expected {FILE_VERSION} (version 1 "
                    "lacks what davis, boundary_iou and frames=padded need); evaluate again"
                )
            counts = {n.removeprefix("counts/"): file[n] for n in file.files if "/" in n}
            facts = json.loads(str(file["facts_json"]))
            return cls(**{n: file[n] for n in _ROW_FIELDS}, counts=counts, facts=facts)


class FrameCounter:
    """Collects the counts of an evaluation, batch by batch."""

    def __init__(self, num_classes: int, facts: Mapping[str, Any] | None = None):
        """num_classes: K with background; 2 is the binary task."""
        self._num_classes = num_classes
        self._facts = dict(facts or {})
        self._rows: list[tuple[str, str, int, bool]] = []
        self._counts: list[dict[str, np.ndarray]] = []

    def add(
        self,
        pred: np.ndarray,
        batch: Mapping[str, Any],
        more: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Counts one batch; clips without a clip_id only fill the batch and are left out.

        Args:
          pred: [B, T, S, S]: float32 probability of the object, or the integer class of each pixel
            where num_classes > 2. Read where a frame exists and has ground truth.
          batch: evaluation batch (spec.py); reads labels, valid, supervised, frame_index, clip_id
            and category.
          more: further counts by name, int [B, T, ...], kept beside the others; 0 where a frame
            does not exist.
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
                index = int(batch["frame_index"][b, t] if exists else t)
                self._rows.append((str(clip_id), str(batch["category"][b]), index, exists))
                frame = (pred[b, t], labels[b, t])
                if not exists:
                    frame = _background(labels.shape[2:], self._num_classes)
                further = {name: x[b, t] * exists for name, x in (more or {}).items()}
                self._counts.append(self._count(*frame) | further)

    def result(self) -> FrameCounts:
        """The counts so far; no row and no name where a process of several was given no clip.

        Raises:
          ValueError: a clip came twice.
        """
        names = self._counts[0] if self._counts else ()
        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(_ROW_FIELDS)
        clip_id, category, frame_index, valid = columns
        result = FrameCounts(
            clip_id=np.array(clip_id, str),
            category=np.array(category, str),
            frame_index=np.array(frame_index, np.int32),
            valid=np.array(valid, bool),
            counts={n: np.array([c[n] for c in self._counts], np.int64) for n in names},
            facts=self._facts,
        )
        result.clips()  # raises on a clip counted twice
        return result

    def _count(self, pred: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        if self._num_classes == 2:
            return count_frame(pred, labels)
        return count_frame_classes(pred, labels, self._num_classes)


def interleave(parts: Sequence[FrameCounts], share: int) -> FrameCounts:
    """Joins what several processes counted, in dataset order.

    Args:
      parts: of process 0, 1, ...; of every batch, process i read clips i * share, ... and the next
        `share` - 1, as `data.pipeline.EvalBatches` hands them out.
      share: clips per batch and process.

    Raises:
      ValueError: a clip came twice.
    """
    if not any(len(part.clip_id) for part in parts):
        return parts[0]
    rows, offset = [], 0
    for i, part in enumerate(parts):
        for j, clip in enumerate(part.clips()):
            place = (j // share, i, j % share)
            rows.append((place, np.arange(clip.start, clip.stop) + offset))
        offset += len(part.clip_id)
    order = [indices for _, indices in sorted(rows, key=lambda row: row[0])]
    counted = [part for part in parts if len(part.clip_id)]
    joined = FrameCounts(
        **{n: np.concatenate([getattr(p, n) for p in counted]) for n in _ROW_FIELDS},
        counts={n: np.concatenate([p.counts[n] for p in counted]) for n in counted[0].counts},
        facts=parts[0].facts,
    ).take(np.concatenate(order))
    joined.clips()
    return joined


def _background(shape: tuple[int, int], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and labels of a frame [H, W] in which there is nothing and nothing is found."""
    return np.zeros(shape, np.float32 if num_classes == 2 else np.int32), np.zeros(shape, np.uint8)

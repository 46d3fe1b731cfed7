"""Segmentation scores from per-frame counts, by every protocol in use.

Two steps, kept apart so that no score depends on how the evaluation was run. First each frame is
reduced to integers (`count_frame`): intersections, areas, and for AVSBench's region measure the
true and predicted positives at 255 thresholds. Then a protocol turns the stored counts into
numbers. Batch size, devices and processes touch neither.

Binary task (S4, MS3), p = probability of the object, g = ground truth, both [S, S]:

  IoU = |p > 0.5 and g| / (|p > 0.5 or g| + 1e-7); g empty: share of pixels with p <= 0.5
  f_beta at a threshold = 1.3 P R / (0.3 P + R) with beta^2 = 0.3 and 0/0 = 0; P and R at p >= t

  avsbench(k)  per batch of k clips the mean IoU and the maximum over thresholds of the mean
               curve, then the mean over batches: f_beta depends on k. AVSBench prints k = 4
               (its test script), AVSegFormer 2, VCT and COMBO 1.
  stream       all frames as one batch.
  dataset      sums of counts first, one ratio last (CAVP's line); 10 to 17 points higher, never to
               be compared with the other two.

Semantic task (AVSS, K = 71): per frame and class IoU and f_beta, averaged for each class over the
frames in which it is present in prediction or ground truth; then the mean over all K classes, a
class never seen counting as 0.

Sources: AVSBench, `avs_s4/utils/utility.py` (`mask_iou`, `Eval_Fmeasure`) and
`avs_v2/utils/compute_color_metrics.py`; VCT's two evaluators, which agree with them. Departures:
float64 where they compute in float32 (below 1e-6), and clips of several processes are gathered
before averaging where they average the means of processes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.spec import IGNORE_LABEL

BETA_SQUARED = 0.3
NUM_THRESHOLDS = 255
BINARY_COUNTS = ("inter", "union", "gt", "pred", "pixels", "tp", "pp")
SEMANTIC_COUNTS = ("inter", "gt", "pred")
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
      int64 scalars inter, union, gt, pred (p > 0.5), pixels (known ones), and int64 [255] tp and
      pp: true and predicted positives at p >= THRESHOLDS[i].
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

    Attributes:
      clip_id: str [N].
      category: str [N], of the clip.
      frame_index: int32 [N], place of the frame in its clip.
      valid: bool [N]; False = the frame only fills a short clip, or has no ground truth. Protocols
        read valid frames only.
      counts: name -> int64 [N, ...], BINARY_COUNTS or SEMANTIC_COUNTS.
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
        return "tp" not in self.counts

    def clips(self) -> list[slice]:
        """The rows of each clip, in order."""
        ids = self.clip_id
        starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]
        if len({str(ids[i]) for i in starts}) != len(starts):
            raise ValueError("a clip is counted twice, or its frames are not together")
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]

    def take(self, rows: np.ndarray | slice) -> "FrameCounts":
        """The same counts with only these rows, in this order."""
        fields = {name: getattr(self, name)[rows] for name in _ROW_FIELDS}
        counts = {name: array[rows] for name, array in self.counts.items()}
        return FrameCounts(**fields, counts=counts, facts=self.facts)

    def scored(self) -> "FrameCounts":
        """The valid frames."""
        return self.take(self.valid)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes one compressed .npz that `load` reads; pickles nothing."""
        fields = {name: getattr(self, name) for name in _ROW_FIELDS}
        counts = {f"counts/{name}": array for name, array in self.counts.items()}
        facts = np.array(json.dumps(dict(self.facts), sort_keys=True))
        np.savez_compressed(path, **fields, **counts, facts_json=facts)

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "FrameCounts":
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            missing = {*_ROW_FIELDS, "facts_json"} - set(file.files)
            if missing:
                raise ValueError(f"{path}: not a file of counts, lacks {sorted(missing)}")
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
        labels: np.ndarray,
        valid: np.ndarray,
        clip_id: Sequence[str],
        category: Sequence[str],
        frame_index: np.ndarray | None = None,
    ) -> None:
        """Counts one batch; rows without a clip_id only fill the batch and are left out.

        Args:
          pred: [B, T, S, S]: float32 probability of the object, or the integer class of each pixel
            where num_classes > 2.
          labels: uint8 [B, T, S, S].
          valid: bool [B, T], frames to score.
          clip_id, category: B strings each.
          frame_index: int [B, T]; 0..T-1 when not given.
        """
        if pred.shape != labels.shape or pred.shape[:2] != valid.shape:
            raise ValueError(
                f"pred {pred.shape}, labels {labels.shape}, valid {valid.shape}: expected "
                "[B, T, S, S] twice and [B, T]"
            )
        is_clip = np.array([bool(name) for name in clip_id])
        for b, t in np.argwhere(np.broadcast_to(is_clip[:, None], valid.shape)):
            index = int(t if frame_index is None else frame_index[b, t])
            self._rows.append((str(clip_id[b]), str(category[b]), index, bool(valid[b, t])))
            if self._num_classes == 2:
                self._counts.append(count_frame(pred[b, t], labels[b, t]))
            else:
                self._counts.append(
                    count_frame_classes(pred[b, t], labels[b, t], self._num_classes)
                )

    def result(self) -> FrameCounts:
        """The counts so far.

        Raises:
          ValueError: nothing was counted, or a clip came twice.
        """
        if not self._rows:
            raise ValueError("nothing was counted: the loader gave no clip")
        clip_id, category, frame_index, valid = zip(*self._rows, strict=True)
        names = self._counts[0]
        result = FrameCounts(
            clip_id=np.array(clip_id),
            category=np.array(category),
            frame_index=np.array(frame_index, np.int32),
            valid=np.array(valid, bool),
            counts={name: np.stack([c[name] for c in self._counts]) for name in names},
            facts=self._facts,
        )
        result.clips()  # raises on a clip counted twice
        return result


def interleave(parts: Sequence[FrameCounts], share: int) -> FrameCounts:
    """Joins what several processes counted, in dataset order.

    Args:
      parts: of process 0, 1, ...; of every batch, process i read clips i * share, ... and the next
        `share` - 1.
      share: clips per batch and process.
    """
    rows, offset = [], 0
    for i, part in enumerate(parts):
        for j, clip in enumerate(part.clips()):
            place = (j // share, i, j % share)
            rows.append((place, np.arange(clip.start, clip.stop) + offset))
        offset += len(part.clip_id)
    order = np.concatenate([indices for _, indices in sorted(rows, key=lambda row: row[0])])
    joined = FrameCounts(
        **{n: np.concatenate([getattr(p, n) for p in parts]) for n in _ROW_FIELDS},
        counts={n: np.concatenate([p.counts[n] for p in parts]) for n in parts[0].counts},
        facts=parts[0].facts,
    ).take(order)
    joined.clips()
    return joined


# ---- binary protocols ----


def frame_iou(counts: FrameCounts) -> np.ndarray:
    """IoU of each frame, float64 [N]; an empty ground truth scores its background agreement."""
    c = counts.counts
    # Where g is empty, agreement = known pixels that are predicted background.
    agreement = (c["pixels"] - c["pred"]) / np.maximum(c["pixels"], 1)
    return np.where(c["gt"] == 0, agreement, c["inter"] / (c["union"] + 1e-7))


def f_beta_curves(tp: np.ndarray, pp: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """f_beta at each threshold, float64 [..., 255], from tp and pp [..., 255] and gt [...]."""
    precision = tp / (pp + 1e-20)
    recall = tp / (gt[..., None] + 1e-20)
    return _f_beta(precision, recall)


def avsbench(counts: FrameCounts, batch: int) -> dict[str, float]:
    """AVSBench's test loop at a batch of `batch` clips; the short last batch weighs the same.

    A batch whose frames all have an empty ground truth contributes an f_beta of 0, and counts.

    Returns:
      {"mIoU", "f_beta"}, both in 0..1.
    """
    if batch < 1:
        raise ValueError(f"batch: {batch}, expected at least 1 clip")
    counts = _binary_frames(counts)
    iou, has_object, curves = _per_frame(counts)
    clips = counts.clips()
    batch_iou, batch_f_beta = [], []
    for first in range(0, len(clips), batch):
        group = clips[first : first + batch]
        rows = slice(group[0].start, group[-1].stop)
        batch_iou.append(iou[rows].mean())
        batch_f_beta.append(_best(curves[rows][has_object[rows]]))
    return {"mIoU": float(np.mean(batch_iou)), "f_beta": float(np.mean(batch_f_beta))}


def stream(counts: FrameCounts) -> dict[str, float]:
    """Every frame weighs the same and one threshold serves all: independent of any batch."""
    iou, has_object, curves = _per_frame(_binary_frames(counts))
    return {"mIoU": float(iou.mean()), "f_beta": _best(curves[has_object])}


def dataset(counts: FrameCounts) -> dict[str, float]:
    """Ratios of sums over the whole split; large objects weigh more."""
    c = {name: array.sum(axis=0) for name, array in _binary_frames(counts).counts.items()}
    curve = f_beta_curves(c["tp"], c["pp"], c["gt"])
    return {"mIoU": float(c["inter"] / (c["union"] + 1e-7)), "f_beta": float(curve.max())}


# ---- semantic protocol ----


def semantic_sums(counts: FrameCounts) -> dict[str, np.ndarray]:
    """Per class, over the valid frames: sums of IoU and f_beta, and in how many it is present.

    Returns:
      float64 [K] iou and f_beta, int64 [K] frames.
    """
    c = counts.scored().counts
    eps = np.spacing(1.0)
    iou = c["inter"] / (c["gt"] + c["pred"] - c["inter"] + eps)
    f_beta = _f_beta(c["inter"] / (c["pred"] + eps), c["inter"] / (c["gt"] + eps))
    present = (c["gt"] + c["pred"]) > 0
    return {"iou": iou.sum(axis=0), "f_beta": f_beta.sum(axis=0), "frames": present.sum(axis=0)}


def semantic(counts: FrameCounts) -> dict[str, float]:
    """mIoU and f_beta of the semantic task over real frames, all K classes, background included."""
    if not counts.is_semantic:
        raise ValueError("these counts are of the binary task; use avsbench, stream or dataset")
    sums = semantic_sums(counts)
    seen = np.maximum(sums["frames"], 1)
    return {
        "mIoU": float((sums["iou"] / seen).mean()),
        "f_beta": float((sums["f_beta"] / seen).mean()),
    }


def all_protocols(counts: FrameCounts) -> dict[str, dict[str, float]]:
    """Protocol name -> its numbers, everything that these counts can be scored by."""
    if counts.is_semantic:
        return {"semantic(frames=real)": semantic(counts)}
    return {
        "avsbench(batch=1)": avsbench(counts, 1),
        "avsbench(batch=4)": avsbench(counts, 4),
        "stream": stream(counts),
        "dataset": dataset(counts),
    }


def _f_beta(precision, recall):
    denominator = BETA_SQUARED * precision + recall
    product = (1 + BETA_SQUARED) * precision * recall
    return np.divide(product, denominator, out=np.zeros_like(product), where=denominator > 0)


def _binary_frames(counts: FrameCounts) -> FrameCounts:
    if counts.is_semantic:
        raise ValueError("these counts are of the semantic task; use semantic")
    counts = counts.scored()
    if not len(counts.clip_id):
        raise ValueError("no valid frame to score")
    return counts


def _per_frame(counts):
    c = counts.counts
    return frame_iou(counts), c["gt"] > 0, f_beta_curves(c["tp"], c["pp"], c["gt"])


def _best(curves: np.ndarray) -> float:
    return float(curves.mean(axis=0).max()) if len(curves) else 0.0

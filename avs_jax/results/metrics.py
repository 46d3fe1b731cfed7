"""Segmentation scores by every protocol in use, from stored counts (results/counts.py).

Binary task (S4, MS3), p = probability of the object, g = ground truth, both [S, S]:

  IoU = |p > 0.5 and g| / (|p > 0.5 or g| + 1e-7); g empty: share of pixels with p <= 0.5
  f_beta at a threshold = 1.3 P R / (0.3 P + R) with beta^2 = 0.3 and 0/0 = 0; P and R at p >= t

  avsbench(batch=k)  per batch of k clips the mean IoU and the maximum over thresholds of the mean
                f_beta curve (frames with an empty g left out), then the mean over batches: f_beta
                depends on k. AVSBench prints k = 4 (its test script), AVSegFormer 2, VCT and COMBO
                1.
  stream        all frames as one batch.
  dataset       sums of counts first, one ratio last (CAVP's line); 10 to 17 points higher, never
                to be compared with the other two.
  davis         J, the IoU with 1 where prediction and g are both empty (so 0 where only g is);
                f_boundary, precision and recall of contours; J&F, their mean. Means over the frames
                of a clip, then over clips.
  boundary_iou  IoU of the bands along the outlines, mean over frames; 1 where both are empty.

Semantic task (AVSS, K = 71): per frame and class IoU and f_beta, averaged for each class over the
frames in which it is present in prediction or ground truth; then the mean over classes, a class
never seen counting as 0.

  frames=real         the frames that exist: VCT, COMBO.
  frames=padded       clips filled up to the clip length of the configuration (10) with empty
                      frames, all scored, and right: AVSBench.
  without background  the mean leaves out class 0.
  legacy_nobg         the mean leaves out the last class, as AVSBench and VCT do under the name of
                      "no background".
  classes in truth    the mean is over the classes that the ground truth holds in some frame: ours,
                      for splits without most of the 71, where the others' largest mIoU is the share
                      of classes that occur.

Sources: AVSBench, `avs_s4/utils/utility.py` (`mask_iou`, `Eval_Fmeasure`) and
`avs_v2/utils/compute_color_metrics.py`; VCT's two evaluators, which agree with them; of the
outlines results/boundary.py names them. Departures: float64 where they compute in float32 (below
1e-6), and clips of several processes are gathered before averaging where they average the means of
processes. DAVIS leaves out the first and the last frame of a sequence; here every frame counts.
"""

import functools

import numpy as np

from avs_jax.results.counts import FrameCounts

BETA_SQUARED = 0.3


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


def davis(counts: FrameCounts) -> dict[str, float]:
    """Region and contour of DAVIS: {"J", "f_boundary", "J&F"}."""
    counts = _binary_frames(counts)
    c, clips = counts.counts, counts.clips()
    j = _ratio(c["inter"], c["union"], where_empty=1.0)
    # No contour on one side only: whatever the other has is wrong, nothing of its own is missed.
    precision = _ratio(c["contour_pred_matched"], c["contour_pred"], where_empty=1.0)
    recall = _ratio(c["contour_gt_matched"], c["contour_gt"], where_empty=1.0)
    f_boundary = _ratio(2 * precision * recall, precision + recall, where_empty=0.0)
    means = [float(np.mean([frames[clip].mean() for clip in clips])) for frames in (j, f_boundary)]
    return {"J": means[0], "f_boundary": means[1], "J&F": sum(means) / 2}


def boundary_iou(counts: FrameCounts) -> dict[str, float]:
    """IoU of the bands along the outlines: {"boundary_iou"}."""
    c = _binary_frames(counts).counts
    return {"boundary_iou": float(_ratio(c["band_inter"], c["band_union"], where_empty=1.0).mean())}


# ---- semantic protocols ----


def semantic_sums(counts: FrameCounts) -> dict[str, np.ndarray]:
    """Per class, over all rows: sums of IoU and f_beta, and in how many frames it is present.

    Returns:
      float64 [K] iou and f_beta, int64 [K] frames.
    """
    c = counts.counts
    eps = np.spacing(1.0)
    iou = c["inter"] / (c["gt"] + c["pred"] - c["inter"] + eps)
    f_beta = _f_beta(c["inter"] / (c["pred"] + eps), c["inter"] / (c["gt"] + eps))
    present = (c["gt"] + c["pred"]) > 0
    return {"iou": iou.sum(axis=0), "f_beta": f_beta.sum(axis=0), "frames": present.sum(axis=0)}


def semantic(
    counts: FrameCounts, frames: str = "real", classes: slice | str = slice(None)
) -> dict[str, float]:
    """{"mIoU", "f_beta"} of the semantic task.

    Args:
      counts: of the semantic task.
      frames: "real" or "padded".
      classes: those that the mean is over; or "in truth", what the ground truth holds.
    """
    _check_frames(counts)
    if not counts.is_semantic:
        raise ValueError("these counts are of the binary task; see BINARY for its protocols")
    if frames not in ("real", "padded"):
        raise ValueError(f"frames: {frames!r}, expected 'real' or 'padded'")
    counts = counts.scored() if frames == "real" else counts
    sums = semantic_sums(counts)
    if isinstance(classes, str):
        classes = counts.counts["gt"].sum(axis=0) > 0
    seen = np.maximum(sums["frames"], 1)
    return {
        "mIoU": float((sums["iou"] / seen)[classes].mean()),
        "f_beta": float((sums["f_beta"] / seen)[classes].mean()),
    }


# ---- all of them ----

BINARY = {
    **{f"avsbench(batch={k})": functools.partial(avsbench, batch=k) for k in (1, 2, 4)},
    "stream": stream,
    "dataset": dataset,
    "davis": davis,
    "boundary_iou": boundary_iou,
}
SEMANTIC = {
    f"semantic(frames={frames}{name})": functools.partial(semantic, frames=frames, classes=classes)
    for frames in ("real", "padded")
    for name, classes in {
        "": slice(None),
        ", without background": slice(1, None),
        ", legacy_nobg": slice(None, -1),
        ", classes in truth": "in truth",
    }.items()
}
VALIDATION = ("avsbench(batch=1)", "stream", "davis", "semantic(frames=real)")


def all_protocols(counts: FrameCounts) -> dict[str, dict[str, float]]:
    """Protocol name -> its numbers in 0..1, everything that these counts can be scored by."""
    protocols = SEMANTIC if counts.is_semantic else BINARY
    return {name: protocol(counts) for name, protocol in protocols.items()}


def validation_protocols(counts: FrameCounts) -> dict[str, dict[str, float]]:
    """The few of them that a training run logs; the first chooses its best checkpoint."""
    return {name: values for name, values in all_protocols(counts).items() if name in VALIDATION}


def _f_beta(precision, recall):
    denominator = BETA_SQUARED * precision + recall
    product = (1 + BETA_SQUARED) * precision * recall
    return np.divide(product, denominator, out=np.zeros_like(product), where=denominator > 0)


def _ratio(numerator, denominator, where_empty: float) -> np.ndarray:
    result = np.full(np.shape(denominator), where_empty)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _binary_frames(counts: FrameCounts) -> FrameCounts:
    _check_frames(counts)
    if counts.is_semantic:
        raise ValueError("these counts are of the semantic task; see SEMANTIC for its protocols")
    return counts.scored()


def _check_frames(counts: FrameCounts) -> None:
    if not counts.valid.any():
        raise ValueError("no valid frame to score")


def _per_frame(counts):
    c = counts.counts
    return frame_iou(counts), c["gt"] > 0, f_beta_curves(c["tp"], c["pp"], c["gt"])


def _best(curves: np.ndarray) -> float:
    return float(curves.mean(axis=0).max()) if len(curves) else 0.0

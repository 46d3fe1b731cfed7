"""Segmentation scores under every protocol in use, from stored counts (results/counts.py).

Binary task (S4, MS3), p = probability of the object, g = ground truth, both [S, S]:

  IoU = |p > 0.5 and g| / (|p > 0.5 or g| + 1e-7); for an empty g the share of pixels with p <= 0.5
  f_beta at threshold t = 1.3 P R / (0.3 P + R), precision P and recall R of p >= t; beta^2 = 0.3

  avsbench(batch=k)  per batch of k clips: the mean IoU, and the maximum over thresholds of the mean
                f_beta curve (frames with an empty g excluded); then the mean over batches, so
                f_beta depends on k. AVSBench's test script uses k = 4, AVSegFormer 2, VCT and COMBO
                1.
  stream        all frames as one batch.
  dataset       IoU and f_beta of the object from counts summed over the split, f_beta as the
                maximum over thresholds. Large objects weigh more; not comparable with the others.
  cavp          IoU and f_beta of the argmax from summed counts, as the mean over the classes,
                background included, without a maximum over thresholds.
  davis         J, the IoU with 1 where prediction and g are both empty (so 0 where only g is);
                f_boundary from precision and recall of the contours; J&F, their mean. Means over
                the frames of a clip, then over clips.
  boundary_iou  IoU of the bands along the outlines, mean over frames. A frame without either band
                (both masks are empty) counts 1.

  look_alikes   right_source (results/right_source.py), for clips that name their objects.

Semantic task (AVSS, K = 71): per frame and class IoU and f_beta; for each class the mean over the
frames in which prediction or ground truth has it; then the mean over classes, where a class that
never occurs counts 0.

  frames=real         the frames that exist: VCT, COMBO.
  frames=padded       clips padded to the configured clip length (10) with empty frames, which are
                      scored too, and correct: AVSBench.
  without background  the mean excludes class 0.
  legacy_nobg         the mean excludes the last class, which AVSBench and VCT call "no background".
  classes in truth    the mean is over the classes that occur in the ground truth: our own, for
                      splits without most of the 71, where the share of classes that occur bounds
                      the mIoU of the others.
  cavp                as above, over all K classes: IoU is 0 for a class that never occurs, and
                      f_beta leaves it out.

Sources: AVSBench, `avs_s4/utils/utility.py` (`mask_iou`, `Eval_Fmeasure`) and
`avs_v2/utils/compute_color_metrics.py`; VCT's two evaluators, which agree with them; CAVP,
`utils/eval_utils.py` with `class_list=None`; results/boundary.py names those of the outlines.
Departures: float64 where they compute in float32 (below 1e-6); clips of several processes are
gathered before averaging, where the originals average the means of processes; DAVIS skips the first
and the last frame of a sequence, here every frame counts.
"""

import functools

import numpy as np

from avs_jax.results import right_source
from avs_jax.results.counts import FrameCounts

BETA_SQUARED = 0.3


def ratio(numerator, denominator, where_empty: float) -> np.ndarray:
    """Elementwise quotient in float64, `where_empty` where the denominator is not positive."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    result = np.full(denominator.shape, where_empty, np.float64)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


# ---- binary protocols ----


def frame_iou(counts: FrameCounts) -> np.ndarray:
    """IoU of each frame, float64 [N]; with an empty ground truth the share of background pixels."""
    c = counts.counts
    agreement = (c["pixels"] - c["pred"]) / np.maximum(c["pixels"], 1)
    return np.where(c["gt"] == 0, agreement, c["inter"] / (c["union"] + 1e-7))


def f_beta_curves(tp: np.ndarray, pp: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """f_beta at each threshold, float64 [..., L], from tp and pp [..., L] and gt [...]."""
    precision = tp / (pp + 1e-20)
    recall = tp / (gt[..., None] + 1e-20)
    return _f_beta(precision, recall)


def avsbench(counts: FrameCounts, batch: int) -> dict[str, float]:
    """AVSBench's test loop with batches of `batch` clips; a short last batch weighs the same.

    A batch whose frames all have an empty ground truth counts as f_beta 0.
    """
    if batch < 1:
        raise ValueError(f"batch: {batch}, expected at least 1 clip")
    counts = _binary_frames(counts)
    iou, has_object, curves = _per_frame(counts)
    batch_iou, batch_f_beta = [], []
    for rows in counts.batches(batch):
        batch_iou.append(iou[rows].mean())
        batch_f_beta.append(_best(curves[rows][has_object[rows]]))
    return {"mIoU": float(np.mean(batch_iou)), "f_beta": float(np.mean(batch_f_beta))}


def stream(counts: FrameCounts) -> dict[str, float]:
    """Every frame weighs the same; one threshold serves all frames."""
    iou, has_object, curves = _per_frame(_binary_frames(counts))
    return {"mIoU": float(iou.mean()), "f_beta": _best(curves[has_object])}


def dataset(counts: FrameCounts) -> dict[str, float]:
    """The object's ratios of summed counts."""
    c = {name: array.sum(axis=0) for name, array in _binary_frames(counts).counts.items()}
    curve = f_beta_curves(c["tp"], c["pp"], c["gt"])
    return {"mIoU": float(c["inter"] / (c["union"] + 1e-7)), "f_beta": float(curve.max())}


def cavp(counts: FrameCounts) -> dict[str, float]:
    """CAVP's ratios of summed counts at the argmax, of either task."""
    _check_frames(counts)
    c = {name: array.sum(axis=0) for name, array in counts.scored().counts.items()}
    inter, gt, pred = c["inter"], c["gt"], c["pred"]
    if not counts.is_semantic:
        background = c["pixels"] - np.array([c["union"], gt, pred])
        inter, gt, pred = np.stack([background, [inter, gt, pred]], axis=1)
    iou = ratio(inter, gt + pred - inter, where_empty=0.0)
    # 1.3 TP + 0.3 FN + FP = predicted + 0.3 true pixels
    f_beta = ratio((1 + BETA_SQUARED) * inter, pred + BETA_SQUARED * gt, where_empty=np.nan)
    return {"mIoU": float(iou.mean()), "f_beta": float(np.nanmean(f_beta))}


def davis(counts: FrameCounts) -> dict[str, float]:
    """Region and contour of DAVIS: {"J", "f_boundary", "J&F"}."""
    counts = _binary_frames(counts)
    c, clips = counts.counts, counts.clips()
    j = ratio(c["inter"], c["union"], where_empty=1.0)
    # A mask without a contour has no wrong and no missed pixel of its own.
    precision = ratio(c["contour_pred_matched"], c["contour_pred"], where_empty=1.0)
    recall = ratio(c["contour_gt_matched"], c["contour_gt"], where_empty=1.0)
    f_boundary = ratio(2 * precision * recall, precision + recall, where_empty=0.0)
    means = [float(np.mean([frames[clip].mean() for clip in clips])) for frames in (j, f_boundary)]
    return {"J": means[0], "f_boundary": means[1], "J&F": sum(means) / 2}


def boundary_iou(counts: FrameCounts) -> dict[str, float]:
    """IoU of the bands along the outlines: {"boundary_iou"}."""
    c = _binary_frames(counts).counts
    return {"boundary_iou": float(ratio(c["band_inter"], c["band_union"], where_empty=1.0).mean())}


# ---- semantic protocols ----


def semantic_sums(counts: FrameCounts) -> dict[str, np.ndarray]:
    """Sums of iou and f_beta, float64 [K], over all rows, and the frames that have the class."""
    c = counts.counts
    eps = np.spacing(1.0)
    iou = c["inter"] / (c["gt"] + c["pred"] - c["inter"] + eps)
    f_beta = _f_beta(c["inter"] / (c["pred"] + eps), c["inter"] / (c["gt"] + eps))
    present = (c["gt"] + c["pred"]) > 0
    return {"iou": iou.sum(axis=0), "f_beta": f_beta.sum(axis=0), "frames": present.sum(axis=0)}


def semantic(
    counts: FrameCounts, frames: str = "real", classes: slice | str = slice(None)
) -> dict[str, float]:
    """{"mIoU", "f_beta"} of the semantic task over "real" or "padded" frames.

    The mean is over `classes`; "in truth" for those of the ground truth.
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

BATCHES = (1, 2, 4)  # of clips, in `avsbench`
BINARY = {
    **{f"avsbench(batch={k})": functools.partial(avsbench, batch=k) for k in BATCHES},
    "stream": stream,
    "dataset": dataset,
    "cavp": cavp,
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
} | {"cavp": cavp}
VALIDATION = ("avsbench(batch=1)", "stream", "davis", "semantic(frames=real)", "look_alikes")


def all_protocols(counts: FrameCounts) -> dict[str, dict[str, float]]:
    """Protocol name -> its numbers in 0..1, for every protocol of the counts' task."""
    protocols = SEMANTIC if counts.is_semantic else BINARY
    numbers = {name: protocol(counts) for name, protocol in protocols.items()}
    return numbers | look_alikes(counts)


def batches(counts: FrameCounts) -> dict[str, np.ndarray]:
    """PROTOCOL/MEASURE -> batch of each row, for those whose clips are scored in batches."""
    if counts.is_semantic:
        return {}
    return {
        f"avsbench(batch={k})/{measure}": counts.batch_of_rows(k)
        for k in BATCHES
        if k > 1
        for measure in ("mIoU", "f_beta")
    }


def validation_protocols(counts: FrameCounts) -> dict[str, dict[str, float]]:
    """The protocols that a training run logs; the first one chooses its best checkpoint."""
    return {name: values for name, values in all_protocols(counts).items() if name in VALIDATION}


def look_alikes(counts: FrameCounts) -> dict[str, dict[str, float]]:
    """{"look_alikes": {"right_source"}}, {} if no frame shows two look-alikes."""
    found = counts.scored().counts
    if not right_source.has_sources(found):
        return {}
    return {"look_alikes": {"right_source": right_source.right_source(found)}}


def _f_beta(precision, recall):
    product = (1 + BETA_SQUARED) * precision * recall
    return ratio(product, BETA_SQUARED * precision + recall, where_empty=0.0)


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

"""Numbers of an evaluation with false sounds, from the stored counts of its conditions.

Under a false sound nothing in the frame sounds, so the original mask should not be found: lower IoU
and f_beta against it are better. With P a score under the true sound and N its mean over the types
of false sound (after averaging the variants of a type):

  G = 2 P (1 - N) / (P + 1 - N)     G-mIoU, G-f_beta; a model that ignores the sound has N = P
  FPR = share of the pixels with p > 0.5, also of moving and static pixels alone; G-FPR = its mean
  gap = P - N, per condition, over the clips of the condition

Scores are those of `stream` (results/metrics.py) over the frames with a non-empty mask: for an
empty mask, IoU measures agreement on background, where higher is better. f_beta never reaches 0,
since its best threshold may mark everything: its floor is the f_beta of a full mask.

With more than two classes, scores are means over the classes that occur in the ground truth,
without background, each averaged over the frames in which prediction or ground truth has it; FPR is
the share of pixels whose class is not background.

G-mIoU and G-f_beta are computed over silence, noise and offscreen (as published) and over all types
that were evaluated, P and N alike over the clips that all of their conditions have. `shift` and
`late` keep a clip's own sound and move it in time: where one object sounds throughout, as in S4,
the mask stays right.

right_source (results/right_source.py) is added where clips name two look-alikes.

Intervals: the middle 95 % over resamples of the clips, the same resamples for every condition.

Source: AVSBench-Robust (arXiv 2502.00358). Departures: f_beta's name, averaging within types, the
split by motion, shift, late, right_source, intervals.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.results import metrics, right_source
from avs_jax.results.counts import FrameCounts
from avs_jax.results.metrics import ratio
from avs_jax.results.statistics import resample_weights
from avs_jax.spec import IGNORE_LABEL, NEGATIVE_AUDIO, TRUE_AUDIO

PUBLISHED = ("silence", "noise", "offscreen")  # types of false sound in the source
PARTS = ("moving", "static")  # pixels, by their motion
MOTION_COUNTS = tuple(
    f"{part}_{name}" for part in PARTS for name in ("pixels", "pred", "gt", "inter")
)
NEAR_EMPTY = 0.001  # share of the pixels: a smaller prediction marks nothing
NUM_RESAMPLES, SEED = 1000, 0
QUANTILES = (0.025, 0.975)
SCORES = ("mIoU", "f_beta")

Number = dict[str, float | None]  # {"value", "low", "high"}; None: not defined


# ---- counting ----


def count_motion(pred: np.ndarray, labels: np.ndarray, moving: np.ndarray) -> dict[str, np.ndarray]:
    """Counts moving and static pixels separately: [..., S, S] -> int64 [...] of MOTION_COUNTS.

    `pred` holds float probabilities of the object (p > 0.5 is predicted) or integer classes (all
    but 0 are). Unknown pixels (255) of `labels` are excluded from every count.
    """
    found = pred > 0.5 if np.issubdtype(pred.dtype, np.floating) else pred != 0
    known = labels != IGNORE_LABEL
    wanted = known & (labels != 0)
    result = {}
    for part, where in zip(PARTS, (moving & known, ~moving & known), strict=True):
        areas = {"pixels": where, "pred": where & found, "gt": where & wanted}
        areas["inter"] = areas["gt"] & found
        result |= {f"{part}_{name}": area.sum(axis=(-2, -1)) for name, area in areas.items()}
    return result


# ---- numbers ----


def g_score(positive, negative):
    """2 P (1 - N) / (P + 1 - N), 0 where both vanish, NaN where either is; elementwise, in 0..1."""
    right = 1.0 - np.asarray(negative, np.float64)
    positive = np.asarray(positive, np.float64)
    found = ratio(2 * positive * right, positive + right, where_empty=0.0)
    return np.where(np.isnan(positive + right), np.nan, found)


def summarize(
    counts: Mapping[str, FrameCounts], num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> dict[str, Any]:
    """All numbers described above.

    Args:
      counts: condition -> its counts, MOTION_COUNTS among them; TRUE_AUDIO, and any of
        spec.NEGATIVE_AUDIO and of the controls. A condition may lack clips of the reference.

    Returns:
      plain numbers, and Number where there is an interval:
        clips, frames (with an object), moving_share (of the pixels), floor_f_beta
        conditions[c]: clips, mIoU, f_beta, [right_source], gap_mIoU, gap_f_beta, FPR, FPR_moving,
          FPR_static,
          frac_near_empty (share of frames with less than NEAR_EMPTY predicted), and
          fpr_outside_moving and fpr_outside_static (share of the pixels outside the mask that are
          predicted)
        types[t]: gap_mIoU, gap_f_beta
        summary["published" and "all"]: types, clips (that all conditions have), N-mIoU, N-f_beta,
          G-mIoU, G-f_beta, G-FPR, and audio_blind_G-mIoU and audio_blind_G-f_beta, of a model with
          the same P that ignores the sound
    """
    if TRUE_AUDIO not in counts:
        raise ValueError(f"no counts of {TRUE_AUDIO}; there are {sorted(counts)}")
    sums = {name: _ClipSums(c, counts[TRUE_AUDIO]) for name, c in counts.items()}
    reference = sums[TRUE_AUDIO]
    weights = resample_weights(len(reference.present), num_resamples, seed)
    scores = {name: each.scores(weights) for name, each in sums.items()}
    conditions = {}
    for name, each in sums.items():
        values = dict(scores[name])
        if name != TRUE_AUDIO:
            # Its P, too, excludes the clips that the condition lacks.
            positive = reference.scores(weights * each.present)
            values |= {f"gap_{s}": positive[s] - values[s] for s in SCORES}
        conditions[name] = {"clips": int(each.present.sum())} | _numbers(values)
        scores[name] |= {name: value for name, value in values.items() if name.startswith("gap")}
    types = _by_type(scores, ("gap_mIoU", "gap_f_beta"))
    total = reference.total
    return {
        "clips": len(reference.present),
        "frames": int(total["object_frames"]),
        "moving_share": float(total["moving_pixels"] / max(total["pixels"], 1)),
        "floor_f_beta": _numbers({"floor": reference.full_mask(weights)})["floor"],
        "conditions": conditions,
        "types": {kind: _numbers(values) for kind, values in types.items()},
        "summary": _summary(sums, weights, tuple(types)),
    }


def _by_type(
    scores: Mapping[str, Mapping[str, np.ndarray]], keys: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Evaluated type of false sound -> means over its conditions."""
    return {
        kind: {
            key: np.mean([scores[name][key] for name in names if name in scores], axis=0)
            for key in keys
        }
        for kind, names in NEGATIVE_AUDIO.items()
        if any(name in scores for name in names)
    }


def _summary(
    sums: Mapping[str, "_ClipSums"], weights: np.ndarray, evaluated: tuple[str, ...]
) -> dict[str, Any]:
    """G-scores over the published types, if all were evaluated, and over all evaluated types."""
    chosen = {}
    if set(PUBLISHED) <= set(evaluated):
        chosen["published"] = PUBLISHED
    if evaluated and evaluated != PUBLISHED:
        chosen["all"] = evaluated
    result = {}
    for name, kinds in chosen.items():
        heard = {c: sums[c] for kind in kinds for c in NEGATIVE_AUDIO[kind] if c in sums}
        shared = np.all([each.present for each in heard.values()], axis=0)
        positive = sums[TRUE_AUDIO].scores(weights * shared)
        scores = {c: each.scores(weights * shared) for c, each in heard.items()}
        per_type = _by_type(scores, (*SCORES, "FPR")).values()
        mean = {key: np.mean([x[key] for x in per_type], axis=0) for key in (*SCORES, "FPR")}
        values = {f"N-{s}": mean[s] for s in SCORES}
        values |= {f"G-{s}": g_score(positive[s], mean[s]) for s in SCORES}
        values |= {f"audio_blind_G-{s}": g_score(positive[s], positive[s]) for s in SCORES}
        result[name] = {"types": list(kinds), "clips": int(shared.sum())}
        result[name] |= _numbers(values | {"G-FPR": mean["FPR"]})
    return result


class _ClipSums:
    """Sums over each clip's frames, in the clips' order of a reference."""

    def __init__(self, counts: FrameCounts, reference: FrameCounts):
        counts, reference = counts.scored(), reference.scored()
        order = [str(reference.clip_id[clip.start]) for clip in reference.clips()]
        place = {clip: i for i, clip in enumerate(order)}
        foreign = sorted(set(map(str, counts.clip_id)) - place.keys())
        if foreign:
            raise ValueError(f"clips {foreign[:3]} are not among those of {TRUE_AUDIO}")
        missing = set(MOTION_COUNTS) - counts.counts.keys()
        if missing:
            raise ValueError(f"counts lack {sorted(missing)}: count again with moving pixels")
        self._row = np.array([place[str(clip)] for clip in counts.clip_id])
        self._num_clips = len(order)
        self.present = np.bincount(self._row, minlength=len(order)) > 0
        self._is_semantic = counts.is_semantic
        c = {name: array.astype(np.float64) for name, array in counts.counts.items()}
        pixels, pred = (c[f"moving_{name}"] + c[f"static_{name}"] for name in ("pixels", "pred"))
        per_frame = {name: c[name] for name in MOTION_COUNTS}
        per_frame |= {"pixels": pixels, "pred": pred, "frames": np.ones_like(pixels)}
        per_frame["near_empty"] = (pred < NEAR_EMPTY * pixels).astype(np.float64)
        if right_source.has_sources(c):
            shows_both, right = right_source.score_frames(c)
            per_frame |= {"both_sources": shows_both.astype(np.float64), "right_source": right}
        self._sums = {name: self._per_clip(values) for name, values in per_frame.items()}
        if self._is_semantic:
            classes = reference.counts["gt"].sum(axis=0) > 0
            classes[0] = False
            self._classes(c, np.flatnonzero(classes))
        else:
            self._masks(counts, c)

    def _per_clip(self, per_frame: np.ndarray) -> np.ndarray:
        """[N, ...] -> [C, ...]."""
        result = np.zeros((self._num_clips, *per_frame.shape[1:]))
        np.add.at(result, self._row, per_frame)
        return result

    def _masks(self, counts: FrameCounts, c: Mapping[str, np.ndarray]) -> None:
        has_object = c["gt"] > 0
        curves = metrics.f_beta_curves(c["tp"], c["pp"], c["gt"])
        full = metrics.f_beta_curves(c["gt"][:, None], c["pixels"][:, None], c["gt"])[:, 0]
        self._sums |= {
            "object_frames": self._per_clip(has_object.astype(np.float64)),
            "iou": self._per_clip(np.where(has_object, metrics.frame_iou(counts), 0.0)),
            "curve": self._per_clip(np.where(has_object[:, None], curves, 0.0)),
            "full": self._per_clip(np.where(has_object, full, 0.0)),
        }

    def _classes(self, c: Mapping[str, np.ndarray], classes: np.ndarray) -> None:
        inter, gt, pred = (c[name][:, classes] for name in ("inter", "gt", "pred"))
        f_beta = metrics.f_beta_curves(inter[..., None], pred[..., None], gt)[..., 0]
        self._sums |= {
            "object_frames": self._per_clip((gt.sum(axis=1) > 0).astype(np.float64)),
            "seen": self._per_clip(((gt + pred) > 0).astype(np.float64)),
            "iou": self._per_clip(ratio(inter, gt + pred - inter, where_empty=0.0)),
            "f_beta": self._per_clip(f_beta),
        }

    @property
    def total(self) -> dict[str, np.ndarray]:
        """Sums over all clips."""
        return {name: values.sum(axis=0) for name, values in self._sums.items()}

    def full_mask(self, weights: np.ndarray) -> np.ndarray:
        """f_beta of marking every pixel, [R]; NaN where there are several classes to mark."""
        if self._is_semantic:
            return np.full(len(weights), np.nan)
        return ratio(weights @ self._sums["full"], weights @ self._sums["object_frames"], np.nan)

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every measure, [R] each, with the clips weighted by [R, C]."""
        s = {name: weights @ values for name, values in self._sums.items()}
        if self._is_semantic:
            scores = {
                "mIoU": _mean_over_classes(s["iou"], s["seen"]),
                "f_beta": _mean_over_classes(s["f_beta"], s["seen"]),
            }
        else:
            curve = ratio(s["curve"], s["object_frames"][:, None], np.nan)
            scores = {"mIoU": ratio(s["iou"], s["object_frames"], np.nan)}
            scores["f_beta"] = curve.max(axis=1)
        if "both_sources" in s:
            scores["right_source"] = ratio(s["right_source"], s["both_sources"], np.nan)
        scores["FPR"] = ratio(s["pred"], s["pixels"], np.nan)
        scores["frac_near_empty"] = ratio(s["near_empty"], s["frames"], np.nan)
        for part in PARTS:
            scores[f"FPR_{part}"] = ratio(s[f"{part}_pred"], s[f"{part}_pixels"], np.nan)
            outside = s[f"{part}_pixels"] - s[f"{part}_gt"]
            wrong = s[f"{part}_pred"] - s[f"{part}_inter"]
            scores[f"fpr_outside_{part}"] = ratio(wrong, outside, np.nan)
        return scores


def _mean_over_classes(sums: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Mean over the classes that a resample has, [R, K] -> [R]; NaN where it has none."""
    has = seen > 0
    return ratio(ratio(sums, seen, where_empty=0.0).sum(axis=1), has.sum(axis=1), np.nan)


def _numbers(values: Mapping[str, np.ndarray]) -> dict[str, Number]:
    """Row 0 as the value, QUANTILES of the other rows as the interval."""
    result = {}
    for name, rows in values.items():
        drawn = rows[1:][~np.isnan(rows[1:])]
        low, high = np.quantile(drawn, QUANTILES) if len(drawn) else (np.nan, np.nan)
        triple = {"value": rows[0], "low": low, "high": high}
        result[name] = {k: None if np.isnan(v) else float(v) for k, v in triple.items()}
    return result

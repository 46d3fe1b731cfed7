"""Referring video segmentation without sound, scored: Ref-DAVIS17, MeViS, ReVOS, Ref-YouTube-VOS.

Per frame, g the truth (the union of the objects an expression means) and p the prediction:

  J  |p & g| / |p | g|, 1 where both are empty
  F  DAVIS's contours, 1 where both are empty
  A  share of equal pixels
  R  max(0, 1 - |p & not g| / (|all objects| + 1e-6))

A protocol is a function of the table, one row per frame:

  per_expression  mean over the frames of an expression, then over expressions: MeViS, and
                  Ref-DAVIS17 as VISA, Sa2VA and SALMA score it
  merged          Ref-DAVIS17 as ReferFormer scores it: for each of the four annotators, the
                  objects of a video compete for pixels (the first wins a tie), are matched with the
                  true objects by the greatest mean of J and F, and DAVIS's statistics of each
                  object averaged over objects. Not comparable with the other
  davis           DAVIS's statistics of J and F per expression, then the mean over expressions:
                  mean, recall (share of frames above 0.5) and decay (the mean of the first quarter
                  of the frames minus that of the last)
  davis_legacy    the same with the original's decay, which keeps the edges of the quarters in
                  uint8: from 256 frames on they wrap, and the decay is wrong or NaN (None here)
  merged_legacy   merged with that decay
  revos           each expression rounded to two digits of a percent; the means of the referring
                  (type 0) and the reasoning group (type 1); overall their unweighted mean
  revos_legacy    the same with the original's A and R, where overlapping objects add up in uint8:
                  2 equals no prediction, and 1 - 2 weighs 255

An expression without predictions scores 0 in everything, as in VISA, and is counted.

Sources: repositories fundamentalvision/ReferFormer, henghuiding/MeViS, cilinyan/VISA,
magic-research/Sa2VA, davischallenge/davis2017-evaluation. MeViS's and ReVOS's scripts print sums
over workers, equal to these up to the last bit.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from avs_jax.results.boundary import contour, contour_tolerance, dilate
from avs_jax.results.table import Table

REFERRING, REASONING = 0, 1  # types of expressions in ReVOS
MEASURES = ("J", "F", "A", "R", "A_legacy", "R_legacy")


class ExpressionTable(Table):
    """One row per frame of each expression.

    Columns: video, expression, type of ReVOS (-1 elsewhere), frame, given (a prediction was there),
    MEASURES.
    """

    schema = {
        "video": str,
        "expression": str,
        "type": np.int32,
        "given": bool,
        **dict.fromkeys(MEASURES, np.float64),
    }


def jaccard(pred: np.ndarray, truth: np.ndarray) -> float:
    """J of two masks, bool [H, W]."""
    union = np.count_nonzero(pred | truth)
    return np.count_nonzero(pred & truth) / union if union else 1.0


def f_boundary(pred: np.ndarray, truth: np.ndarray) -> float:
    """F of two masks, bool [H, W]."""
    radius = contour_tolerance(truth.shape)
    ours, theirs = contour(pred), contour(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (ours & dilate(theirs, radius)).sum() / ours.sum()
    recall = (theirs & dilate(ours, radius)).sum() / theirs.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def score_frame(pred: np.ndarray, objects: np.ndarray, foreground: np.ndarray) -> dict[str, float]:
    """MEASURES of one frame.

    Args:
      pred: bool [H, W].
      objects: bool [n, H, W], those that the expression means; n may be 0.
      foreground: bool [H, W], the union of all annotated objects of the video.
    """
    truth = objects.any(axis=0)
    size = np.count_nonzero(foreground) + 1e-6
    total = objects.sum(axis=0, dtype=np.uint8)
    ours = pred.astype(np.uint8)
    outside = (ours * (np.uint8(1) - total)).sum(dtype=np.int64)  # wraps where objects overlap
    return {
        "J": jaccard(pred, truth),
        "F": f_boundary(pred, truth),
        "A": float((pred == truth).mean()),
        "R": max(0.0, 1 - np.count_nonzero(pred & ~truth) / size),
        "A_legacy": float((total == ours).mean()),
        "R_legacy": max(0.0, 1 - float(outside) / size),
    }


# ---- numbers ----

STATISTICS = ("J", "J recall", "J decay", "F", "F recall", "F decay")


def statistics(values: np.ndarray, legacy: bool = False) -> tuple[float, float, float]:
    """DAVIS's mean, recall and decay of J or F over the frames of an object.

    Args:
      values: float64 [T], T >= 1. NaN frames count in no mean, and as not above 0.5.
      legacy: keep the edges of the quarters in uint8, as the original does.

    Returns:
      the mean; the share of frames above 0.5; and the mean of the first quarter of the frames minus
      that of the last, each with both frames at its edges. NaN is a legacy decay of no frame.

    Source: davischallenge/davis2017-evaluation, db_statistics.
    """
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    ends = edges + 1
    if legacy:  # ends wrap as well: NumPy 2 adds in uint8
        edges, ends = edges % 256, ends % 256
    quarters = [values[edges[i] : ends[i + 1]] for i in (0, 3)]
    first, last = (np.nanmean(quarter) if len(quarter) else np.nan for quarter in quarters)
    return float(np.nanmean(values)), float((values > 0.5).mean()), float(first - last)


def _mean_statistics(curves: Iterable[np.ndarray], legacy: bool) -> np.ndarray:
    """STATISTICS as fractions, float64 [6]: the mean over curves of J and F, each [T, 2]."""
    return np.mean([[statistics(x, legacy) for x in curve.T] for curve in curves], axis=0).ravel()


def _percent(means: np.ndarray | None) -> dict[str, float | None]:
    """STATISTICS, fractions [6], and J&F, in percent rounded to two digits; None for NaN."""
    if means is None:
        return dict.fromkeys((*STATISTICS, "J&F"))
    named = dict(zip(STATISTICS, means, strict=True))
    named["J&F"] = (named["J"] + named["F"]) / 2
    return {k: None if np.isnan(v) else round(100 * float(v), 2) for k, v in named.items()}


def _expressions(table: ExpressionTable) -> Iterator[slice]:
    """The rows of each expression."""
    keys = list(zip(table["video"], table["expression"], strict=True))
    start = 0
    for i in range(1, len(keys) + 1):
        if i == len(keys) or keys[i] != keys[start]:
            yield slice(start, i)
            start = i


def per_expression(table: ExpressionTable) -> dict[str, float | None]:
    """J, F and their mean, in percent rounded to two digits, as the scripts print them."""
    rows = list(_expressions(table))
    if not rows:
        return {"J": None, "F": None, "J&F": None}
    j, f = (float(np.mean([table[name][r].mean() for r in rows])) for name in ("J", "F"))
    return {"J": round(100 * j, 2), "F": round(100 * f, 2), "J&F": round(100 * (j + f) / 2, 2)}


def davis(table: ExpressionTable, legacy: bool = False) -> dict[str, float | None]:
    """STATISTICS, means over expressions, and J&F, in percent."""
    curves = np.stack([table["J"], table["F"]], axis=1)
    rows = list(_expressions(table))
    return _percent(_mean_statistics((curves[r] for r in rows), legacy) if rows else None)


def revos(table: ExpressionTable, legacy: bool = False) -> dict[str, float | None]:
    """J, F, A, R and J&F of both groups and overall, in percent."""
    suffix = "_legacy" if legacy else ""
    names = {"J": "J", "F": "F", "A": f"A{suffix}", "R": f"R{suffix}"}
    groups: dict[str, dict[str, float]] = {}
    for group, kind in (("referring", REFERRING), ("reasoning", REASONING)):
        rows = [r for r in _expressions(table) if table["type"][r.start] == kind]
        if rows:
            groups[group] = {
                name: float(np.mean([round(100 * float(table[c][r].mean()), 2) for r in rows]))
                for name, c in names.items()
            }
    if len(groups) == 2:
        both = list(groups.values())
        groups["overall"] = {name: (both[0][name] + both[1][name]) / 2 for name in names}
    found: dict[str, float | None] = {}
    for group, values in groups.items():
        found |= {f"{name} ({group})": value for name, value in values.items()}
        found[f"J&F ({group})"] = (values["J"] + values["F"]) / 2
    return found


def coverage(table: ExpressionTable) -> dict[str, float]:
    """Expressions, and those without any prediction."""
    rows = list(_expressions(table))
    return {
        "expressions": len(rows),
        "without_prediction": sum(not table["given"][r].any() for r in rows),
    }


def merged(videos: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Ref-DAVIS17's merged protocol and merged_legacy: STATISTICS and J&F, in percent; coverage.

    Args:
      videos: each with truth, bool [objects, T, H, W], predictions, bool [annotators, objects, T,
        H, W], and given, bool [annotators, objects]: a prediction was there.
    """
    runs: dict[int, list[np.ndarray]] = {}
    counts = {"expressions": 0, "without_prediction": 0}
    for video in videos:
        counts["expressions"] += video["given"].size
        counts["without_prediction"] += int((~video["given"]).sum())
        for annotator, proposals in enumerate(video["predictions"]):
            curves = match_objects(compete(proposals), video["truth"], video["given"][annotator])
            runs.setdefault(annotator, []).extend(curves)
    found: dict[str, dict[str, float | None]] = {}
    for name, legacy in (("merged", False), ("merged_legacy", True)):
        means = [_mean_statistics(curves, legacy) for curves in runs.values()]
        found[name] = _percent(np.mean(means, axis=0) if means else None)
    return found | {"coverage": counts}


def compete(proposals: np.ndarray) -> np.ndarray:
    """Masks [objects, T, H, W] without overlaps: the first object keeps a pixel."""
    return proposals & (np.cumsum(proposals, axis=0) == 1)


def match_objects(proposals: np.ndarray, truth: np.ndarray, given: np.ndarray) -> list[np.ndarray]:
    """J and F [T, 2] of each true object with its proposal; both bool [objects, T, H, W].

    `given`, bool [objects], is False for the proposals that are missing: they score 0.
    """
    table = np.zeros((len(truth), len(proposals), truth.shape[1], 2))
    for i, theirs in enumerate(truth):
        for k in np.flatnonzero(given):
            pairs = zip(proposals[k], theirs, strict=True)
            table[i, k] = [(jaccard(p, g), f_boundary(p, g)) for p, g in pairs]
    objects, chosen = linear_sum_assignment(-table.mean((2, 3)))
    return [table[i, k] for i, k in zip(objects, chosen, strict=True)]

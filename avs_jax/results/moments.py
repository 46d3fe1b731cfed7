"""Scores of grounding in time: a table with one row per query -> every protocol's numbers.

  moments      windows against annotated windows: recall of the top window, mean average precision
  highlights   saliency against annotators' scores 0..4: average precision and the best clip
  tvsum        saliency against annotators' scores 1..5: precision of the five best seconds

Every number is a mean over queries of a number per query, in float64 on the host. Columns of a
`MomentTable`, padded with NaN (windows are start and end in seconds):

  qid, vid, query   str [N]
  domain            str [N]             a group of queries; the column may be absent
  cut_words         int64 [N]           words of the query that the model did not read; likewise
  duration          float64 [N]         of the video, in seconds
  windows           float64 [N, W, 2]   annotated
  ratings           float64 [N, n, A]   score of clip n by annotator A
  pred_windows      float64 [N, Q, 3]   start, end, score, in the order of the list
  pred_saliency     float64 [N, m]      score per clip, higher is more salient

Sources: moments and highlights are those of QVHighlights' evaluation script (repository
jayleicn/moment_detr, standalone_eval), tvsum is that of UMT (repository TencentARC/UMT), which
QD-DETR uses too. Departures:

- A group without a query (no short window, no annotation) gives None; the script raises.
- A query with an empty list of windows scores 0; the script raises. If every list of a split is
  empty, the predictions are of saliency alone and no window is scored (`with_windows`).
- "long" and "full" have no upper limit; the script's is 150 s, the longest video of QVHighlights.
"""

from typing import Any

import numpy as np

from avs_jax.results.table import Table

Scores = dict[str, float | None]

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the intersection over union
LENGTHS = {"full": (0, np.inf), "short": (0, 10), "middle": (10, 30), "long": (30, np.inf)}
# Level -> the lowest annotated score of a positive clip.
HIGHLIGHT_LEVELS = {"VeryGood": 4, "Good": 3, "Fair": 2}
MAX_WINDOWS = 10  # of a list; the others are not scored
TOP_CLIPS = 5


class MomentTable(Table):
    """One row per query; the text of this file lists the columns."""

    schema = {"qid": str, "vid": str, "query": str, "duration": float}
    schema |= dict.fromkeys(("windows", "ratings", "pred_windows", "pred_saliency"), float)

    def rows(self) -> list[dict[str, Any]]:
        """The rows without padding; a table of them is this table."""
        columns = {name: list(map(_unpad, column)) for name, column in self.columns.items()}
        return [{name: columns[name][i] for name in columns} for i in range(len(self))]


# ---- windows ----


def window_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of windows [n, 2] and [m, 2]: float64 [n, m]; 0 if both are empty."""
    start = np.maximum(first[:, None, 0], second[None, :, 0])
    end = np.minimum(first[:, None, 1], second[None, :, 1])
    inter = np.maximum(end - start, 0)
    lengths = [windows[:, 1] - windows[:, 0] for windows in (first, second)]
    union = lengths[0][:, None] + lengths[1][None, :] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def detection_ap(windows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Average precision of a list of windows at each of THRESHOLDS, float64 [10].

    The windows are matched greedily in the order of their scores: each takes the annotated window
    of highest IoU that is still free and reaches the threshold. Equal scores keep the list's order;
    of equal IoUs the last annotated window is tried first. The precision is interpolated as VOC
    does: its running maximum from the right, integrated over recall.

    Args:
      windows: [n, 3] start, end, score; the first MAX_WINDOWS count.
      truth: [m, 2], m > 0.
    """
    windows = windows[:MAX_WINDOWS]
    windows = windows[np.argsort(-windows[:, 2], kind="stable")]
    iou = window_iou(windows, truth)
    choices = np.argsort(iou, axis=1, kind="stable")[:, ::-1]
    hits = np.zeros((len(THRESHOLDS), len(windows)), bool)
    for t, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(truth), bool)
        for i, order in enumerate(choices):
            matches = order[free[order] & (iou[i, order] >= threshold)]
            if matches.size:
                hits[t, i], free[matches[0]] = True, False
    precision = np.cumsum(hits, axis=1) / np.arange(1, len(windows) + 1)
    ceiling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.where(hits, ceiling, 0).sum(axis=1) / len(truth)


def with_windows(table: MomentTable) -> MomentTable:
    """The queries whose windows are scored: all, or none where a whole split has no window."""
    return table.take(slice(0)) if np.isnan(table["pred_windows"]).all() else table


def window_scores(table: MomentTable, length: str = "full") -> tuple[np.ndarray, np.ndarray]:
    """Scores of the queries that have an annotated window of this length, a key of LENGTHS.

    Returns:
      (average precision float64 [n, 10], highest IoU of the FIRST window in the list, float64 [n]).
      Predicted windows count whatever their length is.
    """
    above, up_to = LENGTHS[length]
    precisions, top = [], []
    for truth, windows in zip(table["windows"], table["pred_windows"], strict=True):
        truth, windows = _unpad(truth), _unpad(windows)
        seconds = truth[:, 1] - truth[:, 0]
        truth = truth[(seconds > above) & (seconds <= up_to)]
        if not len(truth):
            continue
        precisions.append(detection_ap(windows, truth))
        top.append(window_iou(windows[:1], truth).max(initial=0))
    return np.array(precisions).reshape(-1, len(THRESHOLDS)), np.array(top)


def moments(table: MomentTable, length: str = "full") -> Scores:
    """mAP over all thresholds, mAP and R1 at single ones, in 0..1; None where no query counts."""
    precisions, top = window_scores(table, length)
    return {
        "mAP": _mean(precisions),
        **{f"R1@{THRESHOLDS[i]:g}": _mean(top >= THRESHOLDS[i]) for i in (0, 4)},
        **{f"mAP@{THRESHOLDS[i]:g}": _mean(precisions[:, i]) for i in (0, 5)},
    }


# ---- highlights ----


def ranking_ap(positive: np.ndarray, scores: np.ndarray) -> float:
    """Average precision of a ranking (bool [n] and float [n]) as the script interpolates it.

    One operating point per distinct score. The precision is made non-increasing in recall, then
    averaged WITHOUT weights over the points at which recall changes.
    """
    if not positive.any() or positive.all():
        return float(positive.any())
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.diff(scores[order]) != 0, True)
    num_hits = np.cumsum(positive[order])[last_of_score]
    precision = num_hits / (np.flatnonzero(last_of_score) + 1)
    ceiling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(ceiling[np.diff(num_hits, prepend=0) > 0].mean())


def highlight_scores(table: MomentTable, level: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores at a key of HIGHLIGHT_LEVELS, of the queries with ratings and a predicted saliency.

    Returns:
      (average precision float64 [n, A]; float64 [n], 1 where the best clip is positive for one
      annotator, 0 if it is past the last annotated clip).
    """
    precisions, hits = [], []
    for ratings, saliency in _rated(table):
        positive = ratings >= HIGHLIGHT_LEVELS[level]
        best = int(np.argmax(saliency))
        hits.append(float(best < len(positive) and positive[best].any()))
        padded = np.zeros(len(positive))
        padded[: len(saliency)] = saliency[: len(positive)]
        precisions.append([ranking_ap(column, padded) for column in positive.T])
    return np.array(precisions), np.array(hits)


def highlights(table: MomentTable, level: str = "VeryGood") -> Scores:
    """mAP over annotators and queries, and HIT@1, in 0..1; None where no query counts."""
    precisions, hits = highlight_scores(table, level)
    return {"mAP": _mean(precisions), "HIT@1": _mean(hits)}


# ---- TVSum ----


def top_clips_ap(ratings: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Average precision of the TOP_CLIPS best clips for each annotator, float64 [A].

    A clip is positive if its score exceeds the annotator's lower median. Recall counts the
    positives among the best clips only; the area is the sum of trapezoids from (0, 1) on.

    Args:
      ratings: [n, A].
      saliency: [m]; clips from n on are not scored.
    """
    median = np.sort(ratings, axis=0)[(len(ratings) - 1) // 2]
    order = np.argsort(-saliency[: len(ratings)], kind="stable")[:TOP_CLIPS]
    hits = np.cumsum(ratings[order] > median, axis=0)
    precision = hits / np.arange(1, len(order) + 1)[:, None]
    recall = hits / np.maximum(hits[-1], 1)
    steps = np.diff(recall, axis=0, prepend=0)
    before = np.concatenate([np.ones((1, ratings.shape[1])), precision[:-1]])
    return (steps * (before + precision) / 2).sum(axis=0)


def tvsum(table: MomentTable) -> Scores:
    """mAP of the five best clips over annotators, then videos; None where no video counts."""
    return {"mAP": _mean([top_clips_ap(*pair).mean() for pair in _rated(table)])}


def _unpad(value: Any) -> Any:
    """A row's value without the padding; what holds no numbers per clip or window as it is."""
    if np.ndim(value) == 0:
        return value.item()
    known = ~np.isnan(value)
    return value[known if value.ndim == 1 else known.all(axis=1)]


def _rated(table: MomentTable) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ratings [n, A], saliency [m]) of every query that has both."""
    pairs = zip(table["ratings"], table["pred_saliency"], strict=True)
    unpadded = ((_unpad(ratings), _unpad(saliency)) for ratings, saliency in pairs)
    return [(ratings, saliency) for ratings, saliency in unpadded if ratings.size and saliency.size]


def _mean(values) -> float | None:
    return float(np.mean(values)) if np.size(values) else None

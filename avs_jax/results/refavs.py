"""Referring segmentation, scored as Ref-AVS does it and as later systems do: names and arithmetic.

Per frame, p the probability of the pixel, g the truth:

  J         IoU of p > 0.4; where g is empty, the share of pixels that are background in both
  f_beta    curves over 255 thresholds of p >= t, beta^2 = 0.3, frames with an empty g left out:
            the mean over frames, then the maximum over thresholds. Per batch of four expressions,
            then the mean over batches (`batch=4`, the reference; a batch without any object counts
            0), per expression (`clip`, as SimToken and ALS3P), or over all frames (`stream`)
  J&f_beta  the mean of J and f_beta(batch=4), what this literature calls J&F
  f_boundary, J&f_boundary
            DAVIS's contours of p > 0.5, mean over the frames of an expression, then over them
  S         null expressions: sqrt(pixels of p > 0.5 / pixels), lower is better: the mean over
            expressions (pixels of an expression's frames together), and `S(batch=4)`, whose batches
            share one root; `S(no fallback)`, where replaced masks count as empty; and the
            fallback_rate of their frames

`refavs` is over all expressions of a split. Where the split is of unseen objects, `unseen(paper)`
leaves out the expressions whose class also occurs in train, and `unseen(csv)` does not. `null` and
`referring` are over expressions that mean nothing, and something. `refavs(kind look)` is over the
generated expressions that a look answers; others are answered by sounds, times or both. `text` has
the rates that must be known to read the others: of frames whose empty mask was replaced (fallback),
of expressions without text, and of those cut to the maximum of tokens; they are different things.

No fallback should fire for a null expression. It fires where the model's presence is above its
threshold, so it does where the model is wrong about that: S above S(no fallback) is what it costs.

Source: GeWu-Lab/Ref-AVS, utils for mask_iou, Eval_Fmeasure and metric_s_for_null.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.progress import tracked
from avs_jax.results.counts import FrameCounter, FrameCounts
from avs_jax.results.metrics import davis, f_beta_curves
from avs_jax.results.predictions import Layout, PredictionFiles
from avs_jax.spec import EXPRESSION_KINDS
from avs_jax.task import stack_rows

PREDICTIONS = "{name}/{t:05d}"  # name is the uid
THRESHOLD = 0.4  # of J; S and contours take 0.5
BATCH = 4  # of the reference's test loader
BATCHED = ("J", "f_beta(batch=4)", "J&f_beta", "J&f_boundary")  # measures of `refavs`
FLAGS = ("is_null", "is_seen", "has_text", "is_cut")


class ExpressionMeter:
    """Counts of every frame of the expressions that are added."""

    def __init__(self, facts: Mapping[str, Any]):
        self._counter = FrameCounter(2, facts)

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Adds a batch: "pred" and "fallback" of the task's score, fields of data/expressions.py.

        Files of predictions have no fallback and no text.
        """
        pred, labels = scores["pred"], batch["labels"]
        positive, truth = pred > np.float32(THRESHOLD), labels == 1
        more = {
            "inter_j": (positive & truth).sum((2, 3)),
            "union_j": (positive | truth).sum((2, 3)),
            "fallback": np.asarray(scores.get("fallback", np.zeros(pred.shape[:2], bool)), int),
        }
        for name in (*FLAGS, "kind"):
            value = np.asarray(batch.get(name, np.full(len(pred), name == "has_text")), int)
            more[name] = np.broadcast_to(value[:, None], pred.shape[:2])
        self._counter.add(pred, batch, more)

    def table(self) -> FrameCounts:
        """The counts of all frames."""
        return self._counter.result()


def frame_j(counts: FrameCounts) -> np.ndarray:
    """J of each frame, float64 [N]."""
    c = counts.counts
    agreement = (c["pixels"] - c["union_j"]) / np.maximum(c["pixels"], 1)
    return np.where(c["gt"] == 0, agreement, c["inter_j"] / (c["union_j"] + 1e-7))


def refavs(counts: FrameCounts) -> dict[str, float | None]:
    """J, f_beta three ways, contours and their means; None for each without an expression."""
    names = ("J", "f_beta(batch=4)", "f_beta(clip)", "f_beta(stream)", "J&f_beta", "f_boundary")
    if not len(counts):
        return dict.fromkeys((*names, "J&f_boundary"))
    c, clips = counts.counts, counts.clips()
    batches = counts.batches(BATCH)
    j, has_object = frame_j(counts), c["gt"] > 0
    curves = f_beta_curves(c["tp"], c["pp"], c["gt"])

    def best(rows: slice) -> float:
        chosen = curves[rows][has_object[rows]]
        return float(chosen.mean(axis=0).max()) if len(chosen) else 0.0

    with_object = [clip for clip in clips if has_object[clip].any()]
    by_batch = float(np.mean([best(rows) for rows in batches]))
    mean_j = float(np.mean([j[rows].mean() for rows in batches]))
    contours = davis(counts)["f_boundary"]
    values = (
        mean_j,
        by_batch,
        float(np.mean([best(clip) for clip in with_object])) if with_object else None,
        best(slice(None)),
        (mean_j + by_batch) / 2,
        contours,
        (mean_j + contours) / 2,
    )
    return dict(zip((*names, "J&f_boundary"), values, strict=True))


def null(counts: FrameCounts) -> dict[str, float | None]:
    """S of the null expressions and how often a fallback fired there; None without any."""
    names = ("S", "S(batch=4)", "S(no fallback)", "fallback_rate")
    c = counts.take(counts.counts["is_null"] > 0)
    if not len(c):
        return dict.fromkeys(names)
    pred, pixels, clips = c.counts["pred"], c.counts["pixels"], c.clips()
    fires = c.counts["fallback"]
    # Without its fallback, no pixel of such a frame is above THRESHOLD, so none is above 0.5.
    own = pred * (fires == 0)

    def root(rows: slice, pred: np.ndarray = pred) -> float:
        return float(np.sqrt(pred[rows].sum() / pixels[rows].sum()))

    values = (
        float(np.mean([root(clip) for clip in clips])),
        float(np.mean([root(rows) for rows in c.batches(BATCH)])),
        float(np.mean([root(clip, own) for clip in clips])),
        float(fires.mean()),
    )
    return dict(zip(names, values, strict=True))


def text(counts: FrameCounts) -> dict[str, float]:
    """Rates of fallbacks (frames), of expressions without text, and of those cut."""
    c = counts.counts
    return {
        "fallback_rate": float(c["fallback"].mean()),
        "no_text_rate": float(1 - c["has_text"].mean()),
        "cut_rate": float(c["is_cut"].mean()),
    }


def protocols(table: FrameCounts) -> dict[str, dict[str, float | None]]:
    """Every number of a split."""
    counts = table.scored()
    found = {"refavs": refavs(counts), "text": text(counts)}
    for name, rows in subsets(counts).items():
        found[name] = null(counts) if name == "null" else refavs(counts.take(rows))
    return found


def subsets(counts: FrameCounts) -> dict[str, np.ndarray]:
    """Protocol -> bool [N], the frames of its expressions, for protocols of only some of them."""
    is_null, is_seen = (counts.counts[name] > 0 for name in ("is_null", "is_seen"))
    found = {}
    if is_null.any():
        found |= {"null": is_null, "referring": ~is_null}
    kinds = counts.counts.get("kind", np.zeros(len(counts), int))
    for i, kind in enumerate(EXPRESSION_KINDS, start=1):
        if (kinds == i).any():
            found[f"refavs(kind {kind})"] = kinds == i
    if not (is_seen | is_null).all():
        found |= {"unseen(paper)": ~is_seen & ~is_null, "unseen(csv)": ~is_null}
    return found


def batches(table: FrameCounts) -> dict[str, np.ndarray]:
    """PROTOCOL/MEASURE -> batch of each row, for those whose clips are scored in batches."""
    found = {}
    for name, rows in {"refavs": np.ones(len(table), bool), **subsets(table)}.items():
        of_rows = table.batch_of_rows(BATCH, rows)
        measures = ("S(batch=4)",) if name == "null" else BATCHED
        found |= {f"{name}/{measure}": of_rows for measure in measures}
    return found


def read_predictions(
    directory: str | os.PathLike,
    records: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    *,
    rows: Any,
    layout: Layout,
) -> tuple[FrameCounts, list[str]]:
    """The counts of files of predictions (results/predictions.py), and notes.

    Raises:
      InputError: lists every file that is missing, superfluous or unreadable.
    """
    files, meter = PredictionFiles(directory, layout), ExpressionMeter(facts)
    for record in tracked(records, "predictions", len(records), "expression"):
        truth = rows.prepare_labels(record)
        meter.add({"pred": files.read_clip(truth)[None]}, stack_rows([truth], rows.fields))
    files.finish()
    return meter.table(), files.notes()

"""Classification, scored: a table of logits, one row per clip. NumPy only.

  top-k   share of the clips whose class is among the k best; of equal scores, others count first
  mAP     mean over the classes that occur of the average precision of their clips
  F1      mean over the classes that occur or are predicted of 2 TP / (2 TP + FP + FN)

A clip of one class is predicted to be its best one; where a clip may have several, every class with
a score above 0 is predicted. The protocols are "fused", "frames alone" and "sound alone", the last
two from the classifiers of single modalities. A clip counts if it has what the protocol reads.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.results.retrieval import average_precisions
from avs_jax.results.table import Table
from avs_jax.spec import InputError

Numbers = dict[str, float | None]

TOP = (1, 5)
CELL, MARGIN = 18, 190  # px of the confusion matrix
MAX_NAMED = 40  # classes with a row of their own


class ClassTable(Table):
    """One row per clip: clip_id, classes and known, present [N, 2], logits [N, K] of each kind."""

    schema = {"clip_id": str, "known": bool}


class ClassMeter:
    """Collects the logits of the clips that are added."""

    def __init__(self, facts: Mapping[str, Any]):
        self._facts, self._rows = facts, []

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Adds a batch; rows that pad it have no valid second."""
        for i in np.flatnonzero(np.asarray(batch["valid"]).any(1)):
            row = {"clip_id": batch["clip_id"][i], "known": bool(batch["known"][i])}
            row |= {name: np.asarray(batch[name][i]) for name in ("classes", "present")}
            self._rows.append(row | {name: x[i] for name, x in scores.items()})

    def table(self) -> ClassTable:
        """The rows in the order they were added."""
        return ClassTable.from_rows(self._rows, self._facts)


def sizes(table: ClassTable, num_records: int) -> dict[str, int]:
    """How many clips were scored, of how many classes."""
    known = int(table["known"].sum())
    if not known:
        raise InputError("no clip has a class that config.data.labels reads")
    return {
        "clips": known,
        "classes": int((table["classes"][table["known"]] > 0).any(0).sum()),
        "clips_of_unknown_class": num_records - known,
    }


def protocols(table: ClassTable, multi_label: bool) -> dict[str, Numbers]:
    """The numbers of the fused scores and of either modality's."""
    present = table["present"].astype(bool)
    counts = {
        "fused": ("logits", present.any(1)),
        "frames alone": ("frames_logits", present[:, 0]),
        "sound alone": ("audio_logits", present[:, 1]),
    }
    found = {}
    for name, (column, is_there) in counts.items():
        rows = is_there & table["known"]
        found[name] = measures(table[column][rows], table["classes"][rows] > 0, multi_label)
    return found


def measures(scores: np.ndarray, truth: np.ndarray, multi_label: bool) -> Numbers:
    """The numbers of scores [N, K] and bool [N, K]; None where there is no clip."""
    names = ["mAP", "F1"] if multi_label else [*(f"top-{k}" for k in TOP), "mAP", "F1"]
    if not len(scores):
        return dict.fromkeys(names)
    found: Numbers = {}
    if multi_label:
        predicted = scores > 0
    else:
        own = np.where(truth, scores, -np.inf).max(1)[:, None]
        rank = 1 + (~truth & (scores >= own)).sum(1)
        found |= {f"top-{k}": float((rank <= k).mean()) for k in TOP}
        predicted = np.arange(scores.shape[1])[None] == scores.argmax(1)[:, None]
    occurs = truth.any(0)
    precision = average_precisions(scores.T[occurs], truth.T[occurs])
    hits, errors = (predicted & truth).sum(0), (predicted ^ truth).sum(0)
    used = occurs | predicted.any(0)
    f1 = 2 * hits[used] / (2 * hits[used] + errors[used])
    return found | {"mAP": float(precision.mean()), "F1": float(f1.mean())}


# ---- the confusion matrix ----


class ConfusionRecorder:
    """Counts what is taken for what, and draws it as confusion.svg; for clips of one class.

    In a run of several processes, the picture shows the clips of the first one.
    """

    def __init__(self, names: Sequence[str], num_classes: int):
        self._names = [names[k] if k < len(names) else str(k) for k in range(num_classes)]
        self._counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Adds a batch."""
        rows = np.asarray(batch["known"]) & np.asarray(batch["valid"]).any(1)
        truth = np.asarray(batch["classes"]).argmax(1)[rows]
        np.add.at(self._counts, (truth, np.asarray(scores["logits"]).argmax(1)[rows]), 1)

    def files(self) -> dict[str, str]:
        """The picture, of the classes that occur or are predicted."""
        used = np.flatnonzero(self._counts.any(0) | self._counts.any(1))[:MAX_NAMED]
        counts, names = self._counts[np.ix_(used, used)], [self._names[k] for k in used]
        return {"confusion.svg": confusion_svg(counts, names)}


def confusion_svg(counts: np.ndarray, names: Sequence[str]) -> str:
    """Rows are true classes, columns predicted ones; a cell is as dark as its share of the row."""
    side = len(names) * CELL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{MARGIN + side + 8}" '
        f'height="{MARGIN + side + 8}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="8" y="16">rows: true class, columns: predicted</text>',
    ]
    for i, name in enumerate(names):
        text, middle = html.escape(name), MARGIN + i * CELL + CELL / 2 + 4
        parts.append(f'<text x="{MARGIN - 6}" y="{middle}" text-anchor="end">{text}</text>')
        place = f'transform="translate({middle},{MARGIN - 6}) rotate(-60)"'
        parts.append(f"<text {place}>{text}</text>")
        total = max(1, int(counts[i].sum()))
        for j, count in enumerate(counts[i].tolist()):
            x, y, share = MARGIN + j * CELL, MARGIN + i * CELL, count / total
            fill = f'fill="rgb(31,119,180)" fill-opacity="{share:.3f}" stroke="#ddd"'
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" {fill}/>')
            if count:
                color = "white" if share > 0.5 else "black"
                parts.append(
                    f'<text x="{x + CELL / 2}" y="{y + CELL - 5}" text-anchor="middle" '
                    f'fill="{color}" font-size="9">{count}</text>'
                )
    return "\n".join([*parts, "</svg>"]) + "\n"

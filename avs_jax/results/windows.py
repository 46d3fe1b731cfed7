"""From a model's outputs, or a file of any method, to the table that results/moments.py scores.

  start = (center - width / 2) * duration, end = (center + width / 2) * duration     in seconds
  score = softmax(logits)[0]                                                         foreground

A submission is a JSON Lines file as QVHighlights' evaluation server takes it, one query per line:

  {"qid": 7, "query": "a dog barks", "vid": "abc_0.0_150.0",
   "pred_relevant_windows": [[0.0, 12.0, 0.93], ...], "pred_saliency_scores": [0.2, -1.3, ...]}

Either list may be absent, in all lines alike. Source of format and post-processing: repository
wjun0830/QD-DETR (inference, post-processing of spans) and jayleicn/moment_detr.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.files import read_regular, write_atomically
from avs_jax.results.moments import MomentTable, window_iou
from avs_jax.spec import InputError, first_line

FOREGROUND = 0  # class of pred_logits
DECIMALS = 4  # of windows and their scores
MAX_AFTER_NMS = 10
TRUTH_COLUMNS = ("qid", "vid", "query", "duration", "windows", "ratings")
MORE_COLUMNS = ("domain", "cut_words")  # of rows that have them
_WINDOWS, _SALIENCY = "pred_relevant_windows", "pred_saliency_scores"
_NUM_PROBLEMS = 8  # named in one error


@dataclasses.dataclass(frozen=True)
class PostProcess:
    """How windows and saliency enter the table; the defaults are QVHighlights'.

    Attributes:
      max_seconds: windows are clipped to [0, max_seconds]; None leaves them.
      round_seconds: starts and ends are rounded to multiples of it, halves to even; None: not.
      nms_iou: a window is dropped if it overlaps one of higher score by more; None keeps all.
      half_saliency: saliency is rounded to float16, as the published submissions are.
    """

    max_seconds: float | None = 150.0
    round_seconds: float | None = 2.0
    nms_iou: float | None = None
    half_saliency: bool = True

    def windows(self, logits: np.ndarray, spans: np.ndarray, duration: float) -> np.ndarray:
        """Windows of one query, best first: float64 [n, 3] start, end, score.

        Args:
          logits: [Q, 2].
          spans: [Q, 2], center and width as shares of the duration (seconds).
          duration: of the video.
        """
        logits, spans = logits.astype(np.float32), spans.astype(np.float32)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        score = weights[:, FOREGROUND] / weights.sum(axis=1)
        center, width = spans.T * np.float32(duration)
        windows = np.stack([center - width / 2, center + width / 2, score], axis=1)
        windows = windows[np.argsort(-score, kind="stable")].round(DECIMALS)
        if self.max_seconds is not None:
            windows[:, :2] = windows[:, :2].clip(0, self.max_seconds)
        if self.round_seconds is not None:
            windows[:, :2] = np.round(windows[:, :2] / self.round_seconds) * self.round_seconds
        windows = windows.astype(np.float64).round(DECIMALS)
        return windows if self.nms_iou is None else suppress_overlaps(windows, self.nms_iou)

    def saliency(self, scores: np.ndarray) -> np.ndarray:
        """Scores [n] of the clips that exist, float64 [n]."""
        return scores.astype(np.float16 if self.half_saliency else np.float32).astype(np.float64)


def suppress_overlaps(windows: np.ndarray, max_iou: float) -> np.ndarray:
    """Keeps, best first, windows [n, 3] that overlap no better one by more than max_iou."""
    windows = windows[np.argsort(-windows[:, 2], kind="stable")]
    iou, keep = window_iou(windows, windows), []
    for i in range(len(windows)):
        if not np.any(iou[i, keep] > max_iou):
            keep.append(i)
    return windows[keep[:MAX_AFTER_NMS]]


class MomentMeter:
    """Collects an evaluation's predictions, batch by batch."""

    def __init__(self, post_process: PostProcess, facts: Mapping[str, Any] | None = None):
        self._post_process, self._facts = post_process, dict(facts or {})
        self._rows: list[dict[str, Any]] = []

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Takes the rows of an evaluation batch (data/moments.py) that have a qid.

        Args:
          scores: pred_logits [B, Q, 2], pred_spans [B, Q, 2], saliency_scores [B, L].

        Raises:
          ValueError: a prediction is not finite.
        """
        for b, qid in enumerate(batch["qid"]):
            if not qid:
                continue
            names = ("pred_logits", "pred_spans", "saliency_scores")
            logits, spans, saliency = (np.asarray(scores[name][b]) for name in names)
            saliency = saliency[np.asarray(batch["video_mask"][b])]
            if not all(np.isfinite(array).all() for array in (logits, spans, saliency)):
                raise ValueError(f"query {qid}: predictions are NaN or infinite; did it diverge?")
            names = [*TRUTH_COLUMNS, *(name for name in MORE_COLUMNS if name in batch)]
            row = {name: batch[name][b] for name in names}
            row["pred_windows"] = self._post_process.windows(logits, spans, float(row["duration"]))
            row["pred_saliency"] = self._post_process.saliency(saliency)
            self._rows.append(row)

    def table(self) -> MomentTable:
        """What was added, in its order."""
        return MomentTable.from_rows(self._rows, self._facts)


# ---- submissions ----


def write_submission(table: MomentTable, path: str | os.PathLike) -> None:
    """Writes a table's predictions, one query per line; a qid of digits becomes a number."""
    lines = []
    for row in table.rows():
        qid = row["qid"]
        is_number = qid.isdecimal() and str(int(qid)) == qid
        line = {"qid": int(qid) if is_number else qid, "query": row["query"], "vid": row["vid"]}
        line |= {_WINDOWS: row["pred_windows"].tolist(), _SALIENCY: row["pred_saliency"].tolist()}
        lines.append(json.dumps({name: value for name, value in line.items() if value != []}))
    write_atomically(path, "".join(line + "\n" for line in lines))


def read_submission(path: str | os.PathLike, truth: Sequence[Mapping[str, Any]]) -> MomentTable:
    """Reads predictions of exactly the queries of a split, in the split's order.

    Args:
      path: of the JSON Lines file.
      truth: TRUTH_COLUMNS of every query.

    Raises:
      InputError: lines that cannot be scored; queries that are missing, listed twice or of another
        split; a list that only some lines have.
    """
    path = pathlib.Path(path).expanduser()
    try:
        # A line ends at "\n" alone: texts may hold what splitlines() splits at, such as U+2028.
        lines = read_regular(path).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: unreadable submission ({error})") from error
    predictions, problems = {}, []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prediction = _parse_prediction(line)
            if prediction["qid"] in predictions:
                raise ValueError(f"qid {prediction['qid']} is listed twice")
            predictions[prediction["qid"]] = prediction
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    expected = [str(row["qid"]) for row in truth]
    given, wanted = set(predictions), set(expected)
    for what, qids in (("missing", wanted - given), ("not in the split", given - wanted)):
        if qids:
            some = ", ".join(sorted(qids)[:3])
            problems.append(f"{len(qids)} queries are {what}, such as qid {some}")
    for name in (_WINDOWS, _SALIENCY):
        lacking = [qid for qid, prediction in predictions.items() if prediction[name] is None]
        if 0 < len(lacking) < len(predictions):
            problems.append(f"{len(lacking)} queries lack {name}, such as qid {lacking[0]}")
    if problems:
        more = len(problems) - _NUM_PROBLEMS
        shown = problems[:_NUM_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise InputError(f"{path}: " + "; ".join(shown))
    rows = []
    for qid, row in zip(expected, truth, strict=True):
        windows = np.array(predictions[qid][_WINDOWS] or [], float).reshape(-1, 3)
        saliency = np.array(predictions[qid][_SALIENCY] or [], float)
        rows.append(dict(row) | {"pred_windows": windows, "pred_saliency": saliency})
    return MomentTable.from_rows(rows, {"predictions": str(path)})


def _parse_prediction(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({first_line(error)})") from error
    if not isinstance(values, dict) or not isinstance(values.get("qid"), (int, str)):
        raise ValueError("expected an object with a qid")
    qid, windows, saliency = values["qid"], values.get(_WINDOWS), values.get(_SALIENCY)
    if not isinstance(windows, list | None):
        raise ValueError(f"{_WINDOWS} of qid {qid} is {windows!r}, expected a list")
    for window in windows or []:
        if not _are_numbers(window) or len(window) != 3 or window[1] < window[0]:
            raise ValueError(f"window {window} of qid {qid}: expected [start, end >= start, score]")
    if saliency is not None and not (saliency and _are_numbers(saliency)):
        raise ValueError(f"{_SALIENCY} of qid {qid}, expected a list of finite numbers")
    return {"qid": str(qid), _WINDOWS: windows, _SALIENCY: saliency}


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, (int, float)) and abs(value) <= sys.float_info.max for value in values
    )

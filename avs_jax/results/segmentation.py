"""Segmentation, scored: counts of frames, files of predictions and figures. NumPy only."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.label_images import CLASS_PALETTE
from avs_jax.progress import tracked
from avs_jax.results import negative_report, negatives, visualize
from avs_jax.results.counts import FrameCounter, FrameCounts
from avs_jax.results.predictions import Layout, PredictionFiles, write_batch
from avs_jax.results.right_source import count_sources
from avs_jax.spec import InputError
from avs_jax.task import Summary, stack_rows

# Scores of a frame that stand above its column.
CAPTIONS = {
    "motion_gate": ", gate {:.2f}",
    "sync_gate": "\nsync {:.2f}",  # all in one line would be wider than the column
    "sync_lag": ", lag {:+.0f}",
}


class ClipMeter:
    """Counts of every frame of the clips that are added."""

    def __init__(self, num_classes: int, facts: Mapping[str, Any]):
        self._counter = FrameCounter(num_classes, facts)

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Adds a batch: "pred" of `score`, and the fields of data/clip.py."""
        pred = scores["pred"]
        more = count_sources(pred, batch["objects"])
        if "moving" in batch:
            more |= negatives.count_motion(pred, batch["labels"], batch["moving"])
        self._counter.add(pred, batch, more)

    def table(self) -> FrameCounts:
        """The counts of all frames."""
        return self._counter.result()


def sizes(table: FrameCounts, num_records: int) -> dict[str, int]:
    """How many clips and frames were scored; InputError for clips without ground truth."""
    num_clips = len(table.clips())
    if num_clips < num_records:
        raise InputError(
            f"{num_records - num_clips} of {num_records} clips have no ground truth: nothing to "
            "score them by"
        )
    return {"clips": num_clips, "frames": int(table.valid.sum())}


def summarize(tables: Mapping[str, FrameCounts], facts: Mapping[str, Any]) -> Summary | None:
    """False sounds and false motion, where the facts name a manifest."""
    if "manifest_sha256" not in facts:
        return None
    mentioned = {name: facts[name] for name in ("manifest_sha256", "moving_threshold")}
    first = next(iter(tables.values()))
    mentioned["task"] = "semantic" if first.is_semantic else "binary"
    numbers = negatives.summarize(tables) | {"facts": mentioned}
    sections = negative_report.sections(numbers)
    return Summary(numbers, sections, negative_report.CONDITIONS)


def read_predictions(
    directory: str | os.PathLike,
    records: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    *,
    rows: Any,
    layout: Callable[[], Layout],
) -> tuple[FrameCounts, list[str]]:
    """The counts of files of predictions (results/predictions.py), and notes.

    InputError lists every file that is missing, superfluous or unreadable.
    """
    files = PredictionFiles(directory, layout())
    counter = FrameCounter(layout().num_classes, facts)
    for record in tracked(records, "predictions", len(records), "clip"):
        truth = rows.prepare_labels(record)
        batch, pred = stack_rows([truth], rows.fields), files.read_clip(truth)[None]
        counter.add(pred, batch, count_sources(pred, batch["objects"]))
    files.finish()
    return counter.result(), files.notes()


def write_predictions(
    directory: str | os.PathLike,
    scores: Mapping[str, np.ndarray],
    batch: Mapping[str, Any],
    *,
    layout: Callable[[], Layout],
) -> None:
    """Writes a batch's predictions as `read_predictions` reads them."""
    write_batch(pathlib.Path(directory).expanduser(), layout(), scores["pred"], batch)


def draw_clip(
    scores: Mapping[str, np.ndarray],
    batch: Mapping[str, Any],
    row: int,
    title: str,
    records: Sequence[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
    """The figure of one clip by its id, with its records' stored flow; {} without ground truth."""
    keep = np.asarray(batch["valid"][row])
    if not np.any(keep & batch["supervised"][row]):
        return {}
    clip_id, pred = batch["clip_id"][row], scores["pred"]
    optional = {
        "log_mel": batch["log_mel"],
        "motion": batch.get("motion"),
        "motion_weight": scores.get("motion_weight"),
        "evidence": scores.get("sync_evidence"),
    }
    own = {name: np.asarray(scores[name][row])[keep] for name in CAPTIONS if name in scores}
    figure = visualize.clip_picture(
        np.asarray(batch["images"][row])[keep],
        pred[row][keep],
        np.asarray(batch["labels"][row])[keep],
        flow=_stored_flow(records, clip_id),
        titles=frame_titles(np.asarray(batch["frame_index"][row])[keep], own),
        heading=f"{clip_id}  ({batch['category'][row]})  {title}",
        palette=CLASS_PALETTE if np.issubdtype(pred.dtype, np.integer) else None,
        **{k: None if v is None else np.asarray(v[row])[keep] for k, v in optional.items()},
    )
    return {clip_id: figure}


def frame_titles(frame_index: np.ndarray, scores: Mapping[str, np.ndarray]) -> list[str]:
    """A title per frame: its number, and its scores of CAPTIONS, [T] each, where there are any."""
    titles = [f"frame {i}" for i in frame_index]
    for name, caption in CAPTIONS.items():
        if name in scores:
            pairs = zip(titles, scores[name], strict=True)
            titles = [title + caption.format(value) for title, value in pairs]
    return titles


def _stored_flow(records: Sequence[Mapping[str, Any]], clip_id: str) -> np.ndarray | None:
    """(u, v) [T, H, W, 2] px of a clip, None where vectors are not stored; for the first clips."""
    for record in records:
        name = record["clip_id"]
        if (name.decode() if isinstance(name, bytes) else str(name)) == clip_id:
            flow = np.asarray(record["flow"])
            return flow if flow.shape[-1] == 2 else None
    return None

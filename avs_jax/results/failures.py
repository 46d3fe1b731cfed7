"""What goes wrong in a clip, by rule, from counts per frame.

  silent object      more than half of the silent look-alike is predicted (clips that name it)
  moving distractor  more than half of the fusion's map lies outside the ground truth; without a
                     map of AMA, the positive part of synchrony's evidence is the map
  still sounder      less than a tenth of the ground truth moves
  small              the ground truth covers less than 1 % of the frame
  boundary only      more than 70 % of the wrong pixels lie within 5 px of its outline

All shares are of sums over the clip's frames with ground truth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.results.boundary import contour, dilate
from avs_jax.results.right_source import count_sources
from avs_jax.results.table import Table
from avs_jax.spec import IGNORE_LABEL

BAND = 5  # px
TAGS: dict[str, tuple[str, str, bool, float]] = {  # tag -> part, whole, above, threshold
    "silent object": ("silent_pred", "silent_pixels", True, 0.5),
    "moving distractor": ("map_outside", "map_mass", True, 0.5),
    "still sounder": ("truth_moving", "truth", False, 0.1),
    "small": ("truth", "pixels", False, 0.01),
    "boundary only": ("wrong_near", "wrong", True, 0.7),
}
COLUMNS = tuple(dict.fromkeys(name for rule in TAGS.values() for name in rule[:2]))


class FailureCounts(Table):
    """One row per frame with ground truth; the columns are COLUMNS, floats [N]."""

    schema = {"clip_id": str, "frame_index": np.int32} | dict.fromkeys(COLUMNS, float)


class FailureCounter:
    """Collects the counts of an evaluation of the binary task."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Adds a batch: the arrays of `score`, and the fields of data/clip.py with `moving`."""
        for b, clip_id in enumerate(batch["clip_id"]):
            frames = np.flatnonzero(batch["supervised"][b] & batch["valid"][b]) if clip_id else ()
            for t in frames:
                counts = count_frame(
                    scores["pred"][b, t],
                    batch["labels"][b, t],
                    batch["objects"][b, t],
                    batch["moving"][b, t],
                    _fusion_map(scores, b, t),
                )
                place = {"clip_id": str(clip_id), "frame_index": batch["frame_index"][b, t]}
                self._rows.append(place | counts)

    def table(self) -> FailureCounts:
        """The counts of all frames."""
        return FailureCounts.from_rows(self._rows, {})


def _fusion_map(scores: Mapping[str, np.ndarray], b: int, t: int) -> np.ndarray | None:
    """Where the model's fusion looks in a frame, not negative; None without a fusion of motion."""
    if "motion_weight" in scores:
        return scores["motion_weight"][b, t]
    if "sync_evidence" in scores:  # negative: evidence against a cell
        return np.maximum(scores["sync_evidence"][b, t], 0)
    return None


def count_frame(
    pred: np.ndarray,
    labels: np.ndarray,
    objects: np.ndarray,
    moving: np.ndarray,
    weight: np.ndarray | None = None,
) -> dict[str, float]:
    """The counts of a frame, by the names in COLUMNS.

    Args:
      pred: float [S, S], probability of the object.
      labels: uint8 [S, S], 0, 1, or 255 where unknown.
      objects: uint8 [S, S], see right_source.py.
      moving: bool [S, S].
      weight: the fusion's map, float [g, g], not negative; None without one.
    """
    known, truth = labels != IGNORE_LABEL, labels == 1
    wrong = known & ((pred > 0.5) != truth)
    sources = count_sources(pred, objects)
    mass = np.zeros(labels.shape) if weight is None else _spread(weight, labels.shape)
    return {
        "silent_pred": float(sources["object_pred"][1]),
        "silent_pixels": float(sources["object_pixels"][1]),
        "map_outside": float(mass[known & ~truth].sum()),
        "map_mass": float(mass[known].sum()),
        "truth_moving": float((truth & moving).sum()),
        "truth": float(truth.sum()),
        "pixels": float(known.sum()),
        "wrong_near": float((wrong & dilate(contour(truth), BAND)).sum()),
        "wrong": float(wrong.sum()),
    }


def _spread(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    image = Image.fromarray(np.asarray(weight, np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BILINEAR), np.float64)


def tags(table: FailureCounts) -> dict[str, list[str]]:
    """Clip -> its tags; a clip whose ground truth is empty is neither small nor still."""
    found = {}
    for group in table.groups("clip_id"):
        sums = {name: float(table[name][group].sum()) for name in COLUMNS}
        found[str(table["clip_id"][group.start])] = [
            tag
            for tag, (part, whole, is_above, threshold) in TAGS.items()
            if sums[whole] > 0
            and (is_above or sums["truth"] > 0)
            and _exceeds(sums[part], threshold * sums[whole], is_above)
        ]
    return found


def _exceeds(value: float, limit: float, is_above: bool) -> bool:
    return value > limit if is_above else value < limit


def count_tags(clips: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Tag -> number of clips."""
    return {tag: sum(tag in own for own in clips.values()) for tag in TAGS}

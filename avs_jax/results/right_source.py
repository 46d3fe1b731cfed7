"""Which of two look-alikes a prediction marks: the share of frames with the right source.

Clips that name their objects have an object mask per frame: 1 is the object that sounds, 2 its
silent look-alike. With c1 and c2 the shares of their visible pixels that the prediction covers,

  right_source = mean over frames of 1 where c1 > c2, 1/2 where c1 = c2, 0 where c1 < c2

over the frames that show both. A model that marks both, neither, or one of them at random scores
1/2.
"""

from collections.abc import Mapping

import numpy as np

SOUNDING, SILENT = 1, 2  # in an object mask

COLUMNS = ("object_pixels", "object_pred")


def count_sources(pred: np.ndarray, objects: np.ndarray) -> dict[str, np.ndarray]:
    """Counts the pixels of both objects, and those that are predicted.

    Args:
      pred: [..., S, S]: float probability of the object (p > 0.5 is predicted) or integer class
        (all but 0 are).
      objects: uint8 [..., S, S], object masks.

    Returns:
      int64 [..., 2] by the names in COLUMNS, for (SOUNDING, SILENT).
    """
    found = pred > 0.5 if np.issubdtype(pred.dtype, np.floating) else pred != 0
    areas = np.stack([objects == SOUNDING, objects == SILENT], axis=-3)
    covered = areas & np.expand_dims(found, -3)
    return dict(zip(COLUMNS, (areas.sum((-2, -1)), covered.sum((-2, -1))), strict=True))


def has_sources(counts: Mapping[str, np.ndarray]) -> bool:
    """Whether some frame shows both objects."""
    return COLUMNS[0] in counts and bool(counts[COLUMNS[0]].all(axis=1).any())


def score_frames(counts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Which frames show both objects, bool [N], and 1, 1/2 or 0 for each, float64 [N] (else 0)."""
    pixels, pred = (np.asarray(counts[name], np.float64) for name in COLUMNS)
    shows_both = pixels.all(axis=1)
    cover = pred / np.maximum(pixels, 1)
    scores = (1 + np.sign(cover[:, 0] - cover[:, 1])) / 2
    return shows_both, np.where(shows_both, scores, 0)


def right_source(counts: Mapping[str, np.ndarray]) -> float:
    """The share, from counts [N, 2] of frames that are named and show both objects somewhere."""
    shows_both, scores = score_frames(counts)
    return float(scores[shows_both].mean())

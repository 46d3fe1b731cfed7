"""Embeddings of many clips, searched exactly. NumPy only.

  score of an item = mean over pairs (query q, items X) of q . x        float32, larger is closer

The items go through in blocks, so memory holds the matrices, one block of scores, and the best so
far. The best come first; of equal scores, the item that was added first.
"""

from collections.abc import Sequence

import numpy as np

from avs_jax.results.table import Table

BLOCK = 1 << 16  # items whose scores are in memory at once


class EmbeddingIndex(Table):
    """One row per clip, and {modality}_embed float32 [N, D] of unit length.

    Columns: name; source, a video file, or "" for a record of the dataset in the facts; place, the
    second at which the clip starts, or the record's number; category, "" if unknown.
    """

    schema = {"name": str, "source": str, "place": int, "category": str}


def nearest_items(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], count: int, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The best items of every query.

    Args:
      pairs: of queries float32 [Q, D] and items float32 [N, D]; each pair has its own D.
      count: how many, k; all N if there are fewer.
      block: items at a time.

    Returns:
      scores float32 [Q, k] and items int [Q, k], the best first.
    """
    num_queries, num_items = len(pairs[0][0]), len(pairs[0][1])
    scores = np.zeros((num_queries, 0), np.float32)
    places = np.zeros((num_queries, 0), np.int64)
    for start in range(0, num_items, block):
        found = sum(queries @ items[start : start + block].T for queries, items in pairs)
        found = np.float32(found) / np.float32(len(pairs))
        best = _best(found, count)
        scores = np.concatenate([scores, np.take_along_axis(found, best, 1)], axis=1)
        places = np.concatenate([places, best + start], axis=1)
        best = _best(scores, count)  # earlier items come first, so they win ties
        scores, places = (np.take_along_axis(x, best, 1) for x in (scores, places))
    return scores, places


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` largest of each row, largest first, ties in the order of columns."""
    count = min(count, scores.shape[1])
    least = np.partition(scores, -count, axis=1)[:, -count]
    chosen = np.zeros((len(scores), count), np.int64)
    for row, (values, limit) in enumerate(zip(scores, least, strict=True)):
        candidates = np.flatnonzero(values >= limit)  # ties with the last one included
        order = np.argsort(-values[candidates], kind="stable")
        chosen[row] = candidates[order[:count]]
    return chosen

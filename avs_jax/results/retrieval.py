"""Retrieval, scored: where the right item is in the list that a query gets. NumPy only.

  rank    1 + negatives above the best positive (+ those that tie with it, if pessimistic)
  R@k     share of the queries with rank <= k
  mAP     mean over queries of the mean over positives of the precision at the positive

A query whose item is not there does not count. Ties are pessimistic: of equal similarities the
negatives come first, so a model that gives everything one score finds nothing. "optimistic" puts
the positives first, "mean" counts ties by half. With several positives, the others do not push the
best one down.

Departure: the widely copied routine that looks for the diagonal in the sorted rows counts a tied
query more than once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Scores = dict[str, float | None]

TIES = {"pessimistic": 1.0, "optimistic": 0.0, "mean": 0.5}  # what a tied negative counts
RECALLS = (1, 5, 10)
BLOCK = 1024  # queries whose similarities are in memory at once


def ranks(
    similarity: np.ndarray, positives: np.ndarray | None = None, ties: str = "pessimistic"
) -> np.ndarray:
    """Ranks of queries, float64 [N]; 0 where a query has no positive.

    Args:
      similarity: [N, M].
      positives: bool [N, M]; None: the diagonal.
      ties: key of TIES.
    """
    if positives is None:
        positives = np.eye(*similarity.shape, dtype=bool)
    best = np.where(positives, similarity, -np.inf).max(1, initial=-np.inf)[:, None]
    above = (~positives & (similarity > best)).sum(1)
    tied = (~positives & (similarity == best)).sum(1)
    return np.where(positives.any(1), 1 + above + TIES[ties] * tied, 0)


def average_precisions(similarity: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Average precision of queries [N, M], float64 [N]; ties pessimistic, 0 without a positive."""
    order = np.lexsort((positives, -similarity), axis=1)  # of ties, negatives first
    hits = np.take_along_axis(positives, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)[None]
    return np.where(hits, precision, 0).sum(1) / np.maximum(hits.sum(1), 1)


def recalls(found: np.ndarray) -> Scores:
    """R@k, median and mean of the ranks that are not 0; None where there are none."""
    found = found[found > 0]
    if not len(found):
        return dict.fromkeys((*(f"R@{k}" for k in RECALLS), "median rank", "mean rank"))
    shares = {f"R@{k}": float((found <= k).mean()) for k in RECALLS}
    return shares | {"median rank": float(np.median(found)), "mean rank": float(found.mean())}


def retrieve(
    queries: np.ndarray,
    items: np.ndarray,
    query_ids: Sequence[Any] | None = None,
    item_ids: Sequence[Any] | None = None,
) -> Scores:
    """The numbers of a retrieval by the dot products of embeddings, in blocks of queries.

    Args:
      queries: float32 [N, D].
      items: float32 [M, D].
      query_ids, item_ids: [N] and [M], equal where a query and an item belong together. None: row i
        belongs to row i.

    Returns:
      `recalls`; mAP, where there are ids; and chance, the R@1 of a random order.
    """
    has_ids = query_ids is not None
    query_ids = np.asarray(query_ids) if has_ids else np.arange(len(queries))
    item_ids = np.asarray(item_ids) if has_ids else np.arange(len(items))
    found, precisions, shares = [], [], []
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        similarity = queries[block] @ items.T
        positives = query_ids[block, None] == item_ids[None]
        found.append(ranks(similarity, positives))
        shares.append(positives.mean(1) if len(items) else np.zeros(len(similarity)))
        if has_ids:
            precisions.append(average_precisions(similarity, positives))
    found, shares = (np.concatenate(x) if x else np.zeros(0) for x in (found, shares))
    counts = found > 0
    scores = recalls(found)
    if has_ids:
        scores["mAP"] = _mean(np.concatenate(precisions)[counts] if precisions else [])
    return scores | {"chance": _mean(shares[counts])}


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if np.size(values) else None

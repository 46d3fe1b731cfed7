"""Ranks, recalls and average precision: brute-force numbers, ties, several positives, blocks."""

import numpy as np
import pytest

from avs_jax.results import retrieval
from avs_jax.results.retrieval import average_precisions, ranks, recalls, retrieve
from tests.cases_golden import arrays, assert_golden

MEASURES = ("R@1", "R@5", "R@10", "median rank", "mean rank")


def measures(found):
    return np.array([recalls(found)[name] for name in MEASURES])


@pytest.mark.parametrize("case", ["plain", "ties", "equal", "4x4"])
@pytest.mark.parametrize("side", ["rows", "cols"])
@pytest.mark.parametrize("ties", retrieval.TIES)
def test_ranks_of_single_positives(case, side, ties):
    similarity = arrays("retrieval")[f"in/S_{case}"]
    found = ranks(similarity if side == "rows" else similarity.T, ties=ties)
    np.testing.assert_array_equal(found, arrays("retrieval")[f"rank/{case}/{side}/{ties}"])
    assert_golden("retrieval", f"metrics/{case}/{side}/{ties}", measures(found))


def several(case):
    """Similarity and positives of a case with several positives."""
    golden = arrays("retrieval")
    if case == "ids":
        ids = golden["in/ids"]
        return golden["in/S_plain"], ids[:, None] == ids[None]
    similarity, positives = golden["in/S_rect"], golden["in/row_ids"][:, None] == golden["in/ids"]
    return (similarity, positives) if case == "rect" else (similarity.T, positives.T)


@pytest.mark.parametrize("case", ["ids", "rect", "rect_T"])
def test_ranks_and_precision_of_several_positives(case):
    similarity, positives = several(case)
    for ties in ("pessimistic", "optimistic"):
        found = ranks(similarity, positives, ties)
        np.testing.assert_array_equal(found, arrays("retrieval")[f"rank/{case}/{ties}"])
        assert_golden("retrieval", f"metrics/{case}/{ties}", measures(found))
    counts = positives.any(1)
    precision = average_precisions(similarity, positives)[counts].mean()
    assert_golden("retrieval", f"metrics/{case}/map_and_queries", [precision, counts.sum()])


def test_equal_similarities_find_nothing():
    found = ranks(np.zeros((6, 6)))
    assert recalls(found)["R@1"] == 0 and (found == 6).all()
    positives = np.zeros((1, 4), bool)
    positives[0, 1:3] = True
    assert average_precisions(np.zeros((1, 4)), positives)[0] == (1 / 3 + 2 / 4) / 2


def test_retrieval_in_blocks_equals_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    queries, items = rng.standard_normal((2, 23, 5)).astype(np.float32)
    ids = rng.integers(0, 7, 23)
    whole = retrieve(queries, items, ids, ids), retrieve(queries, items)
    monkeypatch.setattr(retrieval, "BLOCK", 4)
    assert retrieve(queries, items, ids, ids) == pytest.approx(whole[0])
    assert retrieve(queries, items) == pytest.approx(whole[1])
    similarity = queries @ items.T
    assert whole[1]["R@1"] == (similarity.argmax(1) == np.arange(23)).mean()
    assert whole[1]["chance"] == pytest.approx(1 / 23) and "mAP" not in whole[1]
    assert whole[0]["chance"] == pytest.approx((ids[:, None] == ids[None]).mean())


def test_queries_without_an_item_do_not_count():
    queries, items = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    scores = retrieve(queries, items, [0, 1, 9], [0, 1, 2])
    assert scores["R@1"] == 1 and scores["mAP"] == 1
    nothing = retrieve(queries, items, [7, 8, 9], [0, 1, 2])
    assert set(nothing.values()) == {None}
    assert retrieve(queries[:0], items, [], [0, 1, 2])["R@1"] is None


def test_random_pairs_are_at_chance():
    """Shuffled pairs of embeddings that match perfectly: 1/N within three standard errors."""
    rng = np.random.default_rng(1)
    num_items, num_trials = 50, 200
    embeddings = np.eye(num_items, dtype=np.float32)
    shares = [
        retrieve(embeddings, embeddings[rng.permutation(num_items)])["R@1"]
        for _ in range(num_trials)
    ]
    error = np.std(shares, ddof=1) / num_trials**0.5
    assert abs(np.mean(shares) - 1 / num_items) <= 3 * error

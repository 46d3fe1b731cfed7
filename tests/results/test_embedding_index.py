"""Exact search: the answer of a full sort, whatever the block, with ties in the order of items."""

import numpy as np
import pytest

from avs_jax.results.embedding_index import EmbeddingIndex, nearest_items


def by_sorting(pairs, count):
    scores = sum(queries @ items.T for queries, items in pairs) / np.float32(len(pairs))
    places = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, places, 1), places


@pytest.mark.parametrize("block", [3, 7, 100])
@pytest.mark.parametrize("count", [1, 4, 60])
def test_search_is_exact_in_blocks(block, count):
    rng = np.random.default_rng(block)
    # Small integers, so that blocks change no sum and many scores tie.
    pairs = [
        (np.float32(rng.integers(-2, 3, (5, d))), np.float32(rng.integers(-2, 3, (50, d))))
        for d in (3, 2)
    ]
    scores, places = nearest_items(pairs, count, block)
    want_scores, want_places = by_sorting(pairs, count)
    np.testing.assert_array_equal(places, want_places)
    np.testing.assert_array_equal(scores, want_scores)
    assert scores.dtype == np.float32


def test_an_index_is_what_was_saved(tmp_path):
    row = {"name": "a", "source": "", "place": 3, "category": "dog", "audio_embed": np.ones(2, "f")}
    index = EmbeddingIndex.from_rows([row, {**row, "name": "bb"}], {"weights": "0a"})
    index.save(tmp_path / "index.npz")
    again = EmbeddingIndex.load(tmp_path / "index.npz")
    assert again["name"].tolist() == ["a", "bb"] and again.facts == {"weights": "0a"}
    assert again["audio_embed"].dtype == np.float32 and len(again) == 2

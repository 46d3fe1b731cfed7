"""FAISS finds what exact search finds, and a graph of another index is refused."""

import numpy as np
import pytest

from avs_jax.inference.approximate_search import graph_path, nearest_by_graph, write_graphs
from avs_jax.results.embedding_index import EmbeddingIndex, nearest_items
from avs_jax.spec import InputError

pytest.importorskip("faiss")


def random_index(count, seed=0):
    rng = np.random.default_rng(count + seed)
    columns = {"name": np.arange(count).astype(str), "source": np.full(count, "")}
    columns |= {"place": np.arange(count), "category": np.full(count, "")}
    for name in ("frames", "audio"):
        x = rng.standard_normal((count, 16)).astype(np.float32)
        columns[f"{name}_embed"] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return EmbeddingIndex(columns)


def test_graphs_give_candidates_and_scores_are_exact(tmp_path):
    index, path = random_index(500), tmp_path / "index.npz"
    shares = write_graphs(index, path)
    assert set(shares) == {"audio to frames", "frames to audio"} and min(shares.values()) > 0.95
    query = index["frames_embed"][7]
    scores, rows = nearest_by_graph(
        index, path, {"text": query}, {"text": ["audio", "frames"]}, count=1
    )
    pairs = [(query[None], index[f"{name}_embed"]) for name in ("audio", "frames")]
    want, places = nearest_items(pairs, 1)
    np.testing.assert_array_equal(rows, places[0])
    np.testing.assert_allclose(scores, want[0], atol=1e-6)
    with pytest.raises(InputError, match="500 vectors, the index has 400 clips"):
        nearest_by_graph(random_index(400), path, {"audio": query}, {"audio": ["frames"]}, 3)
    with pytest.raises(InputError, match="of another index; scripts/index.py --faiss"):
        nearest_by_graph(random_index(500, 1), path, {"audio": query}, {"audio": ["frames"]}, 3)
    graph_path(path, "frames").write_bytes(b"no graph")
    with pytest.raises(InputError, match="not a FAISS index"):
        nearest_by_graph(index, path, {"audio": query}, {"audio": ["frames"]}, 3)
    graph_path(path, "frames").unlink()
    with pytest.raises(InputError, match="scripts/index.py --faiss writes it"):
        nearest_by_graph(index, path, {"audio": query}, {"audio": ["frames"]}, 3)

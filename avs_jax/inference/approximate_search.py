"""The same vectors in FAISS, for indexes too large for exact search (pip install avs_jax[faiss]).

One graph (HNSW, inner product) per modality lies beside INDEX.npz as INDEX.frames.faiss and
INDEX.audio.faiss. A query takes NUM_CANDIDATES from the graph of every modality that it is compared
with; their scores are then computed exactly, as results/embedding_index.py does. Only the choice of
the candidates is approximate: `recall` says how much of the exact answer it finds.

Source: Malkov and Yashunin, IEEE TPAMI 2020, by FAISS (Douze et al., 2024).
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.files import write_atomically
from avs_jax.results.embedding_index import EmbeddingIndex, nearest_items
from avs_jax.spec import InputError

MODALITIES = ("frames", "audio")
NUM_LINKS = 32  # of a vector in the graph
BUILD_EFFORT, SEARCH_EFFORT = 200, 256  # candidates that are looked at
NUM_CANDIDATES = 100
NUM_PROBES = 1000  # vectors of the index that recall is measured with
SEED = 0


def write_graphs(index: EmbeddingIndex, path: str | os.PathLike) -> dict[str, float]:
    """Writes the graphs of INDEX.npz; {"audio to frames": recall of the exact 10 nearest, ...}."""
    faiss, graphs = _import_faiss(), {}
    names = [name for name in MODALITIES if f"{name}_embed" in index.columns]
    for name in names:
        vectors = index[f"{name}_embed"]
        graph = faiss.IndexHNSWFlat(vectors.shape[1], NUM_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BUILD_EFFORT
        graph.add(vectors)
        write_atomically(graph_path(path, name), faiss.serialize_index(graph).tobytes())
        graph.hnsw.efSearch = SEARCH_EFFORT
        graphs[name] = graph
    rows = np.random.default_rng(SEED).permutation(len(index))[:NUM_PROBES]
    found = {}
    for item in names:
        query = next((name for name in names if name != item), item)
        probes = index[f"{query}_embed"][rows]
        found[f"{query} to {item}"] = recall(graphs[item], probes, index[f"{item}_embed"])
    return found


def remove_graphs(path: str | os.PathLike) -> None:
    """Removes the graphs of INDEX.npz, which a new index makes wrong."""
    for name in MODALITIES:
        graph_path(path, name).unlink(missing_ok=True)


def recall(graph: Any, queries: np.ndarray, items: np.ndarray, count: int = 10) -> float:
    """Share of the exact `count` nearest items that the graph finds."""
    _, exact = nearest_items([(queries, items)], count)
    _, found = graph.search(queries, exact.shape[1])
    hits = [np.isin(a, b).sum() for a, b in zip(exact, found, strict=True)]
    return float(np.sum(hits) / exact.size)


def nearest_by_graph(
    index: EmbeddingIndex,
    path: str | os.PathLike,
    queries: Mapping[str, np.ndarray],
    compared: Mapping[str, Sequence[str]],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 [k] and rows int [k] of one query, the best first.

    Args:
      index, path: INDEX.npz, and where it lies.
      queries: modality -> vector [D].
      compared: modality of the query -> modalities of the items.
      count: k.

    Raises:
      InputError: FAISS or a graph is missing, or the graph is of another index.
    """
    candidates: set[int] = set()
    for name, others in compared.items():
        for other in others:
            graph = _read_graph(graph_path(path, other), index[f"{other}_embed"])
            _, rows = graph.search(queries[name][None], min(NUM_CANDIDATES, len(index)))
            candidates |= {int(row) for row in rows[0] if row >= 0}
    rows = np.array(sorted(candidates))
    pairs = [
        (queries[name][None], index[f"{other}_embed"][rows])
        for name, others in compared.items()
        for other in others
    ]
    scores, places = nearest_items(pairs, count)
    return scores[0], rows[places[0]]


def graph_path(path: str | os.PathLike, modality: str) -> pathlib.Path:
    """INDEX.npz -> INDEX.{modality}.faiss."""
    return pathlib.Path(path).expanduser().with_suffix(f".{modality}.faiss")


def _read_graph(path: pathlib.Path, vectors: np.ndarray) -> Any:
    faiss = _import_faiss()
    if not path.is_file():
        raise InputError(f"{path}: missing; scripts/index.py --faiss writes it")
    try:
        graph = faiss.read_index(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not a FAISS index") from error
    if graph.ntotal != len(vectors):
        raise InputError(f"{path}: {graph.ntotal} vectors, the index has {len(vectors)} clips")
    if any(not np.array_equal(graph.reconstruct(i), vectors[i]) for i in (0, len(vectors) - 1)):
        raise InputError(f"{path}: of another index; scripts/index.py --faiss makes it again")
    graph.hnsw.efSearch = SEARCH_EFFORT
    return graph


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError("FAISS is missing: pip install avs_jax[faiss]") from error
    return faiss

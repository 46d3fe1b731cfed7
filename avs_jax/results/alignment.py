"""Alignment, scored: a table of embeddings, one row per clip -> retrieval both ways. NumPy only.

The protocol "audio to frames" asks with every sound for frames, and so on. What a query should find
is its own clip ("clip") or any clip of its category ("class"; clips of unknown category have none).
Texts are made of categories: a text finds the clips of its category, a clip the one text of its
own, which is zero-shot classification by the categories of the split.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.results.retrieval import Scores, retrieve
from avs_jax.results.table import Table
from avs_jax.spec import InputError

RELEVANCES = ("clip", "class")


class EmbeddingTable(Table):
    """One row per clip: clip_id, category, label (-1: unknown) and {modality}_embed [N, D]."""

    schema = {"clip_id": str, "category": str, "label": int}


class EmbeddingMeter:
    """Collects the embeddings of the clips that are added."""

    def __init__(self, facts: Mapping[str, Any]):
        self._facts, self._rows = facts, []

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Adds a batch; rows that pad it have no valid second."""
        for i in np.flatnonzero(np.asarray(batch["valid"]).any(1)):
            row = {name: batch[name][i] for name in ("clip_id", "category")}
            row["label"] = int(batch["label"][i])
            embeds = {name: x[i] for name, x in scores.items() if name.endswith("_embed")}
            self._rows.append(row | embeds)

    def table(self) -> EmbeddingTable:
        """The rows in the order they were added."""
        return EmbeddingTable.from_rows(self._rows, self._facts)


def sizes(table: EmbeddingTable, num_records: int) -> dict[str, int]:
    """How many clips were embedded, of how many categories."""
    if len(table) < num_records:
        raise InputError(f"{num_records - len(table)} of {num_records} clips have no frame")
    known = table["label"][table["label"] >= 0]
    return {"clips": len(table), "categories": len(np.unique(known))}


def protocols(
    table: EmbeddingTable, pairs: Sequence[tuple[str, str]], relevant: str
) -> dict[str, Scores]:
    """Retrieval of every pair of modalities, both ways.

    Args:
      table: with an embedding of each modality in `pairs`.
      pairs: of modalities.
      relevant: one of RELEVANCES, for pairs without text.
    """
    found = {}
    for first, second in pairs:
        queries, items = (_side(table, name, relevant) for name in (first, second))
        for (name, (x, ids)), (other, (y, other_ids)) in (
            ((first, queries), (second, items)),
            ((second, items), (first, queries)),
        ):
            if "text" in (first, second) or relevant == "class":
                known = set(ids) - {""}
                number_of = {label: number for number, label in enumerate(known)}
                asked = [number_of.get(label, -1) for label in ids]
                offered = [number_of.get(label, -2) for label in other_ids]  # not that of a query
                found[f"{name} to {other}"] = retrieve(x, y, asked, offered)
            else:
                found[f"{name} to {other}"] = retrieve(x, y)
    return found


def _side(table: EmbeddingTable, name: str, relevant: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and categories of one side; of text, one of each category."""
    embeds, labels = table[f"{name}_embed"], table["category"]
    if name == "text":
        _, first = np.unique(labels, return_index=True)
        return embeds[np.sort(first)], labels[np.sort(first)]
    return embeds, labels

"""Descriptions, scored: a table of token ids, one row per expression. NumPy only.

An object has one description and several expressions, its references. `exact` is the share of the
objects whose description is one of their expressions, `distinct` the number of different
descriptions per object: a model that ignores the mask repeats itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.results.captions import bleu, bleu_counts, cider_d
from avs_jax.results.table import Table
from avs_jax.spec import InputError


class DescriptionTable(Table):
    """One row per expression: clip_id, object, text, description, score and has_object."""

    schema = {
        "clip_id": str,
        "object": str,
        "text": str,
        "description": str,
        "score": float,
        "has_object": bool,
    }


class DescriptionMeter:
    """Collects the descriptions of the expressions that are added."""

    def __init__(self, facts: Mapping[str, Any], to_text: Callable[[Sequence[int]], str]):
        """`to_text` turns token ids into words."""
        self._facts, self._to_text, self._rows = facts, to_text, []

    def add(self, scores: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> None:
        """Adds a batch; rows that pad it have no valid frame."""
        for i in np.flatnonzero(np.asarray(batch["valid"]).any(1)):
            row = {name: batch[name][i] for name in ("clip_id", "object", "text")}
            row["description"] = self._to_text(scores["words"][i].tolist())
            row["score"] = float(scores["word_score"][i])
            row["has_object"] = bool(batch["has_object"][i])
            self._rows.append(row)

    def table(self) -> DescriptionTable:
        """The rows in the order they were added."""
        return DescriptionTable.from_rows(self._rows, self._facts)


def sizes(table: DescriptionTable, num_records: int) -> dict[str, int]:
    """How many expressions there are, and of how many objects."""
    known = table["has_object"]
    if not known.any():
        raise InputError("no expression of this split means an object")
    return {
        "expressions": int(known.sum()),
        "objects": len(np.unique(table["object"][known])),
        "expressions_without_object": num_records - int(known.sum()),
    }


def protocols(
    table: DescriptionTable, split_words: Callable[[str], list[str]]
) -> dict[str, dict[str, float | None]]:
    """The numbers of all objects that an expression means, none if there is no such object.

    `split_words` is the tokenizer's.
    """
    references: dict[str, list[list[str]]] = {}
    described: dict[str, str] = {}
    known = table.take(table["has_object"])
    columns = (known[name].tolist() for name in ("object", "text", "description"))
    for name, text, description in zip(*columns, strict=True):
        references.setdefault(name, []).append(split_words(text))
        described.setdefault(name, description)
    if not described:
        return {}
    captions = [split_words(described[name]) for name in references]
    found = bleu(bleu_counts(captions, list(references.values())))
    scores = {f"BLEU-{k}": value for k, value in enumerate(found, 1)}
    exact = [caption in known for caption, known in zip(captions, references.values(), strict=True)]
    cider = float(cider_d(captions, list(references.values())).mean())
    distinct = len(set(described.values())) / len(described)
    return {
        "words": {
            "CIDEr-D / 10": cider / 10,
            **scores,
            "exact": float(np.mean(exact)),
            "distinct": distinct,
        }
    }

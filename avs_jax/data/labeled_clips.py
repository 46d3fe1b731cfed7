"""Rows for classification: the frames of a clip, its sound, and the classes of what sounds.

Records are those of data/clip.py. The classes are the clip's category ("category": class k is
category_label k + 1) or everything in its masks ("masks": class k is the value k, background
never), where every frame has one: in those of the row's seconds. A record may have `present`, which
says whether it has frames and sound; what it lacks is empty.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from avs_jax.data.decode import decode_labels
from avs_jax.data.pairs import PairRows
from avs_jax.spec import IGNORE_LABEL, Field, InputError
from avs_jax.task import Record, Row

LABELS = ("category", "masks")
FIELDS = {
    "present": Field(
        "bool", "B 2", "input", "the clip has frames, has sound", fill=1, given="optional"
    ),
    "classes": Field("float32", "B K", "target", "1 for the classes of the clip"),
    "known": Field("bool", "B", "target", "the clip has classes"),
}


class LabeledClipRows(PairRows):
    """Rows of clips with classes; see the base class."""

    def __init__(self, data: Any):
        """Prepares; `data` is config.data."""
        super().__init__(data, ("frames", "audio"))
        if data.labels not in LABELS:
            raise InputError(f"config.data.labels = {data.labels!r}: choose one of {LABELS}")
        self.fields: Mapping[str, Field] = {**self.fields, **FIELDS}
        self.sizes: Mapping[str, int] = {**self.sizes, "K": data.num_classes}

    def _prepare(self, record: Record, rng: np.random.Generator | None) -> Row:
        row = super()._prepare(record, rng)
        row["present"] = np.array(record.get("present", (True, True)), bool)
        for name, is_present in zip(("images", "log_mel"), row["present"], strict=True):
            if not is_present:
                row[name] = np.zeros_like(row[name])
        seconds = row["second"][row["valid"]].tolist()
        for k in self._classes_of(record, int(row["label"]), seconds):
            row["classes"][k] = 1
        row["known"] = np.bool_(row["classes"].any())
        return row

    def _classes_of(self, record: Record, label: int, seconds: list[int]) -> list[int]:
        count = self._data.num_classes
        if self._data.labels == "category":
            if label >= count:
                raise InputError(
                    f"category_label is {label + 1}, expected 1 to config.data.num_classes = "
                    f"{count}"
                )
            return [label] if label >= 0 else []
        found, masks = set(), record.get("masks", ())
        covers_all = len(masks) == len(record["frames"])
        for t, mask in zip(record.get("mask_index", ()), masks, strict=True):
            if int(t) in seconds or not covers_all:
                found |= set(np.unique(decode_labels(mask, count)).tolist())
        return sorted(found - {0, IGNORE_LABEL})

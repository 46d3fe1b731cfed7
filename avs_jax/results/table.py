"""What an evaluation stores: one row per scored thing; every number is computed from it later.

A row is a frame, an expression, a query, a clip or a caption, in dataset order. A protocol is a
function Table -> {measure: value}: its numbers depend neither on the batch size nor on devices or
processes, and a new protocol needs no second run of the model.

A column is an array [N, ...] of booleans, integers, floats or strings. Where rows hold different
numbers of values (windows of a query, references of a caption), the column is as wide as the
longest row; shorter rows are padded with NaN (floats) or "" (strings).
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, ClassVar, Self, TypeVar

import numpy as np

from avs_jax.array_files import NUMBERS, read_npz
from avs_jax.files import atomic_file
from avs_jax.spec import InputError, first_line

FILE_VERSION = 2  # 1: counts of frames without outlines and padded frames
_PADDING = {"f": np.nan, "U": ""}  # by kind of dtype

T = TypeVar("T", bound="Table")


@dataclasses.dataclass(frozen=True)
class Table:
    """N rows of named columns.

    Attributes:
      columns: name -> array [N, ...].
      facts: identify the evaluation (checkpoint, configuration, dataset, ...); JSON values.
      schema: columns that every table of this class has, and their types.
    """

    columns: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schema: ClassVar[Mapping[str, type]] = {}

    def __post_init__(self):
        lacking = sorted(self.schema.keys() - self.columns.keys())
        if lacking:
            raise ValueError(f"lacks the columns {lacking}")
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")
        objects = [name for name, c in self.columns.items() if c.dtype.kind not in "biufU"]
        if objects:
            raise ValueError(f"columns {objects} hold neither numbers nor strings")

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Self:
        """A table of rows that all name the same columns; no row gives the schema's columns."""
        columns = {name: np.zeros(0, dtype) for name, dtype in cls.schema.items()}
        for name in rows[0] if rows else ():
            column = _stack([row[name] for row in rows])
            columns[name] = column.astype(cls.schema.get(name, column.dtype))
        return cls(columns, dict(facts))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def take(self, rows: np.ndarray | slice) -> Self:
        """The table with only these rows (indices, a mask or a slice), in this order."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns)

    def groups(self, by: str) -> list[slice]:
        """The runs of rows with equal values in column `by`; raises if a value has several runs."""
        column = self[by]
        starts = np.flatnonzero(np.r_[len(column) > 0, column[1:] != column[:-1]])
        if len(np.unique(column)) != len(starts):
            raise ValueError(f"a {by} is in the table twice, or its rows are not together")
        return [slice(a, b) for a, b in itertools.pairwise([*starts.tolist(), len(column)])]

    def save(self, path: str | os.PathLike | BinaryIO) -> None:
        """Writes one compressed .npz that `load` reads; equal tables give equal bytes."""
        if isinstance(path, str | os.PathLike):
            with atomic_file(path) as file:
                return self.save(file)
        facts = np.array(json.dumps(dict(self.facts), sort_keys=True))
        np.savez_compressed(path, version=FILE_VERSION, **self.columns, facts_json=facts)

    @classmethod
    def load(cls, path: str | os.PathLike | BinaryIO) -> Self:
        """Reads what `save` wrote, executing nothing; anything else is an InputError."""
        name = path if isinstance(path, str | os.PathLike) else getattr(path, "name", "table")
        columns = read_npz(path, kinds=NUMBERS + "U")
        try:
            if "facts_json" not in columns:
                raise ValueError("lacks facts_json")
            facts, version = columns.pop("facts_json"), int(columns.pop("version", 1))
            table = cls(columns, json.loads(str(facts)))
        except (ValueError, TypeError, RecursionError) as error:
            reason = first_line(error)
            raise InputError(f"{name}: not a {cls.__name__} file ({reason})") from error
        if version != FILE_VERSION:
            raise InputError(f"{name}: version {version}, expected {FILE_VERSION}; evaluate again")
        return table


def concatenate(tables: Sequence[T]) -> T:
    """The rows of all tables, one after another, with the facts of the first table.

    Tables without rows are skipped: a process that was given no record knows no columns.
    """
    filled = [table for table in tables if len(table)] or tables[:1]
    columns = {
        name: _stack([row for table in filled for row in table[name]]) for name in filled[0].columns
    }
    return dataclasses.replace(filled[0], columns=columns, facts=tables[0].facts)


def interleave(parts: Sequence[T], share: int, by: str = "clip_id") -> T:
    """Joins the tables of several processes in dataset order; raises if a record came twice.

    Column `by` names a row's record. Of every batch, process i reads the records i * share to
    (i + 1) * share - 1, as `data.pipeline.EvalBatches` assigns them; every record has a row.
    """
    rows, offset = [], 0
    for i, part in enumerate(parts):
        for j, group in enumerate(part.groups(by) if len(part) else ()):
            rows.append(((j // share, i, j % share), np.arange(group.start, group.stop) + offset))
        offset += len(part)
    if not rows:
        return parts[0]
    order = [indices for _, indices in sorted(rows, key=lambda row: row[0])]
    joined = concatenate(parts).take(np.concatenate(order))
    if len(joined.groups(by)) != len(rows):
        raise ValueError(f"several processes read the same {by}")
    return joined


def _stack(values: Sequence[Any]) -> np.ndarray:
    """One column of N values, those of different lengths padded."""
    arrays = [np.asarray(value) for value in values]
    if len({array.shape for array in arrays}) > 1:
        kind, width = arrays[0].dtype.kind, max(len(array) for array in arrays)
        if kind not in _PADDING:
            raise ValueError("values of different lengths: only floats and strings are padded")
        padding = [np.full((width - len(a), *a.shape[1:]), _PADDING[kind]) for a in arrays]
        arrays = [
            np.concatenate(pair, dtype=pair[0].dtype) for pair in zip(arrays, padding, strict=True)
        ]
    return np.stack(arrays)

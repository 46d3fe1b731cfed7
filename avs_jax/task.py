"""The interface between the programs and a task: callables that know nothing of each other.

  record -> Rows -> row, rows -> batch -> model -> loss                              training
                                          model -> score -> Meter -> Table -> numbers  evaluation
                                          model -> derive -> arrays, files             prediction

A page, avs_jax/tasks/NAME.py, fills in a `Task`. Training, evaluation and prediction use it and
never ask which task it is.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from avs_jax.spec import Array, Field, InputError, check_shape, nearest

Record = Mapping[str, Any]
Row = dict[str, Any]
Batch = Mapping[str, Any]
Numbers = dict[str, float | None]


class PredictFlag(NamedTuple):
    """A flag of predict that a task reads to predict on a video.

    Attributes:
      text: for --help.
      is_repeated: whether it may be given several times, and is a list.
      is_per_video: whether it describes one video, so that --videos refuses it.
    """

    text: str
    is_repeated: bool = False
    is_per_video: bool = False


Section = tuple[str, list[list[str]], list[str]]  # heading, table with its header, legend


class Summary(NamedTuple):
    """What a task adds to a report, from the tables of all conditions.

    Attributes:
      numbers: for report.json.
      sections: tables of their own.
      conditions: those that only these tables show.
    """

    numbers: Mapping[str, Any]
    sections: Sequence[Section] = ()
    conditions: frozenset[str] = frozenset()


class Rows(Protocol):
    """Turns records into rows of a batch: numpy only, picklable, used in loader processes.

    Attributes:
      fields: name -> Field of everything in a batch under this configuration.
      sizes: axis letter -> size, for the axes that the configuration fixes.
    """

    fields: Mapping[str, Field]
    sizes: Mapping[str, int]

    def empty(self, train: bool) -> Row:
        """An empty row; it pads the last batch of an evaluation."""

    def prepare(self, record: Record, rng: np.random.Generator | None) -> Row:
        """A record as a row; rng draws augmentation, None prepares it for evaluation."""


class Table(Protocol):
    """The stored result of an evaluation: one row per scored item, the source of all numbers."""

    def save(self, path: Any) -> None:
        """Writes the table to a path or an open file."""

    @classmethod
    def load(cls, path: str | BinaryIO) -> "Table":
        """Reads what `save` wrote."""


class Meter(Protocol):
    """Collects the scores of batches into a table."""

    def add(self, scores: Mapping[str, np.ndarray], batch: Batch) -> None:
        """Adds the rows of one batch; skips rows without anything valid."""

    def table(self) -> Table:
        """All rows, in the order they were added."""


@dataclasses.dataclass(frozen=True)
class Controls:
    """Conditions scored besides the unaltered records: the same ground truth, another input.

    Attributes:
      records: condition -> records.
      notes: a sentence per condition that is skipped or covers only some records.
      facts: for the report, and part of its identity.
      files: name -> text of files to write next to the report.
    """

    records: Mapping[str, Sequence[Record]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def no_controls(records: Sequence[Record], split: str) -> Controls:
    del records, split
    return Controls()


def no_predictions(*_: Any) -> Any:
    """For tasks that neither read nor write files of predictions."""
    raise InputError("this task reads and writes no files of predictions")


def nothing_missing(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    return dict(arrays), []


def as_they_are(outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs, unchanged; as `score` or `derive` of a task."""
    del inputs
    return dict(outputs)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task under one configuration.

    Attributes:
      name: of the page.
      rows: turns records into rows.
      model: Linen module, apply(variables, inputs, train=, progress=, rngs=, mutable=) -> dict.
      rng_streams: random streams of a training step, including "loss". A stream's key depends on
        its position: append new ones.
      loss: (outputs, batch, key, norms) -> (total, weighted terms). Terms named "loss_*" sum to the
        total; the others are only logged.
      norms: batch -> divisors of the terms, from its targets alone. None: the rows of a batch are
        coupled, and train.accumulate must be 1.
      schedules: name -> (fraction of the training that is done) -> number to log.
      logged_params: name in the log -> path of a learned scalar.
      outputs: model outputs that scoring and prediction read; their first axis is the batch.
      unshared_inputs: inputs that may differ between rows of one clip, such as the expression; the
        rows share all others, which the model then takes once per clip. Evaluation scores such rows
        together, each in the slot that its `place` in the clip gives it. (): every row by itself.
      score: (outputs, inputs) -> arrays [B, ...], row by row, on the device, in one program with
        the forward pass.
      meter: facts -> Meter.
      protocols: Table -> {protocol: {measure: number}}.
      batches: Table -> {PROTOCOL/MEASURE: int [N], batch of each row, -1 for none}, for measures
        that score items in batches of the dataset's order.
      validation: as protocols, with only the protocols that training logs.
      measure: of the first protocol; larger is a better checkpoint.
      sizes: (Table, number of records) -> facts for the report; raises InputError if records have
        no ground truth.
      summarize: {condition: Table}, facts -> Summary across conditions, or None.
      controls: (records, split) -> Controls.
      alter: training records -> None, or (records, index, random generator) -> the record that
        takes the place of records[index] in one epoch; picklable.
      recorders: split -> objects with add(scores, batch), called for every batch of the records as
        they are, and files() -> {name: text} for the report's folder.
      draw: (scores, batch, row, title, records) -> {name: figure uint8 [H, W, 3]} of a row, or {}.
      join: (tables of all processes, rows of each per batch) -> one table.
      check_inputs: (params, inputs): raises if the parameters do not fit the inputs.
      array_inputs: (arrays) -> (inputs, notes): fills in missing arrays of predict.
      derive: (outputs, inputs) -> arrays that prediction returns; traceable.
      read_predictions: (directory, records, facts) -> (Table, notes).
      write_predictions: (directory, scores, batch) -> None.
      weight_files: families of foreign files that hold the whole model, see
        programs/weight_conversion.py.
      predict_video: (predictor, video, output, **flags) -> lines to print; None: only arrays.
      predict_flags: flags of avs-jax predict that `predict_video` takes.
      search: writes predict's output for a query to an index; see avs_jax/predict.py.
    """

    name: str
    rows: Rows
    model: Any
    loss: Callable[..., tuple[Array, dict[str, Array]]]
    outputs: tuple[str, ...]
    score: Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]
    meter: Callable[[Mapping[str, Any]], Meter]
    protocols: Callable[[Any], dict[str, Numbers]]
    measure: str
    join: Callable[[Sequence[Any], int], Any]
    unshared_inputs: tuple[str, ...] = ()
    rng_streams: tuple[str, ...] = ("loss",)
    norms: Callable[[Batch], dict[str, Array]] | None = None
    schedules: Mapping[str, Callable[[Array], Array]] = dataclasses.field(default_factory=dict)
    logged_params: Mapping[str, str] = dataclasses.field(default_factory=dict)
    batches: Callable[[Any], Mapping[str, np.ndarray]] = lambda table: {}
    validation: Callable[[Any], dict[str, Numbers]] | None = None
    sizes: Callable[[Any, int], dict[str, int]] = lambda table, count: {"records": count}
    summarize: Callable[..., Summary | None] = lambda tables, facts: None
    controls: Callable[[Sequence[Record], str], Controls] = no_controls
    alter: Callable[[Sequence[Record]], Callable | None] = lambda records: None
    recorders: Callable[[str], Sequence[Any]] = lambda split: ()
    draw: Callable[..., dict[str, np.ndarray]] = lambda *_: {}
    check_inputs: Callable[..., None] = lambda params, inputs: None
    array_inputs: Callable[..., tuple[dict, list[str]]] = nothing_missing
    derive: Callable[..., dict[str, Array]] = as_they_are
    read_predictions: Callable[..., tuple[Any, list[str]]] = no_predictions
    write_predictions: Callable[..., None] = no_predictions
    weight_files: tuple[str, ...] = ()
    predict_video: Callable[..., list[str]] | None = None
    predict_flags: tuple[str, ...] = ()
    search: Callable[..., list[str]] | None = None

    def inputs(self, batch: Batch) -> dict[str, Array]:
        """The fields that the model may read, never a target."""
        return select(batch, self.rows.fields, "input")


def select(batch: Batch, fields: Mapping[str, Field], *roles: str) -> dict[str, Any]:
    """The fields of a batch with one of the roles."""
    return {
        name: value
        for name, value in batch.items()
        if name in fields and fields[name].role in roles
    }


def empty_row(fields: Mapping[str, Field], sizes: Mapping[str, int], train: bool) -> Row:
    """A row of fill values and empty metadata; `sizes` has every axis letter except B."""
    row: Row = {}
    for name, field in fields.items():
        if field.phase not in ("both", "train" if train else "evaluate"):
            continue
        if field.role == "metadata":
            row[name] = ""
            continue
        shape = [int(axis) if axis.isdigit() else sizes[axis] for axis in field.axes.split()[1:]]
        row[name] = np.full(shape, field.fill, field.dtype)
    return row


def stack_rows(rows: Sequence[Row], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Rows as one batch; metadata become lists."""
    return {
        name: [row[name] for row in rows]
        if fields[name].role == "metadata"
        else np.stack([row[name] for row in rows])
        for name in rows[0]
    }


def check_arrays(
    arrays: Mapping[str, np.ndarray], rows: Rows
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """A user's arrays, checked against the input fields, and the sizes of the axis letters.

    A last axis of size 1 may be absent, and is added. Numbers must be finite.
    """
    fields = array_fields(rows.fields)
    for name in arrays:
        if name not in fields:
            known = ", ".join(nearest(name, list(fields)) or fields)
            raise InputError(f"{name}: no array of that name is read; nearest: {known}")
    checked, sizes = {}, {"C": rows.sizes["C"]} if "C" in rows.sizes else {}
    for name, field in fields.items():
        if name not in arrays:
            if field.given == "required":
                raise InputError(f"{name} is missing: {field.dtype} [{field.axes}]")
            continue
        array = np.asarray(arrays[name])
        if array.dtype != field.dtype:
            raise InputError(f"{name}: {array.dtype}, expected {field.dtype}")
        axes = field.axes.split()
        if array.ndim == len(axes) - 1 and sizes.get(axes[-1]) == 1:
            array = array[..., None]
        try:
            sizes = check_shape(name, array, field.axes, **sizes)
        except ValueError as error:
            raise InputError(str(error)) from error
        if array.size == 0:
            raise InputError(f"{name}: shape {array.shape} is empty")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise InputError(f"{name}: {count} of {array.size} numbers are NaN or infinite")
        checked[name] = array
    return checked, sizes


def array_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """The input fields that prediction takes as arrays."""
    return {
        name: field
        for name, field in fields.items()
        if field.role == "input" and field.given != "never"
    }


def describe_fields(fields: Mapping[str, Field]) -> str:
    """For --help, one line per field that prediction takes as an array."""
    lines: Iterable[str] = (
        f"  {name:<12} {field.dtype:<8} [{field.axes}]{' optional' * (field.given == 'optional')}"
        f"  {field.text}"
        for name, field in array_fields(fields).items()
    )
    return "\n".join(lines)

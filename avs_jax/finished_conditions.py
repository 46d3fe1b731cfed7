"""The conditions that an evaluation has finished, kept on disk until its report is written.

  ROOT/evaluation/NAME.unfinished_conditions/CONDITION/   for the report ROOT/evaluation/NAME
      counts.npz    the table
      figures.npz   the figures, in the order of their names in key.json
      key.json      what was evaluated, and what the task's recorders found

An evaluation that was interrupted or killed computes only the conditions that are not there. One
counts only if its key is the same: checkpoint, configuration, records and their files, condition
and figures.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.array_files import read_npz
from avs_jax.data.input_files import read_json
from avs_jax.data.records import file_stamps, metadata
from avs_jax.files import atomic_folder
from avs_jax.runtime.evaluation import Evaluation
from avs_jax.spec import InputError
from avs_jax.task import Record, Table

Files = Mapping[str, str]  # name -> text, for the report's folder


class FinishedConditions:
    """Those of one report."""

    def __init__(self, report: pathlib.Path, key: Mapping[str, Any], kind: type[Table]):
        """`kind`: of the tables."""
        self._folder = report.with_name(f"{report.name}.unfinished_conditions")
        self._key, self._kind = json.loads(json.dumps(key)), kind

    def load(self, condition: str) -> tuple[Evaluation, Files] | None:
        """The result of a condition and the files of the recorders; None if it is not there."""
        folder = self._folder / condition
        if not (folder / "key.json").is_file():
            return None
        try:
            stored = read_json(folder / "key.json")
            if stored["key"] != self._key:
                return None
            table = self._kind.load(folder / "counts.npz")
            arrays = read_npz(folder / "figures.npz")
        except (InputError, OSError, KeyError):  # damaged: evaluate again
            return None
        figures = {name: arrays[f"arr_{i}"] for i, name in enumerate(stored["figures"])}
        return Evaluation(table, figures), stored["files"]

    def save(self, condition: str, result: Evaluation, files: Files) -> None:
        """Keeps the result of a condition."""
        with atomic_folder(self._folder / condition) as folder:
            result.table.save(folder / "counts.npz")
            np.savez(folder / "figures.npz", *result.figures.values())
            stored = {"key": self._key, "figures": list(result.figures), "files": dict(files)}
            (folder / "key.json").write_text(json.dumps(stored))

    def remove(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)


def condition_key(
    facts: Mapping[str, Any], records: Sequence[Record], num_figures: int
) -> dict[str, Any]:
    """What the conditions of an evaluation share, as JSON values."""
    return {
        "facts": dict(facts),
        "records": len(records),
        "metadata": metadata(records),
        "files": file_stamps(records),
        "figures": num_figures,
    }

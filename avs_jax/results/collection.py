"""Stored reports of any runs and datasets in one table: a row per run, columns per dataset.

A report is what an evaluation wrote (report.json), what scripts/evaluate_rvos.py wrote, or a stored
result of docs/results. Reports with the same name are one row: the same run on several datasets. A
column is a dataset, its split, a protocol and a measure. Numbers are percentages, but measures
called "... rank" are places in a list, and rates and shares of a referring-video set are as that
report has them. A cell is empty where a run has no such number.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from avs_jax.results.ablation import latex_line
from avs_jax.spec import InputError, nearest

Column = tuple[str, str, str]  # dataset and split, protocol, measure


class Stored(NamedTuple):
    """One report.

    Attributes:
      name: of the run.
      dataset: with its split.
      scores: condition -> protocol -> measure -> the number as shown.
    """

    name: str
    dataset: str
    scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]


def read_report(path: pathlib.Path, name: str) -> Stored:
    """Reads a report's file.

    Raises:
      InputError: the file cannot be read, or is no report.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "protocols" in content:  # of evaluate_rvos.py, in percent
            facts, scores = content, {"predictions": content["protocols"]}
            dataset = facts["set"]
        else:
            facts, dataset = content["facts"], content["facts"]["dataset"]
            scores = {
                condition: {protocol: _shown(values) for protocol, values in protocols.items()}
                for condition, protocols in content["scores"].items()
            }
        return Stored(name, f"{dataset} {facts['split']}", scores)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no report of an evaluation ({error!r})") from error


def _shown(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Numbers of a protocol, percentages where they are shares."""
    return {
        measure: value if value is None or measure.endswith(" rank") else 100 * value
        for measure, value in values.items()
    }


class Number(NamedTuple):
    """One number of a report; `is_main`: of the report's first protocol."""

    run: str
    condition: str
    column: Column
    value: float | None
    is_main: bool

    @property
    def names(self) -> set[str]:
        """What a user may call its measure."""
        _, protocol, measure = self.column
        return {measure, f"{protocol}/{measure}"}


def make_table(
    reports: Sequence[Stored], measures: Sequence[str] = (), conditions: Sequence[str] = ()
) -> list[list[str]]:
    """Header and rows, as text.

    Args:
      reports: in the order of the rows.
      measures: "MEASURE" or "PROTOCOL/MEASURE" to show; default: those of each report's first
        protocol.
      conditions: to show, each in a row of its own; default: the first one of each report.

    Raises:
      InputError: a measure or condition that no report has, or a run with two numbers for one cell.
    """
    _check_known("condition", conditions, [name for report in reports for name in report.scores])
    numbers = [
        number
        for report in reports
        for condition in report.scores
        if (condition in conditions if conditions else condition == next(iter(report.scores)))
        for number in _numbers(report, condition)
    ]
    _check_known("measure", measures, [name for number in numbers for name in sorted(number.names)])
    rows: dict[tuple[str, str], dict[Column, str]] = {}
    columns: dict[Column, None] = {}
    for number in numbers:
        if not (number.names & set(measures) if measures else number.is_main):
            continue
        row = rows.setdefault((number.run, number.condition if conditions else ""), {})
        if number.column in row:
            raise InputError(
                f"{number.run}: two reports with {' '.join(number.column)}; give each its own "
                "name, and a report.json instead of a folder that holds several"
            )
        row[number.column] = "–" if number.value is None else f"{number.value:.2f}"
        columns[number.column] = None
    header = ["run", *(["condition"] if conditions else []), *map(" ".join, columns)]
    lines = [
        [run, *([condition] if conditions else []), *(row.get(column, "") for column in columns)]
        for (run, condition), row in rows.items()
    ]
    return [header, *lines]


def _numbers(report: Stored, condition: str) -> Iterator[Number]:
    for i, (protocol, values) in enumerate(report.scores[condition].items()):
        for measure, value in values.items():
            yield Number(report.name, condition, (report.dataset, protocol, measure), value, i == 0)


def _check_known(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    names = list(dict.fromkeys(known))
    for name in given:
        if name not in names:
            near = ", ".join(nearest(name, names) or names)
            raise InputError(f"--{kind}={name}: no report has it; nearest: {near}")


def to_markdown(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|---|" + "---:|" * (len(table[0]) - 1)
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def to_csv(table: Sequence[Sequence[str]]) -> str:
    """A line per row."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def to_latex(table: Sequence[Sequence[str]]) -> str:
    """A tabular."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}"]
    lines += [latex_line(table[0]) + r" \hline", *map(latex_line, table[1:]), r"\end{tabular}"]
    return "\n".join(lines) + "\n"

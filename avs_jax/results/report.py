"""An evaluation as a table: on the terminal, as JSON and as Markdown."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

Scores = Mapping[str, Mapping[str, float]]  # protocol -> measure -> 0..1
REFERENCE = "true_audio"  # the condition that the others are compared with


@dataclasses.dataclass(frozen=True)
class Report:
    """What one evaluation found.

    Attributes:
      facts: what was evaluated on what: checkpoint, configuration, dataset, source of the ground
        truth, sizes. Strings and numbers.
      scores: condition of the audio -> protocol -> {"mIoU", "f_beta"} in 0..1; the reference first.
      notes: sentences on what was left out, and why.
    """

    facts: Mapping[str, Any]
    scores: Mapping[str, Scores]
    notes: Sequence[str] = ()


def table(report: Report) -> list[list[str]]:
    """Header and rows, as text: percentages, and by how many points mIoU is below the true audio's.

    Returns:
      [condition, protocol, mIoU, f_beta, change of mIoU] per row.
    """
    rows = [["audio", "protocol", "mIoU %", "f_beta %", "change of mIoU"]]
    reference = report.scores.get(REFERENCE, {})
    for condition, protocols in report.scores.items():
        for protocol, measures in protocols.items():
            change = ""
            if condition != REFERENCE and protocol in reference:
                change = f"{100 * (measures['mIoU'] - reference[protocol]['mIoU']):+.2f}"
            values = [f"{100 * measures[name]:.2f}" for name in ("mIoU", "f_beta")]
            rows.append([condition.replace("_", " "), protocol, *values, change])
    return rows


def to_text(report: Report) -> str:
    """For a terminal: facts, an aligned table, notes."""
    rows = table(report)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        words = [
            w.ljust(n) if i < 2 else w.rjust(n)
            for i, (w, n) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(words).rstrip()

    lines = [f"{name}: {value}" for name, value in report.facts.items()]
    lines += ["", line(rows[0]), "  ".join("-" * n for n in widths)]
    lines += [line(row) for row in rows[1:]]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)]) + "\n"


def to_markdown(report: Report) -> str:
    """A heading-less Markdown section: the table, then facts and notes as a list."""
    header, *rows = table(report)
    lines = ["| " + " | ".join(header) + " |", "|---|---|---:|---:|---:|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {name}: {value}" for name, value in report.facts.items())]
    return "\n".join([*lines, *(f"- note: {note}" for note in report.notes)]) + "\n"


def to_json(report: Report) -> str:
    """Everything, unrounded; scores in 0..1."""
    return json.dumps(dataclasses.asdict(report), indent=2) + "\n"


def write(report: Report, directory: str | pathlib.Path) -> None:
    """Writes report.json and report.md into a directory, which is made if need be."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(to_json(report))
    (directory / "report.md").write_text(to_markdown(report))

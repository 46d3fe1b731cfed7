"""An evaluation as a table: on the terminal, as JSON and as Markdown."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.results import negative_report
from avs_jax.spec import NEGATIVE_AUDIO, REFERENCE

Scores = Mapping[str, Mapping[str, float]]  # protocol -> measure -> 0..1
MEASURES = ("mIoU", "f_beta", "J", "f_boundary", "J&F", "boundary_iou")  # columns, in this order


@dataclasses.dataclass(frozen=True)
class Report:
    """What one evaluation found.

    Attributes:
      facts: what was evaluated on what: checkpoint, configuration, dataset, source of the ground
        truth, sizes. Strings and numbers.
      scores: condition of the audio -> protocol -> measure -> 0..1; the reference first.
      notes: sentences on what was left out, and why.
      negatives: numbers of `negatives.summarise`, with what `negative_report` wants to know under
        "facts"; None where no negative audio was asked for.
    """

    facts: Mapping[str, Any]
    scores: Mapping[str, Scores]
    notes: Sequence[str] = ()
    negatives: Mapping[str, Any] | None = None


def table(report: Report) -> list[list[str]]:
    """Header and rows, as text: a row per condition and protocol, a column per measure.

    Percentages; a cell is empty where a protocol does not have the measure. With several
    conditions the first column names them, and the last one says by how many points the protocol's
    first measure differs from the true audio's. What has a section of its own, negative audio and
    motion, is left to it.
    """
    shown = _shown(report)
    found = {m for scores in shown.values() for values in scores.values() for m in values}
    columns = [m for m in MEASURES if m in found] + sorted(found - set(MEASURES))
    several = len(shown) > 1
    rows = [["audio"] * several + ["protocol", *(f"{m} %" for m in columns)] + ["change"] * several]
    reference = report.scores.get(REFERENCE, {})
    for condition, scores in shown.items():
        for protocol, values in scores.items():
            cells = [f"{100 * values[m]:.2f}" if m in values else "" for m in columns]
            if several:
                main, change = next(iter(values)), ""
                if condition != REFERENCE and protocol in reference:
                    change = f"{100 * (values[main] - reference[protocol][main]):+.2f}"
                cells = [condition.replace("_", " "), protocol, *cells, change]
            rows.append(cells if several else [protocol, *cells])
    return rows


def to_text(report: Report) -> str:
    """For a terminal: facts, an aligned table, notes."""
    rows, names = table(report), _num_names(report)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        words = [
            w.ljust(n) if i < names else w.rjust(n)
            for i, (w, n) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(words).rstrip()

    lines = [f"{name}: {value}" for name, value in report.facts.items()]
    lines += ["", line(rows[0]), "  ".join("-" * n for n in widths)]
    lines += [line(row) for row in rows[1:]]
    text = "\n".join([*lines, *(f"note: {note}" for note in report.notes)]) + "\n"
    if report.negatives is None:
        return text
    return f"{text}\n{negative_report.to_text(report.negatives)}"


def to_markdown(report: Report) -> str:
    """The table, facts and notes as a list, then the sections on negative audio."""
    (header, *rows), names = table(report), _num_names(report)
    rule = "|---" * names + "|---:" * (len(header) - names) + "|"
    lines = ["| " + " | ".join(header) + " |", rule]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {name}: {value}" for name, value in report.facts.items())]
    text = "\n".join([*lines, *(f"- note: {note}" for note in report.notes)]) + "\n"
    if report.negatives is None:
        return text
    return f"{text}\n{negative_report.to_markdown(report.negatives)}"


def _shown(report: Report) -> dict[str, Scores]:
    """The conditions in the table."""
    apart = set(negative_report.MOTION_CONTROLS).union(*NEGATIVE_AUDIO.values())
    return {name: scores for name, scores in report.scores.items() if name not in apart}


def _num_names(report: Report) -> int:
    """Columns of the table that are names, not numbers."""
    return 2 if len(_shown(report)) > 1 else 1


def to_json(report: Report) -> str:
    """Everything, unrounded; scores in 0..1."""
    return json.dumps(dataclasses.asdict(report), indent=2) + "\n"


def write(report: Report, directory: str | pathlib.Path) -> None:
    """Writes report.json and report.md into a directory, which is made if need be."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(to_json(report))
    (directory / "report.md").write_text(to_markdown(report))

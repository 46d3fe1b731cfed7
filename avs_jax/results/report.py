"""An evaluation as tables: for the terminal, as JSON and as Markdown."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.files import write_atomically
from avs_jax.task import Section, Summary

Scores = Mapping[str, Mapping[str, float | None]]  # protocol -> measure -> 0..1


@dataclasses.dataclass(frozen=True)
class Report:
    """What one evaluation found.

    Attributes:
      facts: what was evaluated on what: checkpoint, configuration, dataset, source of the ground
        truth, sizes. Strings and numbers.
      scores: by condition, the reference first.
      notes: sentences on what was left out, and why.
      summary: of the task, across conditions.
    """

    facts: Mapping[str, Any]
    scores: Mapping[str, Scores]
    notes: Sequence[str] = ()
    summary: Summary | None = None


def table(report: Report) -> list[list[str]]:
    """Header and rows, as text: a row per condition and protocol, a column per measure.

    Percentages, but measures called "... rank" are places in a list. A cell is empty where a
    protocol does not have the measure, and a dash where the number is not defined. With several
    conditions, the first column names them, and the last one is the difference of the protocol's
    first measure to the reference's, in points. Conditions that only the summary shows are left
    out.
    """
    shown = _shown(report)
    protocols = [values for scores in shown.values() for values in scores.values()]
    columns = list(dict.fromkeys(measure for values in protocols for measure in values))
    several = len(shown) > 1
    rows = [["condition"] * several + ["protocol", *map(_heading, columns)] + ["change"] * several]
    reference = next(iter(report.scores), None)
    for condition, scores in shown.items():
        for protocol, values in scores.items():
            cells = [_cell(m, values[m]) if m in values else "" for m in columns]
            if several:
                main, change = next(iter(values)), ""
                before = report.scores[reference].get(protocol, {}).get(main)
                if condition != reference and None not in (before, values[main]):
                    change = f"{100 * (values[main] - before):+.2f}"
                cells = [condition.replace("_", " "), protocol, *cells, change]
            rows.append(cells if several else [protocol, *cells])
    return rows


def to_text(report: Report) -> str:
    """For a terminal: facts, an aligned table, notes, then the tables of the summary."""
    lines = [f"{name}: {value}" for name, value in report.facts.items()]
    lines += ["", *_text_table(table(report), num_names(report))]
    lines += [f"note: {note}" for note in report.notes]
    for heading, rows, legend in sections(report):
        lines += ["", heading, "", *_text_table(rows), *(f"- {line}" for line in legend)]
    return "\n".join(lines) + "\n"


def to_markdown(report: Report) -> str:
    """The table, facts and notes as a list, then the tables of the summary."""
    lines = _markdown_table(table(report), num_names(report))
    lines += ["", *(f"- {name}: {value}" for name, value in report.facts.items())]
    lines += [f"- note: {note}" for note in report.notes]
    for heading, rows, legend in sections(report):
        lines += ["", f"### {heading}", "", *_markdown_table(rows)]
        lines += ["", *(f"- {line}" for line in legend)] if legend else []
    return "\n".join(lines) + "\n"


def to_json(report: Report) -> str:
    """Everything, unrounded; scores in 0..1."""
    content = {
        "facts": report.facts,
        "scores": report.scores,
        "notes": report.notes,
        "negatives": None if report.summary is None else report.summary.numbers,
    }
    return json.dumps(content, indent=2) + "\n"


def write(report: Report, directory: str | pathlib.Path) -> None:
    """Writes report.json and report.md into a directory, which is created if needed."""
    directory = pathlib.Path(directory)
    write_atomically(directory / "report.json", to_json(report))
    write_atomically(directory / "report.md", to_markdown(report))


def sections(report: Report) -> Sequence[Section]:
    """The tables of the summary, with headings and legends."""
    return () if report.summary is None else report.summary.sections


def _text_table(rows: Sequence[Sequence[str]], num_names: int = 1) -> list[str]:
    """Aligned lines; the first `num_names` columns are names, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<"] * num_names + [">"] * (len(widths) - num_names)
    spec = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    lines = [spec.format(*row).rstrip() for row in (*rows, ["-" * width for width in widths])]
    return [lines[0], lines[-1], *lines[1:-1]]


def _markdown_table(rows: Sequence[Sequence[str]], num_names: int = 1) -> list[str]:
    rule = "|---" * num_names + "|---:" * (len(rows[0]) - num_names) + "|"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], rule, *lines[1:]]


def _is_rank(measure: str) -> bool:
    return measure.endswith(" rank")


def _heading(measure: str) -> str:
    return measure if _is_rank(measure) else f"{measure} %"


def _cell(measure: str, value: float | None) -> str:
    return f"{value:.1f}" if _is_rank(measure) and value is not None else percent(value)


def percent(share: float | None) -> str:
    """A share as a percentage; a dash where it is not defined."""
    return "–" if share is None else f"{100 * share:.2f}"


def _shown(report: Report) -> dict[str, Scores]:
    """The conditions in the table."""
    apart = frozenset() if report.summary is None else report.summary.conditions
    return {name: scores for name, scores in report.scores.items() if name not in apart}


def num_names(report: Report) -> int:
    """Columns of the table that are names, not numbers."""
    return 2 if len(_shown(report)) > 1 else 1

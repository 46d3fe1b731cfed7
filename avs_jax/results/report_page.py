"""report.html: an evaluation as one page to send around.

Everything of report.md, the curves of the training that made the checkpoint, and the figures with
the sounds that the model heard.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from avs_jax.results import html_page, report
from avs_jax.results.report import Report

NAME = "report.html"
Curves = dict[str, dict[str, list[tuple[float, float]]]]  # chart -> line -> (step, value), ...


def write_page(
    found: Report,
    directory: pathlib.Path,
    figures: Mapping[str, np.ndarray],
    sounds: Mapping[str, bytes],
    curves: Curves,
) -> None:
    """Writes report.html.

    Args:
      figures: name -> uint8 [H, W, 3].
      sounds: WAV files that play under the figures of the same name.
      curves: of `read_curves`.
    """
    parts = [html_page.table(report.table(found), report.num_names(found))]
    parts += [html_page.bullets([f"note: {note}" for note in found.notes])] if found.notes else []
    for heading, rows, legend in report.sections(found):
        parts += [html_page.heading(heading), html_page.table(rows)]
        parts += [html_page.bullets(legend)] if legend else []
    charts = [html_page.chart(title, lines) for title, lines in curves.items()]
    parts += [html_page.heading("Training"), *charts] if any(charts) else []
    if figures:
        parts.append(html_page.heading("Figures"))
        parts += [
            html_page.figure(name, picture, sound=sounds.get(name))
            for name, picture in figures.items()
        ]
    facts = [[name, str(value)] for name, value in found.facts.items()]
    parts += [html_page.heading("What was evaluated"), html_page.table([["", ""], *facts], 2)]
    named = (found.facts.get(name) for name in ("config", "dataset", "split"))
    title = ", ".join(str(name) for name in named if name)
    html_page.save(directory / NAME, title or "evaluation", parts)


def read_curves(metrics: pathlib.Path, protocol: str) -> Curves:
    """The loss and the validation scores of a run, from its metrics.jsonl; {} without one.

    Args:
      protocol: whose scores are drawn.
    """
    if not metrics.is_file():
        return {}
    losses: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    for record in _records(metrics.read_text(encoding="utf-8").splitlines()):
        step = record.pop("step")
        for name, value in record.items():
            split, _, measure = name.partition(f"/{protocol}/")
            if name == "total_loss":
                losses.setdefault(name, []).append((step, value))
            elif measure and re.fullmatch(r"val(_ema)?", split):
                scores.setdefault(f"{split} {measure}", []).append((step, value))
    charts = {"loss": losses, f"validation, {protocol}": scores}
    return {title: lines for title, lines in charts.items() if lines}


def _records(lines: Sequence[str]) -> list[dict[str, float]]:
    """The lines as JSON; a running training may be writing the last one."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found

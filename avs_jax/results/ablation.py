"""The table of an ablation: variants x seeds, and how each variant differs from a baseline.

Rows hold the mean and standard deviation over seeds, and, against the baseline, over the seeds that
both have: the difference, its interval over seeds (paired t) and over clips (bootstrap), and the
p values of results/statistics.py. Holm's adjustment is over the contrasts of one measure. A variant
without runs has dashes.
"""

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.results.statistics import Contrast, compare, holm
from avs_jax.results.table import Table
from avs_jax.spec import InputError

Scores = Mapping[str, Mapping[str, float | None]]  # protocol -> measure -> 0..1
Protocols = Callable[[Table], Scores]

SAME_FACTS = (  # of all runs: what the predictions were compared with
    "dataset", "split", "ground_truth", "clips_skipped_when_built", "weights", "manifest_sha256",
    "clips", "frames", "queries", "videos",
)  # fmt: skip
HEADER = (
    "variant", "mean ± std (n)", "difference", "95 % over seeds", "95 % over clips", "t", "p (t)",
    "p (t, Holm)", "p (sign flip)", "its floor",
)  # fmt: skip
DASH = "–"


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated run.

    Attributes:
      variant, seed: which.
      facts: of its report.
      number: what the report says, in 0..1.
      names: of the clips or other scored items.
      scores: float [C], of each clip; NaN where the measure is not defined for it.
    """

    variant: str
    seed: int
    facts: Mapping[str, Any]
    number: float
    names: Sequence[str]
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      variant: its name.
      numbers: seed -> number of the run, in 0..1.
      contrast: against the baseline; None for the baseline and where no seed is shared.
      p_holm: of the contrast, adjusted; NaN without one.
    """

    variant: str
    numbers: Mapping[int, float]
    contrast: Contrast | None = None
    p_holm: float = np.nan


def clip_scores(table: Table, protocols: Protocols, measure: str) -> tuple[list[str], np.ndarray]:
    """A measure of each clip (or other scored item) alone; NaN where it is not defined.

    Args:
      protocols: table -> {protocol: {measure: number}}.
      measure: PROTOCOL/MEASURE.
    """
    by, (names, scores) = next(iter(table.schema)), ([], [])
    for group in table.groups(by):
        names.append(str(table[by][group.start]))
        value = flatten(protocols(table.take(group))).get(measure)
        scores.append(np.nan if value is None else value)
    return names, np.array(scores, np.float64)


def flatten(scores: Scores) -> dict[str, float | None]:
    """PROTOCOL/MEASURE -> number."""
    return {f"{p}/{m}": value for p, values in scores.items() for m, value in values.items()}


def make_rows(variants: Sequence[str], baseline: str, runs: Sequence[Run]) -> list[Row]:
    """The rows of one measure, in the order of the variants.

    Raises:
      InputError: runs were scored on different data, or seeds of a variant by different
        configurations.
    """
    check_comparable(runs)
    by_variant = {name: {r.seed: r for r in runs if r.variant == name} for name in variants}
    rows = []
    for name in variants:
        own, base = by_variant[name], by_variant[baseline]
        shared = sorted(own.keys() & base.keys()) if name != baseline else []
        contrast = None
        if shared:
            a, b = (np.stack([runs[s].scores for s in shared]) for runs in (own, base))
            is_defined = ~np.isnan(a + b).any(axis=0)
            differences = np.array([own[s].number - base[s].number for s in shared])
            contrast = compare(a[:, is_defined], b[:, is_defined], by_run=differences)
        rows.append(Row(name, {s: own[s].number for s in sorted(own)}, contrast))
    adjusted = holm([np.nan if row.contrast is None else row.contrast.p_t for row in rows])
    return [dataclasses.replace(r, p_holm=float(p)) for r, p in zip(rows, adjusted, strict=True)]


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises InputError unless all runs were scored by the same ground truth, in the same way."""
    for run in runs[1:]:
        where = f"{run.variant}, seed {run.seed}"
        for name in SAME_FACTS:
            first, other = runs[0].facts.get(name), run.facts.get(name)
            if first != other:
                raise InputError(
                    f"{where}: {name} is {other!r}, but {first!r} for {runs[0].variant}, seed "
                    f"{runs[0].seed}; these runs cannot be compared"
                )
        if list(run.names) != list(runs[0].names):
            raise InputError(f"{where}: scored on other clips than {runs[0].variant}")
    digests: dict[str, Any] = {}
    for run in runs:
        digest = digests.setdefault(run.variant, run.facts.get("digest"))
        if digest != run.facts.get("digest"):
            raise InputError(
                f"{run.variant}, seed {run.seed}: evaluation digest {run.facts.get('digest')}, "
                f"but {digest} for another seed; these runs cannot be compared"
            )


def cells(row: Row) -> list[str]:
    """A row as text, numbers and differences in percent; one cell per name in HEADER."""
    numbers = 100 * np.array(list(row.numbers.values()))
    if not len(numbers):
        return [row.variant, *[DASH] * (len(HEADER) - 1)]
    spread = f" ± {numbers.std(ddof=1):.2f}" if len(numbers) > 1 else ""
    first = [row.variant, f"{numbers.mean():.2f}{spread} ({len(numbers)})"]
    found = row.contrast
    if found is None:
        return first + [""] * (len(HEADER) - 2)
    values = (found.t, found.p_t, row.p_holm, found.p_sign_flip, found.p_floor)
    texts = ["{:.2f}", *["{:.4f}"] * 4]
    return [
        *first,
        f"{100 * found.difference:+.2f}",
        _interval(found.low, found.high),
        _interval(found.clips_low, found.clips_high),
        *(DASH if np.isnan(x) else text.format(x) for x, text in zip(values, texts, strict=True)),
    ]


def _interval(low: float, high: float) -> str:
    return DASH if np.isnan(low) else f"{100 * low:+.2f} to {100 * high:+.2f}"


def to_markdown(tables: Mapping[str, Sequence[Row]]) -> str:
    """A section per measure: the table, and the number of every run."""
    lines = []
    for measure, rows in tables.items():
        lines += [f"## {measure}, %", "", "| " + " | ".join(HEADER) + " |"]
        lines.append("|---|" + "---:|" * (len(HEADER) - 1))
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        lines.append("")
        for row in rows:
            each = ", ".join(f"seed {s} {100 * x:.2f}" for s, x in row.numbers.items())
            lines.append(f"- {row.variant}: {each or DASH}")
        lines.append("")
    return "\n".join(lines)


def to_csv(tables: Mapping[str, Sequence[Row]]) -> str:
    """One line per measure and variant."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["measure", *HEADER])
    for measure, rows in tables.items():
        writer.writerows([measure, *cells(row)] for row in rows)
    return file.getvalue()


def to_latex(tables: Mapping[str, Sequence[Row]]) -> str:
    """A tabular per measure."""
    lines = []
    for measure, rows in tables.items():
        lines += [f"% {measure}", rf"\begin{{tabular}}{{l{'r' * (len(HEADER) - 1)}}}"]
        lines += [latex_line(HEADER) + r" \hline", *(latex_line(cells(row)) for row in rows)]
        lines.append(r"\end{tabular}")
    return "\n".join(lines) + "\n"


def latex_line(texts: Sequence[str]) -> str:
    """A line of a tabular, with LaTeX's characters escaped."""
    replaced = {"%": r"\%", "_": r"\_", "&": r"\&", "±": r"$\pm$", DASH: "--"}
    line = " & ".join("".join(replaced.get(c, c) for c in text) for text in texts)
    return line + r" \\"

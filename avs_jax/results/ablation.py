"""The table of an ablation: variants x seeds, and how each variant differs from a baseline.

Rows hold the mean and standard deviation over seeds, and, against the baseline, over the seeds that
both have: the difference, its interval over seeds (paired t) and over clips (bootstrap), and the
p values of results/statistics.py. Holm's adjustment is over the contrasts of one measure. A variant
without runs has dashes.

Most protocols are no means over clips: classes are pooled, curves are averaged before their maximum
is taken, clips are ranked among each other. A clip's score is therefore what the split's number
owes to it, its jackknife pseudo-value C x - (C - 1) x', where x is the number of all C clips and x'
that without this one. Of a mean over clips, that is the clip's own score. A split of more than
MAX_GROUPS clips is taken apart into that many groups at most.

Some measures score clips in batches of the dataset's order (f_beta of AVSBench and Ref-AVS).
Without one clip, all later batches would hold other clips, and C - 1 times the noise of that would
pass for the clip's share. There, whole batches are left out and resampled instead of clips.
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
MAX_GROUPS = 200  # whose pseudo-values are computed


@dataclasses.dataclass(frozen=True)
class Run:
    """One evaluated run.

    Attributes:
      variant, seed: which.
      facts: of its report.
      number: what the report says, in 0..1.
      names: of the clips or other scored items.
      scores: float [G], pseudo-values of the clips, of their batches or of groups of either; NaN
        where the measure is not defined without them.
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


def clip_scores(
    table: Table,
    protocols: Protocols,
    measures: Sequence[str],
    batches: Mapping[str, np.ndarray] | None = None,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names of all clips (or other scored items), and the pseudo-values of each measure.

    Args:
      protocols: table -> {protocol: {measure: number}}.
      measures: PROTOCOL/MEASURE each.
      batches: of the measures that score clips in batches, the batch of each row; -1 for none.

    Returns:
      the names, and measure -> float64 [G] as in `Run`.
    """
    by = next(iter(table.schema))
    items = table.groups(by)
    names = [str(table[by][item.start]) for item in items]
    item_of_row = np.repeat(np.arange(len(items)), [item.stop - item.start for item in items])
    batches = batches or {}
    of_items = [measure for measure in measures if measure not in batches]
    values = _pseudo_values(table, protocols, of_items, item_of_row) if of_items else {}
    for measure in measures:
        if measure in batches:
            values |= _pseudo_values(table, protocols, [measure], batches[measure])
    return names, values


def _pseudo_values(
    table: Table, protocols: Protocols, measures: Sequence[str], unit_of_row: np.ndarray
) -> dict[str, np.ndarray]:
    """Measure -> float64 [G] of the units, or of groups of them; rows of unit -1 always stay."""
    num_units = unit_of_row.max(initial=-1) + 1
    if num_units < 2:
        return {measure: np.full(num_units, np.nan) for measure in measures}
    size = -(-num_units // MAX_GROUPS)
    num_groups = -(-num_units // size)  # every num_groups-th unit: neighbors are alike
    group_of_row = np.where(unit_of_row < 0, -1, unit_of_row % num_groups)

    def numbers(rows: np.ndarray | slice) -> list[float]:
        found = flatten(protocols(table.take(rows)))
        return [np.nan if found.get(name) is None else found[name] for name in measures]

    whole = np.array(numbers(slice(None)), np.float64)
    without = [numbers(group_of_row != group) for group in range(num_groups)]
    values = num_groups * whole - (num_groups - 1) * np.array(without, np.float64)
    return dict(zip(measures, values.T, strict=True))


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

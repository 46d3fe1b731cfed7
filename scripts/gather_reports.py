"""Gathers stored reports of any runs and datasets into one table: Markdown, csv and LaTeX.

  python scripts/gather_reports.py --output=DIR
      --report="VCT=runs/refer_vct" --report="CMA=runs/refer_cma" --report="CMA=scores/mevis"
      [--measure=J ...] [--condition=true_audio ...]

A report is NAME=PATH: a report.json, or a folder that is searched for them (a run has one per
split). Reports with the same name are one row, so the datasets of a run are side by side. Reports
of scripts/evaluate_rvos.py and the files of docs/results count too. DIR gets table.md, table.csv
and table.tex; nothing is recomputed.
"""

import pathlib
import sys
from collections.abc import Sequence

from avs_jax.files import is_leftover, write_atomically
from avs_jax.flag_style import FlagParser
from avs_jax.results import collection
from avs_jax.spec import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Gathers; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        reports = [report for text in args.report for report in find_reports(text)]
        table = collection.make_table(reports, args.measure, args.condition)
        output = pathlib.Path(args.output).expanduser()
        for ending, text in (
            ("md", collection.to_markdown(table)),
            ("csv", collection.to_csv(table)),
            ("tex", collection.to_latex(table)),
        ):
            write_atomically(output / f"table.{ending}", text)
    except (InputError, OSError) as error:
        print(f"gather_reports: {error}", file=sys.stderr)
        return 1
    print(collection.to_markdown(table), end="")
    return 0


def find_reports(text: str) -> list[collection.Stored]:
    """The reports that NAME=PATH names, sorted by path."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise InputError(f"--report={text!r}: expected NAME=PATH")
    place = pathlib.Path(path).expanduser()
    files = [place]
    if place.is_dir():  # leftovers of a kill have a suffix
        files = sorted(x for x in place.rglob("report.json") if not is_leftover(x.parent))
    if not files:
        raise InputError(f"{place}: holds no report.json")
    return [collection.read_report(file, name) for file in files]


def _parser() -> FlagParser:
    parser = FlagParser(description=__doc__)
    add = parser.add_argument
    add("--output", required=True, help="folder for the tables")
    add("--report", required=True, action="append", help="NAME=PATH, any number")
    add(
        "--measure",
        action="append",
        default=[],
        help="MEASURE or PROTOCOL/MEASURE, any number; default: those of the first protocol",
    )
    add(
        "--condition",
        action="append",
        default=[],
        help="such as true_audio or silence, any number; default: the first of each report",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

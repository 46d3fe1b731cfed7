"""Writes docs/results.md from what docs/results/ stores, and stores reports there.

  python scripts/write_results.py add --report=runs/s4_ama/evaluation/NAME --name=demo_s4_ama_seed0
      --title="S4 + AMA, demo, seed 0" --command="./scripts/demo.sh"
  python scripts/write_results.py table --csv=runs/ablation/table.csv --name=... --title=...
      --command=... --machine="what the rows are of"
  python scripts/write_results.py

A stored result is a JSON file: either a report (the numbers of every condition and protocol, and
what was scored), or a table with a title, a command, the machine, a header and rows. Numbers are
never typed into the page.
"""

import csv
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.files import write_atomically
from avs_jax.flag_style import FlagParser
from avs_jax.spec import EXPRESSION_KINDS, InputError

ROOT = pathlib.Path(__file__).resolve().parent.parent
FACTS = (
    "config",
    "step",
    "weights",
    "dataset",
    "split",
    "ground_truth",
    "clips",
    "frames",
    "queries",
    "videos",
    "objects",
)
OF_MASKS, OF_WINDOWS = ("mIoU", "f_beta"), ("R1@0.5", "mAP")
OF_PAIRS, OF_CLASSES = ("R@1", "mAP"), ("top-1", "F1")
OF_WORDS = ("BLEU-4", "CIDEr-D / 10", "exact", "distinct")
PROTOCOLS = {  # that the page shows -> their measures there
    "stream": OF_MASKS,
    "dataset": OF_MASKS,
    "cavp": OF_MASKS,
    "semantic(frames=real)": OF_MASKS,
    "moments": OF_WINDOWS,
    "moments(domain look)": OF_WINDOWS,
    "moments(domain sound)": OF_WINDOWS,
    "audio to frames": OF_PAIRS,
    "frames to audio": OF_PAIRS,
    "fused": OF_CLASSES,
    "frames alone": OF_CLASSES,
    "sound alone": OF_CLASSES,
    "words": OF_WORDS,
    "look_alikes": ("right_source",),
    "refavs": ("J", "f_beta(batch=4)", "f_boundary"),
    **{f"refavs(kind {kind})": ("J",) for kind in EXPRESSION_KINDS},
    "null": ("S",),
    "tvsum(top 5)": ("mAP",),
}
INTRODUCTION = """# Results

Written by `scripts/write_results.py` from the files in `docs/results/`. No model has been trained
on AVSBench here yet: the recipes' headers name the published numbers of their settings, with their
sources. No number here was measured on a GPU.

A report has a row per condition: the same ground truth under the sound, motion or words that the
condition names ([evaluation.md](evaluation.md#does-the-model-listen)). Without what a model should
use, lower is better. Numbers are of one seed unless a table says otherwise.
"""


def store_report(report: pathlib.Path, name: str, title: str, command: str) -> pathlib.Path:
    """Stores the numbers of a report folder, without paths of the machine.

    Raises:
      InputError: there is no report.json in the folder, it is not one, or the page shows none of
        its protocols.
    """
    try:
        found = json.loads((report / "report.json").read_text(encoding="utf-8"))
        content = {
            "title": title,
            "command": command,
            "facts": {key: found["facts"][key] for key in FACTS if key in found["facts"]},
            "scores": found["scores"],
        }
        protocols = {name for numbers in content["scores"].values() for name in numbers}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{report}: no report.json of an evaluation ({error})") from error
    if not protocols & PROTOCOLS.keys():
        raise InputError(f"{report}: the page shows none of its protocols, {sorted(protocols)}")
    return _store(name, content)


def store_table(
    table: pathlib.Path, name: str, title: str, command: str, machine: str
) -> pathlib.Path:
    """Stores a table in csv, whose first line is the header.

    Raises:
      InputError: there is no such table, or it has no rows.
    """
    try:
        with open(table, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{table}: no table in csv ({error})") from error
    if not rows:
        raise InputError(f"{table}: it has no rows")
    content = {"title": title, "command": command, "machine": machine}
    return _store(name, content | {"header": header, "rows": rows})


def _store(name: str, content: Mapping[str, Any]) -> pathlib.Path:
    path = ROOT / "docs" / "results" / f"{name}.json"
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """The page of all stored results."""
    titles = [result["title"] for result in results]
    contents = [f"- [{title}](#{_anchor(title)})" for title in titles]
    return "\n".join([INTRODUCTION, *contents, "", *map(_render_one, results)])


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _render_one(result: Mapping[str, Any]) -> str:
    lines = [f"## {result['title']}", "", f"    {result['command']}", ""]
    if "scores" in result:
        header, rows = _report_rows(result["scores"])
        about = ", ".join(f"{key} {value}" for key, value in result["facts"].items())
    else:
        header, rows, about = result["header"], result["rows"], result["machine"]
    lines += [f"{about}.", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([*lines, ""])


def _report_rows(scores: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Measures in percent, a row per condition."""
    found = {name for numbers in scores.values() for name in numbers}
    shown = [(name, m) for name, both in PROTOCOLS.items() if name in found for m in both]
    header = ["condition", *(f"{name} {m}, %" for name, m in shown)]
    rows = []
    for condition, numbers in scores.items():
        values = [numbers.get(name, {}).get(m) for name, m in shown]
        cells = ["" if value is None else f"{100 * value:.2f}" for value in values]
        rows.append([condition.replace("_", " "), *cells])
    return header, rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the flags, stores or writes; returns the exit status."""
    parser = FlagParser(description=__doc__)
    jobs = parser.add_subparsers(dest="job")
    add = jobs.add_parser("add", help="store a report, then write the page")
    add.add_argument("--report", required=True, help="folder that an evaluation wrote")
    table = jobs.add_parser("table", help="store a table, then write the page")
    table.add_argument("--csv", required=True, help="file with a header")
    table.add_argument("--machine", required=True, help="where and of what the numbers are")
    for job in (add, table):
        for flag, text in (
            ("name", "of the stored file; files are shown in the order of their names"),
            ("title", "heading on the page"),
            ("command", "how it was made"),
        ):
            job.add_argument(f"--{flag}", required=True, help=text)
    args = parser.parse_args(argv)
    try:
        if args.job == "add":
            report = pathlib.Path(args.report).expanduser()
            store_report(report, args.name, args.title, args.command)
        elif args.job == "table":
            path = pathlib.Path(args.csv).expanduser()
            store_table(path, args.name, args.title, args.command, args.machine)
        files = sorted((ROOT / "docs" / "results").glob("*.json"))
        results = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        write_atomically(ROOT / "docs" / "results.md", render(results))
    except (InputError, OSError) as error:
        print(f"write_results: {error}", file=sys.stderr)
        return 1
    print(f"docs/results.md: {len(results)} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())

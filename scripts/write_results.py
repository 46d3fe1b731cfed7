"""Writes docs/results.md from what docs/results/ stores, and stores reports there.

  python scripts/write_results.py add --report=runs/s4_ama/evaluation/NAME --name=demo_s4_ama_seed0
      --title="S4 + AMA, demo, seed 0" --command="./scripts/demo.sh"
  python scripts/write_results.py

A stored result is a JSON file: either a report (the numbers of every condition and protocol, and
what was scored), or a table with a title, a command, the machine, a header and rows. Numbers are
never typed into the page.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.files import write_atomically
from avs_jax.spec import InputError

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
)
OF_MASKS, OF_WINDOWS = ("mIoU", "f_beta"), ("R1@0.5", "mAP")
OF_PAIRS, OF_CLASSES = ("R@1", "mAP"), ("top-1", "F1")
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
}
INTRODUCTION = """# Results

Written by `scripts/write_results.py` from the files in `docs/results/`. No model has been trained
on AVSBench here yet: the recipes' headers name the published numbers of their settings, with their
sources. No number here was measured on a GPU.
"""


def store_report(report: pathlib.Path, name: str, title: str, command: str) -> pathlib.Path:
    """Stores the numbers of a report folder, without paths of the machine.

    Raises:
      InputError: there is no report.json in the folder, or it is not one.
    """
    try:
        found = json.loads((report / "report.json").read_text(encoding="utf-8"))
        content = {
            "title": title,
            "command": command,
            "facts": {key: found["facts"][key] for key in FACTS if key in found["facts"]},
            "scores": found["scores"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{report}: no report.json of an evaluation ({error})") from error
    path = ROOT / "docs" / "results" / f"{name}.json"
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return path


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """The page of all stored results."""
    return "\n".join([INTRODUCTION, *(_render_one(result) for result in results)])


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
    """Measures in percent, a row per condition, two columns per protocol."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    jobs = parser.add_subparsers(dest="job")
    add = jobs.add_parser("add", help="store a report, then write the page")
    for flag, text in (
        ("report", "folder that an evaluation wrote"),
        ("name", "of the stored file; files are shown in the order of their names"),
        ("title", "heading on the page"),
        ("command", "how it was made"),
    ):
        add.add_argument(f"--{flag}", required=True, help=text)
    args = parser.parse_args(argv)
    try:
        if args.job == "add":
            report = pathlib.Path(args.report).expanduser()
            store_report(report, args.name, args.title, args.command)
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

"""Trains variants of a recipe with several seeds and compares them with statistics.

  python scripts/ablate.py --output=DIR --seeds=0,1,2
      --variant="vct --config=configs/s4_vct.py:demo"
      --variant="ama --config=configs/s4_ama.py:demo"
      --variant="ama_zeros --config=configs/s4_ama.py:demo --config.data.motion.first_frame=zeros"
      [--measure="avsbench(batch=1)/mIoU" ...] [--config.train.steps=800 ...]

A variant is a name and the flags of avs_jax.main that make it; further --config flags apply to all
variants. Each variant is trained with each seed (so runs with the same seed see the same clips in
the same order) in a process of its own, in DIR/VARIANT-seedN, with the output in
DIR/VARIANT-seedN.log. In a variant's flags, {seed} is the seed of the run, as in
--config.train.init_from=S4/vct-seed{seed}. Each run ends in the report of its best checkpoint. From
the reports:

  table.md, .csv, .tex   mean and deviation over seeds, and against the baseline (the first variant)
                         the difference, its intervals over seeds and over clips, p values
  numbers.json           the number of every run

With --condition=NAME, the numbers are those under a control of the evaluation, and the files are
table_NAME.md and so on.
The sign-flip test's p has a floor that depends on the number of seeds; it is printed beside p. Runs
that were scored on different data are refused. Run the same command again to resume: finished runs
are kept. --train=no only makes the tables, with dashes where runs are missing.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from avs_jax.files import is_leftover, write_atomically
from avs_jax.flag_style import FlagParser
from avs_jax.progress import tracked
from avs_jax.results import ablation
from avs_jax.results.statistics import MAX_RUNS
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.spec import TRUE_AUDIO, InputError, nearest
from avs_jax.stopping import sigterm_as_interrupt, stop_status
from avs_jax.tasks import make_task

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEASURES = ("avsbench(batch=1)/mIoU", "look_alikes/right_source")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and compares; returns the exit status, 1 where a run failed."""
    args, overrides = _parser().parse_known_args(argv)
    try:
        with sigterm_as_interrupt():
            return run(args, overrides)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        line, status = stop_status(error)
        print(f"{line}; the same command resumes", file=sys.stderr)
        return status


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """`main` after parsing, with exceptions."""
    variants = read_variants(args.variant, overrides)
    seeds = _read_seeds(args.seeds)
    if args.jobs < 1:
        raise InputError(f"--jobs={args.jobs}: expected at least 1")
    baseline = args.baseline or next(iter(variants))
    if baseline not in variants:
        raise InputError(f"--baseline={baseline}: no such variant; there are {', '.join(variants)}")
    output, failed = pathlib.Path(args.output).expanduser().resolve(), []
    if args.train == "yes":
        failed = train_all(variants, seeds, output, args.split, args.jobs)
        for line in failed:
            print(f"failed: {line}", file=sys.stderr)
    found = [
        (name, seed, folder)
        for name in variants
        for seed in seeds
        if (folder := find_report(output / f"{name}-seed{seed}", args.split)) is not None
    ]
    if not found:
        raise InputError(f"{output}: no run has a report of split {args.split!r}")
    tables = make_tables(variants, baseline, found, args.measure, args.condition)
    suffix = "" if args.condition == TRUE_AUDIO else f"_{args.condition}"
    for ending, text in (
        ("md", ablation.to_markdown(tables)),
        ("csv", ablation.to_csv(tables)),
        ("tex", ablation.to_latex(tables)),
    ):
        write_atomically(output / f"table{suffix}.{ending}", text)
    numbers = {name: {r.variant: dict(r.numbers) for r in rows} for name, rows in tables.items()}
    write_atomically(output / f"numbers{suffix}.json", json.dumps(numbers, indent=1) + "\n")
    print(ablation.to_markdown(tables))
    if failed:
        print(f"{len(failed)} runs failed, see above: the table lacks them", file=sys.stderr)
    return 1 if failed else 0


def read_variants(given: Sequence[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Name -> flags of avs_jax.main; raises InputError for anything else."""
    for flag in overrides:
        if not flag.startswith("--config."):
            raise InputError(f"{flag}: unknown flag; only --config.KEY=VALUE applies to all runs")
    variants: dict[str, list[str]] = {}
    for text in given:
        name, *flags = shlex.split(text)
        if not name.replace("_", "").isalnum() or name in variants:
            raise InputError(
                f"--variant={text!r}: expected a new name of letters, digits and _, then flags"
            )
        if not any(flag.startswith("--config=") for flag in flags):
            raise InputError(f"--variant={text!r}: lacks --config=FILE")
        for flag in flags:
            if not flag.startswith(("--config=", "--config.")) or "=" not in flag:
                raise InputError(f"--variant={text!r}: {flag} is not --config[.KEY]=VALUE")
        variants[name] = [*flags, *overrides]
    return variants


def _read_seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds) or len(seeds) > MAX_RUNS:
        raise InputError(
            f"--seeds={text}: expected different whole numbers joined by commas, {MAX_RUNS} at most"
        )
    return seeds


# ---- training ----


def train_all(
    variants: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    output: pathlib.Path,
    split: str,
    jobs: int,
) -> list[str]:
    """Trains what has no report yet, `jobs` runs at a time, seed by seed.

    Returns:
      a line per run that failed.
    """
    waiting = []
    for seed in seeds:
        for name, flags in variants.items():
            workdir = output / f"{name}-seed{seed}"
            _check_flags(workdir, flags)
            if find_report(workdir, split) is None:
                own = [flag.replace("{seed}", str(seed)) for flag in flags]
                waiting.append((workdir, [*own, f"--config.seed={seed}"]))
    running: list[subprocess.Popen] = []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:  # the first run starts while the others are submitted
            futures = [
                pool.submit(_train, workdir, flags, split, running) for workdir, flags in waiting
            ]
            done = concurrent.futures.as_completed(futures)
            lines = [future.result() for future in tracked(done, "runs", len(futures), "run")]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()  # it saves its step and ends
            raise
    return [line for line in lines if line]


def _check_flags(workdir: pathlib.Path, flags: Sequence[str]) -> None:
    """Notes the flags of a run, or compares them with those of an earlier start that got so far."""
    path = workdir.with_name(f"{workdir.name}.flags.json")
    if not path.exists() or not workdir.exists():
        write_atomically(path, json.dumps(list(flags)) + "\n")
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored != list(flags):
        raise InputError(
            f"{workdir.name} was started with {shlex.join(stored)}, not with {shlex.join(flags)}: "
            "choose another name or another --output"
        )


def _train(
    workdir: pathlib.Path, flags: Sequence[str], split: str, running: list[subprocess.Popen]
) -> str:
    """Runs the training program, in `running` meanwhile; returns what went wrong, or ""."""
    command = [sys.executable, "-m", "avs_jax.main", *flags, f"--workdir={workdir}"]
    log = workdir.with_name(f"{workdir.name}.log")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}  # from any folder
    print(f"{workdir.name}: {shlex.join(command)}", file=sys.stderr, flush=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        running.append(process)
        code = process.wait()
        running.remove(process)
    if code == 0 and find_report(workdir, split) is not None:
        return ""
    if code == 0:  # as it ends when it is asked to stop
        return f"{workdir.name}: stopped without a report of split {split!r}; see {log}"
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"{workdir.name}: exit status {code}, see {log}: {' '.join(last)}"


# ---- reports ----


def find_report(workdir: pathlib.Path, split: str) -> pathlib.Path | None:
    """The folder of a run's report on a split: of the parameters' average, if there is one.

    Raises:
      InputError: there are several.
    """
    for weights in ("ema", "raw"):
        found = sorted(
            path
            for path in workdir.glob(f"evaluation/*_{split}_{weights}_*/report.json")
            if not is_leftover(path.parent)
        )
        if len(found) > 1:
            names = ", ".join(path.parent.name for path in found)
            raise InputError(f"{workdir}: several reports of split {split!r}: {names}")
        if found:
            return found[0].parent
    return None


def make_tables(
    variants: Mapping[str, Any],
    baseline: str,
    found: Sequence[tuple[str, int, pathlib.Path]],
    measures: Sequence[str],
    condition: str = TRUE_AUDIO,
) -> dict[str, list[ablation.Row]]:
    """Measure -> rows, from the reports of (variant, seed, folder).

    Without `measures`, those of MEASURES that the reports have, or else the task's own.
    """
    config = Checkpoint.find(found[0][2].parent.parent).config
    task = make_task(config)
    kind = type(task.meter({}).table())
    reports = [json.loads((folder / "report.json").read_text()) for *_, folder in found]
    counts = [
        kind.load(_counts_file(folder, condition, r))
        for (*_, folder), r in zip(found, reports, strict=True)
    ]
    known = ablation.flatten(reports[0]["scores"][condition])
    chosen = list(measures) or [name for name in MEASURES if name in known]
    chosen = chosen or [next(name for name in known if name.endswith(f"/{task.measure}"))]
    runs: dict[str, list[ablation.Run]] = {measure: [] for measure in chosen}
    for (variant, seed, folder), report, table in zip(found, reports, counts, strict=True):
        numbers = ablation.flatten(report["scores"][condition])
        for measure in chosen:
            if numbers.get(measure) is None:
                near = ", ".join(nearest(measure, list(numbers)) or numbers)
                raise InputError(f"{folder}: no measure {measure!r}; nearest: {near}")
        names, scores = ablation.clip_scores(table, task.protocols, chosen, task.batches(table))
        for measure, own in runs.items():
            number = numbers[measure]
            own.append(ablation.Run(variant, seed, report["facts"], number, names, scores[measure]))
    return {
        measure: ablation.make_rows(list(variants), baseline, own) for measure, own in runs.items()
    }


def _counts_file(folder: pathlib.Path, condition: str, report: Mapping[str, Any]) -> pathlib.Path:
    if condition not in report["scores"]:
        raise InputError(
            f"{folder}: no condition {condition!r}; there are {', '.join(report['scores'])}"
        )
    is_first = condition == next(iter(report["scores"]))
    return folder / ("counts.npz" if is_first else f"counts_{condition}.npz")


def _parser() -> FlagParser:
    parser = FlagParser(description=__doc__)

    def add(name, text, **options):
        parser.add_argument(f"--{name}", help=text, **options)

    add("output", "folder of the runs and tables", required=True)
    add("variant", "NAME --config=FILE [--config.KEY=VALUE ...]", action="append", required=True)
    add("seeds", "joined by commas (%(default)s)", default="0,1,2,3,4")
    add("baseline", "variant that the others are compared with; default: the first")
    add("split", "that is compared (%(default)s)", default="test")
    add("condition", "of the reports (%(default)s)", default=TRUE_AUDIO)
    add("measure", "PROTOCOL/MEASURE of the reports, any number", action="append", default=[])
    add("jobs", "runs at the same time (%(default)s)", type=int, default=1)
    add("train", "no: only make the tables", choices=("yes", "no"), default="yes")
    return parser


if __name__ == "__main__":
    sys.exit(main())

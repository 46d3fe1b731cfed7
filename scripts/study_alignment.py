"""What does alignment give segmentation? A study on generated MS3-like clips, step by step.

  python scripts/study_alignment.py [--output=demo/study_alignment] [--seeds=0,1,2,3,4] [--jobs=1]
      [--steps=clips,align,maps,runs,page] [--align.KEY=VALUE ...] [--config.KEY=VALUE ...]
  python scripts/study_alignment.py --output=try --variant=tiny --clips=16,4,6 --seeds=0

  clips  500 clips of one kind of object each, whose masks are not read (pairs); and 300 MS3-like
         clips (masks; MS3 has 296); 60 to validate and 100 to test of each; their records
  align  configs/align_swin.py:demo on the pairs, for each seed
  maps   where these models hear a sound, without training: scripts/score_maps.py, with the clip's
         own sound, another clip's and silence
  runs   configs/ms3_vct.py:demo on the masks, for each seed: from random weights (scratch), and
         from the alignment of the same seed the sound's tower (sound), the frames' (frames) or both
  page   the tables into docs/results and docs/results.md

What exists in OUTPUT is kept: after an interruption, run the same command again to resume. Each
step only reads the output of the steps before it: on a machine with a GPU, the records, which are
OUTPUT/pairs/tfds and OUTPUT/masks/tfds, are enough for --steps=align,maps,runs. OUTPUT is relative
to the root of the project. --align.KEY=VALUE is a configuration key of the alignment,
--config.KEY=VALUE one of the segmentation. --jobs models are trained at the same time.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPLITS = ("train", "val", "test")


class Clips(NamedTuple):
    """Generated clips: numbers of each of SPLITS, the flags that make them, their dataset."""

    numbers: str
    flags: tuple[str, ...]
    dataset: str


CLIPS = {
    "pairs": Clips("500,60,100", ("--setting=twins", "--kind=still"), "avsbench_s4"),
    "masks": Clips("300,60,100", ("--setting=ms3",), "avsbench_ms3"),
}
ALIGN, SEGMENT = "configs/align_swin.py", "configs/ms3_vct.py"
STARTS = {  # variant -> parts that start from the alignment of the same seed
    "scratch": (),
    "sound": ("audio_backbone",),
    "frames": ("backbone",),
    "both": ("audio_backbone", "backbone"),
}
MEASURES = ("--measure=stream/mIoU", "--measure=stream/f_beta")
SEEDS, VARIANT = "0,1,2,3,4", "demo"
TABLES = {  # name in docs/results -> table below OUTPUT, title
    "92_study_alignment_maps": (
        "maps/table.csv",
        "Where aligned sound and frames meet: a map that no mask has trained",
    ),
    "93_study_alignment_runs": (
        "runs/table.csv",
        "Segmentation from aligned towers and from random weights",
    ),
    "94_study_alignment_swapped": (
        "runs/table_swapped_audio.csv",
        "The same runs with the sound of another clip",
    ),
}

Command = list[str]  # arguments of Python


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps in their order; returns the exit status."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    steps = args.steps.split(",")
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        parser.error(f"--steps: {unknown[0]!r} is none of {', '.join(STEPS)}")
    unknown = [flag for flag in more if not flag.startswith(("--align.", "--config."))]
    if unknown:
        parser.error(f"unknown flag {unknown[0]}")
    args.align = [f.replace("--align.", "--config.", 1) for f in more if f.startswith("--align.")]
    args.segment = [flag for flag in more if flag.startswith("--config.")]
    args.more = more
    for step in (name for name in STEPS if name in steps):
        print(f"\n== {step}", flush=True)
        for command in STEPS[step](args):
            try:
                status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
            except KeyboardInterrupt:
                status = 130
            if status:
                print(f"step {step} stopped; run the same command to resume", file=sys.stderr)
                return status
    return 0


def make_clips(args: argparse.Namespace) -> list[Command]:
    """Clips and records, except where records were brought along without their clips."""
    commands = []
    for name, kind in CLIPS.items():
        clips, records = folder(args, name, "clips"), folder(args, name, "tfds")
        if (ROOT / records / kind.dataset).is_dir() and not (ROOT / clips).exists():
            continue
        counts = zip(SPLITS, (args.clips or kind.numbers).split(","), strict=True)
        numbers = [f"--{split}={count}" for split, count in counts]
        commands += [
            ["scripts/make_clips.py", *kind.flags, f"--output={clips}", *numbers],
            ["scripts/build_dataset.py", f"--dataset={kind.dataset}", f"--manual_dir={clips}"]
            + [f"--data_dir={records}"],
        ]
    return commands


def align(args: argparse.Namespace) -> list[Command]:
    recipe, data_dir = f"{ALIGN}:{args.variant}", folder(args, "pairs", "tfds")
    return [[*ablation(args, "align"), variant_flag("align", recipe, data_dir), *args.align]]


def score_maps(args: argparse.Namespace) -> list[Command]:
    data_dir, output = folder(args, "masks", "tfds"), folder(args, "maps")
    runs = [f"--checkpoint={aligned(args, seed)}" for seed in args.seeds.split(",")]
    flags = [f"--config={SEGMENT}:{args.variant}", f"--config.data.data_dir={data_dir}"]
    flags += ["--config.evaluate.audio=silence", f"--output={output}", *MEASURES]
    return [["scripts/score_maps.py", *flags, *runs]]


def train(args: argparse.Namespace) -> list[Command]:
    """Training and the table; then the table of the same runs with another clip's sound."""
    start, data_dir = aligned(args, "{seed}"), folder(args, "masks", "tfds")
    variants = [
        variant_flag(name, f"{SEGMENT}:{args.variant}", data_dir, dict.fromkeys(parts, start))
        for name, parts in STARTS.items()
    ]
    command = [*ablation(args, "runs"), *MEASURES, *variants, *args.segment]
    return [command, [*command, "--train=no", "--condition=swapped_audio"]]


def write_page(args: argparse.Namespace) -> list[Command]:
    counts = {name: (args.clips or kind.numbers).split(",") for name, kind in CLIPS.items()}
    about = (
        f"Generated clips, seeds {args.seeds.replace(',', ', ')}: "
        f"{ALIGN}:{args.variant} on {counts['pairs'][0]} of one kind of object each, "
        f"{SEGMENT}:{args.variant} on {counts['masks'][0]} MS3-like ones, scored on "
        f"{counts['masks'][2]} of those for tests"
    )
    shown = [] if args.seeds == SEEDS else [f"--seeds={args.seeds}"]
    shown += [f"--clips={args.clips}"] if args.clips else []
    shown += [] if args.variant == VARIANT else [f"--variant={args.variant}"]
    command = shlex.join(["python", "scripts/study_alignment.py", *shown, *args.more])
    return [
        ["scripts/write_results.py", "table", f"--csv={folder(args, table)}", f"--name={name}"]
        + [f"--title={title}", f"--command={command}", f"--machine={about}"]
        for name, (table, title) in TABLES.items()
    ]


STEPS = {
    "clips": make_clips,
    "align": align,
    "maps": score_maps,
    "runs": train,
    "page": write_page,
}


def folder(args: argparse.Namespace, *names: str) -> str:
    """A path below OUTPUT."""
    return str(pathlib.Path(args.output).expanduser().joinpath(*names))


def aligned(args: argparse.Namespace, seed: str) -> str:
    """The run of the alignment with a seed."""
    return folder(args, "align", f"align-seed{seed}")


def ablation(args: argparse.Namespace, step: str) -> Command:
    flags = [f"--output={folder(args, step)}", f"--seeds={args.seeds}", f"--jobs={args.jobs}"]
    return ["scripts/ablate.py", *flags]


def variant_flag(name: str, recipe: str, data_dir: str, init: dict[str, str] | None = None) -> str:
    """A variant of ablate.py."""
    flags = [f"--config={recipe}", f"--config.data.data_dir={data_dir}"]
    flags += [f"--config.init.{part}={path}" for part, path in (init or {}).items()]
    return f"--variant={shlex.join([name, *flags])}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--output", default="demo/study_alignment", help="folder of everything (%(default)s)")
    add("--seeds", default=SEEDS, help="joined by commas (%(default)s)")
    add("--jobs", default="1", help="models trained at the same time (%(default)s)")
    add("--steps", default=",".join(STEPS), help="joined by commas (%(default)s)")
    text = "of both recipes (%(default)s); tiny tries all steps and learns nothing"
    add("--variant", default=VARIANT, choices=("demo", "tiny"), help=text)
    add("--clips", help="numbers of train, val and test clips, of pairs and masks alike")
    return parser


if __name__ == "__main__":
    sys.exit(main())

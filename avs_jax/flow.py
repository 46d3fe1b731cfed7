"""Optical flow of a dataset's frames, one file per frame, for the dataset's builder.

  avs-jax flow --dataset=s4 --root=Single-source --output=flow
      --model=raft_large --weights=checkpoints/raft_large [--source=video]
  avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source --flow_dir=flow
      --data_dir=DIR

It writes OUTPUT/s4/{split}/{category}/{name}/flow_{t:04d}.npy (ms3, avss: without category),
float16:

  RAFT        [H, W, 2], (u, v) in px of these frames, per second
  difference  [H, W], mean of |frame - previous| over RGB, divided by its maximum

Frames keep their size, or are squashed to --size px (avss: 384, because its clips vary in size).
Vectors are in px of the frames that are estimated, and readers scale them.

--source=frames: from frame t-1 to frame t, which are a second apart; file 0 is zeros.
--source=video: to the video frame that shows dataset frame t (second t + 15/16), from the video
frame just before it, divided by the time between them; file 0 is no exception.
--source=track: one file per clip instead, track.npy: the motion of the whole video on a grid of
24 x 24 cells, --rate times per second (data/motion_track.py), for models with synchrony. Frames are
squashed to --size px (96), and --model=lucas_kanade needs no weights. It needs a folder of its own:

  avs-jax flow --dataset=s4 --root=Single-source --output=tracks --source=track
      --model=lucas_kanade
  avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source
      --track_dir=tracks --data_dir=DIR

Run it again to resume: a file counts only if it is whole, of the right shape and finite, and any
other is replaced.
OUTPUT/s4/flow.json says how the files were made; other settings need another folder. A clip that
cannot be read is skipped as a whole, and listed at the end.

Source of layout and direction: the motion input of VCT + AMA. Departures: vectors instead of
magnitudes divided by their maximum; flow within the video.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from avs_jax.data import motion_track
from avs_jax.data.avsbench_folders import SETTINGS
from avs_jax.data.flow_files import SETTINGS_FILE, FlowError, list_clips, read_settings
from avs_jax.files import write_atomically
from avs_jax.flag_style import FlagParser
from avs_jax.inference.clip_jobs import Outcome
from avs_jax.inference.dataset_flow import difference, make_flow
from avs_jax.inference.dataset_tracks import make_tracks
from avs_jax.inference.flow_estimator import FlowEstimator
from avs_jax.models.flow.raft import VARIANTS
from avs_jax.runtime.command_line import quiet_libraries
from avs_jax.runtime.compilation_cache import announce_compilation, use_compilation_cache
from avs_jax.runtime.lock import locked
from avs_jax.spec import InputError, differences
from avs_jax.stopping import run_as_program

DIFFERENCE, TRACK = "difference", "track"
MODELS = (*sorted(VARIANTS), DIFFERENCE)
SOURCES = ("frames", "video", TRACK)
DEFAULTS = {"iterations": 12, "dtype": "float32", "rate": 25.0}  # where they are read


def check_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Notes in a folder how its files are made, or compares with the note of an earlier run.

    Raises:
      InputError: they are made in another way; names what differs.
    """
    stored = read_settings(folder)
    if not stored:
        write_atomically(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
        return
    differing = differences(stored, settings)
    if differing:
        raise FlowError(
            f"{folder} holds flow made in another way ({'; '.join(differing)}): "
            "choose another --output"
        )


# ---- command line ----


def main(argv: Sequence[str] | None = None) -> int:
    """Makes flow; returns the exit status, 1 where a clip failed."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    try:
        outcome = run(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    print(
        f"{args.output}/{args.dataset}: {outcome.written} files written, "
        f"{outcome.kept} clips were complete, {len(outcome.failed)} failed"
    )
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if outcome.failed else 0


def run(args: argparse.Namespace) -> Outcome:
    """`main`, with exceptions."""
    is_track, needs_weights = args.source == TRACK, args.model in VARIANTS
    reads = {"iterations": needs_weights, "dtype": needs_weights, "rate": is_track}
    for name, is_read in {**reads, "videos": args.source != "frames"}.items():
        if getattr(args, name) is None:
            setattr(args, name, DEFAULTS.get(name))
        elif not is_read:
            how = f"--source={args.source} --model={args.model}"
            raise FlowError(f"--{name} is not read with {how}")
    clips = list_clips(args.dataset, args.root, args.layout)
    if args.videos:
        videos = pathlib.Path(args.videos).expanduser()
        clips = [clip._replace(video=videos / f"{clip.name}.mp4") for clip in clips]
    elif args.source != "frames" and any(clip.video is None for clip in clips):
        raise FlowError(
            f"{args.dataset} comes without videos: --source={args.source} needs --videos"
        )
    if args.size is not None and args.size < 1:
        raise FlowError(f"--size={args.size}: expected at least 1")
    known = motion_track.MODELS if is_track else MODELS
    if args.model not in known:
        raise FlowError(f"--model={args.model} with --source={args.source}: one of {known}")
    side = args.size or (motion_track.SIDE if is_track else SETTINGS[args.dataset].flow_side)
    if needs_weights == (args.weights is None):
        what = "needs" if needs_weights else "has no"
        raise FlowError(f"--model={args.model} {what} --weights (avs-jax convert --source=raft)")
    for name in ("batch_size", "workers", "iterations"):
        if getattr(args, name) < 1:
            raise FlowError(f"--{name}={getattr(args, name)}: expected at least 1")
    settings = {"model": args.model, "source": args.source, "dataset": args.dataset}
    settings |= {} if side is None else {"size": side}
    estimate = motion_track.WITHOUT_WEIGHTS.get(args.model) if is_track else difference
    if needs_weights:
        use_compilation_cache()
        announce_compilation("RAFT, for each new size of frames")
        estimate = FlowEstimator(
            args.model, args.weights, args.batch_size, args.iterations, args.dtype
        )
        settings |= {"iterations": args.iterations, "weights": estimate.fingerprint()}
        settings |= {"unit": "px per second", "dtype": args.dtype}
    if is_track:
        motion_track.check_rate("--rate", args.rate)
        settings |= {"rate": args.rate, "unit": "frame sizes per second"}
    output = pathlib.Path(args.output).expanduser() / args.dataset
    with locked(output, "flow"):
        is_new = not (output / SETTINGS_FILE).exists()
        check_settings(output, settings)
        try:
            if is_track:
                workers = 1 if needs_weights else args.workers
                return make_tracks(
                    clips, output, estimate, args.rate, args.batch_size, _say, side, workers
                )
            return make_flow(
                clips, output, args.source, estimate, needs_weights, args.batch_size, _say, side
            )
        finally:
            if is_new and not any(output.rglob("*.npy")):
                (output / SETTINGS_FILE).unlink()  # the corrected command has others


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> FlagParser:
    parser = FlagParser(prog="avs-jax flow", description=__doc__)

    def add(name, text, **options):
        parser.add_argument(f"--{name}", help=text, **options)

    add("dataset", "what is in the root", choices=sorted(SETTINGS), required=True)
    add("root", "folder of the dataset", required=True)
    add("output", "the flow root", required=True)
    add(
        "source",
        "frames a second apart, neighbors in the video, or all of the video",
        choices=SOURCES,
        default="frames",
    )
    models = sorted({*MODELS, *motion_track.MODELS})
    add("model", "estimator (%(default)s)", choices=models, default="raft_large")
    add("weights", "of RAFT, as avs-jax convert --source=raft writes them")
    add("layout", "of s4 and ms3: object224 or vct384, where the root holds both", default="")
    add("size", "squash frames to this many px per side first (avss: 384)", type=int)
    add("rate", f"samples of a track per second ({DEFAULTS['rate']})", type=float)
    add("videos", "folder of NAME.mp4, instead of the dataset's own")
    add("batch_size", "pairs at once (%(default)s)", type=int, default=4)
    add(
        "workers",
        "processes for tracks without weights (%(default)s, the processors here)",
        type=int,
        default=os.cpu_count() or 1,
    )
    add("iterations", f"updates of RAFT's flow ({DEFAULTS['iterations']})", type=int)
    add("dtype", f"of RAFT ({DEFAULTS['dtype']})", choices=("float32", "bfloat16"))
    return parser


if __name__ == "__main__":
    run_as_program(main)

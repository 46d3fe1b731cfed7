"""Predicts masks on Ref-DAVIS17, MeViS, ReVOS or Ref-YouTube-VOS with a checkpoint of task `refer`.

  python scripts/predict_rvos.py --checkpoint=runs/refer --set=mevis --root=FOLDER --output=DIR
      [--split=valid_u] [--config.evaluate.presence_threshold=0.8]

DIR/{video}/{expression id}/{frame}.png is 255 on what the expression means: the form that
scripts/evaluate_rvos.py --predictions=DIR reads, and the servers for splits without public masks.
The sets have no sound, so the model gets silence. DIR/{video}/results.json has presence and area of
every mask, DIR/manifest.json which videos are done, failed (and why) and open.

The same command resumes: videos that are done stay, those that failed are tried again. The exit
status is 1 if any failed.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from flax.traverse_util import flatten_dict

from avs_jax.data.rvos_folders import Expression, VideoSet
from avs_jax.inference import many_videos
from avs_jax.inference.expression_frames import predict_frames, tokens_of
from avs_jax.inference.predictor import Predictor
from avs_jax.predict import make_predictor
from avs_jax.results.refavs import THRESHOLD
from avs_jax.runtime.command_line import CommandLine, define_strings, exit_status, parse
from avs_jax.runtime.lock import locked
from avs_jax.spec import InputError
from avs_jax.stopping import run_as_program, sigterm_as_interrupt
from avs_jax.task import Task
from avs_jax.tasks.refer import make_score

NEEDED = ("checkpoint", "set", "root", "output")


def main(argv: Sequence[str]) -> int:
    """Predicts; returns the exit status."""
    parsing = (argv, _define_flags, __doc__, NEEDED)
    return exit_status(lambda: run(parse(*parsing, needs_config=False)))


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    values = {flag: line.values[flag].value for flag in (*NEEDED, "split")}
    root, output = (pathlib.Path(values[flag]).expanduser() for flag in ("root", "output"))
    videos = VideoSet(values["set"], root, values["split"] or "")
    asked = find_asked(videos)
    predictor = make_predictor(line)
    if predictor.config.get("task", "segment") != "refer":
        raise InputError(f"{predictor.checkpoint.directory} is no model of task 'refer'")
    announce_tokens(predictor.task, videos.expressions)
    settings = {
        "checkpoint": str(predictor.checkpoint.directory.resolve()),
        "--set": videos.name,
        "--split": videos.split,
        **flatten_dict({"config": predictor.config.to_dict()}, sep="."),
    }
    with locked(output, "predict_rvos"):
        _predict(predictor, videos, asked, output, settings)


def find_asked(videos: VideoSet) -> dict[str, list[Expression]]:
    """Video -> its expressions, where there are any; says how many videos have none.

    Raises:
      InputError: nothing is asked, or the frames of a video are not there.
    """
    asked = {video: mine for video, mine in videos.of_videos().items() if mine}
    without = len(videos.frames) - len(asked)
    if without:
        print(f"note: {without} videos have no expression and get no masks", file=sys.stderr)
    if not asked:
        raise InputError(f"{videos.root}, split {videos.split!r}: no expressions")
    missing = [video for video in asked if not videos.folder(video).is_dir()]
    if missing:
        raise InputError(
            f"{videos.folder(missing[0])}: no such folder; frames of {len(missing)} of "
            f"{len(asked)} videos are missing"
        )
    return asked


def announce_tokens(task: Task, expressions: Sequence[Expression]) -> None:
    """Says how many expressions the model does not read as a whole."""
    tokens = [tokens_of(task, expression) for expression in expressions]
    for count, what in (
        (
            sum(token.is_cut for token in tokens),
            f"lose their end after {task.rows.sizes['N']} tokens",
        ),
        (sum(token.num_pieces == 0 for token in tokens), "are empty"),
    ):
        if count:
            print(f"note: {count} of {len(tokens)} expressions {what}", file=sys.stderr)


def _predict(
    predictor: Predictor,
    videos: VideoSet,
    asked: dict[str, list[Expression]],
    output: pathlib.Path,
    settings: dict,
) -> None:
    """Predicts the open videos; InputError if any failed."""
    folders = {video: videos.folder(video) for video in asked}
    by_output = {output / video: mine for video, mine in asked.items()}
    notes = [output / f"{video}{many_videos.FAILED}" for video in asked]
    score = make_score(predictor.config)
    many_videos.check_settings(output, settings)
    for note in notes:
        note.unlink(missing_ok=True)
    try:
        with sigterm_as_interrupt():
            summary = many_videos.predict_many(
                lambda _, folder: predict_frames(
                    predictor, videos, by_output[folder], folder, score, THRESHOLD
                ),
                folders,
                output,
                settings,
                many_videos.Shard(0, 1),
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )
    except KeyboardInterrupt:
        print(f"stopped: the same command resumes; see {output}/manifest.json", file=sys.stderr)
        raise
    print(f"{output}/manifest.json: {summary}")
    failed = [note for note in notes if note.is_file()]
    if failed:
        raise InputError(f"{len(failed)} of {len(asked)} videos failed, the first: {failed[0]}")


def _define_flags(values: flags.FlagValues) -> None:
    define_strings(
        values,
        {
            "checkpoint": "a run of task `refer`, one of its steps, or converted weights",
            "set": "davis17, mevis, revos or ytvos",
            "root": "the set's folder",
            "split": "default: the one with public masks",
            "output": "folder to write",
        },
    )


if __name__ == "__main__":
    run_as_program(main, sys.argv)

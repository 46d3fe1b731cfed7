"""Prediction on your own videos, or on arrays.

  avs-jax predict --checkpoint=DIR [--config=configs/s4_ama.py]
      --video=clip.mp4 [--text="the violin"] --output=DIR
  or  --videos='DIR/**/*.mp4' [--shard=I/N] --output=DIR
  or  --arrays=in.npz --output=out.npz
  or  --search=INDEX.npz --audio=x.wav | --image=x.jpg | --text="..." | --video=x.mp4 --output=DIR

Task, model and preprocessing come from the checkpoint; --config.any.key=value overrides them. The
--output folder of a video or a search is replaced as a whole: it must be new, empty, or hold
earlier results, and none of the inputs.

--videos takes every file that matches, loads the model once and compiles it once per frame size.
--output gets a folder per video, and manifest.json says which are done, failed (and why) and open.
The same command resumes; --shard=I/N, with I from 0 to N - 1, takes every N-th video, so N
processes on one or several machines share the work and the folder.

Arrays have the names of the task's input fields, results those of the model's outputs.
--arrays without a file lists the fields of --checkpoint or --config; so does --arrays --help.

{tasks}
Compiled programs are cached in ~/.cache/avs_jax, so only the first start compiles.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict

from avs_jax.array_files import MAX_BYTES, read_npz
from avs_jax.files import atomic_file
from avs_jax.inference import many_videos
from avs_jax.inference.predictor import Predictor
from avs_jax.output_folder import check_output_folder
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import (
    CommandLine,
    UsageError,
    checkpoint_config,
    exit_status,
    parse,
)
from avs_jax.runtime.compilation_cache import announce_compilation, use_compilation_cache
from avs_jax.runtime.lock import locked
from avs_jax.runtime.memory import parse_bytes
from avs_jax.stopping import run_as_program, sigterm_as_interrupt
from avs_jax.task import check_arrays, describe_fields
from avs_jax.tasks import make_task, predict_flags, predict_help

MODES = ("search", "video", "videos", "arrays")
QUERY_FLAGS = {"audio": "wav to search for", "image": "image to search for"}
QUERIES = ("audio", "image", "text", "video")  # of --search, one of them
# Flag -> the modes that read it. Other flags of the tasks belong to --video and --videos.
READ_BY = {
    **dict.fromkeys((*QUERY_FLAGS, "approximate"), ("search",)),
    "text": ("video", "videos", "search"),
    "shard": ("videos",),
    "max_size": ("arrays",),
}


def predict_arrays(
    predictor: Predictor, arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Predicts row by row from arrays with the names of the task's input fields.

    Returns:
      the results, and notes on assumed or unused arrays.

    Raises:
      InputError: a wrong name, dtype or shape, a non-finite number, or a checkpoint that does not
        fit.
    """
    checked, _ = check_arrays(arrays, predictor.task.rows)
    inputs, notes = predictor.task.array_inputs(checked)
    return predictor.arrays(inputs), notes


def main(argv: Sequence[str]) -> int:
    """Predicts; returns the exit status."""
    description = __doc__.replace("{tasks}", predict_help())
    argv = [f"{arg}=" if arg in ("--arrays", "-arrays") else arg for arg in argv]
    return exit_status(
        lambda: run(
            parse(argv, _define_flags, description, needs_config=False, more_help=_list_fields)
        )
    )


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    values = line.values
    fields = _list_fields(line) if values.arrays == "" else ""
    if fields:
        print(fields, end="")
        return
    for name in ("checkpoint", "output"):
        if getattr(values, name) is None:
            raise UsageError(f"--{name} is missing; --help lists the flags")
    for name in values:
        if values[name].value in ("", [""]):  # where a variable of the shell is not set
            raise UsageError(f"--{name} is empty")
    mode = _mode(values)
    for name, readers in {**dict.fromkeys(predict_flags(), ("video", "videos")), **READ_BY}.items():
        if values[name].present and mode not in readers:
            raise UsageError(f"--{name} belongs to --{readers[0]}")
    if mode == "search":
        return _search(line)
    known = predict_flags()
    given = {name: values[name].value for name in known if values[name].value is not None}
    for name in given:
        if values.videos and known[name].is_per_video:
            raise UsageError(f"--{name} is about one video: it belongs to --video, not to --videos")
    output = pathlib.Path(values.output).expanduser()
    videos = many_videos.find_videos(values.videos, output) if values.videos else None
    shard = many_videos.Shard.parse(values.shard or "0/1")
    arrays = None
    if values.arrays is not None:
        limit = parse_bytes(values.max_size)
        arrays = read_npz(values.arrays, limit, advice="--max_size raises the limit")
    video = None if values.video is None else pathlib.Path(values.video).expanduser()
    if video is not None and not video.exists():
        raise FileNotFoundError(f"{values.video}: no such file")
    if video is not None:
        _check_output(values)
    predictor = make_predictor(line)
    task = predictor.task
    for name in given:
        if name not in task.predict_flags:
            raise UsageError(f"--{name} is not read by task {task.name!r}")
    if arrays is not None:
        return _run_on_arrays(predictor, arrays, output)
    if task.predict_video is None:
        raise UsageError(f"task {task.name!r} does not predict on videos; --arrays does")
    if videos is not None:
        return _run_on_videos(predictor, videos, shard, output, given)
    with locked(output.parent, f"predict {output.name}", name=f".{output.name}.lock"):
        try:
            lines = task.predict_video(predictor, video, output, **given)
        except KeyboardInterrupt:
            print(f"{output}: nothing was written; the same command starts over", file=sys.stderr)
            raise
    print(*lines, sep="\n")


def _mode(values: flags.FlagValues) -> str:
    """One of MODES; a video may also be the query of a search."""
    given = [name for name in MODES if values[name].present]
    if given in (["search"], ["search", "video"]):
        return "search"
    if len(given) != 1:
        raise UsageError("give --video, --videos or --arrays, one of them, or --search")
    return given[0]


def _run_on_videos(
    predictor: Predictor,
    videos: Mapping[str, pathlib.Path],
    shard: many_videos.Shard,
    output: pathlib.Path,
    given: Mapping[str, Any],
) -> None:
    settings = {
        "checkpoint": str(predictor.checkpoint.directory.resolve()),
        **{f"--{name}": value for name, value in given.items()},
        **flatten_dict({"config": predictor.config.to_dict()}, sep="."),
    }
    share = f"{shard.index}/{shard.count}"
    lock = f".shard_{shard.index}_of_{shard.count}.lock"
    with locked(output, f"predict --shard={share}", name=lock):
        try:
            with sigterm_as_interrupt():
                summary = many_videos.predict_many(
                    lambda file, folder: predictor.task.predict_video(
                        predictor, file, folder, **given
                    ),
                    videos,
                    output,
                    settings,
                    shard,
                    say=lambda line: print(line, file=sys.stderr, flush=True),
                )
        except KeyboardInterrupt:
            print(f"stopped: the same command resumes; see {output}/manifest.json", file=sys.stderr)
            raise
    print(f"{output}/manifest.json: {summary}")


def _run_on_arrays(predictor: Predictor, arrays: Mapping, output: pathlib.Path) -> None:
    results, notes = predict_arrays(predictor, arrays)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    with atomic_file(output, sum(x.nbytes for x in results.values())) as file:
        np.savez(file, **results)
    print(f"{output}: " + ", ".join(f"{name} {x.shape}" for name, x in results.items()))


def _search(line: CommandLine) -> None:
    """Looks one query up in an index."""
    values = line.values
    query = {name: values[name].value for name in QUERIES if values[name].value is not None}
    if len(query) != 1:
        raise UsageError(f"--search takes one of --{', --'.join(QUERIES)}")
    output = _check_output(values)
    predictor = make_predictor(line)
    if predictor.task.search is None:
        raise UsageError(f"task {predictor.task.name!r} has no search, task 'align' does")
    with locked(output.parent, f"predict {output.name}", name=f".{output.name}.lock"):
        lines = predictor.task.search(
            predictor, values.search, output, approximate=values.approximate, **query
        )
    print(*lines, sep="\n")


def _check_output(values: flags.FlagValues) -> pathlib.Path:
    """--output of one video or of a search."""
    files = [name for name, flag in predict_flags().items() if not flag.is_repeated]  # no words
    names = ("checkpoint", "video", "search", *QUERY_FLAGS, *files)
    inputs = [values[name].value for name in names if values[name].value is not None]
    return check_output_folder(values.output, inputs, many_videos.RESULTS)


def make_predictor(line: CommandLine, kind: type[Predictor] = Predictor) -> Predictor:
    """The model of --checkpoint, with the overrides of the command line."""
    checkpoint = Checkpoint.find(line.values.checkpoint)
    config, notes = checkpoint_config(line, checkpoint)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    task = make_task(config)
    use_compilation_cache()
    announce_compilation(f"the model of {checkpoint.directory}, for each new size of frames")
    return kind(task, config, checkpoint)


def _list_fields(line: CommandLine) -> str:
    """The arrays that --arrays reads and writes; "" without it, or without a configuration."""
    config = line.config
    if line.values.arrays is None or not (line.values.checkpoint or config is not None):
        return ""
    if line.values.checkpoint:
        config, _ = checkpoint_config(line, Checkpoint.find(line.values.checkpoint))
    task = make_task(config)
    return (
        f"arrays of task {task.name!r} under {config.name}:\n"
        f"{describe_fields(task.rows.fields)}\n"
        f"results: {', '.join(task.outputs)} and what follows from them\n"
    )


def _define_flags(values: flags.FlagValues) -> None:
    def define(name, text):
        flags.DEFINE_string(name, None, text, flag_values=values)

    define("checkpoint", "a run's working directory, one of its steps, or converted weights")
    define("video", "frames and sound: mp4, mov, webm; with prompts, also a folder of images")
    define("videos", "pattern of files, in quotes: 'DIR/**/*.mp4'")
    define("shard", "I/N: every N-th of --videos, from the I-th on; I from 0 to N - 1")
    define("arrays", ".npz of arrays, instead of a video")
    define("output", "folder (--video, --search) or .npz (--arrays) to write")
    define("search", ".npz of scripts/index.py, instead of a video")
    text = "search with FAISS, in the graphs of scripts/index.py --faiss"
    flags.DEFINE_bool("approximate", False, text, flag_values=values)
    for name, text in QUERY_FLAGS.items():
        define(name, text)
    text = "memory that --arrays may take, such as 64GiB"
    flags.DEFINE_string("max_size", f"{MAX_BYTES >> 30}GiB", text, flag_values=values)
    for name, flag in predict_flags().items():
        if flag.is_repeated:
            flags.DEFINE_multi_string(name, None, flag.text, flag_values=values)
        else:
            define(name, flag.text)


if __name__ == "__main__":
    run_as_program(main, sys.argv)

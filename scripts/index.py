"""Makes an index of clips that `predict --search` looks things up in.

  python scripts/index.py --checkpoint=DIR --output=INDEX.npz [--split=test]
  python scripts/index.py --checkpoint=DIR --output=INDEX.npz --folder=VIDEOS

The checkpoint is one of task `align`. Without --folder, the clips of a split of its dataset are
indexed (--config.data.dataset and --config.data.data_dir choose another one); with it, every video
below the folder (mp4, mov, webm, mkv or avi, with sound), cut into clips of config.data.num_frames
seconds. The index holds embeddings and says where the clips are, not frames or sounds: 4 bytes per
number, so a million clips with two embeddings of width 256 take 2 GB. The same command resumes an
interrupted run, from INDEX.part.npz. A video that cannot be read is left out and listed at the end
(status 1). --faiss also writes graphs for `predict --search --approximate`, and prints how much of
the exact answer they find.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from avs_jax.inference.approximate_search import write_graphs
from avs_jax.inference.index_building import index_records, index_videos
from avs_jax.predict import make_predictor
from avs_jax.runtime.command_line import (
    CommandLine,
    UsageError,
    define_strings,
    exit_status,
    parse,
)
from avs_jax.spec import InputError
from avs_jax.stopping import run_as_program, sigterm_as_interrupt

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")


def main(argv: Sequence[str]) -> int:
    """Parses the flags and indexes; returns the exit status."""
    required = ("checkpoint", "output")
    return exit_status(
        lambda: run(parse(argv, _define_flags, __doc__, required, needs_config=False))
    )


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    values = line.values
    if values.folder and values.split:
        raise UsageError("give --folder or --split, one of them")
    paths = _videos(values.folder) if values.folder else ()
    predictor = make_predictor(line)
    if predictor.task.search is None:
        raise InputError(f"task {predictor.task.name!r} has no search, task 'align' does")
    split = values.split or predictor.config.evaluate.split
    failed: list[str] = []
    try:
        with sigterm_as_interrupt():
            if values.folder:
                index, failed = index_videos(predictor, paths, values.output)
            else:
                index = index_records(predictor, split, values.output)
    except KeyboardInterrupt:
        print("stopped: the same command resumes", file=sys.stderr)
        raise
    print(f"{values.output}: {len(index)} clips")
    if values.faiss:
        for name, share in write_graphs(index, values.output).items():
            print(f"{name}: FAISS finds {share:.4f} of the exact 10 nearest")
    if failed:
        count = f"{len(failed)} of {len(paths)} videos are not in the index"
        raise InputError("\n  ".join([f"{count}:", *failed]))


def _videos(folder: str) -> list[pathlib.Path]:
    root = pathlib.Path(folder).expanduser()
    paths = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = sorted(path for path in paths if path.is_file())
    if not found:
        raise InputError(f"{root}: no video in it ({', '.join(SUFFIXES)})")
    return found


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("faiss", False, "also write graphs for FAISS", flag_values=values)
    define_strings(
        values,
        {
            "checkpoint": "a run of task `align`, one of its steps, or converted weights",
            "output": ".npz to write",
            "split": "of the dataset; default: config.evaluate.split",
            "folder": "of videos, instead of a dataset",
        },
    )


if __name__ == "__main__":
    run_as_program(main, sys.argv)

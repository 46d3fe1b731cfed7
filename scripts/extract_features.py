"""Makes clip features of a folder of videos, and word features of the queries on them.

  python scripts/extract_features.py --config=configs/ground_generated.py --folder=clips

FOLDER holds videos/ (mp4, mov, webm, mkv or avi, with sound) and, for training and evaluation,
moments_{train,val,test}.jsonl (tfds_builders/own_moments says which lines). Into it go

  features/video/{vid}.npy    float32 [n, d], a row per clip of config.data.clip_seconds
  features/audio/{vid}.npy    float32 [n, d], unless config.data.features.sound is empty
  features/energy/{vid}.npy   float32 [n, 1], log-RMS of the sound
  features/text/{qid}.npy     float32 [words, d], of every query
  features/features.json      config.data.features, which makes them

as config.data.features says; prediction on a video makes the same. A video is skipped if all its
files exist, and so is a query, so the same command resumes an interrupted run. Features of another
kind in the folder are an error. Unusable videos are listed, all of them.
"""

import collections
import concurrent.futures
import json
import os
import pathlib
import sys
from collections.abc import Sequence

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

from avs_jax.data.input_files import read_json  # noqa: E402
from avs_jax.files import atomic_file, write_atomically  # noqa: E402
from avs_jax.inference.clip_features import ClipFeatures  # noqa: E402
from avs_jax.progress import tracked  # noqa: E402
from avs_jax.runtime.command_line import CommandLine, exit_status, parse  # noqa: E402
from avs_jax.runtime.compilation_cache import (  # noqa: E402
    announce_compilation,
    use_compilation_cache,
)
from avs_jax.runtime.lock import locked  # noqa: E402
from avs_jax.spec import InputError  # noqa: E402
from avs_jax.stopping import run_as_program  # noqa: E402
from tfds_builders.moment_annotations import read_splits  # noqa: E402
from tfds_builders.own_moments.own_moments_dataset_builder import (  # noqa: E402
    AUDIO,
    ENERGY,
    FOLDER,
    SETTINGS,
    TEXT,
    VIDEO,
)

VIDEOS = "videos"
COMPILED = {"backbone", "vggish", "encoder"}  # kinds of features that a network makes
SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi")


def main(argv: Sequence[str]) -> int:
    """Parses the flags and extracts; returns the exit status."""
    return exit_status(lambda: run(parse(argv, _define_flags, __doc__, required=("folder",))))


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    folder = pathlib.Path(line.values.folder).expanduser()
    if not (folder / VIDEOS).is_dir():
        raise InputError(f"{folder / VIDEOS}: no such folder")
    if COMPILED & set(line.config.data.features.values()):
        use_compilation_cache()
        announce_compilation("what makes the features, for each new length")
    extract = ClipFeatures(line.config)
    with locked(folder, "extract_features"):
        data = line.config.data
        lengths = {"clip_seconds": data.clip_seconds}
        if data.features.text == "encoder":  # whose tokens are cut
            lengths["max_words"] = data.max_words
        _claim(folder / SETTINGS, data.features.to_dict(), lengths)
        num_queries = _extract_texts(folder, extract, line.config.data.clip_seconds)
        num_videos = _extract_videos(folder, extract, bool(line.config.data.features.sound))
    print(f"{folder / 'features'}: {num_videos} videos, {num_queries} queries")


def _claim(path: pathlib.Path, settings: dict, lengths: dict) -> None:
    """Writes how the features are made, or compares it with what made those that exist.

    Args:
      settings: config.data.features.
      lengths: what cuts videos and texts; files of earlier versions do not tell it.
    """
    if not path.is_file():
        write_atomically(path, json.dumps(settings | lengths, indent=2) + "\n")
        return
    there = read_json(path)
    now = {f"features.{key}": (value, there.get(key)) for key, value in settings.items()}
    now |= {key: (value, there.get(key, value)) for key, value in lengths.items()}
    for key, (value, stored) in now.items():
        if value != stored:
            raise InputError(
                f"{path.parent} holds features with {key.split('.')[-1]} = {stored!r}, now "
                f"config.data.{key} = {value!r}; delete the folder or change it"
            )


def _extract_texts(folder: pathlib.Path, extract: ClipFeatures, clip_seconds: float) -> int:
    """Features of all queries; how many there are."""
    splits, problems = read_splits(FOLDER.annotation_files(folder), FOLDER.clip_seconds)
    queries = [query for found in splits.values() for query in found]
    for query in queries:
        target = folder / TEXT / f"{query.qid}.npy"
        try:
            if query.clip_seconds != clip_seconds:
                raise InputError(
                    f"its clips are {query.clip_seconds:g} s, but config.data.clip_seconds is "
                    f"{clip_seconds:g}"
                )
            if not target.is_file():
                _save(target, extract.words(query.query))
        except InputError as error:
            problems.append(f"qid {query.qid}: {error}")
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} unusable queries:", *problems]))
    return len(queries)


def _extract_videos(folder: pathlib.Path, extract: ClipFeatures, has_sound: bool) -> int:
    """Features of all videos; how many there are."""
    paths = sorted(p for p in (folder / VIDEOS).iterdir() if p.suffix.lower() in SUFFIXES)
    num_named = collections.Counter(path.stem for path in paths)
    kinds = (VIDEO, AUDIO, ENERGY) if has_sound else (VIDEO, ENERGY)

    def make(path: pathlib.Path) -> str:
        if num_named[path.stem] > 1:
            return f"{path}: another video is called {path.stem}, too"
        if all((folder / kind / f"{path.stem}.npy").is_file() for kind in kinds):
            return ""
        try:
            found = extract.video(path)
        except InputError as error:
            return str(error)
        _save(folder / VIDEO / f"{path.stem}.npy", found.frames)
        if found.sound is not None:
            _save(folder / AUDIO / f"{path.stem}.npy", found.sound)
        _save(folder / ENERGY / f"{path.stem}.npy", found.energy[:, None])
        return ""

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = tracked(pool.map(make, paths), "features", len(paths), "video")
        problems = [problem for problem in made if problem]
    if problems:
        some = f"{len(problems)} of {len(paths)} videos are unusable:"
        raise InputError("\n  ".join([some, *problems]))
    return len(paths)


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    with atomic_file(path) as file:
        np.save(file, array)


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("folder", None, "with videos/ and annotations", flag_values=values)


if __name__ == "__main__":
    run_as_program(main, sys.argv)

"""Prediction on many videos: a folder of results per video, and one manifest.

  OUTPUT/NAME/             what the task writes for a video; NAME is its path below the fixed part
                           of the pattern, so clips/a/b.mp4 of clips/**/*.mp4 is a/b.mp4
  OUTPUT/NAME.failed.txt   why a video has no results
  OUTPUT/manifest.json     counts; per video "done", "failed" with the reason, or "open"
  OUTPUT/settings.json     checkpoint, configuration and flags, equal for all videos of the folder

The files are the state: a process that was killed at any moment resumes where it was, and several
processes share the videos (--shard=I/N takes every N-th) and the manifest. A video that is newer
than its results, or than the note on its failure, is processed again; one that is moved or deleted
meanwhile fails without a note. Results are no videos, even where the pattern matches them.
"""

import contextlib
import errno
import fcntl
import glob
import itertools
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import av.error

from avs_jax.data.input_files import read_json
from avs_jax.files import UNFINISHED, write_atomically
from avs_jax.progress import clock
from avs_jax.spec import InputError, UsageError, differences, first_line

MANIFEST, SETTINGS = "manifest.json", "settings.json"
RESULTS = "results.json"  # every task writes it last, and its folder appears as a whole
FAILED = ".failed.txt"
SAY_EVERY = 5.0  # seconds
WRITE_EVERY = 30.0  # seconds
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class Shard(NamedTuple):
    """Videos index, index + count, index + 2 count, ... of the sorted list."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "I/N", with I from 0 to N - 1."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not int(match[1]) < int(match[2]):
            raise InputError(f"--shard={text}: expected I/N with I from 0 to N - 1, such as 0/4")
        return cls(int(match[1]), int(match[2]))


def find_videos(pattern: str, output: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name -> file of every match, sorted by name; ** matches any number of folders.

    Results in `output` are left out, finished or not.

    Raises:
      InputError: nothing matches.
    """
    pattern = os.path.expanduser(pattern)
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), pathlib.Path(pattern).parts)
    root = pathlib.Path(*fixed)
    root = root.parent if root.is_file() else root
    files = (pathlib.Path(path) for path in glob.glob(pattern, recursive=True))
    videos = (file for file in files if file.is_file() and not _is_result(file, output))
    found = {file.relative_to(root).as_posix(): file for file in videos}
    if not found:
        raise InputError(f"--videos={pattern}: no file matches; quote the pattern for the shell")
    return dict(sorted(found.items()))


def _is_result(file: pathlib.Path, output: pathlib.Path) -> bool:
    file, output = file.resolve(), output.resolve()
    if not file.is_relative_to(output):
        return False
    parents = file.relative_to(output).parents
    return any(
        UNFINISHED in parent.name or (parent.name and (output / parent / RESULTS).is_file())
        for parent in parents
    )


def predict_many(
    predict_one: Callable[[pathlib.Path, pathlib.Path], Any],
    videos: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    settings: Mapping[str, Any],
    shard: Shard,
    say: Callable[[str], None],
) -> str:
    """Predicts on this shard's open videos, and writes the manifest of all of them.

    Args:
      predict_one: (video, folder to write) -> lines, which are not printed.
      videos: name -> file, of all shards.
      settings: what all results of `output` share, as JSON.
      say: takes lines of progress.

    Returns:
      one line that sums up the manifest.

    Raises:
      InputError: the folder holds results with other settings.
      UsageError: a flag is missing or wrong, whatever the video.
      OSError: results cannot be written, such as on a full disk.
    """
    for name, file in videos.items():
        if (output / name).resolve() == file.resolve():
            raise UsageError(f"--output={output}: the results of {file} would take its place")
    check_settings(output, settings)
    mine = list(videos.items())[shard.index :: shard.count]
    work = [(name, file) for name, file in mine if _state(output, name, file)[0] == "open"]
    say(f"{len(mine)} videos, {len(mine) - len(work)} were finished before")
    progress, written = _Progress(len(work), say), time.monotonic()
    try:
        for number, (name, file) in enumerate(work, start=1):
            failed = _predict_one(predict_one, file, output, name)
            progress.add(number, failed)
            if time.monotonic() - written > WRITE_EVERY:
                write_manifest(output, videos)
                written = time.monotonic()
    except UsageError:
        if all(_state(output, name, file)[0] == "open" for name, file in videos.items()):
            (output / SETTINGS).unlink(missing_ok=True)  # the corrected command has others
        raise
    finally:
        counts = write_manifest(output, videos)
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _predict_one(
    predict_one: Callable, file: pathlib.Path, output: pathlib.Path, name: str
) -> bool:
    """Whether it failed, with a note of the reason."""
    note, results = output / f"{name}{FAILED}", output / name / RESULTS
    try:
        changed = file.stat().st_mtime_ns
        predict_one(file, output / name)
    except UsageError:
        raise
    except Exception as error:
        # Decoders raise many kinds of exceptions for damaged files. A full disk is not the video's.
        if getattr(error, "errno", None) in DISK_IS_FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(output)) from error
        if not file.exists():
            return True
        if isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError):
            raise
        reason = first_line(error).encode(errors="backslashreplace")  # names need not be UTF-8
        write_atomically(note, reason.decode() + "\n")
        return True
    note.unlink(missing_ok=True)
    if results.is_file() and results.stat().st_mtime_ns < changed:  # a clock was wrong
        os.utime(results, ns=(changed, changed))
    return False


def _state(output: pathlib.Path, name: str, file: pathlib.Path) -> tuple[str, str | None]:
    """("done" | "failed" | "open", reason of a failure)."""
    note, results = output / f"{name}{FAILED}", output / name / RESULTS
    try:
        changed = file.stat().st_mtime
    except FileNotFoundError:
        return ("done", None) if results.is_file() else ("failed", "no such file any more")
    for path, state in ((results, "done"), (note, "failed")):
        if path.is_file() and path.stat().st_mtime >= changed:
            return state, path.read_text().strip() if path == note else None
    return "open", None


def write_manifest(output: pathlib.Path, videos: Mapping[str, pathlib.Path]) -> dict[str, int]:
    """Writes manifest.json from the files; returns the number of videos per state.

    Processes take turns, so the last one to end writes what all of them did.
    """
    with _turn(output):
        counts = dict.fromkeys(("done", "failed", "open"), 0)
        entries = {}
        for name, file in videos.items():
            state, reason = _state(output, name, file)
            counts[state] += 1
            entries[name] = {"state": state} | ({"reason": reason} if reason else {})
        manifest = {**counts, "videos": entries}
        write_atomically(output / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return counts


@contextlib.contextmanager
def _turn(output: pathlib.Path) -> Iterator[None]:
    """Only one process at a time is inside."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".manifest.lock", "a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def check_settings(output: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Notes the settings of a new folder, or compares them with those of its results."""
    path, settings = output / SETTINGS, json.loads(json.dumps(settings))
    with _turn(output):
        if not path.is_file():
            write_atomically(path, json.dumps(settings, indent=1) + "\n")
            return
    stored = read_json(path)
    differing = differences(stored, settings)
    if differing:
        raise InputError(
            f"{output} holds results with other settings ({'; '.join(differing)}): choose another "
            "--output"
        )


class _Progress:
    """A line every few seconds: videos, failures, speed and the remaining time."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self._total, self._say, self._failed = total, say, 0
        self._start = self._shown = time.monotonic()

    def add(self, number: int, failed: bool) -> None:
        now = time.monotonic()
        self._failed += failed
        if number < self._total and now - self._shown < SAY_EVERY:
            return
        self._shown = now
        each = (now - self._start) / number
        left = clock(each * (self._total - number))
        self._say(
            f"video {number}/{self._total}  {self._failed} failed  {each:.1f} s each  {left} left"
        )

"""Annotations of moments from masks: when a class sounds, or an expression's object is there.

A clip of AVSBench shows one frame per second, and the mask of a frame marks what sounds in it. So
the seconds in which a class has a mask are when it sounds:

  query      the name of the class; of binary masks the clip's category, or `SOMETHING`
  windows    runs of seconds whose mask is not empty
  qid, vid   {clip}-{class}, {clip}

In Ref-AVS a mask marks the object that an expression means, sounding or not:

  query      the expression; null expressions, which mean nothing, are left out
  windows    runs of seconds in which the object is in view
  qid, vid   {uid}, {DIR}
  domain     the split, as both test splits become `test`

Nobody scored such clips, so they have no saliency: only the scores of windows apply. Clips whose
masks do not cover every frame, as S4's and AVSS's v1s in training, say nothing about when, and are
left out.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from avs_jax.data.avsbench_folders import Setting
from avs_jax.data.input_files import read_wav
from avs_jax.data.moments import log_rms
from avs_jax.progress import tracked
from avs_jax.spec import InputError
from tfds_builders.avsbench import category_labels
from tfds_builders.clip_files import ClipFiles, read_labels
from tfds_builders.refer_clips import NUM_FRAMES, ReferClip

CLIP_SECONDS = 1.0
SOMETHING = "something that sounds"
REFER_SPLITS = {"train": "train", "val": "val", "test_s": "test", "test_u": "test"}

Clip = TypeVar("Clip")


@dataclasses.dataclass(frozen=True)
class Derived:
    """What one clip gives.

    Attributes:
      lines: annotations, one per class that sounds.
      energy: float32 [seconds, 1], log-RMS of its sound; None without lines.
      problems: what is wrong with its files.
      is_partial: some frames have no mask.
    """

    lines: Sequence[Mapping[str, Any]] = ()
    energy: np.ndarray | None = None
    problems: Sequence[str] = ()
    is_partial: bool = False


def derive_all(
    clips: Sequence[Clip], derive_one: Callable[[Clip], Derived]
) -> Iterator[tuple[Clip, Derived]]:
    """`derive_one` of every clip, in threads, with progress, in order."""
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = pool.map(derive_one, clips)
        yield from zip(
            clips,
            tracked(found, "reading masks", len(clips), "clip"),
            strict=True,
        )


def derive(clip: ClipFiles, names: Mapping[int, str]) -> Derived:
    """Annotations of one clip.

    Args:
      clip: its files.
      names: class -> its name; empty where masks are binary.
    """
    num_seconds = len(clip.frames)
    if len(clip.masks) < num_seconds:
        return Derived(is_partial=True)
    seconds: dict[int, list[int]] = {}
    problems = []
    for t, path in clip.masks.items():
        try:
            labels = read_labels(path, clip.num_classes)
        except InputError as error:
            problems.append(str(error))
            continue
        for label in np.unique(labels[(labels > 0) & (labels < clip.num_classes)]).tolist():
            seconds.setdefault(label, []).append(t)
    energy = _energy(clip.wav, num_seconds, problems)
    if problems or not seconds:
        return Derived(problems=problems)
    lines = []
    for label, times in sorted(seconds.items()):
        query = names.get(label) or clip.category or SOMETHING
        qid = f"{clip.clip_id}-{label}"
        query = query.replace("_", " ")
        lines.append(_line(qid, query, clip.clip_id, num_seconds, times))
    return Derived(lines, energy)


def derive_expressions(clip: ReferClip) -> Derived:
    """Annotations of one clip of Ref-AVS; the energy belongs to its folder."""
    problems: list[str] = []
    seconds: dict[int, list[int]] = {}
    meant = {row.fid for row in clip.rows if not row.is_null}
    for fid, paths in clip.masks().items():
        if fid not in meant:
            continue
        seconds[fid] = []
        for t, path in enumerate(paths):
            try:
                if read_labels(path, 2).any():
                    seconds[fid].append(t)
            except InputError as error:
                problems.append(str(error))
    energy = _energy(clip.wav, NUM_FRAMES, problems)
    rows = [row for row in clip.rows if not row.is_null and seconds.get(row.fid)]
    if problems or not rows:
        return Derived(problems=problems)
    lines = [
        _line(row.uid, row.text, clip.folder, NUM_FRAMES, seconds[row.fid]) | {"domain": row.split}
        for row in rows
    ]
    return Derived(lines, energy)


def _energy(wav: pathlib.Path, num_seconds: int, problems: list[str]) -> np.ndarray | None:
    """log-RMS float32 [seconds, 1]; None, and a line more in `problems`, if it cannot be read."""
    try:
        waveform, rate = read_wav(wav)
    except InputError as error:
        problems.append(str(error))
        return None
    return log_rms(waveform, rate, num_seconds, CLIP_SECONDS)[:, None]


def _line(qid: str, query: str, vid: str, num_seconds: int, times: list[int]) -> dict[str, Any]:
    """One line of the annotations, of a query that is true in these seconds."""
    return {
        "qid": qid,
        "query": query,
        "duration": num_seconds * CLIP_SECONDS,
        "vid": vid,
        "clip_seconds": CLIP_SECONDS,
        "relevant_windows": runs(times),
        "relevant_clip_ids": times,
    }


def runs(times: Iterable[int]) -> list[list[float]]:
    """Consecutive seconds as windows [start, end]."""
    windows: list[list[float]] = []
    for t in sorted(times):
        if windows and windows[-1][1] == t * CLIP_SECONDS:
            windows[-1][1] += CLIP_SECONDS
        else:
            windows.append([t * CLIP_SECONDS, (t + 1) * CLIP_SECONDS])
    return windows


def class_names(setting: Setting, root: pathlib.Path) -> dict[int, str]:
    """Class -> name of a setting with classes; {} where masks are binary."""
    if setting.num_classes == 2:
        return {}
    return {label: name for name, label in category_labels(setting, root).items()}

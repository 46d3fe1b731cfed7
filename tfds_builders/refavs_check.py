"""One pass over a download of Ref-AVS Bench, or generated clips in its layout.

The report is that of download_check.py; its unit is "expressions", and `expected` is by the
published csv, None for generated clips. Kinds of problems: count, row, folder, frame, mask, wav.
"""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from avs_jax.data.avsbench_folders import MANIFEST
from avs_jax.data.input_files import read_text
from tfds_builders.clip_files import read_all
from tfds_builders.download_check import (
    LayoutReport,
    add_problem,
    compare_counts,
    kind_of,
    new_report,
    sum_up_sounds,
)
from tfds_builders.refavs.refavs_dataset_builder import REFAVS
from tfds_builders.refer_clips import COLUMNS, CSV, DROPPED, LAYOUT, SPLITS, ReferClip, list_clips

# Of metadata.csv in GeWu-Lab/Ref-AVS.
EXPRESSIONS = {"train": 14113, "val": 1349, "test_s": 2288, "test_u": 1656, "test_n": 1028}


def find_refavs(folder: str | os.PathLike) -> pathlib.Path | None:
    """The folder given, if its csv has the columns of Ref-AVS (AVSS's has the same name)."""
    root = pathlib.Path(folder).expanduser().absolute()
    if not (root / CSV).is_file():
        return None
    header, _, _ = read_text(root / CSV).partition("\n")
    return root if set(header.strip().split(",")) == set(COLUMNS) else None


def check_refavs(root: pathlib.Path) -> LayoutReport:
    """Reads every file below `root`, the folder of the csv."""
    expected = dict.fromkeys(SPLITS) if (root / MANIFEST).is_file() else EXPRESSIONS
    report = new_report(REFAVS.title, LAYOUT.name, root, expected, "expressions")
    by_split, dropped, problems = list_clips(root)
    for message in problems:
        add_problem(report, "row", "", message)
    clips = [clip for split in SPLITS for clip in by_split[split]]
    for folder in _unlisted_folders(root, clips):
        add_problem(report, "folder", folder.name, f"{folder}: no row of {CSV} names this clip")
    sounds, told = [], set()
    for clip, sound, problems in read_all(clips, _look):
        counts = report["splits"][clip.split]
        counts["listed"] += len(clip.rows)
        counts["good"] += 0 if problems else len(clip.rows)
        masks = [path for paths in clip.masks().values() for path in paths]
        files = {"mask": masks, "frame": clip.frames, "wav": [clip.wav]}
        for message in problems:
            if message not in told:  # splits may share a folder
                add_problem(report, kind_of(message, files), clip.clip_id, message)
            told.add(message)
        if sound[1]:
            sounds.append((clip, *sound))
    report["wavs"] = sum_up_sounds(sounds)
    report["notes"] = _notes(clips, dropped)
    compare_counts(report)
    return report


def _notes(clips: Sequence[ReferClip], dropped: int) -> list[str]:
    rows = [(clip, row) for clip in clips for row in clip.rows]
    unseen = [
        clip.split == "test_u" and row.class_name not in clip.seen_classes for clip, row in rows
    ]
    null = [row.is_null for _, row in rows]
    return [
        f"{sum(null)} expressions refer to nothing; {dropped} rows of split {DROPPED} dropped",
        f"test_u: {sum(unseen)} expressions of classes that train lacks, as the paper counts",
    ]


def _look(record: dict[str, Any]) -> tuple[float, int, int]:
    """Seconds, Hz and channels of the sound; zeros where it is unreadable."""
    rate = record.get("sample_rate", 0)
    if not rate:
        return 0.0, 0, 0
    samples, channels = record["waveform"].shape
    return samples / rate, rate, channels


def _unlisted_folders(root: pathlib.Path, clips: Sequence[ReferClip]) -> list[pathlib.Path]:
    """Media that no row names, not even a faulty or dropped one."""
    named = {word.rsplit("_", 2)[0] for word in re.split(r"[,\r\n]", read_text(root / CSV))}
    named.update(clip.folder for clip in clips)
    return sorted(
        folder
        for folder in (root / "media").glob("*")
        if folder.is_dir() and folder.name not in named
    )

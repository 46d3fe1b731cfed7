"""One pass over a download of AVSBench: counts, and everything that is wrong with it.

A report is a dict ready for JSON, one per setting and layout:

  setting, layout, folder
  splits      split -> {expected, listed, good}: clips of the whole dataset (for generated clips, of
              their manifest), rows of the csv, clips without a problem
  wavs        rates (Hz -> clips), channels (number -> clips), shortest and longest (s), and
              shorter_than_frames: clips with less sound than frames; readers fill that up
  max_classes in the ground truth of one frame, background included (AVSS)
  problems    list of {kind, clip, message}; kind: count, row, folder, frame, mask, color mask, wav
"""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from avs_jax.data.avsbench_csv import read_csv, read_rows
from avs_jax.data.avsbench_folders import MANIFEST, SPLITS, Layout, Setting
from avs_jax.data.decode import decode_labels
from avs_jax.data.input_files import read_json
from avs_jax.spec import InputError
from tfds_builders.avsbench import list_clips
from tfds_builders.clip_files import ClipFiles, read_all

LayoutReport = dict[str, Any]
MIN_SECONDS_PER_FRAME = 0.96  # one log-mel example


def check_setting(setting: Setting, root: pathlib.Path) -> list[LayoutReport]:
    """Reports on every layout that `root` holds; one report that says so where it holds none."""
    layouts = setting.layouts_present(root)
    if not layouts:
        markers = " nor ".join(layout.marker for layout in setting.layouts)
        report = _new_report(setting, "none", root)
        _add(report, "folder", "", f"{root}: holds neither {markers}")
        return [report]
    return [_check_layout(setting, root, layout) for layout in layouts]


def _new_report(setting: Setting, layout: str, root: pathlib.Path) -> LayoutReport:
    expected = setting.num_clips
    if (root / MANIFEST).is_file():
        numbers = read_json(root / MANIFEST)
        expected = {split: numbers.get(f"num_{split}") for split in SPLITS}
        if not all(isinstance(number, int) for number in expected.values()):
            raise InputError(f"{root / MANIFEST}: num_train, num_val and num_test are not numbers")
    return {
        "setting": setting.title,
        "layout": layout,
        "folder": str(root),
        "splits": {s: {"expected": expected[s], "listed": 0, "good": 0} for s in SPLITS},
        "wavs": {},
        "max_classes": 0,
        "problems": [],
    }


def _add(report: LayoutReport, kind: str, clip: str, message: str) -> None:
    report["problems"].append({"kind": kind, "clip": clip, "message": message})


def _check_layout(setting: Setting, root: pathlib.Path, layout: Layout) -> LayoutReport:
    report = _new_report(setting, layout.name, root)
    clips, problems = list_clips(setting, root, layout)
    for message in problems:
        _add(report, "row", "", message)
    for folder in _unlisted_folders(setting, root, layout):
        _add(report, "folder", folder.name, f"{folder}: no row of {setting.csv} names this clip")
    split_of = {clip.clip_id: split for split in SPLITS for clip in clips[split]}
    everything = [clip for split in SPLITS for clip in clips[split]]
    sounds = []

    def look(record: dict[str, Any]) -> tuple[float, int, int, int]:
        """Seconds, Hz and channels of the sound, classes in one frame at most."""
        waveform, rate = record.get("waveform"), int(record.get("sample_rate", 0))
        if waveform is None:
            return 0.0, 0, 0, 0
        masks = record["masks"] if setting.num_classes > 2 else ()
        return len(waveform) / rate, rate, waveform.shape[1], _most_classes(masks)

    for clip, seen, problems in read_all(everything, look):
        counts = report["splits"][split_of[clip.clip_id]]
        counts["listed"] += 1
        counts["good"] += not problems
        for message in problems:
            _add(report, _kind(clip, message), clip.clip_id, message)
        *sound, classes = seen
        report["max_classes"] = max(report["max_classes"], classes)
        if sound[1]:
            sounds.append((clip, *sound))
    report["wavs"] = _sum_up(sounds)
    for split, counts in report["splits"].items():
        if counts["listed"] != counts["expected"]:
            message = f"{split}: {counts['listed']} usable rows, expected {counts['expected']}"
            _add(report, "count", "", message)
    return report


def _most_classes(masks: Sequence[bytes]) -> int:
    most = 0
    for mask in masks:
        try:
            most = max(most, len(np.unique(decode_labels(mask, 256))))
        except (ValueError, OSError):  # listed as a problem already
            continue
    return most


def _sum_up(sounds: Sequence[tuple[ClipFiles, float, int, int]]) -> dict[str, Any]:
    seconds = [s for _, s, _, _ in sounds]
    return {
        "rates": dict(collections.Counter(str(rate) for _, _, rate, _ in sounds)),
        "channels": dict(collections.Counter(str(number) for _, _, _, number in sounds)),
        "shortest": round(min(seconds, default=0.0), 3),
        "longest": round(max(seconds, default=0.0), 3),
        "shorter_than_frames": [
            clip.clip_id for clip, s, *_ in sounds if s < MIN_SECONDS_PER_FRAME * len(clip.frames)
        ],
    }


def _kind(clip: ClipFiles, message: str) -> str:
    """Which of the clip's files a problem is about."""
    kinds = {
        "mask": clip.masks.values(),
        "color mask": clip.pre_masks,
        "frame": clip.frames,
        "wav": [clip.wav],
    }
    for kind, paths in kinds.items():
        if any(message.startswith(f"{path}:") for path in paths):
            return kind
    return "folder"


def _unlisted_folders(setting: Setting, root: pathlib.Path, layout: Layout) -> list[pathlib.Path]:
    """Folders of frames that no row names; those of rows with another fault are not repeated."""
    rows, _ = read_rows(setting, root)
    listed = {row.path(root, layout.frames[row.split]).parent for row in rows}
    good = {row.name for row in rows}
    faulty = {values["name"] for _, values in read_csv(setting, root)} - good
    wildcards = dict.fromkeys(("name", "split", "category", "subset"), "*")
    found = set()
    for template in set(layout.frames.values()):
        folder, _, _ = template.rpartition("/")
        found.update(path for path in root.glob(folder.format(**wildcards)) if path.is_dir())
    return sorted(folder for folder in found - listed if not faulty.intersection(folder.parts))


def to_lines(reports: Sequence[LayoutReport]) -> list[str]:
    """The reports as text: a table and a list of problems each."""
    lines = []
    for report in reports:
        lines += [
            f"{report['setting']}, layout {report['layout']}, {report['folder']}",
            f"  {'split':<7}{'expected':>9}{'listed':>8}{'good':>8}",
        ]
        for split, counts in report["splits"].items():
            numbers = f"{counts['expected']:>9}{counts['listed']:>8}{counts['good']:>8}"
            lines.append(f"  {split:<7}{numbers}")
        wavs = report["wavs"]
        if wavs.get("rates"):
            rates = ", ".join(f"{n} at {rate} Hz" for rate, n in sorted(wavs["rates"].items()))
            short = len(wavs["shorter_than_frames"])
            lines.append(
                f"  wavs: {rates}; {wavs['shortest']} to {wavs['longest']} s; "
                f"{short} shorter than their frames"
            )
        if report["max_classes"]:
            lines.append(
                f"  at most {report['max_classes']} classes in one frame: "
                "config.data.max_targets must not be less"
            )
        kinds = collections.Counter(problem["kind"] for problem in report["problems"])
        summary = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items())) or "none"
        lines.append(f"  problems: {summary}")
        lines += [f"    {problem['message']}" for problem in report["problems"]]
    return lines

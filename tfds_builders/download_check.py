"""One pass over a download of AVSBench: counts, and everything that is wrong with it.

A report is a dict ready for JSON, one per setting and layout:

  setting, layout, folder
  unit        what is counted per split, "clips"
  splits      split -> {expected, listed, good}: clips of the whole dataset (for generated clips, of
              their manifest), rows of the csv, clips without a problem
  wavs        rates (Hz -> clips), channels (number -> clips), shortest and longest (s), and
              shorter_than_frames: clips with less sound than frames; readers fill that up
  max_classes in the ground truth of one frame, background included (AVSS)
  notes       lines about the dataset as a whole
  problems    list of {kind, clip, message}; kind: count, row, folder, frame, mask, color mask, wav
"""

import collections
import pathlib
from collections.abc import Iterable, Mapping, Sequence
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
        report = new_report(setting.title, "none", root, _expected(setting, root))
        add_problem(report, "folder", "", f"{root}: holds neither {markers}")
        return [report]
    return [_check_layout(setting, root, layout) for layout in layouts]


def _expected(setting: Setting, root: pathlib.Path) -> Mapping[str, int]:
    """Clips per split, by the manifest of generated ones."""
    expected = setting.num_clips
    if (root / MANIFEST).is_file():
        numbers = read_json(root / MANIFEST)
        expected = {split: numbers.get(f"num_{split}") for split in SPLITS}
        if not all(isinstance(number, int) for number in expected.values()):
            raise InputError(f"{root / MANIFEST}: num_train, num_val and num_test are not numbers")
    return {split: expected[split] for split in SPLITS}


def new_report(
    title: str,
    layout: str,
    root: pathlib.Path,
    expected: Mapping[str, int | None],
    unit: str = "clips",
) -> LayoutReport:
    """An empty report.

    Args:
      expected: split -> number of `unit`, None where nobody knows.
      unit: what is counted.
    """
    return {
        "setting": title,
        "layout": layout,
        "folder": str(root),
        "unit": unit,
        "splits": {s: {"expected": n, "listed": 0, "good": 0} for s, n in expected.items()},
        "wavs": {},
        "max_classes": 0,
        "notes": [],
        "problems": [],
    }


def add_problem(report: LayoutReport, kind: str, clip: str, message: str) -> None:
    """Appends to the report's problems."""
    report["problems"].append({"kind": kind, "clip": clip, "message": message})


def _check_layout(setting: Setting, root: pathlib.Path, layout: Layout) -> LayoutReport:
    report = new_report(setting.title, layout.name, root, _expected(setting, root))
    clips, problems = list_clips(setting, root, layout)
    for message in problems:
        add_problem(report, "row", "", message)
    for folder in _unlisted_folders(setting, root, layout):
        add_problem(
            report, "folder", folder.name, f"{folder}: no row of {setting.csv} names this clip"
        )
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
        files = {"mask": clip.masks.values(), "color mask": clip.pre_masks}
        files |= {"frame": clip.frames, "wav": [clip.wav]}
        for message in problems:
            add_problem(report, kind_of(message, files), clip.clip_id, message)
        *sound, classes = seen
        report["max_classes"] = max(report["max_classes"], classes)
        if sound[1]:
            sounds.append((clip, *sound))
    report["wavs"] = sum_up_sounds(sounds)
    compare_counts(report)
    return report


def compare_counts(report: LayoutReport) -> None:
    """Appends a problem for each split with more or fewer rows than expected."""
    for split, counts in report["splits"].items():
        if counts["expected"] not in (None, counts["listed"]):
            message = f"{split}: {counts['listed']} usable rows, expected {counts['expected']}"
            add_problem(report, "count", "", message)


def _most_classes(masks: Sequence[bytes]) -> int:
    most = 0
    for mask in masks:
        try:
            most = max(most, len(np.unique(decode_labels(mask, 256))))
        except (ValueError, OSError):  # listed as a problem already
            continue
    return most


def sum_up_sounds(sounds: Sequence[tuple[ClipFiles, float, int, int]]) -> dict[str, Any]:
    """The report's `wavs` from (clip, seconds, Hz, channels) of each readable sound."""
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


def kind_of(message: str, files: Mapping[str, Iterable[pathlib.Path]]) -> str:
    """Which files of a clip, kind -> paths, a problem is about; "folder" if none."""
    for kind, paths in files.items():
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
            f"  {'split':<7}{'expected':>9}{'listed':>8}{'good':>8}  {report['unit']}",
        ]
        for split, counts in report["splits"].items():
            expected = "?" if counts["expected"] is None else counts["expected"]
            lines.append(f"  {split:<7}{expected:>9}{counts['listed']:>8}{counts['good']:>8}")
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
        lines += [f"  {note}" for note in report["notes"]]
        kinds = collections.Counter(problem["kind"] for problem in report["problems"])
        summary = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items())) or "none"
        lines.append(f"  problems: {summary}")
        lines += [f"    {problem['message']}" for problem in report["problems"]]
    return lines

"""Records in parts: every file read once, what is whole written at once, a killed build goes on.

A part is up to `CLIPS_PER_PART` clips of one split, in order: an array_record file of their records
and, written last, a report (JSON) of what was kept and what is wrong. A part whose report is there
and whose source files have not changed since (paths, sizes, times) is not made again. Finished
parts are the shards of the dataset.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
import tqdm
from array_record.python.array_record_module import ArrayRecordWriter

from tfds_builders import common

CLIPS_PER_PART = 64
SUFFIX = "array_record"
POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Part:
    """Some clips of a split, and where their records go."""

    split: str
    index: int
    clips: tuple[common.ClipFiles, ...]
    folder: pathlib.Path

    @property
    def records(self) -> pathlib.Path:
        """The array_record file; not there where no clip was good."""
        return self.folder / f"{self.split}-{self.index:05d}.{SUFFIX}"

    @property
    def report(self) -> pathlib.Path:
        """What the part holds, as `Report`."""
        return self.records.with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a part.

    Attributes:
      source: digest of the source files as they were.
      num_clips: clips written.
      num_bytes: of their records; file_bytes: of the file.
      bad: clip_id -> what is wrong with its files.
      flow_kinds: kind -> clips written.
    """

    source: str
    num_clips: int
    num_bytes: int
    file_bytes: int
    bad: Mapping[str, Sequence[str]]
    flow_kinds: Mapping[str, int]


def cut(split: str, clips: Sequence[common.ClipFiles], folder: pathlib.Path) -> list[Part]:
    """The parts of a split."""
    starts = range(0, len(clips), CLIPS_PER_PART)
    return [
        Part(split, index, tuple(clips[start : start + CLIPS_PER_PART]), folder)
        for index, start in enumerate(starts)
    ]


def write_all(parts: Sequence[Part], pipeline: Any | None = None) -> list[Report]:
    """Writes the parts that are not there yet, with progress.

    Args:
      parts: all of them, of one folder.
      pipeline: an unstarted Apache Beam pipeline that does the work; its workers must see the
        source and the folder under the same paths. None: threads of this process.

    Returns:
      a report per part.
    """
    missing = [part for part in parts if finished(part) is None]
    total = sum(len(part.clips) for part in parts)
    done = total - sum(len(part.clips) for part in missing)
    if done:
        print(f"{parts[0].folder}: {done} of {total} clips are there from an earlier build")
    for part in missing:
        part.folder.mkdir(parents=True, exist_ok=True)
        part.report.unlink(missing_ok=True)
    with tqdm.tqdm(total=total, initial=done, desc="Reading and writing", unit="clip") as progress:
        if pipeline is not None:
            with _watched(missing, progress):
                _write_with_beam(missing, pipeline)
        else:
            with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
                for part in missing:
                    write_part(part, _counted(pool.map(common.read_clip, part.clips), progress))
    return [Report(**json.loads(part.report.read_text())) for part in parts]


def write_part(part: Part, outcomes: Iterable[tuple[dict, list[str]]] | None = None) -> None:
    """Reads a part's clips and writes its records, then its report.

    Args:
      part: which.
      outcomes: what `common.read_clip` gives for its clips, in order; None: read here.
    """
    source = source_digest(part.clips)  # before they are read: a later change shows
    serialize = common.record_features().serialize_example
    bad, kinds, sizes = {}, {}, []
    part.records.unlink(missing_ok=True)
    writer = None
    for clip, (record, problems) in zip(
        part.clips, outcomes or map(common.read_clip, part.clips), strict=True
    ):
        if problems:
            bad[clip.clip_id] = problems
            continue
        if writer is None:
            writer = ArrayRecordWriter(os.fspath(part.records), "group_size:1")
        data = serialize(record)
        writer.write(data)
        sizes.append(len(data))
        kinds[record["flow_kind"]] = kinds.get(record["flow_kind"], 0) + 1
    if writer is not None:
        writer.close()
    size = part.records.stat().st_size if sizes else 0
    report = Report(source, len(sizes), sum(sizes), size, bad, kinds)
    half = part.report.with_suffix(".half")
    half.write_text(json.dumps(dataclasses.asdict(report)))
    half.replace(part.report)


def finished(part: Part) -> Report | None:
    """The report of a part that is whole and up to date, else None."""
    try:
        report = Report(**json.loads(part.report.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    size = part.records.stat().st_size if part.records.is_file() else 0
    is_current = report.source == source_digest(part.clips)
    return report if is_current and size == report.file_bytes else None


def source_digest(clips: Sequence[common.ClipFiles]) -> str:
    """Changes with anything that a record is made from: names, labels, files' sizes and times."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(repr(clip).encode())
        for path in _files(clip):
            try:
                status = path.stat()
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(f"{path} absent\n".encode())
    return digest.hexdigest()


def gather(
    parts: Sequence[Part], reports: Sequence[Report], folder: pathlib.Path, name: str
) -> list[tfds.core.SplitInfo]:
    """Makes the parts the shards of a dataset: linked into `folder` under TFDS's names.

    Returns:
      the splits that have a clip.
    """
    by_split: dict[str, list[tuple[Part, Report]]] = {}
    for part, report in zip(parts, reports, strict=True):
        if report.num_clips:
            by_split.setdefault(part.split, []).append((part, report))
    splits = []
    for split, shards in by_split.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix=SUFFIX
        )
        for index, (part, _) in enumerate(shards):
            path = template.sharded_filepath(shard_index=index, num_shards=len(shards))
            _link(part.records, pathlib.Path(path))
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report.num_clips for _, report in shards],
                num_bytes=sum(report.num_bytes for _, report in shards),
                filename_template=template,
            )
        )
    return splits


def _files(clip: common.ClipFiles) -> list[pathlib.Path]:
    flow = sorted(clip.flow_dir.glob("*.npy")) if clip.flow_dir is not None else []
    return [*clip.frames, *clip.masks.values(), *clip.pre_masks, clip.wav, *flow]


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A hard link, so that a kill in between costs nothing; a copy where there are none."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def _write_with_beam(parts: Sequence[Part], pipeline: Any) -> None:
    beam = tfds.core.lazy_imports.apache_beam
    with pipeline:
        _ = pipeline | beam.Create(list(parts)) | beam.Reshuffle() | beam.Map(write_part)


def _counted(outcomes: Iterable[Any], progress: tqdm.tqdm) -> Iterator[Any]:
    for outcome in outcomes:
        progress.update()
        yield outcome


@contextlib.contextmanager
def _watched(parts: Sequence[Part], progress: tqdm.tqdm) -> Iterator[None]:
    """Counts the parts that other processes finish, until the block ends."""
    waiting, stop = list(parts), threading.Event()

    def look() -> None:
        for part in [part for part in waiting if part.report.is_file()]:
            waiting.remove(part)
            progress.update(len(part.clips))

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()

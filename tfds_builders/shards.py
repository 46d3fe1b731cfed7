"""Records in shards of our own instead of TFDS's split generators: a killed build is resumed.

TFDS writes a dataset in one go and starts over after a kill. Here every file is read once, and what
is whole is written at once. A shard is up to `CLIPS_PER_SHARD` clips of one split, in order: an
array_record file of their records and, written last, a report (JSON) of what was kept and what is
wrong. A shard whose report exists and whose source files have not changed since (paths, sizes,
times) is not written again. Finished shards become the dataset's.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from avs_jax.files import atomic_path, write_atomically
from avs_jax.progress import Progress
from tfds_builders.features import RECORD_FORMAT

CLIPS_PER_SHARD = 64
SUFFIX = "array_record"
POLL_SECONDS = 1.0


class Source(Protocol):
    """The files of one record: ClipFiles, QueryFiles (moments.py) or ReferClip.

    Attributes:
      clip_id: names it in reports.
      files: all that the record is made from.
    """

    clip_id: str
    files: Sequence[pathlib.Path]

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The record, and what is wrong with its files; use it only if nothing is."""

    def features(self) -> tfds.features.FeaturesDict:
        """The features of the record."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some clips of a split, and where their records go."""

    split: str
    index: int
    clips: tuple[Source, ...]
    folder: pathlib.Path

    @property
    def records(self) -> pathlib.Path:
        """The array_record file; absent where no clip was good."""
        return self.folder / f"{self.split}-{self.index:05d}.{SUFFIX}"

    @property
    def report(self) -> pathlib.Path:
        """What the shard holds, as `ShardReport`."""
        return self.records.with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """What became of a shard.

    Attributes:
      source: digest of the source files as they were.
      num_clips: clips written.
      num_bytes: of their records. file_bytes: of the file.
      bad: clip_id -> what is wrong with its files.
      flow_kinds: kind -> clips written.
    """

    source: str
    num_clips: int
    num_bytes: int
    file_bytes: int
    bad: Mapping[str, Sequence[str]]
    flow_kinds: Mapping[str, int]


def cut_shards(split: str, clips: Sequence[Source], folder: pathlib.Path) -> list[Shard]:
    """The shards of a split."""
    starts = range(0, len(clips), CLIPS_PER_SHARD)
    return [
        Shard(split, index, tuple(clips[start : start + CLIPS_PER_SHARD]), folder)
        for index, start in enumerate(starts)
    ]


def write_all(shards: Sequence[Shard], pipeline: Any | None = None) -> list[ShardReport]:
    """Writes the shards that earlier builds have not finished, with progress.

    Args:
      shards: all of them, of one folder.
      pipeline: an unstarted Apache Beam pipeline that does the work; its workers must see the
        source and the folder under the same paths. None: threads of this process.

    Returns:
      a report per shard.
    """
    missing = [shard for shard in shards if finished_report(shard) is None]
    total = sum(len(shard.clips) for shard in shards)
    done = total - sum(len(shard.clips) for shard in missing)
    if done:
        print(f"{shards[0].folder}: resuming after {done} of {total} clips of an earlier build")
    for shard in missing:
        shard.folder.mkdir(parents=True, exist_ok=True)
        shard.report.unlink(missing_ok=True)
    with Progress("reading and writing", total, "clip", done) as progress:
        if pipeline is not None:
            with _watched(missing, progress):
                _write_with_beam(missing, pipeline)
        else:
            with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
                for shard in missing:
                    outcomes = pool.map(_read, shard.clips)
                    write_shard(shard, _counted(outcomes, progress))
    return [ShardReport(**json.loads(shard.report.read_text())) for shard in shards]


def write_shard(shard: Shard, outcomes: Iterable[tuple[dict, list[str]]] | None = None) -> None:
    """Reads a shard's clips and writes its records, then its report.

    Args:
      outcomes: what `read` gives for its clips, in order; None: read here.
    """
    source = source_digest(shard.clips)  # before they are read: a later change shows
    serialize = shard.clips[0].features().serialize_example
    outcomes = outcomes or map(_read, shard.clips)
    bad, kinds, sizes, writer = {}, collections.Counter(), [], None
    shard.records.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        for clip, (record, problems) in zip(shard.clips, outcomes, strict=True):
            if problems:
                bad[clip.clip_id] = problems
                continue
            if writer is None:
                path = stack.enter_context(atomic_path(shard.records))
                writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
            data = serialize(record)
            writer.write(data)
            sizes.append(len(data))
            kinds[record.get("flow_kind", "none")] += 1
        if writer is not None:
            writer.close()
    size = shard.records.stat().st_size if sizes else 0
    report = ShardReport(source, len(sizes), sum(sizes), size, bad, dict(kinds))
    write_atomically(shard.report, json.dumps(dataclasses.asdict(report)))


def finished_report(shard: Shard) -> ShardReport | None:
    """The report of a shard that is whole and up to date, else None."""
    try:
        report = ShardReport(**json.loads(shard.report.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    size = shard.records.stat().st_size if shard.records.is_file() else 0
    is_current = report.source == source_digest(shard.clips)
    return report if is_current and size == report.file_bytes else None


def source_digest(clips: Sequence[Source]) -> str:
    """Changes with anything that a record is made from: names, labels, files' sizes and times."""
    digest = hashlib.sha256(str(RECORD_FORMAT).encode())
    for clip in clips:
        digest.update(repr(clip).encode())
        for path in clip.files:
            try:
                status = path.stat()
                digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(f"{path} absent\n".encode())
    return digest.hexdigest()


def gather(
    shards: Sequence[Shard], reports: Sequence[ShardReport], folder: pathlib.Path, name: str
) -> list[tfds.core.SplitInfo]:
    """Links the shards into `folder` under TFDS's names.

    Returns:
      the splits that have a clip.
    """
    by_split: dict[str, list[tuple[Shard, ShardReport]]] = {}
    for shard, report in zip(shards, reports, strict=True):
        if report.num_clips:
            by_split.setdefault(shard.split, []).append((shard, report))
    splits = []
    for split, members in by_split.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix=SUFFIX
        )
        for index, (shard, _) in enumerate(members):
            path = template.sharded_filepath(shard_index=index, num_shards=len(members))
            _link(shard.records, pathlib.Path(path))
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report.num_clips for _, report in members],
                num_bytes=sum(report.num_bytes for _, report in members),
                filename_template=template,
            )
        )
    return splits


def _read(source: Source) -> tuple[dict[str, Any], list[str]]:
    return source.read()


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A hard link, so that a kill in between costs nothing; a copy where there are none."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def _write_with_beam(shards: Sequence[Shard], pipeline: Any) -> None:
    beam = tfds.core.lazy_imports.apache_beam
    with pipeline:
        _ = pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.Map(write_shard)


def _counted(outcomes: Iterable[Any], progress: Progress) -> Iterator[Any]:
    for outcome in outcomes:
        progress.add()
        yield outcome


@contextlib.contextmanager
def _watched(shards: Sequence[Shard], progress: Progress) -> Iterator[None]:
    """Counts the shards that other processes finish, until the block ends."""
    waiting, stop = list(shards), threading.Event()

    def look() -> None:
        for shard in [shard for shard in waiting if shard.report.is_file()]:
            waiting.remove(shard)
            progress.add(len(shard.clips))

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

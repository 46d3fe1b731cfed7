"""Clips with expressions: the rows of a csv and the files of a clip -> one raw record per clip.

A record is one media folder of one split, so that media are stored once for about five expressions:

  clip_id, vid           Text                folder; vid is the clip without the null prefix
  frames                 list of bytes       one encoded image per second
  waveform, sample_rate  int16 [n, channels], int32
  fids                   int32 [O]           objects with masks
  masks                  list of bytes       O x T encoded images, frame by frame of each object
  uids, expressions      list of Text        [E]
  expression_fids        int32 [E]           the object meant
  is_null                bool [E]            nothing is meant
  is_seen                bool [E]            the class occurs in train
  kinds                  int32 [E]           1 + place in spec.EXPRESSION_KINDS of what answers it;
                                             0: null, or unknown (clips that were not generated)

Reading (avs_jax/data/records.py) gives one item per expression: the record with `item`, its place.

Masks have the size of the frames, or another of the same proportions. An object of a null row may
have no folder of masks; any other missing mask is an error. Everything wrong is listed at once.
"""

import collections
import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from avs_jax.data.avsbench_folders import MANIFEST, DatasetLayoutError
from avs_jax.data.decode import decode_labels
from avs_jax.data.input_files import first_line, read_image, read_text, read_wav
from avs_jax.data.tokens import VOCABULARY, clean, count_words, vocabulary_text
from avs_jax.files import write_atomically
from avs_jax.generate.setting import DETAILS
from avs_jax.spec import EXPRESSION_KINDS, InputError
from tfds_builders.record_builder import RecordBuilder
from tfds_builders.shards import ShardReport

SPLITS = ("train", "val", "test_s", "test_u", "test_n")
DROPPED = "TODO"  # split of rows that the published csv has and the paper does not count
COLUMNS = ("vid", "uid", "split", "fid", "exp")
CSV = "metadata.csv"
NULL_PREFIXES = ("null_c-", "null_m-")
NUM_FRAMES = 10
MAX_CHARACTERS = 1000  # of an expression; the published ones have 22 words at most
MAX_FID = 999
VOCABULARY_SIZE = 4096
ASPECT_TOLERANCE = 0.02  # relative, between a mask and its frame


@dataclasses.dataclass(frozen=True)
class ReferLayout:
    """The published layout, as the class RecordBuilder wants it."""

    name: str
    description: str


LAYOUT = ReferLayout("release", "Frames, sound and masks as released")


@dataclasses.dataclass(frozen=True)
class ReferSetting:
    """A dataset of expressions; the class RecordBuilder says what the fields are for."""

    dataset: str
    title: str
    layouts: tuple[ReferLayout, ...]
    how_to_get: str

    def layouts_present(self, root: pathlib.Path) -> list[ReferLayout]:
        """There is one."""
        del root
        return list(self.layouts)

    def find_root(self, folder: str | os.PathLike) -> pathlib.Path:
        """The folder given, if it holds the csv."""
        root = pathlib.Path(folder).expanduser().absolute()
        if (root / CSV).is_file():
            return root
        raise DatasetLayoutError(f"{root / CSV} does not exist\n{self.how_to_get}")


@dataclasses.dataclass(frozen=True)
class ExpressionRow:
    """One row of the csv."""

    vid: str
    uid: str
    split: str
    fid: int
    text: str
    kind: int = 0  # see the record

    @property
    def folder(self) -> str:
        """DIR."""
        return self.uid.rsplit("_", 2)[0]

    @property
    def class_name(self) -> str:
        """Of the object; "null" where nothing is meant."""
        return self.uid.rsplit("_", 2)[1]

    @property
    def is_null(self) -> bool:
        """Whether nothing is meant."""
        return self.uid.startswith(NULL_PREFIXES)


# ---- the csv ----


def read_expressions(path: pathlib.Path) -> tuple[list[ExpressionRow], int, list[str]]:
    """The rows of the csv, how many were dropped, and what is wrong with the others.

    Raises:
      InputError: the file cannot be read, or has other columns.
    """
    rows, dropped, problems, seen = [], 0, [], set()
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        if set(reader.fieldnames or ()) != set(COLUMNS):
            raise InputError(f"{path}: columns {reader.fieldnames}, expected {', '.join(COLUMNS)}")
        for values in reader:
            if values["split"] == DROPPED:
                dropped += 1
                continue
            try:
                row = _parse_row(values)
                if row.uid in seen:
                    raise ValueError(f"uid {row.uid} is listed twice")
            except ValueError as error:
                problems.append(f"{path}, line {reader.line_num}: {error}")
                continue
            seen.add(row.uid)
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {first_line(error)}") from error
    return rows, dropped, problems


def _parse_row(values: Mapping[str | None, Any]) -> ExpressionRow:
    """A row of the csv; ValueError says what it cannot be."""
    if None in values or None in values.values():
        raise ValueError(f"not {len(COLUMNS)} fields: {list(values.values())!s:.200}")
    vid, uid, split, fid, text = (values[name] for name in COLUMNS)
    for name, value in (("vid", vid), ("uid", uid)):
        if not _is_file_name(value):
            raise ValueError(f"{name} {value!r:.200} cannot be the name of a folder")
    if uid.count("_") < 2:
        raise ValueError(f"uid {uid!r}, expected {{DIR}}_{{class}}_{{n}}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} of {uid}, expected one of {', '.join(SPLITS)}")
    if not fid.isascii() or not fid.isdigit() or int(fid) > MAX_FID:
        raise ValueError(f"fid {fid!r} of {uid}, expected a number of an object")
    if not clean(text):
        raise ValueError(f"{uid} has an empty expression")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"the expression of {uid} has {len(text):,} characters, at most {MAX_CHARACTERS:,}"
        )
    row = ExpressionRow(vid, uid, split, int(fid), text)
    expected = next((p for p in NULL_PREFIXES if uid.startswith(p)), "") + vid
    if row.folder != expected:
        raise ValueError(f"uid {uid} is of folder {row.folder}, expected {expected} of vid {vid}")
    return row


def _is_file_name(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\\0")


# ---- a clip ----


@dataclasses.dataclass(frozen=True)
class ReferClip:
    """The files and expressions of one record."""

    root: pathlib.Path
    split: str
    rows: tuple[ExpressionRow, ...]
    seen_classes: tuple[str, ...]  # sorted: a set's repr, of which digests are made, varies

    @property
    def folder(self) -> str:
        """DIR, the name of the media folder."""
        return self.rows[0].folder

    @property
    def clip_id(self) -> str:
        """Names the record in reports; a folder may occur in several splits."""
        return f"{self.split}/{self.folder}"

    @property
    def frames(self) -> list[pathlib.Path]:
        folder = self.root / "media" / self.folder / "frames"
        return [folder / f"{t}.jpg" for t in range(NUM_FRAMES)]

    @property
    def wav(self) -> pathlib.Path:
        return self.root / "media" / self.folder / "audio.wav"

    def masks(self) -> dict[int, list[pathlib.Path]]:
        """Object -> mask of each frame; without the absent folders of null rows."""
        folder = self.root / "gt_mask" / self.folder
        meant = {row.fid for row in self.rows if not row.is_null}
        return {
            fid: [folder / f"fid_{fid}" / f"{t:05d}.png" for t in range(NUM_FRAMES)]
            for fid in sorted({row.fid for row in self.rows})
            if fid in meant or (folder / f"fid_{fid}").is_dir()
        }

    @property
    def files(self) -> list[pathlib.Path]:
        """All that the record is made from; the csv too, as the expressions are in it."""
        masks = [path for paths in self.masks().values() for path in paths]
        return [*self.frames, self.wav, *masks, self.root / CSV]

    @staticmethod
    def features() -> tfds.features.FeaturesDict:
        """The features of the record."""
        return record_features()

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """The record, and what is wrong with its files; use it only if nothing is."""
        folder = self.root / "media" / self.folder
        if not folder.is_dir():
            return {}, [f"{folder}: no such folder, but {self.clip_id} is listed"]
        problems: list[str] = []

        def attempt(read, *args):
            try:
                return read(*args)
            except InputError as error:
                problems.append(str(error))
                return None

        images = [attempt(read_image, path) for path in self.frames]
        sizes = [image.size for _, image in filter(None, images)]
        for path, loaded in zip(self.frames, images, strict=True):
            if loaded and loaded[1].size != sizes[0]:
                problems.append(f"{path}: {_size(loaded[1].size)}, expected {_size(sizes[0])}")
        waveform, rate = attempt(read_wav, self.wav) or (np.zeros((0, 1), np.int16), 0)
        masks = self.masks()
        is_null = {row.fid for row in self.rows if row.is_null}
        encoded = [
            attempt(_read_mask, path, sizes[0] if sizes else None, fid in is_null) or b""
            for fid, paths in masks.items()
            for path in paths
        ]
        record = {
            "clip_id": self.folder,
            "vid": self.rows[0].vid,
            "frames": [loaded[0] if loaded else b"" for loaded in images],
            "waveform": waveform,
            "sample_rate": rate,
            "fids": np.array(list(masks), np.int32),
            "masks": encoded,
            "uids": [row.uid for row in self.rows],
            "expressions": [row.text for row in self.rows],
            "expression_fids": np.array([row.fid for row in self.rows], np.int32),
            "is_null": np.array([row.is_null for row in self.rows], bool),
            "is_seen": np.array([row.class_name in self.seen_classes for row in self.rows], bool),
            "kinds": np.array([row.kind for row in self.rows], np.int32),
        }
        return record, problems


def _read_mask(path: pathlib.Path, size: tuple[int, int] | None, must_be_empty: bool) -> bytes:
    data, image = read_image(path)
    if size is not None:
        ratio = image.width * size[1] / (image.height * size[0])
        if abs(ratio - 1) > ASPECT_TOLERANCE:
            raise InputError(f"{path}: {_size(image.size)}, but the frames are {_size(size)}")
    try:
        labels = decode_labels(data, 2)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if must_be_empty and labels.any():
        raise InputError(f"{path}: marks {int(labels.sum())} pixels, but its expression is null")
    return data


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} px"


def record_features() -> tfds.features.FeaturesDict:
    """The features of a record, as listed at the top of this file."""
    features = tfds.features
    images = features.Sequence(features.Tensor(shape=(), dtype=np.object_))

    def numbers(dtype):
        return features.Tensor(shape=(None,), dtype=dtype, encoding="zlib")

    return features.FeaturesDict(
        {
            "clip_id": features.Text(),
            "vid": features.Text(),
            "frames": images,
            "waveform": features.Tensor(shape=(None, None), dtype=np.int16, encoding="bytes"),
            "sample_rate": np.int32,
            "fids": numbers(np.int32),
            "masks": images,
            "uids": features.Sequence(features.Text()),
            "expressions": features.Sequence(features.Text()),
            "expression_fids": numbers(np.int32),
            "is_null": numbers(np.bool_),
            "is_seen": numbers(np.bool_),
            "kinds": numbers(np.int32),
        }
    )


def list_clips(root: pathlib.Path) -> tuple[dict[str, list[ReferClip]], int, list[str]]:
    """Clips per split in the csv's order, rows dropped, and what is wrong before reading files."""
    rows, dropped, problems = read_expressions(root / CSV)
    kinds = read_kinds(root / DETAILS)
    rows = [dataclasses.replace(row, kind=kinds.get(row.uid, 0)) for row in rows]
    train = [row.class_name for row in rows if row.split == "train" and not row.is_null]
    seen = tuple(sorted(set(train)))
    groups: dict[tuple[str, str], list[ExpressionRow]] = collections.defaultdict(list)
    for row in rows:
        groups[row.split, row.folder].append(row)
    clips: dict[str, list[ReferClip]] = collections.defaultdict(list)
    for (split, _), group in groups.items():
        clips[split].append(ReferClip(root, split, tuple(group), seen))
    return clips, dropped, problems


def read_kinds(path: pathlib.Path) -> dict[str, int]:
    """uid -> 1 + place in EXPRESSION_KINDS, of generated clips; {} for others.

    Raises:
      InputError: the file is there, but does not say it.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path))["expressions"].items()
        return {u: EXPRESSION_KINDS.index(k) + 1 for u, k in found if k in EXPRESSION_KINDS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no kinds of expressions ({first_line(error)})") from error


class ReferBuilder(RecordBuilder, skip_registration=True):
    """One raw record per clip, and the vocabulary of the training expressions beside them."""

    SPLITS = SPLITS
    VERSION = tfds.core.Version("1.1.0")

    @staticmethod
    def record_features() -> tfds.features.FeaturesDict:
        return record_features()

    def list_sources(
        self, root: pathlib.Path
    ) -> tuple[Mapping[str, Sequence[ReferClip]], list[str]]:
        clips, self._dropped, problems = list_clips(root)
        return clips, problems

    def describe(
        self, root: pathlib.Path, kept: Sequence[ReferClip], reports: Sequence[ShardReport]
    ) -> dict[str, Any]:
        items: dict[str, list[int]] = collections.defaultdict(list)
        for clip in kept:
            items[clip.split].append(len(clip.rows))
        rows = [row for clip in kept for row in clip.rows]
        train = [row.text for row in rows if row.split == "train"]
        words = vocabulary_text(count_words(train, VOCABULARY_SIZE))
        write_atomically(pathlib.Path(self.data_dir) / VOCABULARY, words)
        num_unseen = sum(
            row.split == "test_u" and row.class_name not in kept[0].seen_classes for row in rows
        )
        is_generated = (root / MANIFEST).is_file()
        return {
            "ground_truth": "generated clips" if is_generated else self.SETTING.title,
            "items": dict(items),  # expressions of each record
            "num_expressions": len(rows),
            "num_null": sum(row.is_null for row in rows),
            "num_dropped": self._dropped,
            "num_unseen": num_unseen,
            "num_bytes": sum(report.num_bytes for report in reports),
        }

    @staticmethod
    def summarize(metadata: Mapping[str, Any]) -> str:
        counts = {split: sum(items) for split, items in metadata["items"].items()}
        text = ", ".join(f"{split} {count}" for split, count in counts.items())
        megabytes = metadata["num_bytes"] / 1e6
        apart = megabytes * metadata["num_expressions"] / metadata["num_clips"]
        return (
            f"expressions: {text}; {metadata['num_null']} null; {metadata['num_dropped']} of split "
            f"{DROPPED} dropped; test_u: {counts.get('test_u', 0)} in the csv, "
            f"{metadata['num_unseen']} of classes that train lacks, as in the paper; "
            f"{megabytes:.1f} MB, about {apart:.1f} MB with media in every expression"
        )

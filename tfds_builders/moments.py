"""Queries on videos: one line of an annotation file and its feature files -> one raw record.

A record is one query. Feature files stay what they are: each is kept whole, as .npy bytes in its
own precision; cutting, normalizing and everything else that a loader does is done by the rows
(avs_jax/data/moments.py).

  qid, vid, query, domain   Text
  duration                  float32             seconds
  clip_seconds              float32             that a row of features stands for
  video                     list of bytes       .npy [n_i, d_i], one per kind of features
  text                      bytes               .npy [words, d]
  audio                     bytes               .npy [n, d]; empty where a dataset has none
  energy                    float32 [n]         log-RMS of each clip's sound; empty likewise
  windows                   float32 [W, 2]      seconds; empty in a split without annotations
  saliency_clips            int32 [c]           the clips with a score
  saliency                  float32 [c, A]      their scores by annotator
  ratings                   float32 [n, A]      score of every clip by annotator (TVSum)

A video's features are stored again with each of its queries: QVHighlights' val split has 1550
queries on 1519 videos, so sharing them would save 2 %.

The annotation format: tfds_builders/moment_annotations.py.
"""

import collections
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from avs_jax.array_files import parse_npy, read_member
from avs_jax.data.avsbench_folders import SPLITS, DatasetLayoutError
from avs_jax.data.input_files import MAX_BYTES, read_bytes
from avs_jax.spec import InputError, first_line
from tfds_builders.moment_annotations import Annotation, read_splits
from tfds_builders.record_builder import RecordBuilder
from tfds_builders.shards import ShardReport

# Published features lack up to two of the clips that the duration asks for.
MISSING_CLIPS = 2
_NUM_SAMPLED = 32  # files that say how wide a kind of features is


@dataclasses.dataclass(frozen=True)
class Features:
    """Where one kind of features is.

    Attributes:
      folders: alternatives below the root; the first that is there counts.
      name: template of a file over {vid} and {qid}.
      key: of the array in an .npz file.
    """

    folders: tuple[str, ...]
    name: str
    key: str = ""


@dataclasses.dataclass(frozen=True)
class MomentLayout:
    """How a dataset of queries is laid out.

    Attributes:
      name, description: for people.
      annotations: templates over {split}, alternatives; a split that has none of them is left out.
      video, text, audio, energy: the last two are left out where their folder is not there.
      clip_seconds: where the annotation does not say.
      domain: the queries of one domain; "" all.
    """

    name: str
    description: str
    annotations: tuple[str, ...]
    video: tuple[Features, ...]
    text: Features
    audio: Features
    energy: Features = Features((), "")
    clip_seconds: float = 1.0
    domain: str = ""

    def annotation_files(self, root: pathlib.Path) -> dict[str, pathlib.Path]:
        """The annotation file of each split that has one."""
        found = {}
        for split in SPLITS:
            paths = [root / template.format(split=split) for template in self.annotations]
            present = [path for path in paths if path.is_file()]
            if present:
                found[split] = present[0]
        return found


@dataclasses.dataclass(frozen=True)
class MomentSetting:
    """A dataset of queries; the class RecordBuilder says what the fields are for."""

    dataset: str
    title: str
    layouts: tuple[MomentLayout, ...]
    how_to_get: str

    def layouts_present(self, root: pathlib.Path) -> list[MomentLayout]:
        """The default: layouts differ in the domain alone, so a folder holds all of them."""
        del root
        return [self.layouts[0]]

    def find_root(self, folder: str | os.PathLike) -> pathlib.Path:
        """The folder given, if it holds annotations."""
        root = pathlib.Path(folder).expanduser().absolute()
        if any(layout.annotation_files(root) for layout in self.layouts):
            return root
        looked = _names(root, self.layouts[0].annotations)
        absent = "" if root.is_dir() else f" ({root} is not a folder)"
        raise DatasetLayoutError(
            f"no annotations: looked for {looked}, split being one of {', '.join(SPLITS)}{absent}\n"
            f"{self.how_to_get}"
        )


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """A feature file, the key of its array, and how many columns the others of its kind have."""

    path: pathlib.Path
    key: str
    width: int


@dataclasses.dataclass(frozen=True)
class QueryFiles:
    """An annotation and where the files of its query should be; energy and audio may be None."""

    annotation: Annotation
    video: tuple[ArrayFile, ...]
    text: ArrayFile
    audio: ArrayFile | None
    energy: ArrayFile | None

    @property
    def clip_id(self) -> str:
        """What identifies the query in a list of problems."""
        return self.annotation.qid

    @property
    def files(self) -> list[pathlib.Path]:
        """All of them."""
        arrays = (*self.video, self.text, self.audio, self.energy)
        return [array.path for array in arrays if array is not None]

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """`read_query`."""
        return read_query(self)

    @staticmethod
    def features() -> tfds.features.FeaturesDict:
        """The features of the record."""
        return record_features()


def record_features() -> tfds.features.FeaturesDict:
    """The features of a record, as listed at the top of this file."""
    features = tfds.features
    encoded = features.Tensor(shape=(), dtype=np.object_)

    def numbers(*shape: int | None, dtype: Any = np.float32) -> tfds.features.Tensor:
        # TFDS cannot read back an empty array of unknown shape in its other encodings.
        return features.Tensor(shape=shape, dtype=dtype, encoding="zlib")

    return features.FeaturesDict(
        {
            **{name: features.Text() for name in ("qid", "vid", "query", "domain")},
            "duration": np.float32,
            "clip_seconds": np.float32,
            "video": features.Sequence(encoded),
            "text": encoded,
            "audio": encoded,
            "energy": numbers(None),
            "windows": numbers(None, 2),
            "saliency_clips": numbers(None, dtype=np.int32),
            "saliency": numbers(None, None),
            "ratings": numbers(None, None),
        }
    )


# ---- feature files ----


def list_queries(
    root: pathlib.Path, layout: MomentLayout
) -> tuple[dict[str, list[QueryFiles]], list[str]]:
    """Queries per split in the annotations' order, and all that is wrong before any file is read.

    Raises:
      DatasetLayoutError: there is no folder of some features.
    """
    files = layout.annotation_files(root)
    has_text_per_qid = "{qid}" in layout.text.name
    splits, problems = read_splits(files, layout.clip_seconds, layout.domain, has_text_per_qid)
    everything = [annotation for annotations in splits.values() for annotation in annotations]
    locate = [_locator(root, features, everything) for features in layout.video]
    text = _locator(root, layout.text, everything)
    audio = _locator(root, layout.audio, everything, optional=True)
    energy = _locator(root, layout.energy, everything, optional=True)
    queries = {
        split: [
            QueryFiles(a, tuple(f(a) for f in locate), text(a), audio(a), energy(a))
            for a in annotations
        ]
        for split, annotations in splits.items()
    }
    return queries, problems


def _locator(root, features: Features, annotations: Sequence[Annotation], optional=False):
    """The function from an annotation to its file of one kind of features."""
    folder = next((root / name for name in features.folders if (root / name).is_dir()), None)
    if folder is None:
        if optional:
            return lambda annotation: None
        raise DatasetLayoutError(
            f"no folder of features: looked for {_names(root, features.folders)}"
        )

    def path(annotation: Annotation) -> pathlib.Path:
        return folder / features.name.format(qid=annotation.qid, vid=annotation.vid)

    step = max(1, len(annotations) // _NUM_SAMPLED)
    width = common_width([path(a) for a in annotations[::step]], features.key)
    return lambda annotation: ArrayFile(path(annotation), features.key, width)


def common_width(paths: Sequence[pathlib.Path], key: str) -> int:
    """How many columns most of these files have; 0 where none can be read."""
    widths: collections.Counter[int] = collections.Counter()
    for path in paths:
        try:
            widths[read_array(ArrayFile(path, key, 0)).shape[-1]] += 1
        except InputError:
            continue
    return widths.most_common(1)[0][0] if widths else 0


def read_array(file: ArrayFile, min_rows: int = 1) -> np.ndarray:
    """An array of features, in the file's precision but float32 at most.

    Raises:
      InputError: missing or damaged, not floating or finite, of fewer rows than `min_rows` or not
        as wide as the others; says which file and why.
    """
    path, data = file.path, read_bytes(file.path)
    try:
        if file.key:
            data = read_member(data, f"{file.key}.npy", MAX_BYTES)
        array = parse_npy(data)
    # zipfile answers damaged files with many kinds of exceptions.
    except Exception as error:
        raise InputError(f"{path}: unreadable array {file.key} ({first_line(error)})") from error
    if array.dtype.kind != "f":
        raise InputError(f"{path}: {array.dtype}, expected floats")
    if array.ndim != 2 or (file.width and array.shape[1] != file.width):
        width = file.width or "width"
        raise InputError(
            f"{path}: shape {list(array.shape)}, expected [n, {width}] like the other files"
        )
    if len(array) < min_rows:
        raise InputError(f"{path}: {len(array)} rows, expected {min_rows} or more")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: holds NaN or infinity")
    return array.astype(np.float32) if array.dtype.itemsize > 4 else array


def read_query(query: QueryFiles) -> tuple[dict[str, Any], list[str]]:
    """The record of a query, and all that is wrong with its files; it counts only if nothing is."""
    annotation, problems = query.annotation, []
    num_clips = int(annotation.duration / annotation.clip_seconds)
    min_rows = max(1, num_clips - MISSING_CLIPS)

    def encoded(file: ArrayFile | None, rows: int = min_rows) -> bytes:
        if file is None:
            return b""
        try:
            return _encode(read_array(file, rows))
        except InputError as error:
            problems.append(str(error))
            return b""

    energy = np.zeros(0, np.float32)
    if query.energy is not None:
        try:
            energy = read_array(query.energy, min_rows)[:, 0]
        except InputError as error:
            problems.append(str(error))
    record = {
        "qid": annotation.qid,
        "vid": annotation.vid,
        "query": annotation.query,
        "domain": annotation.domain,
        "duration": np.float32(annotation.duration),
        "clip_seconds": np.float32(annotation.clip_seconds),
        "video": [encoded(file) for file in query.video],
        "text": encoded(query.text, rows=1),
        "audio": encoded(query.audio),
        "energy": energy.astype(np.float32),
        "windows": np.array(annotation.windows, np.float32).reshape(-1, 2),
        "saliency_clips": np.array(annotation.saliency_clips, np.int32),
        "saliency": _table(annotation.saliency),
        "ratings": _table(annotation.ratings),
    }
    return record, problems


def _encode(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _table(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(len(rows), len(rows[0]) if rows else 0)


def _names(root: pathlib.Path, templates: Sequence[str]) -> str:
    return " or ".join(str(root / template) for template in templates)


class MomentBuilder(RecordBuilder, skip_registration=True):
    """One raw record per query, in the order of the annotation files."""

    RECORDS = "queries"

    @staticmethod
    def record_features() -> tfds.features.FeaturesDict:
        return record_features()

    def list_sources(
        self, root: pathlib.Path
    ) -> tuple[Mapping[str, Sequence[QueryFiles]], list[str]]:
        return list_queries(root, self.builder_config.layout)

    def describe(
        self, root: pathlib.Path, kept: Sequence[QueryFiles], reports: Sequence[ShardReport]
    ) -> dict[str, Any]:
        del reports
        query = kept[0]
        widths = {"video": "+".join(str(file.width) for file in query.video)}
        widths["text"] = str(query.text.width)
        if query.audio is not None:
            widths["audio"] = str(query.audio.width)
        files = self.builder_config.layout.annotation_files(root)
        return {
            "ground_truth": f"annotations of {self.SETTING.title}",
            "annotations": {split: path.name for split, path in files.items()},
            "widths": widths,
            "has_energy": query.energy is not None,
        }

    @staticmethod
    def summarize(metadata: Mapping[str, Any]) -> str:
        widths = ", ".join(f"{kind} {width}" for kind, width in metadata["widths"].items())
        return f"features {widths}; energy {'yes' if metadata['has_energy'] else 'no'}"

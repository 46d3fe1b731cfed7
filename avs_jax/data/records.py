"""A dataset's records by index, from the array_record files of a TFDS folder. No jax.

  DATA_DIR/NAME[/VARIANT]/VERSION/
    dataset_info.json   name, splits, records per shard
    features.json       the fields of a record, as TFDS feature classes
    metadata.json       what the builder noted; its "items" are split -> items of each record, where
                      records hold several, such as the expressions of a clip
    NAME-SPLIT.array_record-00000-of-00004 ...

TFDS decodes the records, but it does not open the folder: its own reader imports any Python module
that features.json names. Here a folder is data. features.json may name only the four classes in
`_CLASSES`, with arguments that this module knows; everything else is refused before TFDS sees it.
"""

import bisect
import collections
import itertools
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from avs_jax.data.decode import decode_text
from avs_jax.data.input_files import read_json
from avs_jax.files import open_regular
from avs_jax.spec import InputError, first_line
from avs_jax.task import Record

INFO, FEATURES, METADATA = "dataset_info.json", "features.json", "metadata.json"
_TEMPLATES = (None, "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")

_CORE = "tensorflow_datasets.core.features"
_CLASSES = {  # class that a feature may have -> where its arguments are, and what they are called
    f"{_CORE}.features_dict.FeaturesDict": ("featuresDict", {"features"}),
    f"{_CORE}.sequence_feature.Sequence": ("sequence", {"feature", "length"}),
    f"{_CORE}.tensor_feature.Tensor": ("tensor", {"shape", "dtype", "encoding"}),
    f"{_CORE}.text_feature.Text": ("text", set()),
}
_DTYPES = "bool uint8 int16 int32 int64 float16 float32 string".split()
_ENCODINGS = ("none", "bytes", "zlib")
_MAX_AXES = 6
_MAX_FIXED_SIZE = 1 << 24  # numbers in an array whose shape features.json fixes


class DatasetFolder(NamedTuple):
    """What a folder of records says about itself.

    Attributes:
      name: of the dataset.
      features: of a record, a TFDS FeaturesDict.
      shard_lengths: split -> records in each of its shards.
      metadata: what the builder noted.
    """

    name: str
    features: Any
    shard_lengths: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, Any]


class Records(Sequence):
    """The records of one split; a record is read and decoded when it is asked for.

    Where records hold several items, the sequence is that of the items: each is the whole record
    with `item`, the item's place in it.

    Attributes:
      metadata: what the dataset's builder noted.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        """Opens a split of the folder of one version.

        Raises:
          InputError: there is no such split, or the folder is damaged or holds anything but records
            of known features; names the file.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._folder, self._split = pathlib.Path(folder), split
        dataset = read_folder(self._folder)
        if split not in dataset.shard_lengths:
            raise InputError(
                f"no split {split!r} in {folder}, there are {sorted(dataset.shard_lengths)}"
            )
        self.metadata, self._features = dataset.metadata, dataset.features
        lengths = dataset.shard_lengths[split]
        self._shards = [
            self._folder / f"{dataset.name}-{split}.array_record-{i:05d}-of-{len(lengths):05d}"
            for i in range(len(lengths))
        ]
        for path, length in zip(self._shards, lengths, strict=True):
            _check_shard(path, length)
        self._ends = list(itertools.accumulate(lengths))
        self._item_ends = _item_ends(self._folder, split, dataset.metadata, self._ends[-1])
        self._source = ArrayRecordDataSource(
            [f"{path}[0:{length}]" for path, length in zip(self._shards, lengths, strict=True)]
        )

    def __len__(self) -> int:
        return self._item_ends[-1] if self._item_ends else self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        if not self._item_ends:
            return self._read(index)
        place = bisect.bisect_right(self._item_ends, index)
        start = self._item_ends[place - 1] if place else 0
        return {**self._read(place), "item": index - start}

    def _read(self, index: int) -> Record:
        try:
            return self._features.deserialize_example_np(self._source[index])
        # array_record, protobuf and TFDS answer damage with many kinds of exceptions.
        except Exception as error:
            shard = next(i for i, end in enumerate(self._ends) if index < end)
            raise InputError(
                f"{self._shards[shard]}: clip {index} of {self._split!r} is damaged "
                f"({first_line(error)})"
            ) from error

    def stamps(self) -> list[tuple[str, int, int]]:
        """Name, size and modification time in ns of every shard: others once it is rebuilt."""
        states = [(path.name, path.stat()) for path in self._shards]
        return [(name, state.st_size, state.st_mtime_ns) for name, state in states]

    def __reduce__(self):
        return Records, (self._folder, self._split)  # a loader's process opens its own files


def open_records(config: Any, split: str) -> Records:
    """The records of one split, by index; nothing is read yet.

    config.data.dataset names a dataset, "name" or "name/variant"; the newest version counts.

    Raises:
      FileNotFoundError: there is no such dataset; names the folders looked in.
      InputError: as `Records`, or there are several variants and none is named.
    """
    return Records(_find_folder(config), split)


def beside_records(config: Any, name: str) -> pathlib.Path:
    """The path of a file that the builder wrote beside the records."""
    return _find_folder(config) / name


def metadata(records: Sequence[Record]) -> Mapping[str, Any]:
    """What the dataset's builder noted; nothing where the records are not a dataset's."""
    return getattr(records, "metadata", None) or {}


def record_name(record: Record) -> str:
    """What a record's row is called: its expression's uid or, without expressions, its clip id."""
    name = record["uids"][int(record["item"])] if "uids" in record else record.get("clip_id", "")
    return decode_text(name)


def file_stamps(records: Sequence[Record]) -> list[tuple[str, int, int]]:
    """`Records.stamps`; nothing where the records are not a dataset's."""
    return records.stamps() if isinstance(records, Records) else []


def read_folder(folder: str | os.PathLike) -> DatasetFolder:
    """What the json files of one version's folder say.

    Raises:
      InputError: a file is missing or damaged, or describes anything but array_record files of
        known features.
    """
    folder = pathlib.Path(folder)
    info = read_json(folder / INFO)
    name, splits = info.get("name"), info.get("splits", [])
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise InputError(f"{folder / INFO}: name {name!r}, expected letters, digits and _")
    if info.get("fileFormat") != "array_record":
        raise InputError(
            f"{folder / INFO}: file format {info.get('fileFormat')!r}, expected 'array_record'"
        )
    lengths = {}
    for split in splits if isinstance(splits, list) else [splits]:
        try:
            counts = tuple(int(count) for count in split["shardLengths"])
            is_usable = re.fullmatch(r"\w+", split["name"]) and counts and min(counts) > 0
            is_usable = is_usable and split.get("filepathTemplate") in _TEMPLATES
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            is_usable = False
        if not is_usable:
            raise InputError(f"{folder / INFO}: unexpected split {str(split)[:200]}")
        lengths[split["name"]] = counts
    features = _make_feature(folder / FEATURES, "", read_json(folder / FEATURES))
    noted = read_json(folder / METADATA) if (folder / METADATA).exists() else {}
    return DatasetFolder(name, features, lengths, noted)


def _find_folder(config: Any) -> pathlib.Path:
    """The folder of the newest version of config.data.dataset."""
    root = pathlib.Path(config.data.data_dir).expanduser().resolve()
    home = root / config.data.dataset
    found: dict[pathlib.Path, list[pathlib.Path]] = collections.defaultdict(list)
    for pattern in (f"*/{INFO}", f"*/*/{INFO}"):
        for path in home.glob(pattern):
            if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name):
                found[path.parent.parent].append(path.parent)
    if not found:
        raise FileNotFoundError(
            f"dataset {config.data.dataset!r} not found: looked for a version of it in {home} and "
            f"{home}/*, where {root} is config.data.data_dir = {config.data.data_dir!r}"
        )
    if len(found) > 1:
        variants = sorted(str(path.relative_to(root)) for path in found)
        raise InputError(
            f"config.data.dataset {config.data.dataset!r} is one of {variants}: which?"
        )
    (versions,) = found.values()
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def _item_ends(
    folder: pathlib.Path, split: str, noted: Mapping[str, Any], num_records: int
) -> list[int]:
    """Running sums of the items of a split's records; [] where a record is one item."""
    items = noted.get("items")
    if items is None:
        return []
    counts = items.get(split) if isinstance(items, dict) else None
    is_usable = isinstance(counts, list) and len(counts) == num_records
    if not is_usable or not all(isinstance(n, int) and n > 0 for n in counts):
        raise InputError(
            f"{folder / METADATA}: items of {split!r} are {str(counts)[:100]}, expected a count "
            f"of at least 1 for each of {num_records} records"
        )
    return list(itertools.accumulate(counts))


def _make_feature(path: pathlib.Path, name: str, node: Any) -> Any:
    """The TFDS feature that a node of features.json describes; no name in it is looked up."""
    from tensorflow_datasets import features  # slow: only who opens records waits for it

    from avs_jax.data import zlib_tensor

    kind = node.get("pythonClassName") if isinstance(node, dict) else None
    kind = kind if isinstance(kind, str) else str(node)[:200]
    what = f"{path}: {name or 'the record'} is of class {kind!r}"
    if kind not in _CLASSES:
        raise InputError(f"{what}, which no record of avs_jax has; expected {', '.join(_CLASSES)}")
    key, arguments = _CLASSES[kind]
    content = node.get(key)
    if node.keys() != {"pythonClassName", key} or not isinstance(content, dict):
        raise InputError(f"{what} and has {sorted(node)}, expected pythonClassName and {key}")
    if not content.keys() <= arguments:
        raise InputError(f"{what}, {key} {sorted(content)}, expected only {sorted(arguments)}")
    if key == "featuresDict":
        fields = content.get("features", {})
        if not isinstance(fields, dict):
            raise InputError(f"{what}, but its features are a {type(fields).__name__}")
        return features.FeaturesDict(
            {
                field: _make_feature(path, f"{name}/{field}", value)
                for field, value in fields.items()
            }
        )
    if key == "sequence":
        if content.get("length") != "-1":
            raise InputError(f"{what} of length {content.get('length')!r}, expected '-1'")
        return features.Sequence(_make_feature(path, f"{name}[]", content.get("feature")))
    if key == "text":
        return features.Text()
    dtype, encoding = content.get("dtype"), content.get("encoding", "none")
    if dtype not in _DTYPES or encoding not in _ENCODINGS:
        raise InputError(
            f"{what} with dtype {dtype!r}, encoding {encoding!r}; expected one of "
            f"{', '.join(_DTYPES)} and of {', '.join(_ENCODINGS)}"
        )
    shape = _read_shape(what, content.get("shape"))
    if encoding == "zlib" and dtype != "string":
        return zlib_tensor.Tensor(name, shape, np.dtype(dtype))
    numpy_dtype = np.object_ if dtype == "string" else np.dtype(dtype)
    return features.Tensor(shape=shape, dtype=numpy_dtype, encoding=encoding)


def _read_shape(what: str, node: Any) -> tuple[int | None, ...]:
    """A shape of features.json: lengths of the axes, None where they vary."""
    sizes = node.get("dimensions", []) if isinstance(node, dict) else None
    is_known = isinstance(sizes, list) and len(sizes) <= _MAX_AXES
    is_known = is_known and all(re.fullmatch(r"-1|[1-9]\d{0,8}", str(size)) for size in sizes)
    shape = tuple(None if int(size) < 0 else int(size) for size in sizes) if is_known else ()
    if not is_known or math.prod(size or 1 for size in shape) > _MAX_FIXED_SIZE:
        raise InputError(f"{what} with an unusable shape {str(node)[:200]}")
    return shape


def _check_shard(path: pathlib.Path, length: int) -> None:
    """Raises where a file of records is missing, damaged or of another number of records."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        with open_regular(path) as file:
            is_empty = not os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    try:
        if is_empty:
            raise ValueError("the file is empty")
        reader = ArrayRecordReader(os.fspath(path))
        held = reader.num_records()
        reader.close()
    # array_record answers damage with several kinds of exceptions.
    except Exception as error:
        raise InputError(f"{path}: not a whole array_record file ({first_line(error)})") from error
    if held != length:
        raise InputError(f"{path}: holds {held} records, {INFO} says {length}")

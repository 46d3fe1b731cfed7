"""A folder of records under random damage: every record is read and prepared for both phases."""

import functools
import io
import json
import pathlib
import shutil
import tempfile

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from avs_jax.data.clip import ClipRows
from avs_jax.data.records import Records
from configs import s4_ama
from tests.fuzz.runner import run_mutations
from tests.record_folder import Builder
from tfds_builders.features import record_features

pytestmark = pytest.mark.slow
SHARD = "avsbench_s4-train.array_record-00000-of-00001"
LIMITS = {"memory": 4 << 30, "seconds": 30}  # array_record starts threads
TEXT = b'"tensorflow_datasets.core.features.text_feature.Text"'
JSON = [b"{", b"}", b"[", b"]", b",", b":", b"null", b'"-1"', b'"int32"', b'"uint8"', b'"zlib"',
        b'"string"', TEXT, b'"text": {}']  # fmt: skip


def make_record(index: int) -> dict:
    """A clip of two small frames with everything that a record can have."""
    rng = np.random.default_rng(index)
    frames = [_png(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    return {
        "clip_id": f"clip{index}", "category": "dog_barking", "category_label": 20,
        "frames": frames, "masks": [_png(rng.integers(0, 2, (16, 16), dtype=np.uint8))],
        "object_masks": [_png(rng.integers(0, 3, (16, 16), dtype=np.uint8)) for _ in range(2)],
        "mask_index": np.zeros(1, np.int32), "pre_masks": frames,
        "waveform": rng.integers(-999, 999, (2000, 1), dtype=np.int16), "sample_rate": 1000,
        "flow": np.ones((2, 16, 16, 2), np.float16), "flow_kind": "uv", "flow_has_first": False,
        "motion_track": np.ones((20, 24, 24, 2), np.float16), "motion_track_rate": 10.0,
        "visible_labels": np.array([20], np.int32),
    }  # fmt: skip


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class RealBuilder(Builder, skip_registration=True):
    """Builds two such records."""

    name = "avsbench_s4"

    def _split_generators(self, dl_manager):
        return {"train": ((index, make_record(index)) for index in range(2))}


@functools.cache
def folder() -> pathlib.Path:
    """The good folder; it lives as long as the process."""
    root = tempfile.TemporaryDirectory(prefix="records")
    _keep.append(root)
    builder = RealBuilder(data_dir=root.name, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


_keep: list[tempfile.TemporaryDirectory] = []


@functools.cache
def rows() -> ClipRows:
    return ClipRows(s4_ama.get_config("tiny"))


def contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder().iterdir() if path.is_file()}


# ---- readers ----


def read_folder(path: pathlib.Path) -> None:
    records = Records(path, "train")
    for i in range(len(records)):
        record = records[i]
        for rng in (None, np.random.default_rng(0)):
            rows().prepare(record, rng)


def read_features(path: pathlib.Path) -> None:
    _read_with(path, "features.json")


def read_info(path: pathlib.Path) -> None:
    _read_with(path, "dataset_info.json")


def read_shard(path: pathlib.Path) -> None:
    _read_with(path, SHARD)


def read_example(path: pathlib.Path) -> None:
    """A record's bytes in a whole array_record file."""
    shard = path.with_name("shard")
    shard.unlink(missing_ok=True)
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for _ in range(2):
        writer.write(path.read_bytes())
    writer.close()
    _read_with(shard, SHARD)


def _read_with(path: pathlib.Path, name: str) -> None:
    """The good folder with this file in the place of one of its own."""
    copy = path.with_name("folder")
    if not copy.is_dir():
        shutil.copytree(folder(), copy)
    shutil.copyfile(path, copy / name)
    read_folder(copy)


def example() -> bytes:
    return record_features().serialize_example(make_record(0))


def content(name: str) -> bytes:
    return (folder() / name).read_bytes()


KINDS = {  # kind -> good input, reader, tokens, number of mutations
    "folder": (contents, "read_folder", JSON, 400),
    "array_record": (lambda: content(SHARD), "read_shard", (), 250),
    "features": (lambda: content("features.json"), "read_features", JSON, 400),
    "info": (lambda: content("dataset_info.json"), "read_info", JSON, 200),
    "example": (example, "read_example", (), 500),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_records(kind):
    good, reader, tokens, count = KINDS[kind]
    reader = f"tests.fuzz.test_records.{reader}"
    counts = run_mutations(kind, good(), reader, count, seed=14, tokens=tokens, **LIMITS)
    print(json.dumps(counts))
    assert counts["refused"] > count // 4  # the mutations do damage

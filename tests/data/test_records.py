"""A folder of records is data: it runs no code, and what is damaged in it is named in one line."""

import json
import os
import pathlib
import pickle
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from avs_jax import evaluate, main
from avs_jax.data import zlib_tensor
from avs_jax.data.records import Records, file_stamps, open_records, read_folder
from avs_jax.spec import InputError
from configs.base import base_config
from tests.avsbench_folders import build
from tests.record_folder import build_records, frame, make_record
from tfds_builders import features, moments

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "s4_ama.py"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return build_records(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good, tmp_path):
    """A copy of it at the demo's place below the working directory."""
    return pathlib.Path(
        shutil.copytree(good, tmp_path / "demo" / "tfds" / "avsbench_s4" / "object224" / "1.0.0")
    )


def shard(folder):
    return folder / "avsbench_s4-train.array_record-00000-of-00001"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_records_by_index(folder):
    records = Records(folder, "train")
    assert len(records) == 3 and records.metadata["source"] == "/nowhere"
    again = pickle.loads(pickle.dumps(records))  # as a loader's process gets them
    for index in (0, 2, -1):
        for found in (records[index], again[index]):
            assert found["clip_id"].decode() == f"clip{index % 3}"
            assert np.all(found["waveform"] == index % 3) and found["frames"] == [frame(index % 3)]
    with pytest.raises(IndexError):
        records[3]


def test_a_rebuilt_shard_has_another_stamp(folder):
    records = Records(folder, "train")
    ((name, size, time),) = before = file_stamps(records)
    assert (name, size) == (shard(folder).name, shard(folder).stat().st_size)
    shard(folder).write_bytes(shard(folder).read_bytes())
    os.utime(shard(folder), ns=(time + 1, time + 1))
    assert file_stamps(records) != before
    assert file_stamps([]) == []


# ---- no code is run ----


@pytest.fixture
def attack(folder, tmp_path, monkeypatch):
    """A folder that brings its own module and names it; the path of the file that it would write.

    The package is run as `python -m avs_jax...` from the folder above demo/.
    """
    marker = tmp_path / "executed"
    (folder.parent / "evil.py").write_text(f"__import__('pathlib').Path({str(marker)!r}).touch()\n")
    features = folder / "features.json"
    text = features.read_text()
    features_dict = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    assert text.count(features_dict) == 1
    features.write_text(text.replace(features_dict, "demo.tfds.avsbench_s4.object224.evil.X"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    yield marker
    for name in [name for name in sys.modules if name.split(".")[0] == "demo"]:
        del sys.modules[name]


def test_tfds_alone_would_run_it(attack, folder):
    """The attack works where nobody looks first; or the tests below would prove nothing."""
    with pytest.raises(ValueError, match="Unrecognized FeatureConnector"):
        tfds.builder_from_directory(folder)
    assert attack.exists()


def test_evaluation_refuses_it(attack, folder, tmp_path, capfd):
    flags = [f"--config={CONFIG}:demo", f"--predictions={tmp_path}", f"--output={tmp_path}/out"]
    assert evaluate.main(["evaluate", *flags]) == 1
    assert_refused(attack, capfd.readouterr().err)


def test_training_refuses_it(attack, folder, tmp_path, capfd):
    with pytest.raises(SystemExit) as error:
        main.main(["main", f"--config={CONFIG}:demo", f"--workdir={tmp_path}/run"])
    assert_refused(attack, str(error.value))


def test_build_refuses_it(attack, folder, tmp_path, capfd):
    assert build("avsbench_s4", tmp_path / "nowhere", tmp_path / "demo" / "tfds") == 1
    assert_refused(attack, capfd.readouterr().err)


def assert_refused(marker, error):
    assert not marker.exists()
    last = error.strip().splitlines()[-1]
    assert "features.json: the record is of class 'demo.tfds.avsbench_s4" in last


def tensor(**arguments):
    known = {"shape": {"dimensions": ["-1"]}, "dtype": "int32", "encoding": "none"}
    return {"pythonClassName": TENSOR, "tensor": known | arguments}


CORE = "tensorflow_datasets.core.features"
TENSOR = f"{CORE}.tensor_feature.Tensor"
STRANGE = {
    "another class of TFDS": {"pythonClassName": f"{CORE}.image_feature.Image", "image": {}},
    "no class": {"tensor": {}},
    "a class that is no name": {"pythonClassName": [TENSOR], "tensor": {}},
    "no feature": "evil.X",
    "two spellings": tensor() | {"python_class_name": "evil.X"},
    "two contents": tensor() | {"jsonFeature": {"json": "{}"}},
    "old style": {"type": "evil.X", "content": {}},
    "a strange dtype": tensor(dtype="object"),
    "a dtype that is no name": tensor(dtype=["int32"]),
    "a strange encoding": tensor(encoding="pickle"),
    "a strange argument": tensor(minimum={"floatValue": 0}),
    "a huge shape": tensor(shape={"dimensions": ["-1", "99999999"]}),
    "a product that is huge": tensor(shape={"dimensions": ["9999"] * 4}),
    "a shape that is no list": tensor(shape={"dimensions": "99"}),
    "a sequence of it": {
        "pythonClassName": f"{CORE}.sequence_feature.Sequence",
        "sequence": {"feature": {"pythonClassName": "evil.X", "text": {}}, "length": "-1"},
    },
    "a sequence of fixed length": {
        "pythonClassName": f"{CORE}.sequence_feature.Sequence",
        "sequence": {"feature": tensor(), "length": "1000000000"},
    },
}


@pytest.mark.parametrize("what", STRANGE)
def test_features_that_no_builder_writes(folder, what):
    content = json.loads((folder / "features.json").read_text())
    content["featuresDict"]["features"]["clip_id"] = STRANGE[what]
    (folder / "features.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"features.json: /clip_id"):
        Records(folder, "train")


@pytest.mark.parametrize("builder", [features, moments])
def test_the_builders_features_are_known(folder, builder):
    """And come back as they are, so nothing is lost on the way."""
    written = builder.record_features()
    written.save_config(folder)
    assert repr(read_folder(folder).features) == repr(written)


# ---- damage ----


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    for position in range(0, len(data), 64):
        data[position] ^= 0xFF
    path.write_bytes(data)


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def info_of(**changes):
    return lambda folder: edit(folder / "dataset_info.json", **changes)


def split_of(**changes):
    split = {"name": "train", "numBytes": "9", "shardLengths": ["3"]}
    return info_of(splits=[split | changes])


JSON, SHARD = ("dataset_info.json", "features.json", "metadata.json"), "array_record-00000"
DAMAGE = {
    **{f"{name} not JSON": (lambda f, n=name: truncate(f / n), name) for name in JSON},
    **{f"{name} a list": (lambda f, n=name: (f / n).write_text("[]"), name) for name in JSON},
    **{f"{name} a pipe": (lambda f, n=name: make_pipe(f / n), name) for name in JSON},
    "not UTF-8": (lambda f: (f / JSON[0]).write_bytes(b'{"name": "\xe9"}'), JSON[0]),
    "deep": (lambda f: (f / JSON[1]).write_text('{"a":' * 99999), JSON[1]),
    "no features": (lambda f: (f / JSON[1]).unlink(), JSON[1]),
    "another format": (info_of(fileFormat="tfrecord"), JSON[0]),
    "no name": (info_of(name="../x"), JSON[0]),
    "no list of splits": (info_of(splits={}), JSON[0]),
    "a split of nothing": (info_of(splits=[5]), JSON[0]),
    "more records": (split_of(shardLengths=["4"]), SHARD),
    "fewer records": (split_of(shardLengths=["2"]), SHARD),
    "more shards": (split_of(shardLengths=["2", "1"]), SHARD),
    "no shard": (split_of(shardLengths=[]), JSON[0]),
    "infinite": (split_of(shardLengths=[float("inf")]), JSON[0]),
    "negative": (split_of(shardLengths=["-3"]), JSON[0]),
    "another folder": (split_of(filepathTemplate="/etc/{SPLIT}"), JSON[0]),
    "truncated": (lambda f: truncate(shard(f)), SHARD),
    "empty": (lambda f: shard(f).write_bytes(b""), SHARD),
    "missing": (lambda f: shard(f).unlink(), SHARD),
    "flipped": (lambda f: flip(shard(f)), SHARD),
    "a pipe": (lambda f: make_pipe(shard(f)), SHARD),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_one_line(folder, what):
    damage, name = DAMAGE[what]
    damage(folder)
    with pytest.raises(InputError, match=rf"^{folder}/[^ ,]*{name}[^ ,]*(, line 1)?: ") as error:
        list(Records(folder, "train"))
    assert "\n" not in str(error.value)


def test_a_damaged_record_is_named(folder):
    """Where the file's end, which counts the records, is good."""
    data = bytearray(shard(folder).read_bytes())
    data[data.index(frame(1))] ^= 0xFF
    shard(folder).write_bytes(data)
    records = Records(folder, "train")
    assert records[0]["clip_id"] == b"clip0"
    with pytest.raises(InputError, match=r"00000-of-00001: clip 1 of 'train' is damaged \("):
        records[1]


def test_fields_that_unpack_to_more_than_a_record_takes(folder, monkeypatch):
    written, limit = features.record_features(), 5 * 8 * 8 * 2 * 2
    read = read_folder(folder).features
    record = make_record(0) | {"flow": np.zeros((5, 8, 8, 2), np.float16)}
    packed = written.serialize_example(record)
    monkeypatch.setattr(zlib_tensor, "MAX_BYTES", limit)
    for field, found in read.deserialize_example_np(packed).items():
        np.testing.assert_array_equal(found, written.deserialize_example_np(packed)[field])
    monkeypatch.setattr(zlib_tensor, "MAX_BYTES", limit - 1)
    with pytest.raises(ValueError, match="^/flow is cut off, or unpacks to more than 1279 bytes"):
        read.deserialize_example_np(packed)


def test_the_newest_version_is_opened(folder, tmp_path):
    config = base_config()
    config.data.update(dataset="avsbench_s4", data_dir=str(tmp_path / "demo" / "tfds"))
    newer = shutil.copytree(folder, folder.parent / "10.0.0")
    edit(newer / "metadata.json", source="newer")
    shutil.copytree(folder, folder.parent / "9.0.0")
    assert open_records(config, "train").metadata["source"] == "newer"
    with pytest.raises(InputError, match=r"no split 'val' in .*10.0.0, there are \['train'\]"):
        open_records(config, "val")

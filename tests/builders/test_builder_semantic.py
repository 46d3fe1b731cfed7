"""The AVSS builder on real files: 5 or 10 frames, which have ground truth, classes by position."""

import importlib.util
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.avsbench_folders import AVSS, OBJECTS, DatasetLayoutError
from avs_jax.data.clip import ClipRows
from avs_jax.data.decode import decode_labels
from avs_jax.generate import avsbench, categories, datasets
from configs.avss_vct import get_config
from tests import avsbench_folders as folders
from tfds_builders import clip_files, shards
from tfds_builders.avsbench import category_labels

CLASSES = categories.SEMANTIC_CLASSES


def run(manual_dir, data_dir, *flags, dataset="avsbench_semantic"):
    return folders.build(dataset, manual_dir, data_dir, *flags)


def open_built(data_dir, layout="original"):
    return folders.open_built("avsbench_semantic", data_dir, layout)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "AVSBench_semantic"
    datasets.write_clips(path, 4, 4, 4, seed=5, size=32, workers=1, setting="avss")
    return path


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("built")
    assert run(source.parent, data_dir) == 0
    return data_dir


def test_reads_back_the_same_bytes(source, built):
    info = open_built(built).info
    assert info.metadata["classes"] == list(CLASSES) and info.metadata["num_clips"] == 12
    objects = json.loads((source / OBJECTS).read_text())
    for split in ("train", "val", "test"):
        records = open_built(built).as_data_source(split)
        assert len(records) == 4
        for index, record in enumerate(records):
            name, subset = f"{split}_5_{index:05d}", avsbench.SUBSETS[index % 4]
            folder, count = source / subset / name, 10 if subset == "v2" else 5
            only_first = subset == "v1s" and split == "train"
            with_mask = [0] if only_first else list(range(count))
            assert record["clip_id"] == name.encode()
            assert record["mask_index"].tolist() == with_mask
            frames = [(folder / f"frames/{t}.jpg").read_bytes() for t in range(count)]
            assert record["frames"] == frames
            masks = [(folder / f"labels_semantic/{t}.png").read_bytes() for t in with_mask]
            assert record["masks"] == masks
            assert len(record["pre_masks"]) == count
            assert record["waveform"].shape == (48_000 * count, 2)
            assert record["sample_rate"] == 48_000
            assert [CLASSES[k] for k in record["visible_labels"]] == objects[name]
            heard = {CLASSES.index(name) for name in record["category"].decode().split("+")}
            seen = set()
            for mask in record["masks"]:
                seen.update(np.unique(decode_labels(mask, 71)).tolist())
            assert seen - {0} <= heard


def test_clips_of_five_and_ten_frames_in_one_batch(built):
    """From records to training clips: what exists, what is supervised, what is a target."""
    config = get_config("demo")
    config.data.num_supervised = 10  # all that there are
    config.data.image_size = 32
    config.data.augment.min_sizes = (32,)
    records = open_built(built).as_data_source("train")
    for index, (frames, masks) in enumerate(((5, 1), (10, 10), (5, 5), (10, 10))):
        clip = ClipRows(config).prepare(records[index], np.random.default_rng(0))
        assert clip["valid"].tolist() == [True] * masks + [False] * (10 - masks)
        assert (clip["supervised"] == clip["valid"]).all()
        assert (clip["proto_valid"] == clip["valid"]).all()
        whole = ClipRows(config).prepare(records[index])
        assert whole["valid"].tolist() == [True] * frames + [False] * (10 - frames)
        assert (whole["labels"][masks:] == 255).all() and (whole["labels"][:masks] < 71).all()


def test_original_and_processed_sizes(source, tmp_path):
    """VCT's layout: training clips as they are, the others resized."""
    copy = shutil.copytree(source, tmp_path / "AVSBench_semantic")
    for path in copy.glob("v*/*/frames/*.jpg"):
        if not path.parent.parent.name.startswith("train"):
            target = path.parent.parent / "processed_frames_384" / path.name
            target.parent.mkdir(exist_ok=True)
            Image.open(path).resize((48, 48)).save(target)
    for path in copy.glob("v*/*/labels_semantic/*.png"):
        if not path.parent.parent.name.startswith("train"):
            target = path.parent.parent / "processed_labels_semantic" / path.name
            target.parent.mkdir(exist_ok=True)
            Image.open(path).resize((224, 224), Image.Resampling.NEAREST).save(target)
    shutil.rmtree(copy / "pre_SAM_mask")
    assert [x.name for x in AVSS.layouts_present(copy)] == ["original", "vct384"]
    assert run(copy, tmp_path / "data", dataset="avsbench_semantic/vct384") == 0

    def sizes(split):
        record = open_built(tmp_path / "data", "vct384").as_data_source(split)[1]
        return [Image.open(io.BytesIO(record[key][0])).size for key in ("frames", "masks")]

    assert sizes("train") == [(42, 32), (42, 32)]
    assert sizes("val") == sizes("test") == [(48, 48), (224, 224)]


def test_damage_is_named(source, tmp_path, capsys):
    copy = shutil.copytree(source, tmp_path / "AVSBench_semantic")
    strange = copy / "v2/val_5_00001/labels_semantic/7.png"
    Image.fromarray(np.full((32, 42), 71, np.uint8)).save(strange)
    missing = copy / "v1m/train_5_00002/labels_semantic/4.png"
    missing.unlink()
    (copy / "v1s/test_5_00000/audio.wav").write_bytes(b"")
    with (copy / "metadata.csv").open("a") as file:
        file.write("a,a,0,0,dog,test,v3\n")
    assert run(copy, tmp_path / "data") == 1
    message = capsys.readouterr().err
    assert f"{strange}: classes [71] in a label image, expected 0 to 70" in message
    assert f"{missing}: missing" in message and "audio.wav: unreadable wav (empty)" in message
    assert "label 'v3' of a is none of v1s, v1m, v2" in message
    assert "4 missing or damaged files in 4 clips (9 clips are good)" in message
    assert run(copy, tmp_path / "data", "--skip_bad") == 0
    assert open_built(tmp_path / "data").info.metadata["num_skipped"] == 4


def test_class_list(source, tmp_path):
    (tmp_path / "label2idx.json").write_text(json.dumps({"background": 1, "dog": 2}))
    with pytest.raises(DatasetLayoutError, match="2 classes, expected 71"):
        category_labels(AVSS, tmp_path)
    classes = category_labels(AVSS, source)  # the file counts from 1, positions do not
    assert classes["background"] == 0 and classes["woman"] == 70
    assert json.loads((source / "label2idx.json").read_text())["background"] == 1


def test_killed_build_is_resumed(source, tmp_path, monkeypatch, capsys):
    """What was finished is not read again, unless its files changed meanwhile."""
    source = shutil.copytree(source, tmp_path / "AVSBench_semantic")
    real, read = clip_files.read_clip, []

    def killed(clip):
        if len(read) == 9:  # train and val are written
            raise KeyboardInterrupt
        read.append(clip.clip_id)
        return real(clip)

    monkeypatch.setattr(clip_files, "read_clip", killed)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert run(source, tmp_path) == 130
    assert "interrupted; the same command resumes" in capsys.readouterr().err
    changed = next(source.glob("*/val_5_00001/audio.wav"))
    os.utime(changed, ns=(1, 1))
    read.clear()
    read_again = read
    monkeypatch.setattr(
        clip_files, "read_clip", lambda clip: read_again.append(clip.clip_id) or real(clip)
    )
    assert run(source, tmp_path) == 0
    assert sorted(read_again) == [
        f"{split}_5_{i:05d}" for split in ("test", "val") for i in range(4)
    ]
    assert "resuming after 4 of 12 clips of an earlier build" in capsys.readouterr().out
    for split in ("train", "val", "test"):
        names = [
            record["clip_id"].decode() for record in open_built(tmp_path).as_data_source(split)
        ]
        assert names == [f"{split}_5_{i:05d}" for i in range(4)]
    home = tmp_path / "avsbench_semantic/original"
    assert [path.name for path in home.iterdir()] == ["1.0.0"]


def test_several_shards_keep_the_order(source, built, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 3)
    assert run(source, tmp_path) == 0
    assert open_built(tmp_path).info.splits["train"].shard_lengths == [3, 1]
    for split in ("train", "val", "test"):
        records = [open_built(d).as_data_source(split) for d in (built, tmp_path)]
        for want, got in zip(*records, strict=True):
            assert want["clip_id"] == got["clip_id"] and want["frames"] == got["frames"]


HAS_BEAM = importlib.util.find_spec("apache_beam") is not None


@pytest.mark.skipif(HAS_BEAM, reason="Apache Beam is installed")
def test_beam_is_an_extra(source, tmp_path, capsys):
    assert run(source, tmp_path, "--beam=") == 1
    assert "pip install -e .[beam]" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_BEAM, reason="needs the extra `beam`")
def test_beam_writes_the_same_records(source, built, tmp_path):
    flag = "--beam=direct_running_mode=multi_processing,direct_num_workers=2"
    assert run(source, tmp_path, flag) == 0
    for split in ("train", "val", "test"):
        pairs = zip(
            open_built(built).as_data_source(split),
            open_built(tmp_path).as_data_source(split),
            strict=True,
        )
        for want, got in pairs:
            for name in want:
                np.testing.assert_array_equal(got[name], want[name])

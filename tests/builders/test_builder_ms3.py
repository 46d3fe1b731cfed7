"""The MS3 builder on real files: frames without a level for the split, masks for every frame."""

import shutil

import numpy as np
import pytest

from avs_jax.data.avsbench_folders import MS3, S4
from avs_jax.generate import datasets, plans
from tests import avsbench_folders as folders
from tfds_builders.avsbench import list_clips

COUNTS = {"train": 4, "val": 2, "test": 2}


def run(manual_dir, data_dir, *flags, dataset="avsbench_ms3"):
    return folders.build(dataset, manual_dir, data_dir, *flags)


def records(data_dir, split, layout="object224"):
    return folders.open_built("avsbench_ms3", data_dir, layout).as_data_source(split)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "Multi-sources"
    datasets.write_clips(path, 4, 2, 2, seed=5, size=32, workers=1, setting="ms3")
    return path


def test_reads_back_the_same_bytes(source, tmp_path):
    assert run(source.parent, tmp_path) == 0  # the parent folder is accepted too
    for split, count in COUNTS.items():
        got = records(tmp_path, split)
        assert len(got) == count
        for index, record in enumerate(got):
            plan = plans.plan_mixture(5, split, index)
            name = plan.name
            assert record["clip_id"] == name.encode() and record["category_label"] == 0
            heard = sorted(category.name for category in plan.heard)
            assert record["category"].decode() == "+".join(heard)
            frames = source / "ms3_data/visual_frames" / name
            masks = source / "ms3_data/gt_masks" / split / name
            colors = source / "ms3_data/pre_SAM_mask" / name
            for t in range(5):
                number = t + 1
                frame = (frames / f"{name}.mp4_{number}.png").read_bytes()
                mask = (masks / f"{name}_{number}.png").read_bytes()
                color = (colors / f"{name}.mp4_{number}_mask_color.png").read_bytes()
                assert record["frames"][t] == frame
                assert record["masks"][t] == mask
                assert record["pre_masks"][t] == color
            assert record["mask_index"].tolist() == [0, 1, 2, 3, 4]  # in train as well
            assert record["waveform"].shape == (80_000, 1) and record["sample_rate"] == 16_000
            visible = {S4.categories[label - 1] for label in record["visible_labels"]}
            assert visible == {item.category.name for item in plan.objects}


def test_names_of_the_first_column_do_not_matter(source, tmp_path):
    """AVSBench reads the clip by position and the split by name."""
    copy = shutil.copytree(source, tmp_path / "Multi-sources")
    lines = (copy / MS3.csv).read_text().splitlines()
    text = "\n".join(line.rpartition(",")[0] for line in lines[1:])
    (copy / MS3.csv).write_text(f"whatever,split\n{text}\n")
    clips, problems = list_clips(MS3, copy, MS3.layouts[0])
    assert problems == [] and {split: len(clips[split]) for split in COUNTS} == COUNTS
    assert {clip.category for split in COUNTS for clip in clips[split]} == {""}


def test_vct_layout(source, tmp_path):
    """384 px frames without ".mp4", 224 px masks outside train."""
    copy = shutil.copytree(source, tmp_path / "Multi-sources")
    folders.add_vct384(copy / "ms3_data")
    assert run(copy, tmp_path / "data", dataset="avsbench_ms3/vct384") == 0
    record = records(tmp_path / "data", "test", "vct384")[0]
    assert len(record["masks"]) == 5 and record["pre_masks"] == []


def test_damage_is_named_and_can_be_skipped(source, tmp_path, capsys):
    copy = shutil.copytree(source, tmp_path / "Multi-sources")
    frame = next(copy.glob("ms3_data/visual_frames/val_5_00000/*_3.png"))
    frame.write_bytes(frame.read_bytes()[:200])
    mask = next(copy.glob("ms3_data/gt_masks/train/train_5_00001/*_5.png"))
    mask.unlink()
    with (copy / MS3.csv).open("a") as file:
        file.write("ghost,nowhere,\n")
    assert run(copy, tmp_path / "data") == 1
    message = capsys.readouterr().err
    assert f"{frame}: unreadable image" in message and f"{mask}: missing" in message
    assert "line 10: split 'nowhere' of ghost is none of train, val, test" in message
    assert "(6 clips are good)" in message
    assert not list((tmp_path / "data").glob("avsbench_ms3/object224/[!.]*"))
    assert run(copy, tmp_path / "data", "--skip_bad") == 0
    info = folders.open_built("avsbench_ms3", tmp_path / "data", "object224").info
    assert info.metadata["num_skipped"] == 3 and info.metadata["num_clips"] == 6


def test_color_masks_under_other_names(source, tmp_path):
    """pre_SAM_mask_224 without ".mp4" is found; a folder of strange names is a problem."""
    copy = shutil.copytree(source, tmp_path / "Multi-sources")
    (copy / "ms3_data/pre_SAM_mask").rename(copy / "ms3_data/pre_SAM_mask_224")
    for path in list(copy.glob("ms3_data/pre_SAM_mask_224/*/*.png")):
        path.rename(path.with_name(path.name.replace(".mp4", "")))
    clips, problems = list_clips(MS3, copy, MS3.layouts[0])
    assert problems == [] and all(p.is_file() for p in clips["val"][0].pre_masks)
    for path in list(copy.glob("ms3_data/pre_SAM_mask_224/*/*.png")):
        path.rename(path.with_name("x" + path.name))
    clips, problems = list_clips(MS3, copy, MS3.layouts[0])
    assert clips["val"][0].pre_masks == () and "holds no color mask" in problems[0]


def test_stored_flow(source, tmp_path):
    folder = tmp_path / "flow/ms3/val/val_5_00001"
    folder.mkdir(parents=True)
    for t in range(5):
        np.save(folder / f"flow_{t:04d}.npy", np.full((4, 4, 2), t, np.float32))
    clips, _ = list_clips(MS3, source, MS3.layouts[0], tmp_path / "flow")
    assert clips["val"][1].flow_dir == folder

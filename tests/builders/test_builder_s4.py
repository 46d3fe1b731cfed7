"""The S4 builder on real files: what goes in comes back, and every damaged file is named."""

import concurrent.futures
import io
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.avsbench_folders import OBJECTS, S4
from avs_jax.data.input_files import read_wav
from avs_jax.data.records import Records
from avs_jax.generate import avsbench, datasets, plans
from tests import avsbench_folders as folders
from tfds_builders.avsbench import list_clips
from tfds_builders.clip_files import read_clip

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "Single-source"
    datasets.write_clips(path, 12, 4, 4, seed=5, size=32, workers=1)
    return path


@pytest.fixture
def damaged(source, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(source, tmp_path / "Single-source")


def run(manual_dir, data_dir, *flags, dataset="avsbench_s4"):
    return folders.build(dataset, manual_dir, data_dir, *flags)


def open_built(data_dir, layout="object224"):
    return folders.open_built("avsbench_s4", data_dir, layout)


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("built")
    temporary = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)  # read TMPDIR again
        # The parent folder of Single-source is accepted too.
        assert run(source.parent, data_dir) == 0
    assert not os.listdir(temporary)
    assert not (data_dir / "downloads").exists()
    return data_dir


def test_reads_back_the_same_bytes(source, built):
    info = open_built(built).info
    assert info.metadata["flow_has_first"] is None
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 12, "val": 4, "test": 4,
    }  # fmt: skip
    assert info.metadata["num_clips"] == 20 and info.metadata["num_skipped"] == 0
    assert info.metadata["ground_truth"] == "generated clips"
    objects = json.loads((source / OBJECTS).read_text())
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        records = open_built(built).as_data_source(split)
        assert len(records) == count
        for index, record in enumerate(records):
            plan = plans.plan_clip(5, split, index)  # the csv's order is kept
            category = plan.objects[plan.sounding].category.name
            assert record["clip_id"] == plan.name.encode()
            assert record["category"] == category.encode()
            assert S4.categories[record["category_label"] - 1] == category
            paths = avsbench.clip_paths(source, plan)
            with_mask = [0] if split == "train" else list(range(5))
            assert record["mask_index"].tolist() == with_mask
            assert record["frames"] == [paths[f"frame/{k}"].read_bytes() for k in range(1, 6)]
            assert record["pre_masks"] == [paths[f"pre_mask/{k}"].read_bytes() for k in range(1, 6)]
            assert record["masks"] == [paths[f"mask/{t + 1}"].read_bytes() for t in with_mask]
            waveform, rate = read_wav(paths["wav"])
            assert rate == record["sample_rate"] == 16_000
            assert record["waveform"].dtype == np.int16
            np.testing.assert_array_equal(record["waveform"], waveform)
            assert record["waveform"].shape == (80_000, 1)
            assert record["flow"].shape == (0, 0, 0, 0) and record["flow_kind"] == b"none"
            visible = [S4.categories[label - 1] for label in record["visible_labels"]]
            assert visible == objects[plan.name]


def read_one(job):
    data_dir, index = job
    return open_built(data_dir).as_data_source("train")[index]["clip_id"]


def read_pickled(job):
    records, index = job
    return records[index]["clip_id"]


def test_random_access_in_several_processes(built):
    order = [7, 0, 11, 3]
    records = open_built(built).as_data_source("train")
    expected = [plans.plan_clip(5, "train", i).name.encode() for i in order]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(read_one, [(built, i) for i in order])) == expected
        assert list(pool.map(read_pickled, [(records, i) for i in order])) == expected


def test_needs_no_tensorflow(source, tmp_path):
    program = (
        "import sys\n"
        "from avs_jax.programs import build_dataset\n"
        "status = build_dataset.main(sys.argv[1:])\n"
        "sys.exit(status or 'tensorflow' in sys.modules)"
    )
    flags = ["--dataset=avsbench_s4", f"--manual_dir={source}", f"--data_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "train 12" in done.stdout and "%" not in done.stderr  # no bar in a log


def frame(root, split, number, kind="frame/1"):
    plan = plans.plan_clip(5, split, number)
    return avsbench.clip_paths(root, plan)[kind]


def damage(root):
    """Breaks eight clips in eight ways; returns what must be named, clip by clip."""
    truncated = frame(root, "train", 0, "frame/3")
    truncated.write_bytes(truncated.read_bytes()[:200])
    mask = frame(root, "train", 1, "mask/1")
    mask.unlink()
    wav = frame(root, "train", 2, "wav")
    wav.write_bytes(b"")
    short = frame(root, "train", 3, "wav")
    short.write_bytes(short.read_bytes()[:100_000])
    resized = frame(root, "val", 0, "mask/4")
    Image.new("L", (16, 32)).save(resized)
    color = frame(root, "val", 1, "pre_mask/2")
    color.write_text("no picture")
    folder = frame(root, "test", 0).parent
    shutil.rmtree(folder)
    with (root / "s4_meta_data.csv").open("a") as file:
        file.write("ghost,0,dog_barking,test\nodd,0,unicorn,train\n")
    return [
        (truncated, "unreadable image"), (mask, "missing"), (wav, "unreadable wav"),
        (short, "truncated wav"), (resized, "16x32 px, expected 32x32"),
        (color, "unreadable image"), (folder, "no such folder"),
        (root / "s4_data/visual_frames/test/dog_barking/ghost", "no such folder"),
        (root / "s4_meta_data.csv", "'unicorn'"),
    ]  # fmt: skip


def test_every_damaged_file_is_listed(damaged, tmp_path, capsys):
    expected = damage(damaged)
    data_dir = tmp_path / "data"
    assert run(damaged, data_dir) == 1
    message = capsys.readouterr().err
    assert "9 missing or damaged files in 9 clips (13 clips are good)" in message
    for path, words in expected:
        line = next(line for line in message.splitlines() if str(path) in line)
        assert words in line
    assert f"wait in {data_dir}/avsbench_s4/object224/.parts.1.0.0" in message
    assert not list(data_dir.glob("avsbench_s4/object224/[!.]*"))


@pytest.mark.parametrize("number", range(8))
def test_one_damaged_file_fails_the_build(damaged, tmp_path, capsys, number):
    """Each kind of damage is enough by itself: all the others are put right again."""
    pristine = shutil.copytree(damaged, tmp_path / "pristine")
    expected = damage(damaged)
    path, words = expected[number]
    if "ghost" in str(path):
        with (pristine / "s4_meta_data.csv").open("a") as file:
            file.write("ghost,0,dog_barking,test\n")
    elif words == "no such folder":
        shutil.rmtree(pristine / path.relative_to(damaged))
    elif words == "missing":
        (pristine / path.relative_to(damaged)).unlink()
    else:
        shutil.copy(path, pristine / path.relative_to(damaged))
    clips, _ = list_clips(S4, pristine, S4.layouts[0])
    found = [read_clip(clip)[1] for split in clips.values() for clip in split]
    (problems,) = [lines for lines in found if lines]
    assert len(problems) == 1 and words in problems[0]
    assert path.name in problems[0]


def test_skip_bad_counts(damaged, tmp_path):
    expected = damage(damaged)
    assert run(damaged, tmp_path / "data", "--skip_bad") == 0
    info = open_built(tmp_path / "data").info
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 8, "val": 2, "test": 3,
    }  # fmt: skip
    assert info.metadata["num_clips"] == 13
    assert info.metadata["num_skipped"] == len(info.metadata["skipped"]) == len(expected)


def test_headers_that_lie_and_pipes(damaged, tmp_path, capsys):
    """Damage that decoders answer with anything but an error of their own; each is listed."""
    sizes, rate = frame(damaged, "train", 0, "wav"), frame(damaged, "val", 0, "wav")
    sizes.write_bytes(patch(sizes.read_bytes(), 18, b"\x70"))
    rate.write_bytes(patch(rate.read_bytes(), 24, bytes(4)))
    pipe = frame(damaged, "test", 0, "frame/2")
    pipe.unlink()
    os.mkfifo(pipe)
    alpha = frame(damaged, "val", 1, "mask/2")
    with Image.open(alpha) as mask:
        black = Image.new("L", mask.size)
        Image.merge("RGBA", (black, black, black, mask)).save(alpha)
    folder = (
        tmp_path
        / "flow"
        / frame(damaged, "test", 1).parent.relative_to(damaged / "s4_data/visual_frames")
    )
    folder.mkdir(parents=True)
    for t in range(5):
        np.save(folder / f"flow_{t:04d}.npy", np.ones((6, 8, 2), np.float16))
    header = folder / "flow_0003.npy"
    header.write_bytes(header.read_bytes().replace(b"'fortran", b"('fortran"))
    flags = (damaged, tmp_path / "data", f"--flow_dir={tmp_path / 'flow'}")
    assert run(*flags) == 1
    message = capsys.readouterr().err
    for path, words in (
        (sizes, "unreadable wav"), (rate, "sampled at 0 Hz"), (pipe, "not a regular file"),
        (header, "no npy file"), (alpha, "mode RGBA: the alpha channel differs"),
    ):  # fmt: skip
        assert f"{path}: {words}" in message
    assert "5 missing or damaged files in 5 clips (15 clips are good)" in message
    assert run(*flags, "--skip_bad") == 0
    assert open_built(tmp_path / "data").info.metadata["num_skipped"] == 5
    (damaged / "generated_objects.json").write_text("[]")
    assert run(damaged, tmp_path / "other") == 1
    assert "generated_objects.json: a JSON list, expected" in capsys.readouterr().err
    (damaged / "generated_objects.json").write_text('{"a": ["unicorn"]}')
    assert run(damaged, tmp_path / "other") == 1
    assert "expected lists of known categories, found 'unicorn'" in capsys.readouterr().err


def patch(data, at, value):
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize("source_of_flow", ["frames", "video", None])
def test_whether_frame_0_has_a_flow_is_said(source, tmp_path, source_of_flow):
    """By flow.json; without it, by whether it is zero. The first clip's is, the second's is not."""
    flow = tmp_path / "flow/s4"
    for index in range(2):
        inner = frame(source, "test", index).parent.relative_to(source / "s4_data/visual_frames")
        (flow / inner).mkdir(parents=True)
        for t in range(5):
            np.save(flow / inner / f"flow_{t:04d}.npy", np.full((6, 8), t + index, np.float16))
    if source_of_flow:
        (flow / "flow.json").write_text(json.dumps({"source": source_of_flow}))
    assert run(source, tmp_path / "data", f"--flow_dir={tmp_path / 'flow'}") == 0
    home = tmp_path / "data/avsbench_s4/object224/1.0.0"
    records = Records(home, "test")
    stored = {"frames": [False, False], "video": [True, True], None: [False, True]}
    assert [bool(r["flow_has_first"]) for r in records] == stored[source_of_flow] + [False, False]
    assert records.metadata["flow_has_first"] is {"frames": False, "video": True}.get(
        source_of_flow
    )


def test_already_built_overwrite_and_leftovers(source, tmp_path, capsys):
    home = tmp_path / "avsbench_s4" / "object224"
    half = home / "incomplete.ABCDEF_1.0.0"
    half.mkdir(parents=True)
    (half / "avsbench_s4-train.array_record").write_bytes(b"half")
    (home / "1.0.0").mkdir()  # without dataset_info.json: no dataset
    assert run(source, tmp_path) == 0
    assert "left by a build that did not finish" in capsys.readouterr().out
    assert [p.name for p in home.iterdir()] == ["1.0.0"]
    stamp = (home / "1.0.0" / "dataset_info.json").stat().st_mtime_ns
    assert run(source, tmp_path) == 0
    assert "is already built" in capsys.readouterr().out
    assert (home / "1.0.0" / "dataset_info.json").stat().st_mtime_ns == stamp
    assert run(source, tmp_path, "--overwrite") == 0
    assert (home / "1.0.0" / "dataset_info.json").stat().st_mtime_ns > stamp
    assert [p.name for p in home.iterdir()] == ["1.0.0"]


def test_failed_overwrite_keeps_what_was_there(source, damaged, tmp_path, capsys):
    data_dir = tmp_path / "data"
    assert run(source, data_dir) == 0
    frame(damaged, "val", 2).unlink()
    assert run(damaged, data_dir, "--overwrite") == 1
    assert len(open_built(data_dir).as_data_source("val")) == 4
    home = data_dir / "avsbench_s4/object224"
    assert sorted(p.name for p in home.iterdir()) == [".parts.1.0.0", "1.0.0"]
    capsys.readouterr()
    assert run(damaged, data_dir) == 1  # what is there is not from this folder
    assert f"was built with source {source}" in capsys.readouterr().err
    assert run(source, data_dir, "--flow_dir=elsewhere") == 1
    assert "was built with flow_dir none" in capsys.readouterr().err


def test_absent_folder_or_layout(source, tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "data") == 1
    message = capsys.readouterr().err
    assert f"{tmp_path / 'nowhere'} (no such folder)" in message
    assert str(tmp_path / "nowhere" / "Single-source") in message
    assert "github.com/OpenNLPLab/AVSBench" in message and "avs-jax clips" in message
    assert run(source, tmp_path / "data", dataset="avsbench_s4/vct384") == 1
    message = capsys.readouterr().err
    assert "visual_frames_384" in message and "found below" in message and "object224" in message
    assert run(source, tmp_path / "data", dataset="avsbench_s4/other") == 1
    assert "there are object224, vct384" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(source, tmp_path / "data", dataset="avsbench_s5")
    assert not (tmp_path / "data").exists()


def test_vct_layout_and_flow(damaged, tmp_path, capsys):
    """VCT's 384 px folders beside AVSBench's: 384 px frames, 224 px masks outside train."""
    folders.add_vct384(damaged / "s4_data")
    flows = {}
    for index, shape in ((0, (6, 8)), (1, (6, 8, 2))):
        folder = (
            tmp_path
            / "flow"
            / "s4"
            / frame(damaged, "test", index).parent.relative_to(damaged / "s4_data/visual_frames")
        )
        folder.mkdir(parents=True)
        flows[index] = np.random.default_rng(index).normal(size=(5, *shape)).astype(np.float32)
        for t in range(5):
            np.save(folder / f"flow_{t:04d}.npy", flows[index][t])
    flag = f"--flow_dir={tmp_path / 'flow'}"
    assert run(damaged, tmp_path / "data", flag, dataset="avsbench_s4/vct384") == 0
    builder = open_built(tmp_path / "data", "vct384")
    assert builder.info.metadata["flow_kinds"] == {"none": 18, "magnitude": 1, "uv": 1}
    assert builder.info.metadata["has_pre_masks"] is False
    records = builder.as_data_source("test")
    for index, kind in ((0, b"magnitude"), (1, b"uv"), (2, b"none")):
        record = records[index]
        assert record["flow_kind"] == kind and record["pre_masks"] == []
        sizes = [Image.open(io.BytesIO(record[key][0])).size for key in ("frames", "masks")]
        assert sizes == [(48, 48), (224, 224)]
        if index in flows:
            expected = flows[index].reshape(5, 6, 8, -1).astype(np.float16)
            assert record["flow"].dtype == np.float16
            np.testing.assert_array_equal(record["flow"], expected)
    np.save(folder / "flow_0002.npy", np.full((6, 8, 2), np.nan, np.float32))
    (folder / "flow_0003.npy").unlink()
    assert run(damaged, tmp_path / "data", flag) == 1  # two layouts there: the default is built
    output = capsys.readouterr()
    assert "holds the layouts object224, vct384; building object224" in output.out
    assert re.search(r"flow_0002.npy: float32 flow that is not finite", output.err)
    assert run(damaged, tmp_path / "data", f"--flow_dir={tmp_path / 'no'}") == 1
    assert "no flow found" in capsys.readouterr().err

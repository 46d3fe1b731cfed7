"""Flow files: made, found again, taken up where they were left, and read by builder and loader."""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from avs_jax import flow
from avs_jax.data import flow_files, motion
from avs_jax.data.clip import ClipRows
from avs_jax.data.container import VideoError
from avs_jax.data.decode import decode_rgb
from avs_jax.data.records import open_records
from avs_jax.data.transforms import BILINEAR, resize
from avs_jax.data.video import read_pairs, read_windows
from avs_jax.generate import datasets
from avs_jax.inference import dataset_flow
from avs_jax.inference.clip_video import make_estimator
from avs_jax.inference.flow_estimator import FlowEstimator, window_flow
from avs_jax.programs import build_dataset, convert_weights
from avs_jax.runtime.lock import locked
from tests.clip_records import make_config
from tests.models.test_raft import state_dict

SIDE = 64


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    datasets.write_clips(root, num_train=1, num_val=0, num_test=1, size=SIDE, workers=1)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    np.savez(folder / "raft_small.npz", **state_dict("raft_small"))
    flags = [f"--input={folder}/raft_small.npz", f"--output={folder}/raft_small"]
    assert convert_weights.main(["convert_weights", "--source=raft", *flags]) == 0
    return folder / "raft_small"


def run(root, output, *more):
    return flow.main(["--dataset=s4", f"--root={root}", f"--output={output}", *more])


def files(output):
    return sorted(output.glob("s4/*/*/*/flow_*.npy"))


def frames_of(root, path):
    name = path.parent.name
    folder = root / "s4_data/visual_frames" / path.parent.relative_to(path.parents[3])
    return [np.asarray(Image.open(folder / f"{name}_{k}.png").convert("RGB")) for k in range(1, 6)]


def test_raft_from_weight_file_to_batch(clips, weights, tmp_path, capsys):
    """Convert, estimate, build, read: what the model sees is RAFT's flow of the right pair."""
    output = tmp_path / "flow"
    made = ("--model=raft_small", f"--weights={weights}", "--iterations=1", "--batch_size=3")
    assert run(clips, output, *made) == 0
    assert "10 files written" in capsys.readouterr().out and len(files(output)) == 10
    estimate = FlowEstimator("raft_small", weights, batch_size=3, num_iterations=1)
    for path in (files(output)[2], files(output)[9]):
        frames, t = frames_of(clips, path), int(path.stem[-4:])
        stored = np.load(path)
        assert stored.dtype == np.float16 and stored.shape == (SIDE, SIDE, 2)
        expected = estimate(frames[t - 1][None], frames[t][None])[0]
        np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=2e-3)
        backwards = estimate(frames[t][None], frames[t - 1][None])[0]
        assert np.abs(stored - backwards).mean() > 0.05
    assert not np.load(files(output)[0]).any()
    flags = ["--dataset=avsbench_s4", f"--manual_dir={clips}", f"--data_dir={tmp_path}/tfds"]
    assert build_dataset.main([*flags, f"--flow_dir={output}"]) == 0
    assert "flow uv 2" in capsys.readouterr().out
    config = make_config(data_dir=str(tmp_path / "tfds"), dataset="avsbench_s4", image_size=SIDE)
    config.data.motion.update(map="uv", scale=1.0)
    clip = ClipRows(config).prepare(open_records(config, "test")[0])
    stored = [np.load(path) for path in files(output) if "/test/" in str(path)]
    np.testing.assert_array_equal(clip["motion"], [stored[max(t, 1)] for t in range(5)])


def test_difference_is_what_the_pipeline_would_make(clips, tmp_path):
    output = tmp_path / "flow"
    assert run(clips, output, "--model=difference") == 0
    config = make_config(image_size=SIDE, pre_masks=False)
    for path in files(output)[1::5]:
        frames = frames_of(clips, path)
        stored = np.load(path)
        assert stored.shape == (SIDE, SIDE)
        np.testing.assert_allclose(stored, motion.frame_difference(*frames[:2]), atol=1e-3)
        folder = sorted(path.parent.glob("*.npy"))
        record = {
            "frames": frames, "masks": (), "mask_index": (), "pre_masks": (),
            "waveform": np.zeros((80_000, 1), np.int16), "sample_rate": 16_000,
            "flow": np.stack([np.load(file) for file in folder])[..., None],
        }  # fmt: skip
        from_file = ClipRows(config).prepare(record)["motion"]
        config.data.motion.source = "difference"
        np.testing.assert_allclose(from_file, ClipRows(config).prepare(record)["motion"], atol=1e-3)
        config.data.motion.source = "auto"


def test_resumes_where_it_was_stopped(clips, tmp_path, capsys, monkeypatch):
    """Killed in the middle, with a half-written file and others damaged: only those are remade."""
    output = tmp_path / "flow"
    calls = []

    def dies(first, second):
        calls.append(len(first))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(first, second)

    original = flow.difference
    monkeypatch.setattr(flow, "difference", dies)
    assert run(clips, output, "--model=difference", "--batch_size=2") == 130
    monkeypatch.undo()
    done = {path: path.read_bytes() for path in files(output)}
    assert 4 <= len(done) < 10 and calls == [2, 2, 2]
    capsys.readouterr()
    assert run(clips, output, "--model=difference", "--batch_size=2") == 0
    assert f"{10 - len(done)} files written" in capsys.readouterr().out
    whole = {path: path.read_bytes() for path in files(output)}
    assert len(whole) == 10 and all(whole[path] == done[path] for path in done)
    paths = list(whole)
    paths[1].write_bytes(whole[paths[1]][:-1])  # cut off
    paths[2].write_bytes(whole[paths[2]] + b"\0")
    paths[3].write_bytes(b"")
    paths[4].write_bytes(whole[paths[4]].replace(b"'fortran", b"('fortran"))
    paths[5].write_bytes(whole[paths[5]][:-2] + b"\0\x7e")  # not a number
    np.save(paths[6], np.zeros((SIDE, SIDE), np.float32))
    np.save(paths[7], np.zeros((SIDE, SIDE - 1), np.float16))
    os.replace(paths[8], paths[8].with_name("flow_0003.unfinished.npy"))
    assert run(clips, output, "--model=difference") == 0
    assert "8 files written, 0 clips were complete" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in files(output)} == whole
    assert not list(output.rglob("*.unfinished*"))
    assert run(clips, output, "--model=difference") == 0
    assert "0 files written, 2 clips were complete" in capsys.readouterr().out


def test_two_runs_do_not_share_a_folder(clips, tmp_path, capsys):
    with locked(tmp_path / "flow/s4", "the other one"):
        # Within one process a lock may be taken again, so the second run is a program of its own.
        command = ["--dataset=s4", f"--root={clips}", f"--output={tmp_path}/flow"]
        done = subprocess.run(
            [sys.executable, "-m", "avs_jax.flow", *command, "--model=difference"],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 1 and "the other one" in done.stderr
    assert not files(tmp_path / "flow") and not (tmp_path / "flow/s4/flow.json").exists()
    assert run(clips, tmp_path / "flow", "--model=difference") == 0


def test_failures_are_listed_at_the_end_and_the_rest_is_made(clips, tmp_path, capsys):
    root = tmp_path / "clips"
    shutil.copytree(clips, root, ignore=shutil.ignore_patterns("raw_videos"))
    damaged = sorted(root.glob("s4_data/visual_frames/train/*/*/*_3.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:300])
    assert run(root, tmp_path / "flow", "--model=difference") == 1
    said = capsys.readouterr()
    assert "5 files written, 0 clips were complete, 1 failed" in said.out
    assert said.err.count("failed:") == 1 and damaged.name in said.err
    assert all("/test/" in str(path) for path in files(tmp_path / "flow"))
    assert run(root, tmp_path / "videos", "--model=difference", "--source=video") == 1
    assert capsys.readouterr().err.count("no such file") == 2


def test_a_run_without_files_does_not_fix_the_settings(clips, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("full")

    monkeypatch.setattr(flow, "make_flow", fails)
    assert run(clips, tmp_path / "flow", "--model=difference", "--source=video") == 1
    monkeypatch.undo()
    assert run(clips, tmp_path / "flow", "--model=difference") == 0
    assert (tmp_path / "flow/s4/flow.json").exists()


def test_flow_that_no_builder_reads_is_not_written(clips, tmp_path):
    found = flow_files.list_clips("s4", clips)

    def infinite(first, second):
        return np.full((*first.shape[:3], 2), np.where(first.max() > 0, np.nan, 0))

    outcome = dataset_flow.make_flow(
        found, tmp_path, "frames", infinite, True, 4, lambda line: None
    )
    assert outcome.written == 2 and len(outcome.failed) == 2  # the zeros of frame 0
    assert "not finite" in outcome.failed[0]


def test_flow_within_the_video(clips, tmp_path):
    """Neighbors at 8 pictures per second: the flow is 8 times theirs, also for frame 0."""
    found = flow_files.list_clips("s4", clips)
    seen = []

    def estimate(first, second):
        seen.extend(zip(first, second, strict=True))
        return np.ones((*first.shape[:3], 2), np.float32)

    outcome = dataset_flow.make_flow(found, tmp_path, "video", estimate, True, 5, lambda line: None)
    assert outcome.written == 10 and not outcome.failed and len(seen) == 10
    for clip in found:
        for t in range(5):
            stored = np.load(tmp_path / clip.folder / f"flow_{t:04d}.npy")
            np.testing.assert_allclose(stored, 8, rtol=1e-3)
    frames, _, _ = next(read_windows(found[0].video, 5))
    pairs = list(read_pairs(found[0].video))
    assert len(pairs) == 5 and all(seconds == pytest.approx(1 / 8) for *_, seconds in pairs)
    for t, (before, picture, _) in enumerate(pairs):
        np.testing.assert_array_equal(picture, frames[t])
        np.testing.assert_array_equal(seen[t][1], picture)
        np.testing.assert_array_equal(seen[t][0], before)
    changes = [np.abs(a.astype(int) - b).mean() for a, b, _ in pairs]
    a_second = [np.abs(b.astype(int) - a).mean() for a, b in zip(frames, frames[1:], strict=False)]
    assert 0 < np.mean(changes) < np.mean(a_second)
    assert len(list(read_pairs(found[0].video, 7))) == 7
    with pytest.raises(VideoError, match="no such file"):
        next(read_pairs(tmp_path / "none.mp4", 2))


def test_other_settings_need_another_folder(clips, weights, tmp_path, capsys):
    output = tmp_path / "flow"
    assert run(clips, output, "--model=difference") == 0
    for more, match in (
        (("--model=difference", "--source=video"), "source 'frames' there, 'video' now"),
        (("--model=raft_small", f"--weights={weights}"), "model 'difference' there"),
        (("--model=raft_large", f"--weights={weights}"), "holds weights of raft_small"),
        (("--model=raft_small",), "--model=raft_small needs --weights"),
        (("--model=difference", "--layout=vct384"), "there are \\['object224'\\]"),
        (("--model=difference", "--batch_size=0"), "expected at least 1"),
        (("--model=difference", "--iterations=9"), "--iterations is not read with"),
        (("--model=difference", "--dtype=float32"), "--dtype is not read with"),
        (("--model=difference", "--source=video", "--rate=9"), "--rate is not read with"),
        (("--model=difference", "--videos=x"), "--videos is not read with --source=frames"),
        (("--model=raft_small", f"--weights={weights}", "--iterations=0"), "--iterations=0: exp"),
    ):
        capsys.readouterr()
        assert run(clips, output, *more) == 1
        assert re.search(match, capsys.readouterr().err)
    assert run(tmp_path, output, "--model=difference") == 1
    assert "s4_meta_data.csv not found" in capsys.readouterr().err


def test_ms3_has_no_categories(tmp_path):
    home = tmp_path / "Multi-sources"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = home / "ms3_data/visual_frames" / name
        folder.mkdir(parents=True)
        for k in range(1, 4):
            picture = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{name}.mp4_{k}.png")
    with open(home / "ms3_meta_data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("", "split"), ("a", "train"), ("b", "test")])
    flags = ["--dataset=ms3", f"--root={tmp_path}", f"--output={tmp_path}/flow"]
    assert flow.main([*flags, "--model=difference"]) == 0
    made = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "flow").rglob("*.npy"))
    assert made == [
        f"flow/ms3/{c}/flow_{t:04d}.npy" for c in ("test/b", "train/a") for t in range(3)
    ]
    with open(home / "ms3_meta_data.csv", "a") as file:
        file.write("../x,train\n")
    with pytest.raises(flow_files.FlowError, match="line 4: name '../x' cannot be"):
        flow_files.list_clips("ms3", tmp_path)


def test_estimates_of_any_size_and_number(weights):
    """Odd sizes are padded and cut; a batch's pairs do not see each other."""
    estimate = FlowEstimator("raft_small", weights, batch_size=2, num_iterations=1)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 255, (2, 3, 45, 131, 3), dtype=np.uint8)
    found = estimate(first, second)
    assert found.shape == (3, 45, 131, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found[2:], estimate(first[2:], second[2:]), atol=1e-4)
    assert estimate.fingerprint() == FlowEstimator("raft_small", weights).fingerprint()


def test_convert_raft_says_what_is_wrong(tmp_path, capsys):
    state = state_dict("raft_small")
    state["update_block.flow_head.conv1.weight"] = np.zeros((3, 3), np.float32)
    del state["feature_encoder.conv.bias"]
    np.savez(tmp_path / "in.npz", **state, more=np.zeros(3))
    flags = ["convert_weights", "--source=raft", f"--input={tmp_path}/in.npz"]
    assert convert_weights.main([*flags, f"--output={tmp_path}/out"]) == 1
    said = capsys.readouterr().err
    for problem in ("3 problem(s)", "flow_head.conv1.weight", "feature_encoder/conv/bias", "more"):
        assert problem in said
    assert not (tmp_path / "out").exists()
    for config in ("--config=configs/s4_vct.py", "--config.seed=1"):
        assert convert_weights.main([*flags, f"--output={tmp_path}/out", config]) == 1
        assert "--source=raft needs no --config" in capsys.readouterr().err


class Shift:
    """An estimator that reads the shift of a square along x, in px of the pictures it is given."""

    model = "raft_small"

    def __call__(self, first, second):
        def left(x):
            return (x[:, x.shape[1] // 2, :, 0] > 128).argmax(axis=1)

        flow = np.zeros((*first.shape[:3], 2), np.float32)
        flow[..., 0] = (left(second) - left(first))[:, None, None]
        return flow


def test_flow_of_a_window_is_stored_flow_s():
    """Frames: from each to the next, zeros first. Pairs: per second, in px of the small picture."""
    frames = np.zeros((4, 40, 160, 3), np.uint8)
    for t in range(4):
        frames[t, :, 20 + 16 * t : 60 + 16 * t] = 255
    found = window_flow(Shift(), frames, None, 80)
    assert found.shape == (4, 80, 80, 2) and found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 8, 8, 8])
    pairs = iter([(frames[0], frames[1], 0.25), (frames[1], frames[3], 0.5), None])
    found = window_flow(Shift(), frames[:2], pairs, 80)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [32, 32])
    assert next(pairs) is None and not found[..., 1].any()
    assert not window_flow(Shift(), frames[:1], None, 80).any()


def test_estimator_of_own_videos(weights):
    config = make_config()
    assert make_estimator(config, None, True) is None
    config.data.motion.model = "raft_small"
    assert make_estimator(config, str(weights), True).model == "raft_small"
    for keys, given, match in (
        ({}, None, "model = 'raft_small' needs --flow_weights"),
        ({"model": "difference"}, weights, "--flow_weights is not read"),
        ({"model": "difference", "map": "uv"}, None, "'uv' .* needs flow"),
        ({"source": "none"}, weights, "--flow_weights is not read"),
        ({"model": "farneback"}, None, "config.data.motion.model is 'farneback'"),
    ):
        other = config.copy_and_resolve_references()
        other.data.motion.update(keys)
        with pytest.raises(ValueError, match=match):
            make_estimator(other, given, True)


# ---- AVSS ----


def test_avss_clips_of_any_size_and_length(tmp_path, capsys):
    """Five and ten frames, numbered from 0, squashed to one size; the builder takes the files."""
    root, output = tmp_path / "clips", tmp_path / "flow"
    datasets.write_clips(
        root, setting="avss", num_train=3, num_val=0, num_test=1, size=SIDE, workers=1
    )
    with open(root / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for path in root.rglob(f"{rows[0]['uid']}/*/*.*g"):  # as released, clips are of many sizes
        with Image.open(path) as image:
            other = image.resize((SIDE + 16, SIDE - 8), Image.Resampling.NEAREST)
        other.save(path)
    flags = ["--dataset=avss", f"--root={root}", f"--output={output}", "--model=difference"]
    assert flow.main([*flags, "--size=48"]) == 0
    for row in rows:
        found = sorted((output / "avss" / row["split"] / row["uid"]).glob("flow_*.npy"))
        assert len(found) == (10 if row["label"] == "v2" else 5)
        paths = [root / row["label"] / row["uid"] / f"frames/{t}.jpg" for t in (1, 2)]
        frames = [resize(decode_rgb(path.read_bytes()), (48, 48), BILINEAR) for path in paths]
        np.testing.assert_allclose(np.load(found[2]), motion.frame_difference(*frames), atol=1e-3)
    capsys.readouterr()
    assert flow.main(flags) == 1
    assert "size 48 there, 384 now" in capsys.readouterr().err
    assert flow.main([*flags, "--source=video", "--size=48"]) == 1
    assert "comes without videos: --source=video needs --videos" in capsys.readouterr().err
    flags = ["--dataset=avsbench_semantic", f"--manual_dir={root}", f"--data_dir={tmp_path}/tfds"]
    assert build_dataset.main([*flags, f"--flow_dir={output}"]) == 0
    assert f"flow magnitude {len(rows)}" in capsys.readouterr().out

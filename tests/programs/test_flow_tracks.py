"""Motion tracks from the command line to a row: made, resumed, stored, read, made on the fly."""

import shutil

import numpy as np
import pytest

from avs_jax import flow
from avs_jax.data.clip import ClipRows
from avs_jax.data.container import VideoError
from avs_jax.data.flow_files import FlowError
from avs_jax.data.records import open_records
from avs_jax.data.video import probe
from avs_jax.generate import datasets
from avs_jax.inference import dataset_tracks
from avs_jax.inference.video_tracks import make_track_estimator, video_tracks
from avs_jax.programs import build_dataset
from avs_jax.spec import InputError
from tests.clip_records import make_config

SIDE = 64
MADE = ("--source=track", "--model=difference", "--rate=8", "--workers=1")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    datasets.write_clips(root, num_train=1, num_val=0, num_test=1, size=SIDE, workers=1)
    return root


@pytest.fixture(scope="module")
def tracks(clips, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "tracks"
    assert run(clips, output, *MADE) == 0
    return output


def run(root, output, *flags):
    return flow.main(["--dataset=s4", f"--root={root}", f"--output={output}", *flags])


def files(output):
    return sorted(output.glob("s4/*/*/*/track.npy"))


def track_config(**track):
    config = make_config(image_size=SIDE)
    config.data.track.update({"source": "stored", "rate": 8.0, "window_seconds": 2.0} | track)
    return config


def test_tracks_reach_the_rows(clips, tracks, tmp_path, capsys):
    assert len(files(tracks)) == 2
    stored = np.load(next(path for path in files(tracks) if "/test/" in str(path)))
    assert stored.shape == (40, 24, 24, 1) and stored.max() > 0.05
    flags = ["--dataset=avsbench_s4", f"--manual_dir={clips}", f"--data_dir={tmp_path}"]
    assert build_dataset.main([*flags, f"--track_dir={tracks}"]) == 0
    assert "flow none 2; tracks 2" in capsys.readouterr().out
    config = track_config()
    config.data.update(data_dir=str(tmp_path), dataset="avsbench_s4")
    (record,) = open_records(config, "test")
    np.testing.assert_array_equal(record["motion_track"], stored)
    assert record["motion_track_rate"] == 8
    row = ClipRows(config).prepare(record)
    for t, first in enumerate([0, 8, 16, 24, 24]):  # windows of 16 samples at 15.5, 23.5, ..
        start = min(max(round(8 * (t + 15 / 16) - 8), 0), 24)
        assert start in (first, first - 1)
        found = row["motion_track"][t]
        np.testing.assert_allclose(found[..., :1], stored[start : start + 16], atol=2e-3)
        assert not found[..., 1].any()
    assert build_dataset.main(flags) == 1
    assert "was built with track_dir" in capsys.readouterr().err


def test_several_processes_make_the_same_tracks(clips, tracks, tmp_path, capsys):
    """A damaged video is listed, wherever it was read; so is a number of processes below one."""
    shutil.copytree(clips, tmp_path / "clips")
    damaged = sorted((tmp_path / "clips").rglob("*.mp4"))[0]
    damaged.write_bytes(damaged.read_bytes()[:500])
    several = (*MADE[:-1], "--workers=2")
    assert run(clips, tmp_path / "tracks", *several) == 0
    for path, other in zip(files(tracks), files(tmp_path / "tracks"), strict=True):
        np.testing.assert_array_equal(np.load(path), np.load(other))
    assert run(tmp_path / "clips", tmp_path / "damaged", *several) == 1
    assert len(files(tmp_path / "damaged")) == 1
    assert damaged.stem in capsys.readouterr().err
    assert run(clips, tmp_path / "none", *MADE[:-1], "--workers=0") == 1
    assert "--workers=0: expected at least 1" in capsys.readouterr().err


def test_only_what_is_missing_or_damaged_is_made_again(clips, tracks, tmp_path, capsys):
    output = tmp_path / "tracks"
    shutil.copytree(tracks, output)
    whole = {path: path.read_bytes() for path in files(output)}
    assert run(clips, output, *MADE) == 0
    assert "0 files written, 2 clips were complete, 0 failed" in capsys.readouterr().out
    path = files(output)[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert run(clips, output, *MADE) == 0
    assert "1 files written, 1 clips were complete" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in files(output)} == whole
    for flags, message in (
        ((*MADE, "--rate=12"), "rate 8.0 there, 12.0 now"),
        (("--source=frames", "--model=difference"), "source 'track' there, 'frames' now"),
        ((*MADE, "--model=raft_small"), "needs --weights"),
        ((*MADE, "--rate=0.5"), "--rate = 0.5: expected 1 to 60"),
        (("--source=video", "--model=lucas_kanade"), "with --source=video: one of"),
    ):
        assert run(clips, output, *flags) == 1
        assert message in capsys.readouterr().err


def test_a_full_disk_is_not_the_clip_s_fault(clips, tmp_path, monkeypatch, capsys):
    """A track that cannot be stored is."""

    for error, listed in ((OSError("no space left"), 0), (FlowError("not finite"), 2)):

        def fails(path, track, error=error):
            raise error

        monkeypatch.setattr(dataset_tracks, "write_array", fails)
        assert run(clips, tmp_path / "tracks", *MADE) == 1
        said = capsys.readouterr().err
        assert said.count("failed: ") == listed and said.count(f": {error}\n") == max(listed, 1)


def test_a_clip_without_video_is_listed_and_has_no_track(clips, tmp_path, capsys):
    root = tmp_path / "clips"
    shutil.copytree(clips, root)
    next(root.glob("s4_data/raw_videos/test/*/*.mp4")).unlink()
    assert run(root, tmp_path / "tracks", *MADE) == 1
    assert "no such file" in capsys.readouterr().err
    assert [np.load(path).shape for path in files(tmp_path / "tracks")] == [(40, 24, 24, 1)]
    flags = ["--dataset=avsbench_s4", f"--manual_dir={root}", f"--data_dir={tmp_path}"]
    assert build_dataset.main([*flags, f"--track_dir={tmp_path / 'tracks'}"]) == 0
    config = track_config()
    config.data.update(data_dir=str(tmp_path), dataset="avsbench_s4")
    (record,) = open_records(config, "test")
    assert record["motion_track"].size == 0 and record["motion_track_rate"] == 0
    assert not ClipRows(config).prepare(record)["motion_track"].any()


def test_a_track_on_the_fly_is_the_stored_one(clips, tracks):
    """In windows of two seconds, and with the rest of a window at the end."""
    video = next(clips.glob("s4_data/raw_videos/test/*/*.mp4"))
    config = track_config(model="difference")
    config.data.num_frames = 2
    estimate = make_track_estimator(config, None)
    windows = list(video_tracks(video, config, probe(video).num_seconds, estimate))
    assert [len(window) for window in windows] == [16, 16, 8]
    stored = np.load(next(path for path in files(tracks) if "/test/" in str(path)))
    np.testing.assert_array_equal(np.concatenate(windows), stored)
    with pytest.raises(InputError, match="'raft_small' needs --flow_weights"):
        make_track_estimator(track_config(model="raft_small"), None)
    with pytest.raises(VideoError, match="no such file"):
        next(video_tracks(clips / "none.mp4", config, 2, estimate))

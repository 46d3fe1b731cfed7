"""Prediction on realistic video files and on arrays, with a tiny random model."""

import functools
import json
import os
import re
import subprocess
import sys
import threading
import time
import types
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from avs_jax import predict, progress
from avs_jax.data.video import read_windows
from avs_jax.generate.video_writer import write_video
from avs_jax.inference import clip_video, side_by_side
from avs_jax.inference.predictor import Predictor
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.runtime.command_line import checkpoint_config, parse
from avs_jax.spec import UsageError
from avs_jax.task import check_arrays
from avs_jax.tasks import make_task
from configs import parts
from configs.s4_ama import get_config
from configs.s4_sync import add_sync
from tests.conftest import ROOT
from tests.small import random_variables

SMALL = {
    "data.image_size": 64,
    "model.num_queries": 5,
    "model.hidden_dim": 32,
    "model.backbone.embed_dim": 8,
    "model.backbone.num_heads": (1, 1, 2, 2),
    "model.backbone.window_size": 4,
    "model.audio_backbone.width": 4,
    "model.audio_hidden_dim": 16,
    "model.pixel_decoder.num_layers": 1,
    "model.pixel_decoder.ffn_dim": 32,
    "model.decoder.num_layers": 1,
    "model.decoder.ffn_dim": 32,
    "model.fusion.embed_dim": 16,
    "model.fusion.grid": 8,
    "evaluate.score_size": 24,
}
FLAGS = ["--config=configs/s4_ama.py:demo", *(f"--config.{k}={v}" for k, v in SMALL.items())]
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def config():
    config = get_config("demo")
    config.update_from_flattened_dict(SMALL)
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("weights") / "ours"
    save_variables(folder, random_variables(config, (64, 64)), config)
    return folder


@pytest.fixture(scope="module")
def predictor(config, checkpoint):
    return make_predictor(config, checkpoint)


def make_predictor(config, checkpoint):
    return Predictor(make_task(config), config, Checkpoint.find(checkpoint))


def predict_video(predictor, path, output, **options):
    """Writes what the task predicts; returns results.json."""
    predictor.task.predict_video(predictor, path, output, **options)
    return json.loads((output / "results.json").read_text())


def frames_of(count, height, width):
    """A bright square that wanders over noise."""
    frames = np.repeat(RNG.integers(0, 90, (1, height, width, 3), np.uint8), count, axis=0)
    for t in range(count):
        left = t * 3 % (width - 20)
        frames[t, 10:30, left : left + 20] = 230
    return frames


def tone(seconds, rate, channels=1):
    wave = np.sin(np.arange(int(seconds * rate)) / rate * 2 * np.pi * 440) * 9000
    wave = wave.astype(np.int16)
    return wave if channels == 1 else np.stack([wave, wave // 2], axis=-1)


def check_results(folder, seconds, size, sound_seconds=None):
    """What every run leaves behind; returns results.json. The sound may be shorter."""
    results = json.loads((folder / "results.json").read_text())
    assert results["size"] == {"width": size[0], "height": size[1]}
    assert [entry["second"] for entry in results["seconds"]] == list(range(seconds))
    assert len(list((folder / "masks").iterdir())) == seconds
    for entry in results["seconds"]:
        mask = np.asarray(Image.open(folder / entry["mask"]))
        assert mask.shape == size[::-1] and set(np.unique(mask)) <= {0, 255}
        assert entry["area"] == pytest.approx((mask > 0).mean())
        assert entry["score"] == 0 if entry["area"] == 0 else 0.5 < entry["score"] <= 1
    with av.open(str(folder / "overlay.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height) == size
        assert sum(1 for _ in container.decode(video)) == seconds
    with av.open(str(folder / "overlay.mp4")) as container:
        heard = np.concatenate([f.to_ndarray().ravel() for f in container.decode(audio=0)])
        assert heard.size / sound.rate / sound.channels == pytest.approx(
            min(seconds, sound_seconds or seconds), abs=0.2
        )
        assert np.abs(heard).max() > 0
    assert not list(folder.glob("*unfinished*"))
    return results


def test_stereo_48_khz_through_the_command_line(tmp_path, checkpoint, capsys):
    path = tmp_path / "clip.mp4"
    write_video(path, frames_of(30, 72, 96), 10, tone(3, 48_000, 2), 48_000)
    flags = [f"--checkpoint={checkpoint}", f"--video={path}", f"--output={tmp_path}/out"]
    assert predict.main(["predict", *FLAGS, *flags]) == 0
    results = check_results(tmp_path / "out", 3, (96, 72))
    assert results["pre_masks"] == "felzenszwalb"
    assert "made with felzenszwalb" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, windows", [(2, 1), (23, 5)])
def test_shorter_and_longer_than_a_window(
    tmp_path, predictor, seconds, windows, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0)  # a line after every window
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    path = tmp_path / "clip.mp4"
    write_video(path, frames_of(4 * seconds, 64, 64), 4, tone(seconds, 16_000))
    compiled = predictor._forward._cache_size()
    predict_video(predictor, path, tmp_path / "out")
    assert predictor._forward._cache_size() <= compiled + 1  # for all windows, the last one too
    check_results(tmp_path / "out", seconds, (64, 64))
    assert capsys.readouterr().err.count(f"/{seconds} seconds") == windows


def test_threads_change_no_bit(tmp_path, predictor, monkeypatch):
    path = tmp_path / "clip.mp4"
    write_video(path, frames_of(4 * 17, 64, 80), 4, tone(15.5, 16_000))  # the sound ends earlier
    written = []
    for count in (0, 1):
        monkeypatch.setattr(side_by_side, "NUM_WAITING", count)
        threads = threading.active_count()
        predict_video(predictor, path, tmp_path / "out")
        assert threading.active_count() == threads
        files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
        written.append({p.relative_to(tmp_path): p.read_bytes() for p in files})
    assert written[0] == written[1] and len(written[0]) == 17 + 2
    check_results(tmp_path / "out", 17, (80, 64), 15.5)


@pytest.mark.parametrize("place", ["_predict", "_write"])
def test_a_stop_in_the_middle_leaves_nothing(tmp_path, predictor, monkeypatch, place):
    path, calls = tmp_path / "clip.mp4", []
    write_video(path, frames_of(4 * 17, 64, 80), 4, tone(17, 16_000))
    function, threads = getattr(clip_video, place), threading.active_count()

    def stop_in_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt if place == "_predict" else OSError("disk full")
        return function(*args)

    monkeypatch.setattr(clip_video, place, stop_in_the_second)
    with pytest.raises((KeyboardInterrupt, OSError)):
        predict_video(predictor, path, tmp_path / "out")
    assert threading.active_count() == threads
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_portrait_with_pre_masks(tmp_path, predictor):
    path = tmp_path / "tall.mp4"
    write_video(path, frames_of(8, 128, 72), 4, tone(2, 44_100), 44_100)
    (tmp_path / "colors").mkdir()
    for second in range(2):
        picture = RNG.integers(0, 255, (128, 72, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"colors/{second}_mask_color.png")
    predict_video(predictor, path, tmp_path / "out", pre_masks=tmp_path / "colors")
    results = check_results(tmp_path / "out", 2, (72, 128))
    assert results["pre_masks"] == str(tmp_path / "colors")
    (tmp_path / "colors/1_mask_color.png").unlink()
    with pytest.raises(ValueError, match="1 PNG files for a video of 2 seconds"):
        predict_video(predictor, path, tmp_path / "out", pre_masks=tmp_path / "colors")


def test_variable_frame_rate(tmp_path, predictor):
    path = tmp_path / "phone.mp4"
    times = np.cumsum(np.random.default_rng(0).choice([20, 33, 50, 120], 60))  # ms
    samples = tone(times[-1] / 1000, 16_000)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for time, picture in zip(times, frames_of(60, 48, 64), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time - times[0]), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    results = predict_video(predictor, path, tmp_path / "out")
    check_results(tmp_path / "out", len(results["seconds"]), (64, 48), times[-1] / 1000)
    assert abs(len(results["seconds"]) - (times[-1] - times[0]) / 1000) < 1


def test_a_mask_follows_the_scores_of_its_window(tmp_path, predictor, config):
    """Videos and arrays of the same size give the same labels."""
    path = tmp_path / "clip.mp4"
    write_video(path, frames_of(8, 64, 64), 4, tone(2, 16_000))
    predict_video(predictor, path, tmp_path / "out")
    frames, waveform, _ = next(read_windows(path, 5))
    record = {"clip_id": "x", "frames": list(frames), "masks": (), "mask_index": (),
              "pre_masks": [clip_video.segment_colors(f) for f in frames],
              "waveform": waveform, "sample_rate": 16_000}  # fmt: skip
    clip = predictor.task.rows.prepare(record)
    names = ("images", "pre_masks", "log_mel", "valid")
    arrays = {name: clip[name][None] for name in names} | {"motion": clip["motion"][None, ..., 0]}
    larger = config.copy_and_resolve_references()
    larger.evaluate.score_size = 64
    same = make_predictor(larger, predictor.checkpoint.directory)
    out, notes = predict.predict_arrays(same, arrays)
    assert not notes and not out["sem_seg"][0, 2:].any()
    for second in range(2):
        mask = np.asarray(Image.open(tmp_path / f"out/masks/{second:04d}.png")) > 0
        scores = out["sem_seg"][0, second]
        assert ((scores[..., 1] > scores[..., 0]) == mask).mean() > 0.999


@pytest.mark.parametrize("kind, reason", [
    ("silent", "no sound"), ("truncated", "truncated|damaged"), ("text", "not a video"),
    ("missing", "no such file"),
])  # fmt: skip
def test_unusable_videos_get_one_line(tmp_path, checkpoint, capsys, kind, reason):
    path = tmp_path / "clip.mp4"
    if kind == "text":
        path.write_text("This is not a video.\n" * 50)
    elif kind != "missing":
        sound = None if kind == "silent" else tone(2, 16_000)
        write_video(path, frames_of(8, 64, 64), 4, sound)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    flags = [f"--checkpoint={checkpoint}", f"--video={path}", f"--output={tmp_path}/out"]
    assert predict.main(["predict", *FLAGS, *flags]) == 1
    err = capsys.readouterr().err
    *before, last = err.strip().splitlines()
    assert re.search(reason, last) and str(path) in last and len(before) <= 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["videos", "weights", "thesis"])
def test_an_output_that_holds_something_else_is_refused(tmp_path, monkeypatch, capsys, output):
    monkeypatch.setattr(predict, "make_predictor", None)  # no model is loaded
    kept = [tmp_path / path for path in ("videos/a.mp4", "weights/params", "thesis/a.tex")]
    for path in kept:
        path.parent.mkdir()
        path.touch()
    flags = [f"--checkpoint={tmp_path}/weights", f"--output={tmp_path}/{output}"]
    for more in ([f"--video={kept[0]}"], ["--search=index.npz", f"--video={kept[0]}"]):
        assert predict.main(["predict", *flags, *more]) == 1
        assert "would be replaced as a whole" in capsys.readouterr().err
    assert all(path.exists() for path in kept)


def test_many_videos_through_the_command_line(tmp_path, checkpoint, capsys):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", frames_of(4, 48, 64), 4, tone(1, 16_000))
    (tmp_path / "c.mp4").write_text("not a video")
    flags = [f"--checkpoint={checkpoint}", f"--videos={tmp_path}/*.mp4", f"--output={tmp_path}/out"]
    assert predict.main(["predict", *FLAGS, *flags]) == 0
    check_results(tmp_path / "out/a.mp4", 1, (64, 48))
    assert "manifest.json: 2 done, 1 failed, 0 open" in capsys.readouterr().out
    assert predict.main(["predict", *FLAGS, *flags]) == 0
    assert "3 videos, 3 were finished before" in capsys.readouterr().err
    assert predict.main(["predict", *FLAGS, *flags, "--pre_masks=x"]) == 1
    assert "--pre_masks is about one video" in capsys.readouterr().err


@pytest.mark.slow
def test_a_thousand_videos_with_twenty_damaged_ones(tmp_path, checkpoint):
    """In two processes, one of which is killed and started again."""
    sounds = [tone(1, 16_000), tone(1, 44_100)]
    templates = []
    for i, (rate, size) in enumerate([(16_000, (48, 64)), (44_100, (64, 48))]):
        path = tmp_path / f"template_{i}.mp4"
        write_video(path, frames_of(4, *size), 4, sounds[i], rate)
        templates.append(path.read_bytes())
    videos = tmp_path / "videos"
    for i in range(1000):
        data, path = templates[i % 2], videos / f"{i // 100}" / f"{i:04d}.mp4"
        if i % 50 == 7:
            data = [b"", b"text" * 99, data[: len(data) // 2], data[:60]][i // 50 % 4]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    flags = [
        f"--checkpoint={checkpoint}",
        f"--videos={videos}/**/*.mp4",
        f"--output={tmp_path}/out",
    ]
    command = [sys.executable, "-m", "avs_jax.predict", *FLAGS, *flags]
    start = functools.partial(
        subprocess.Popen, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    killed = start([*command, "--shard=0/2"])
    other = start([*command, "--shard=1/2"])
    while len(list((tmp_path / "out").glob("*/*/results.json"))) < 100:
        assert other.poll() is None
        time.sleep(1)
    killed.kill()
    killed.wait()
    assert start([*command, "--shard=0/2"]).wait() == 0 and other.wait() == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["done"], manifest["failed"], manifest["open"]) == (980, 20, 0)
    failed = {name: v["reason"] for name, v in manifest["videos"].items() if v["state"] == "failed"}
    assert sorted(failed) == [f"{i // 100}/{i:04d}.mp4" for i in range(7, 1000, 50)]
    assert all(name in reason for name, reason in failed.items())
    assert len(list((tmp_path / "out").glob("*/*/results.json"))) == 980


def arrays_in(**changes):
    arrays = {
        "images": RNG.integers(0, 256, (1, 2, 64, 64, 3), np.uint8),
        "log_mel": RNG.standard_normal((1, 2, 96, 64), np.float32),
        "motion": RNG.random((1, 2, 64, 64), np.float32),
        "pre_masks": RNG.integers(0, 256, (1, 2, 64, 64, 3), np.uint8),
    } | changes
    return {name: value for name, value in arrays.items() if value is not None}


def run_arrays(tmp_path, checkpoint, arrays, *more):
    np.savez(tmp_path / "in.npz", **arrays)
    flags = [f"--checkpoint={checkpoint}", f"--arrays={tmp_path}/in.npz"]
    return predict.main(["predict", *FLAGS, *flags, f"--output={tmp_path}/out.npz", *more])


def test_missing_arrays_are_assumed_with_a_note(tmp_path, checkpoint, capsys):
    assert run_arrays(tmp_path, checkpoint, arrays_in(motion=None, pre_masks=None)) == 0
    err = capsys.readouterr().err
    assert "zeros assumed" in err and "made with felzenszwalb" in err
    out = np.load(tmp_path / "out.npz")
    shapes = {name: out[name].shape for name in out.files}
    assert shapes == {
        "pred_logits": (1, 2, 5, 3), "pred_masks": (1, 2, 16, 16, 5),
        "sem_seg": (1, 2, 24, 24, 2), "motion_weight": (1, 2, 8, 8),
    }  # fmt: skip


@pytest.mark.parametrize("changes, reason", [
    ({"images": None}, r"images is missing: uint8 \[B T H W 3\]"),
    ({"images": np.zeros((1, 2, 64, 64, 3), np.float32)}, "images: float32, expected uint8"),
    ({"log_mel": np.zeros((1, 3, 96, 64), np.float32)}, "log_mel: axis T"),
    ({"log_mel": np.zeros((1, 2, 96, 63), np.float32)}, "log_mel: axis 64"),
    ({"motion": np.zeros((1, 2, 64, 64, 2), np.float32)}, "motion: axis C .* is 2, expected 1"),
    ({"log_mel": np.full((1, 2, 96, 64), np.nan, np.float32)}, "log_mel: 12288 of 12288 .* NaN"),
    ({"frame_index": np.zeros((1, 2), np.int32)}, "frame_index: no array of that name"),
    ({"logmel": np.zeros(1)}, "logmel: no array of that name.*log_mel"),
    ({"valid": np.ones((1, 2))}, "valid: float64, expected bool"),
])  # fmt: skip
def test_wrong_arrays_are_named(config, changes, reason):
    with pytest.raises(ValueError, match=reason):
        check_arrays(arrays_in(**changes), make_task(config).rows)


def test_images_of_another_size_than_the_mixer_wants(predictor):
    arrays = {k: np.repeat(v, 2, axis=2) if k in ("images", "pre_masks", "motion") else v
              for k, v in arrays_in().items()}  # fmt: skip
    with pytest.raises(ValueError, match="mixer is made for 256 pixels.*64 x 64 px.*128 x 64"):
        predict.predict_arrays(predictor, arrays)


@pytest.mark.parametrize("more, reason", [
    (("--config.model.num_queries=6",), "does not fit config.model"),
    (("--checkpoint=/nowhere",), "no checkpoint"),
    (("--pre_masks=x",), "belongs to --video"),
    (("--video=x.mp4",), "give --video, --videos or --arrays"),
])  # fmt: skip
def test_mistakes_get_one_line(tmp_path, checkpoint, capsys, more, reason):
    assert run_arrays(tmp_path, checkpoint, arrays_in(), *more) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note")]
    assert err[0].startswith("error: ") and reason in err[0]
    assert bool(err[1:]) == ("fit" in reason)  # then come the tensors that do not
    assert all(line.startswith("  predictor/") for line in err[1:])
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("flag", ["pre_masks", "points", "boxes", "masks", "language"])
def test_flags_about_one_video(tmp_path, capsys, flag):
    argv = ["--checkpoint=x", "--videos=*.mp4", f"--output={tmp_path}/out", f"--{flag}=y"]
    assert predict.main(["predict", *argv]) == 1
    assert f"--{flag} is about one video" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    ("--search=i.npz --text=dog --shard=0/2", "--shard belongs to --videos"),
    ("--search=i.npz --text=dog --points=p.json", "--points belongs to --video"),
    ("--search=i.npz --text=dog --max_size=1GiB", "--max_size belongs to --arrays"),
    ("--search=i.npz --videos=*.mp4", "one of them, or --search"),
    ("--video=x.mp4 --approximate", "--approximate belongs to --search"),
    ("--video=x.mp4 --image=x.png", "--image belongs to --search"),
    ("--videos=*.mp4 --max_size=1GiB", "--max_size belongs to --arrays"),
    ("--videos=", "--videos is empty"),
    ("--video=", "--video is empty"),
    ("--search=i.npz --text=", "--text is empty"),
    ("--video=x.mp4 --output=", "--output is empty"),
    ("--videos=*.mp4 --checkpoint=", "--checkpoint is empty"),
])  # fmt: skip
def test_flags_that_would_not_be_read_are_refused(monkeypatch, capsys, flags, message):
    monkeypatch.setattr(predict, "make_predictor", None)  # no model is loaded
    given = ["predict", "--checkpoint=run", "--output=out", *flags.split()]
    assert predict.main(given) == 1
    assert message in capsys.readouterr().err


def test_pre_masks_that_the_model_does_not_read_are_refused(tmp_path):
    model = types.SimpleNamespace(reads=lambda: ("images", "log_mel"))
    without = types.SimpleNamespace(task=types.SimpleNamespace(model=model), config=None)
    with pytest.raises(UsageError, match="--pre_masks is not read"):
        clip_video.predict_video(without, "x.mp4", tmp_path, None, pre_masks=tmp_path)


def test_model_keys_are_the_checkpoints_unless_the_command_line_overrides_them(checkpoint):
    """Keys that do not affect the parameters would silently change results."""

    def resolve(*flags):
        line = parse(["predict", *flags], predict._define_flags, "", needs_config=False)
        return checkpoint_config(line, Checkpoint.find(checkpoint))

    config, notes = resolve()
    assert config.model.fusion.temperature_mode == "mul" and not notes
    config, notes = resolve("--config=configs/s4_ama.py:tiny")
    assert config.model.num_queries == 5 and config.data.image_size == 64
    assert "config.model.num_queries = 5 as in the checkpoint, not 6" in notes
    config, (note,) = resolve("--config.model.fusion.temperature_mode=div")
    assert config.model.fusion.temperature_mode == "div"
    assert note == (
        "config.model.fusion.temperature_mode = 'div' by the command line, trained 'mul'"
    )


def test_the_fields_of_a_task_are_listed(checkpoint, capsys):
    assert predict.main(["predict", f"--checkpoint={checkpoint}", "--arrays"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"images +uint8 +\[B T H W 3\]  RGB", out)
    assert re.search(r"motion +float32 +\[B T H W C\] optional", out) and "frame_index" not in out
    assert re.search(r"results: pred_logits, pred_masks", out)
    for source in (f"--checkpoint={checkpoint}", "--config=configs/s4_ama.py:tiny"):
        for flags in (["--arrays", "--help"], ["--help", "--arrays=in.npz"]):
            with pytest.raises(SystemExit) as stopped:
                predict.main(["predict", source, *flags])
            helped = capsys.readouterr().out
            assert stopped.value.code == 0
            assert "--arrays" in helped and out.partition("\n")[2] in helped
    with pytest.raises(SystemExit):
        predict.main(["predict", "--arrays", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "lists the fields of --checkpoint or --config" in text and "results:" not in text


def test_a_file_that_is_not_an_npz(tmp_path, checkpoint, capsys):
    (tmp_path / "bad.npz").write_text("hello")
    assert run_arrays(tmp_path, checkpoint, {}, f"--arrays={tmp_path}/bad.npz") == 1
    assert "no npz file, or damaged" in capsys.readouterr().err


def test_color_masks_from_a_frame():
    picture = np.zeros((60, 200, 3), np.uint8)
    picture[:, :100] = (200, 30, 30)
    picture[20:40, 30:60] = (20, 220, 20)
    colors = clip_video.segment_colors(picture)
    assert colors.shape == (60, 200, 3)
    # The smallest part has the first color of the palette, the next the second, and so on.
    painted = {
        tuple(c): int((colors == c).all(-1).sum()) for c in clip_video.to_rgb(np.arange(1, 20))
    }
    areas = [area for area in painted.values() if area]
    assert areas == sorted(areas) and sum(areas) == 60 * 200
    assert len({tuple(c) for c in (colors[30, 45], colors[5, 5], colors[5, 150])}) == 3


@pytest.mark.parametrize("pairs", ["frames", "video"])
def test_flow_on_the_fly(tmp_path, config, checkpoint, pairs, monkeypatch):
    """An estimator's vectors, per second, are the model's motion map."""

    class Estimator:
        model = "raft_small"

        def __call__(self, first, second):
            calls.append(first.shape)
            flow = np.zeros((*first.shape[:3], 2), np.float32)
            flow[:, :20] = 5
            return flow

    class Spy(Predictor):
        def outputs(self, inputs):
            batches.append(inputs)
            return super().outputs(inputs)

    calls, batches = [], []
    monkeypatch.setattr(clip_video, "make_estimator", lambda *_: Estimator())
    config = config.copy_and_resolve_references()
    config.data.motion.update(map="magnitude_absolute", scale=5.0, pairs=pairs)
    path = tmp_path / "clip.mp4"
    write_video(path, frames_of(12, 48, 80), 4, tone(3, 16_000))
    spy = Spy(make_task(config), config, Checkpoint.find(checkpoint))
    results = predict_video(spy, path, tmp_path / "out")
    assert results["motion"] == "raft_small"
    assert calls == [(3 if pairs == "video" else 2, 64, 64, 3)]
    motion = batches[0]["motion"][0, :3, ..., 0]
    rate = 4 if pairs == "video" else 1
    np.testing.assert_allclose(motion[:, :20], rate * np.sqrt(2), rtol=1e-2)
    assert not motion[:, 20:].any()


@pytest.mark.slow
def test_a_motion_track_on_the_fly(tmp_path, config):
    """Synchrony gets the motion and the sound of the video itself, in step, window by window."""

    class Spy(Predictor):
        def outputs(self, inputs):
            batches.append(inputs)
            return super().outputs(inputs)

    batches = []
    config = add_sync(config.copy_and_resolve_references())
    parts.shrink_fusion(config.model.fusion, parts.TINY_FUSIONS)
    config.data.track.update(rate=4.0, window_seconds=2.0, model="difference")
    save_variables(tmp_path / "ours", random_variables(config, (64, 64)), config)
    path = tmp_path / "clip.mp4"
    write_video(path, frames_of(28, 48, 80), 4, tone(7, 16_000))
    spy = Spy(make_task(config), config, Checkpoint.find(tmp_path / "ours"))
    results = predict_video(spy, path, tmp_path / "out")
    assert results["motion_track"] == "difference" and len(results["seconds"]) == 7
    assert [batch["motion_track"].shape[2:] for batch in batches] == [(8, 24, 24, 2)] * 2
    for batch, frames in zip(batches, (5, 2), strict=True):
        track = batch["motion_track"][0, :frames, ..., 0].astype(np.float32)
        assert (track[:, :, 5:15].mean((1, 2, 3)) > 4 * track[:, :, 16:].mean((1, 2, 3))).all()
        assert batch["sound_track"][0, :frames].any(axis=(1, 2)).all()
        assert not batch["motion_track"][0, frames:].any()

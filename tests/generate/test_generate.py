"""Generated clips: the layout, the promises about sound and motion, and that the seed decides."""

import csv
import dataclasses
import hashlib
import json
import wave

import av
import numpy as np
import pytest
from PIL import Image

from avs_jax.data import pre_masks
from avs_jax.data.avsbench_folders import MANIFEST, OBJECTS, S4_CATEGORIES
from avs_jax.generate import datasets
from avs_jax.generate.categories import SEMANTIC_CLASSES
from avs_jax.generate.datasets import write_clips
from avs_jax.generate.drawing import outline_share
from avs_jax.generate.plans import object_track, plan_clip, plan_mixture
from avs_jax.generate.rendering import render_clip
from avs_jax.generate.setting import Options
from avs_jax.generate.sounds import loudness_at
from avs_jax.generate.video_writer import write_video
from avs_jax.label_images import CLASS_PALETTE
from avs_jax.programs import make_clips
from avs_jax.spec import InputError

COUNTS = dict(num_train=4, num_val=2, num_test=2, size=64, workers=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "Single-source"
    assert write_clips(path, seed=3, **COUNTS) == 8
    return path


@pytest.fixture(scope="module")
def clips():
    plans = [plan_clip(0, "train", i) for i in range(40)]
    return plans, [render_clip(plan, 48) for plan in plans]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def area_of(item):
    return 4 * item.half_size**2 * outline_share(item.category.outline)


def test_layout(root):
    with (root / "s4_meta_data.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "start", "category", "split"]
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert len({row["name"] for row in rows}) == 8
    expected = {"s4_meta_data.csv", MANIFEST, OBJECTS}
    for row in rows:
        name, inner = row["name"], f"{row['split']}/{row['category']}"
        assert row["category"] in S4_CATEGORIES
        for k in range(1, 6):
            expected.add(f"s4_data/visual_frames/{inner}/{name}/{name}_{k}.png")
            expected.add(f"s4_data/pre_SAM_mask/{inner}/{name}/{name}_{k}_mask_color.png")
        for k in [1] if row["split"] == "train" else range(1, 6):
            expected.add(f"s4_data/gt_masks/{inner}/{name}/{name}_{k}.png")
        expected.add(f"s4_data/audio_wav/{inner}/{name}.wav")
        expected.add(f"s4_data/raw_videos/{inner}/{name}.mp4")
    assert {str(path) for path in files(root)} == expected


def test_file_contents(root):
    for path in root.glob("s4_data/visual_frames/*/*/*/*.png"):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (64, 64))
    for path in root.glob("s4_data/gt_masks/*/*/*/*.png"):
        assert set(np.unique(np.asarray(Image.open(path)))) == {0, 255}
    for path in root.glob("s4_data/pre_SAM_mask/*/*/*/*.png"):
        with Image.open(path) as image:
            assert image.mode == "P"
            assert image.getpalette()[:6] == [120, 120, 120, 180, 120, 120]
    for path in root.glob("s4_data/audio_wav/*/*/*.wav"):
        with wave.open(str(path)) as file:
            assert file.getparams()[:4] == (1, 2, 16_000, 80_000)


def test_video_shows_the_moments_of_the_frames(root):
    """Dataset frame k is what the video shows at k + 15/16 s, and its sound is the wav's."""
    for path in root.glob("s4_data/raw_videos/test/*/*.mp4"):
        folder = root / "s4_data/visual_frames/test" / path.parent.name / path.stem
        with av.open(str(path)) as container:
            frames = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        assert len(frames) == 40
        for k in range(5):
            shown = [image for time, image in frames if time <= k + 15 / 16][-1]
            still = np.asarray(Image.open(folder / f"{path.stem}_{k + 1}.png"))
            errors = [np.abs(image.astype(float) - still).mean() for _, image in frames]
            assert np.abs(shown.astype(float) - still).mean() == min(errors) < 12
        with av.open(str(path)) as container:
            sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
        with wave.open(
            str(root / f"s4_data/audio_wav/test/{path.parent.name}/{path.stem}.wav")
        ) as f:
            original = np.frombuffer(f.readframes(80_000), np.int16) / 32768
        assert np.corrcoef(sound[:80_000], original[: len(sound)])[0, 1] > 0.8


VERSIONS = {  # of each setting, and what `digest_of_plans` gives
    "s4": (1, "de429f440234f2d2"),
    "ms3": (1, "cba80b76a1511929"),
    "avss": (1, "5aac29671755d816"),
    "twins": (1, "d028a721a61729ee"),
    "moments": (2, "31005a97cc8ffb18"),
    "refer": (2, "a13de0a6dfa3e7f9"),
}


def digest_of_plans(setting):
    """Of two clips per split and kind; numbers count to four digits."""
    row, parts = datasets.SETTINGS[setting], []

    def add(value):
        if dataclasses.is_dataclass(value):
            value = [getattr(value, field.name) for field in dataclasses.fields(value)]
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            parts.append(f"{value:.4g}" if isinstance(value, float) else str(value))

    for kind in row.kinds or ("",):
        options = Options(0, row.size, kind, row.num_categories)
        for split in row.splits(row.default_counts()):
            add([row.plan(options, split, index) for index in range(2)])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@pytest.mark.parametrize("setting", datasets.SETTINGS)
def test_other_clips_have_another_version(setting):
    """Where this fails, the same options give other plans than before: raise the setting's
    `version`, so that folders of earlier clips are refused, and note both numbers above."""
    found = datasets.SETTINGS[setting].version, digest_of_plans(setting)
    assert found == VERSIONS[setting]


def test_everything_follows_from_the_seed(root, tmp_path):
    """The same bytes from two processes, and other clips from another seed."""
    write_clips(tmp_path / "again", seed=3, **COUNTS | {"workers": 2})
    assert files(tmp_path / "again") == files(root)
    one = render_clip(plan_clip(3, "train", 0), 48)
    for other in ((4, "train", 0), (3, "val", 0), (3, "train", 1)):
        assert not np.array_equal(render_clip(plan_clip(*other), 48).frames, one.frames)


def test_interrupted_run_continues(root, tmp_path):
    folder = tmp_path / "clips"
    write_clips(folder, seed=3, **COUNTS)
    assert write_clips(folder, seed=3, **COUNTS) == 0
    (folder / "s4_meta_data.csv").unlink()
    next(folder.glob("s4_data/audio_wav/val/*/*.wav")).unlink()
    (folder / "s4_data/visual_frames/x.unfinished.png").write_bytes(b"")
    assert write_clips(folder, seed=3, **COUNTS) == 1
    (folder / "s4_data/visual_frames/x.unfinished.png").unlink()
    assert files(folder) == files(root)


def test_a_folder_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    counts = {"num_train": 1, "num_val": 0, "num_test": 1, "size": 64, "workers": 1}
    assert write_clips("~/clips", **counts) == 2 and (tmp_path / "clips").is_dir()
    assert write_clips("~/clips", **counts) == 0
    with pytest.raises(InputError, match="other options"):
        write_clips("~/clips", seed=1, **counts)


def test_other_parameters_or_other_content_are_refused(root, tmp_path, capsys):
    with pytest.raises(ValueError, match="size: 64 there, 96 asked for"):
        write_clips(root, seed=3, **COUNTS | {"size": 96})
    (tmp_path / "s4_data").mkdir()
    with pytest.raises(ValueError, match="does not come from this generator"):
        write_clips(tmp_path, **COUNTS)
    with pytest.raises(ValueError, match="categories=13, expected 2 to 12"):
        plan_clip(0, "train", 0, num_categories=13)
    assert make_clips.main([f"--output={root}", "--seed=4"]) == 1
    assert "seed: 3 there, 4 asked for" in capsys.readouterr().err


def test_one_sounds_and_a_silent_one_is_as_salient():
    plans = [plan_clip(0, "test", i) for i in range(400)]
    movers, areas, silent_areas = [], [], []
    for plan in plans:
        sounding = plan.objects[plan.sounding]
        silent = [o for o in plan.objects if o is not sounding]
        names = {o.category.name for o in plan.objects}
        assert 2 <= len(names) == len(plan.objects) <= 4
        assert sounding.amplitude > 0
        movers.append(any(o.amplitude > 0 for o in silent))
        area = [area_of(o) for o in (sounding, *silent)]
        areas.append(area[0])
        silent_areas.append(max(area[1:]))
        assert 0.07 < min(area) <= max(area) < 0.27
    assert np.mean(movers) == 0.5
    assert np.mean(silent_areas) >= np.mean(areas)
    on_top = np.mean([plan.sounding == len(plan.objects) - 1 for plan in plans])
    assert on_top < 0.45  # depth tells nothing either


def test_motion_follows_loudness():
    """The speed of an object along its path is proportional to the squared loudness."""
    item = plan_clip(0, "train", 0).objects[0]
    item = dataclasses.replace(item, amplitude=0.1)
    time = np.arange(0.5, 4.5, 0.01)
    x, y = object_track(item, time).T / 0.1
    speed = np.abs(np.gradient(np.arccos(np.clip(x, -1, 1)), time))
    loudness = loudness_at(item.loudness, time)
    inner = np.abs(x) < 0.9
    expected = 2 * np.pi * item.rate * loudness**2
    np.testing.assert_allclose(speed[inner], expected[inner], rtol=0.05)
    assert np.abs(y).max() <= 1


def test_mask_is_what_can_be_seen(clips):
    plans, rendered = clips
    for plan, clip in zip(plans, rendered, strict=True):
        np.testing.assert_array_equal(clip.mask, clip.labels == plan.sounding + 1)
        assert clip.mask.any((1, 2)).all()
        assert clip.frame_index.tolist() == [7, 15, 23, 31, 39]
    overlapping = [c for c in rendered if c.mask.sum((1, 2)).min() < 0.8 * c.mask.sum((1, 2)).max()]
    assert overlapping  # occlusion does occur


def test_every_second_is_audible(clips):
    for clip in clips[1]:
        seconds = (clip.audio / 32768.0).reshape(5, 16_000)
        level = 20 * np.log10(np.sqrt(np.mean(seconds**2, axis=1)))
        assert level.min() > -32
        assert np.abs(clip.audio.astype(int)).max() < 32_767


def test_categories_differ_by_sound_alone():
    """Nearest centroid of a clip's mean log spectrum, loudness taken out: 90 % and more."""

    def feature(clip):
        blocks = clip.audio.reshape(-1, 500) / 32768.0
        bands = np.abs(np.fft.rfft(blocks * np.hanning(500)))[:, 3:243].reshape(160, 40, 6)
        logs = np.log(bands.sum(-1) + 0.01).mean(0)
        return logs - logs.mean()

    def features(split, count):
        plans = [plan_clip(0, split, i) for i in range(count)]
        names = ["+".join(category.name for category in plan.heard) for plan in plans]
        return np.stack([feature(render_clip(plan, 32)) for plan in plans]), np.array(names)

    known, labels = features("train", 60)
    asked, truth = features("test", 40)
    names = np.unique(labels)
    centroids = np.stack([known[labels == name].mean(0) for name in names])
    nearest = names[((asked[:, None] - centroids) ** 2).sum(-1).argmin(1)]
    assert np.mean(nearest == truth) >= 0.9


def test_objects_file_lists_the_visible_objects(root):
    objects = json.loads((root / OBJECTS).read_text())
    for index in range(4):
        plan = plan_clip(3, "train", index)
        assert objects[plan.name] == sorted(o.category.name for o in plan.objects)


def test_paint_by_area_small_masks_win():
    large, small, empty = np.ones((4, 4), bool), np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    large[0] = False
    small[1:3, 1:3] = True
    index = pre_masks.paint_by_area([large, empty, small])
    expected = np.array([[0, 0, 0, 0], [2, 1, 1, 2], [2, 1, 1, 2], [2, 2, 2, 2]])
    np.testing.assert_array_equal(index, expected)
    assert pre_masks.to_rgb(index)[0, 0].tolist() == [120, 120, 120]
    image = pre_masks.to_image(index)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pre_masks.to_rgb(index))
    with pytest.raises(ValueError, match="no masks"):
        pre_masks.paint_by_area([])


def test_write_video_stereo_portrait(tmp_path):
    plan = plan_clip(0, "test", 1, seconds=2)
    clip = render_clip(plan, (96, 64), fps=24, sample_rate=48_000)
    assert clip.frames.shape == (48, 96, 64, 3)
    write_video(tmp_path / "a.mp4", clip.frames, 24, clip.audio, 48_000, stereo=True)
    with av.open(str(tmp_path / "a.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (64, 96, 24)
        assert (sound.rate, sound.channels) == (48_000, 2)
        assert sum(1 for _ in container.decode(video=0)) == 48
    write_video(tmp_path / "silent.mp4", clip.frames, 24)
    with av.open(str(tmp_path / "silent.mp4")) as container:
        assert not container.streams.audio
    with pytest.raises(ValueError, match="even sides"):
        write_video(tmp_path / "b.mp4", clip.frames[:, :95], 24)
    with pytest.raises(ValueError, match="expected int16"):
        write_video(tmp_path / "b.mp4", clip.frames, 24, clip.audio / 32768.0)


def test_write_video_repeats_its_bytes(tmp_path):
    clip = render_clip(plan_clip(0, "test", 1, seconds=3), 80)
    written = set()
    for k in range(30):
        used = [np.full(20_000 + 700 * i, (k * 37 + i) % 256, np.uint8) for i in range(30)]
        del used  # memory that the encoder may find, different each time
        write_video(tmp_path / "a.mp4", clip.frames, 8)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


# ---- several sources ----


def test_mixtures_start_stop_and_pause():
    """One to three sound at some time, sets change, some seconds are silent, something never is."""
    plans = [plan_mixture(0, "train", i) for i in range(200)]
    heard = [np.stack([o.active & o.audible for o in plan.objects], -1) for plan in plans]
    assert {int(h.any(0).sum()) for h in heard} == {1, 2, 3}
    assert all(h.any() for h in heard)
    assert 0.08 < np.mean([~h.any(1) for h in heard]) < 0.3
    assert 0.4 < np.mean([(h != h[0]).any() for h in heard]) < 0.95
    assert all(any(not o.audible for o in plan.objects) for plan in plans)
    silent = [o for plan in plans for o in plan.objects if not o.audible]
    assert 0.4 < np.mean([o.amplitude > 0 for o in silent]) < 0.8
    assert np.mean([not o.active.all() for o in silent]) > 0.2  # they start and stop as well
    names = [[o.category.name for o in plan.objects] for plan in plans]
    assert all(len(set(n)) == len(n) for n in names)


def test_mixture_sounds_and_moves_only_while_active():
    plans = [plan_mixture(0, "train", i) for i in range(60)]
    plan = next(p for p in plans if not p.objects[p.sounding].active.all() and len(p.heard) == 1)
    clip = render_clip(plan, 32)
    active = plan.objects[plan.sounding].active
    second = clip.audio.reshape(5, 16_000)[:, 1000:-1000] / 32768.0
    level = 20 * np.log10(np.sqrt(np.mean(second**2, axis=1)))
    assert (level[active] > -40).all() and (level[~active] < -58).all()
    np.testing.assert_array_equal(clip.sounding.any(1), active)
    assert clip.mask.any((1, 2)).tolist() == active.tolist()
    time = np.arange(0, 5, 0.05)
    track = object_track(plan.objects[plan.sounding], time)
    moved = np.abs(np.diff(track, axis=0)).sum(-1)
    inner = [np.floor(t + 0.05) == np.floor(t - 0.05) for t in time[:-1]]
    still = ~active[np.floor(time[:-1]).astype(int)] & inner
    assert moved[still].max(initial=0) < 1e-6 < moved[~still].mean()


@pytest.fixture(scope="module")
def semantic_root(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "AVSBench_semantic"
    counts = COUNTS | {"size": 48}
    assert write_clips(path, seed=3, setting="avss", **counts) == 8
    assert write_clips(path, seed=3, setting="avss", **counts) == 0
    return path


def test_semantic_layout(semantic_root):
    with (semantic_root / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"]
    assert [row["label"] for row in rows[:4]] == ["v1s", "v2", "v1m", "v2"]
    expected = {"metadata.csv", "label2idx.json", MANIFEST, OBJECTS}
    for row in rows:
        folder = f"{row['label']}/{row['uid']}"
        count = 10 if row["label"] == "v2" else 5
        only_first = row["label"] == "v1s" and row["split"] == "train"
        expected.add(f"{folder}/audio.wav")
        for t in range(count):
            expected.add(f"{folder}/frames/{t}.jpg")
            expected.add(f"pre_SAM_mask/AVSBench_semantic/{folder}/frames/{t}_mask_color.png")
        for t in range(1 if only_first else count):
            expected |= {f"{folder}/labels_semantic/{t}.png", f"{folder}/labels_rgb/{t}.png"}
    assert {str(path) for path in files(semantic_root)} == expected
    names = list(json.loads((semantic_root / "label2idx.json").read_text()))
    assert len(names) == 71 and names[0] == "background"


def test_semantic_masks(semantic_root):
    """Index and color images agree, and hold the classes that the csv says sound."""
    with (semantic_root / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        seen = set()
        for path in (semantic_root / row["label"] / row["uid"] / "labels_semantic").iterdir():
            with Image.open(path) as image:
                assert image.mode == "P" and image.size == (64, 48)
                index = np.asarray(image)
            with Image.open(path.parent.parent / "labels_rgb" / path.name) as rgb:
                colors = np.asarray(rgb)
            np.testing.assert_array_equal(colors, CLASS_PALETTE[index])
            seen |= {SEMANTIC_CLASSES[c] for c in np.unique(index) if c}
        assert seen <= set(row["a_obj"].split("+"))
        with wave.open(str(semantic_root / row["label"] / row["uid"] / "audio.wav")) as file:
            seconds = 10 if row["label"] == "v2" else 5
            assert file.getparams()[:4] == (2, 2, 48_000, 48_000 * seconds)


# ---- the command line ----


def test_help_has_an_example_per_setting(capsys):
    with pytest.raises(SystemExit) as stopped:
        make_clips.main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for name, setting in datasets.SETTINGS.items():
        assert f"{name}: " in text
        assert f"    avs-jax clips {setting.example}\n" in text


def test_interrupt_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(job):
        raise KeyboardInterrupt

    command = [f"--output={tmp_path / 'a'}", "--train=1", "--val=0", "--test=0", "--size=32"]
    command.append("--workers=1")
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_write_clip", interrupted)
        assert make_clips.main(command) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("generating clips: 1\ninterrupted; the same command resumes\n")
    assert make_clips.main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a'}: complete, 1 clips generated now\n"
    assert make_clips.main(command) == 0
    assert "0 clips generated now" in capsys.readouterr().out


def test_damaged_manifest_is_named(tmp_path):
    (tmp_path / MANIFEST).write_text("[1]")
    with pytest.raises(InputError, match="generated_clips.json: not the options of generated"):
        write_clips(tmp_path, **COUNTS)


def test_unknown_setting(tmp_path):
    with pytest.raises(ValueError, match="expected one of s4, ms3, avss"):
        write_clips(tmp_path, setting="ms4")
    with pytest.raises(ValueError, match="categories=3, expected 4 to 12"):
        write_clips(tmp_path, setting="ms3", num_categories=3)

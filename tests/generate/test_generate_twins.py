"""The setting twins: no frame tells who sounds, motion does, and S4's builder reads the clips."""

import json
import wave

import av
import numpy as np
import pytest
from PIL import Image

from avs_jax.data.avsbench_folders import OBJECTS
from avs_jax.data.decode import decode_labels
from avs_jax.generate import twins
from avs_jax.generate.avsbench import clip_paths
from avs_jax.generate.datasets import write_clips
from avs_jax.generate.plans import object_track
from avs_jax.generate.rendering import render_clip
from avs_jax.generate.setting import DETAILS, Options
from avs_jax.generate.sounds import loudness_at
from avs_jax.spec import InputError
from tests import avsbench_folders as folders

COUNTS = dict(num_train=2, num_val=1, num_test=2, size=48, workers=1, setting="twins")


def plan_all(kind, count, seed=0):
    options = Options(seed=seed, size=48, kind=kind, num_categories=10)
    return [twins.plan_twins(options, "train", i) for i in range(count)]


def pair(plan):
    """The sounding and the silent twin."""
    by_role = {twins.role(plan, item): item for item in plan.objects}
    return by_role[1], by_role[2]


def ks_distance(a, b):
    """Largest difference of two empirical distribution functions."""
    points = np.concatenate([a, b])
    share = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return np.abs(share[0] - share[1]).max()


def phase_speed(item, time):
    """|d phase / dt| from the track alone: the first coordinate is amplitude cos(phase)."""
    x = object_track(item, time)[:, 0] / item.amplitude
    phase = np.arccos(np.clip(x, -1, 1))
    return np.abs(np.diff(phase)) / np.diff(time)


@pytest.mark.parametrize("kind", twins.KINDS)
def test_no_frame_tells_the_twins_apart(kind):
    plans = plan_all(kind, 600)
    pairs = [pair(plan) for plan in plans]
    for a, b in pairs:
        for name in ("category", "half_size", "angle", "amplitude", "rate"):
            assert getattr(a, name) == getattr(b, name), name
    on_top = [
        plan.objects.index(a) > plan.objects.index(b)
        for plan, (a, b) in zip(plans, pairs, strict=True)
    ]
    assert 0.45 < np.mean(on_top) < 0.55
    # Offsets from the center and places in the frame have one distribution at any moment.
    # Two samples of 600 differ by 0.094 at the 1 % level.
    for moment in (0.1, 4.9):
        tracks = [[object_track(item, np.array([moment]))[0] for item in p] for p in pairs]
        offset = np.array(tracks) / np.array([a.amplitude for a, _ in pairs])[:, None, None]
        place = np.array(tracks) + np.array([[a.center, b.center] for a, b in pairs])
        for values in (offset[..., 0], offset[..., 1], place[..., 0], place[..., 1]):
            assert ks_distance(values[:, 0], values[:, 1]) < 0.1


def test_twins_are_equal_pixel_by_pixel():
    plan = next(p for p in plan_all("still", 40) if len(p.objects) == 2 and p.light == 0)
    clip = render_clip(plan, 96, fps=8)
    shapes = []
    for i in (1, 2):  # labels
        full = max(range(5), key=lambda t: (clip.labels[t] == i).sum())
        rows, columns = np.nonzero(clip.labels[full] == i)
        image = clip.frames[clip.frame_index[full]]
        shapes.append(image[rows, columns].mean(0))
    np.testing.assert_allclose(shapes[0], shapes[1], atol=6)


def test_who_moves():
    for kind in twins.KINDS:
        for plan in plan_all(kind, 20):
            sounding, silent = pair(plan)
            time = np.arange(0, 5, 0.05)
            moved = [np.ptp(object_track(item, time), axis=0).max() for item in plan.objects]
            by_role = {twins.role(plan, o): m for o, m in zip(plan.objects, moved, strict=True)}
            assert by_role[1] > 0.05
            assert (by_role[2] > 0.05) == (kind != "still") and by_role.get(3, 0) == 0
            assert sounding.audible and not silent.audible
            assert (plan.lag > 0) == (kind == "delayed") and plan.lag <= 0.04
            if kind == "still":
                assert by_role[2] == 0


def test_sound_follows_the_speed_of_the_twin_that_sounds():
    """Correlating sound level with speed finds the source in nearly every clip that has `moving`
    twins; the speeds of both have the same mean."""
    right, speeds = [], []
    for plan in plan_all("moving", 60):
        audio = render_clip(plan, 32, fps=8).audio / 32768.0
        level = np.sqrt((audio.reshape(-1, 3200) ** 2).mean(1))  # five values per second
        time = np.arange(0, 5.01, 0.01)
        scores = []
        for item in pair(plan):
            path = np.linalg.norm(np.diff(object_track(item, time), axis=0), axis=1)
            # Speed along the phase: without the path's own turning points.
            speed = phase_speed(item, time)
            scores.append(np.corrcoef(speed.reshape(-1, 20).mean(1), level)[0, 1])
            speeds.append(path.mean())
        right.append(scores[0] > scores[1])
    assert np.mean(right) >= 0.95
    speeds = np.array(speeds).reshape(-1, 2)
    assert abs(speeds[:, 0].mean() / speeds[:, 1].mean() - 1) < 0.1


def test_delayed_sound_lags():
    plan = max(plan_all("delayed", 20), key=lambda plan: plan.lag)
    late = render_clip(plan, 32, fps=8)
    prompt = render_clip(twins.dataclasses.replace(plan, lag=0.0), 32, fps=8)
    np.testing.assert_array_equal(late.frames, prompt.frames)
    # Both have the same carrier, so their ratio is that of the loudness curves.
    time = (np.arange(80_000) + 0.5) / 16_000
    loudness = plan.objects[plan.sounding].loudness
    expected = loudness_at(loudness, time - plan.lag) / loudness_at(loudness, time)
    loud = (np.abs(prompt.audio) > 1500) & (time > 0.1) & (time < 4.9)
    ratio = late.audio[loud] / prompt.audio[loud]
    slope, _ = np.polyfit(expected[loud] / expected[loud].mean(), ratio / ratio.mean(), 1)
    assert 0.8 < slope < 1.2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("twins") / "Single-source"
    assert write_clips(path, kind="moving", **COUNTS) == 5
    assert write_clips(path, kind="moving", **COUNTS) == 0
    return path


def test_object_masks_name_the_twins(root):
    details = json.loads((root / DETAILS).read_text())
    objects = json.loads((root / OBJECTS).read_text())
    options = Options(seed=0, size=48, kind="moving", num_categories=10)
    for split, count in (("train", 2), ("val", 1), ("test", 2)):
        for index in range(count):
            plan = twins.plan_twins(options, split, index)
            about = details[plan.name]["objects"]
            assert about["1"]["sounds"] and not about["2"]["sounds"]
            assert about["1"]["category"] == about["2"]["category"]
            assert sorted(o["category"] for o in about.values()) == objects[plan.name]
            paths = clip_paths(root, plan, twins.LAYOUT)
            for key, path in paths.items():
                kind, _, number = key.partition("/")
                if kind == "mask":
                    mask = np.asarray(Image.open(path)) > 0
                    index_map = np.asarray(Image.open(paths[f"object_mask/{number}"]))
                    np.testing.assert_array_equal(mask, index_map == 1)
                    assert set(np.unique(index_map)) <= {0, *map(int, about)}
            assert sum(key.startswith("object_mask/") for key in paths) == 5
            with av.open(str(paths["video"])) as container:
                assert container.streams.video[0].average_rate == twins.FPS
                assert sum(1 for _ in container.decode(video=0)) == 5 * twins.FPS
                assert container.streams.audio
            with wave.open(str(paths["wav"])) as file:
                assert file.getnframes() == 80_000


def test_s4_builder_reads_twins(root, tmp_path):
    assert folders.build("avsbench_s4", root.parent, tmp_path) == 0
    records = folders.open_built("avsbench_s4", tmp_path, "object224").as_data_source("test")
    assert len(records) == 2 and len(records[0]["frames"]) == 5
    labels = records[0]["visible_labels"]
    assert (labels == records[0]["category_label"]).sum() == 2
    masks = [decode_labels(mask, 255) for mask in records[0]["object_masks"]]
    assert len(masks) == 5 and {1, 2} <= set(np.unique(masks))
    for t, mask in zip(records[0]["mask_index"], records[0]["masks"], strict=True):
        np.testing.assert_array_equal(masks[t] == 1, decode_labels(mask, 2) == 1)


def test_kinds_are_checked(root, tmp_path):
    with pytest.raises(InputError, match="kind='fast' of setting twins: expected one of still, mo"):
        write_clips(tmp_path / "new", kind="fast", **COUNTS)
    with pytest.raises(InputError, match="kind: moving there, still asked for"):
        write_clips(root, kind="still", **COUNTS)
    with pytest.raises(InputError, match="kind='still' of setting s4: it has no kinds"):
        write_clips(tmp_path / "new", kind="still", setting="s4")

"""The setting refer: Ref-AVS's layout, and expressions that single out what they say."""

import collections
import colorsys
import csv
import json
import wave

import av
import numpy as np
import pytest
from PIL import Image

from avs_jax.data.avsbench_folders import MANIFEST, OBJECTS
from avs_jax.generate import refer, sounds
from avs_jax.generate.datasets import write_clips
from avs_jax.generate.expressions import Thing, expressions, null_expressions
from avs_jax.generate.plans import object_track
from avs_jax.generate.rendering import draw_frames, video_times
from avs_jax.generate.setting import DETAILS, Options

COUNTS = dict(num_train=3, num_val=1, num_test=2, size=48, setting="refer")
OPTIONS = Options(seed=0, size=48)


def plan_all(split, count):
    return [refer.plan_refer(OPTIONS, split, i) for i in range(count)]


@pytest.fixture(scope="module")
def plans():
    return {split: plan_all(split, 100) for split in refer.REFER_SPLITS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("refer")
    assert write_clips(path, workers=1, **COUNTS) == 7
    assert write_clips(path, workers=1, **COUNTS) == 0
    return path


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def read_rows(root):
    with (root / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def folder_of(row):
    """Ref-AVS's rule: the uid without its last two parts."""
    return "_".join(row["uid"].split("_")[:-2])


def test_layout_is_that_of_ref_avs(root):
    rows = read_rows(root)
    assert list(rows[0]) == ["vid", "uid", "split", "fid", "exp"]
    assert len({row["uid"] for row in rows}) == len(rows)
    expected = {"metadata.csv", MANIFEST, OBJECTS, DETAILS}
    for row in rows:
        folder = folder_of(row)
        assert folder == row["vid"] or folder in (f"null_c-{row['vid']}", f"null_m-{row['vid']}")
        is_null = row["uid"].split("_")[-2] == "null"
        assert is_null == folder.startswith("null_") and (not is_null or row["fid"] == "0")
        assert (row["split"] == "test_n") == (is_null and row["vid"].startswith("test_s"))
        expected.add(f"media/{folder}/audio.wav")
        for t in range(10):
            expected.add(f"media/{folder}/frames/{t}.jpg")
            expected.add(f"gt_mask/{folder}/fid_{row['fid']}/0000{t}.png")
        if row["split"].startswith("test"):
            expected.add(f"videos/{row['vid']}.mp4")
    assert {str(path) for path in files(root)} == expected
    assert collections.Counter(row["split"] for row in rows)["test_n"] == 4


def test_files_of_clips_and_of_null_expressions(root):
    for row in read_rows(root):
        folder = folder_of(row)
        with wave.open(str(root / "media" / folder / "audio.wav")) as file:
            assert file.getparams()[:4] == (1, 2, 16_000, 160_000)
        for t in range(10):
            mask = np.asarray(Image.open(root / f"gt_mask/{folder}/fid_{row['fid']}/0000{t}.png"))
            assert mask.shape == (48, 48) and set(np.unique(mask)) <= {0, 255}
            assert not folder.startswith("null_") or not mask.any()
        if folder.startswith("null_"):
            for path in (root / "media" / folder).rglob("*.*"):
                inner = path.relative_to(root / "media" / folder)
                assert path.read_bytes() == (root / "media" / row["vid"] / inner).read_bytes()


def test_frames_are_the_first_of_each_second(root):
    for path in root.glob("videos/*.mp4"):
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.audio and len(frames) == 80
        for t in range(10):
            still = np.asarray(Image.open(root / f"media/{path.stem}/frames/{t}.jpg"))
            assert np.abs(frames[8 * t].astype(float) - still).mean() < 12
    # Clips without a video draw these frames only: they come out the same.
    scene, time = refer.plan_refer(OPTIONS, "train", 0).scene, video_times(10, 8)
    first = np.arange(0, 80, 8)
    all_frames, all_labels = draw_frames(scene, time, first, (48, 48), np.random.default_rng(0))
    frames, labels = draw_frames(
        scene, time[first], np.arange(10), (48, 48), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(frames, all_frames[first])
    np.testing.assert_array_equal(labels, all_labels)


def test_masks_show_what_expressions_say(root):
    """The hue under the mask of an expression that names a color is that color's."""
    details = json.loads((root / DETAILS).read_text())
    checked = 0
    for row in read_rows(root):
        kind = details["expressions"][row["uid"]]
        color = next((word for word in row["exp"].split() if word in refer.COLORS), None)
        if kind.startswith("null") or color is None:
            continue
        folder = folder_of(row)
        frame = np.asarray(Image.open(root / f"media/{folder}/frames/0.jpg"))
        mask = np.asarray(Image.open(root / f"gt_mask/{folder}/fid_{row['fid']}/00000.png")) > 0
        if mask.sum() < 60:
            continue
        red, green, blue = np.median(frame[mask].astype(float), axis=0) / 255
        hue = colorsys.rgb_to_hsv(red, green, blue)[0]
        distance = abs((hue - refer.COLORS[color] + 0.5) % 1 - 0.5)
        assert distance < 0.08, (row, hue)
        checked += 1
    assert checked >= 5


def test_everything_follows_from_the_seed(root, tmp_path):
    write_clips(tmp_path / "again", workers=2, **COUNTS)
    assert files(tmp_path / "again") == files(root)
    next((tmp_path / "again").glob("gt_mask/null*/fid_0/00003.png")).unlink()
    assert write_clips(tmp_path / "again", workers=1, **COUNTS) == 1
    assert files(tmp_path / "again") == files(root)


# ---- expressions ----


def matches(text, things):
    """The objects that a text fits, by its words alone: an independent reading of the grammar."""
    words = text.split()
    kept = [
        thing
        for thing in things
        if all(
            getattr(thing, name) in words
            for name, vocabulary in (
                ("color", refer.COLORS),
                ("pattern", refer.PATTERNS.values()),
                ("shape", [row[1] for row in refer.CLASSES.values()]),
            )
            if set(vocabulary) & set(words)
        )
    ]
    heard = [thing for thing in kept if thing.register]
    if text.endswith("that makes no sound"):
        return [thing for thing in kept if not thing.register]
    if text.endswith("that sounds"):
        return heard
    if text.endswith("sound"):
        return [thing for thing in heard if thing.register == words[-2]]
    if text.endswith("starts first"):
        return [thing for thing in heard if thing.start == min(t.start for t in heard)]
    if text.endswith("starts last"):
        return [thing for thing in heard if thing.start == max(t.start for t in heard)]
    if text.endswith("stops first"):
        return [thing for thing in heard if thing.stop == min(t.stop for t in heard)]
    return kept


def test_expressions_fit_their_target_only(plans):
    kinds = collections.Counter()
    for split, some in plans.items():
        for plan in some:
            texts = [expression.text for expression in plan.expressions]
            assert len(set(texts)) == len(texts) >= 2
            for expression in plan.expressions:
                kinds[expression.kind] += 1
                fits = matches(expression.text, plan.things)
                assert fits == ([expression.target] if expression.target else []), expression
                if expression.kind in ("sound", "time", "both"):
                    classes = [thing.class_name for thing in plan.things]
                    assert classes.count(expression.target.class_name) == 1
                if expression.kind == "both":
                    look = expression.text.split(" that ")[0].split(" making ")[0]
                    assert len(matches(look, plan.things)) >= 2
            null = [e.kind for e in plan.expressions if e.target is None]
            if split == "test_s":
                assert sorted(null) == ["null_c", "null_m"]
            elif split == "test_u":
                assert not null
            else:
                assert len(set(null)) == 1 and len(null) <= (2 if split == "train" else 1)
    assert min(kinds.values()) > 60 and len(kinds) == 6, kinds


def test_examples():
    """The expressions that the setting is meant for, and only where they hold."""
    star = Thing(0, "dog", "star", "red", "striped", "low", 0, 6)
    cross = Thing(1, "helicopter", "cross", "red", "striped", "", 1, 9)
    drop = Thing(2, "cat", "drop", "blue", "plain", "high", 3, 10)
    kind_of = {e.text: (e.kind, e.target.fid) for e in expressions([star, cross, drop])}
    assert kind_of["the red star"] == ("look", 0)
    assert kind_of["the one making the low sound"] == ("sound", 0)
    assert kind_of["the one that starts first"] == ("time", 0)
    assert kind_of["the striped one that sounds"] == ("both", 0)
    assert kind_of["the striped one that makes no sound"] == ("both", 1)
    assert "the red one" not in kind_of and "the one that sounds" not in kind_of
    null = {
        e.text: e.kind for e in null_expressions([star, cross, drop], ["red", "blue"], ["star"])
    }
    assert null["the blue star"] == "null_c" and "the red star" not in null
    assert null["the red cross that sounds"] == "null_m"
    assert null["the red star that makes no sound"] == "null_m"
    assert "the one making the high sound" not in null
    # One second apart is no order; two objects of one class cannot be told by sound.
    late = Thing(2, "cat", "drop", "blue", "plain", "high", 1, 10)
    assert "the one that starts first" not in {e.text for e in expressions([star, cross, late])}
    twin = Thing(1, "dog", "star", "blue", "plain", "", 1, 9)
    kinds = {(e.kind, e.text) for e in expressions([star, twin])}
    assert {kind for kind, _ in kinds} == {"look"}


def test_unseen_classes(plans):
    for split, some in plans.items():
        for plan in some:
            classes = {thing.class_name for thing in plan.things}
            assert bool(classes & set(refer.UNSEEN)) == (split == "test_u")
            for expression in plan.expressions:
                if split == "test_u":
                    assert expression.target.class_name in refer.UNSEEN
    unseen = [t for p in plans["test_u"] for t in p.things if t.class_name in refer.UNSEEN]
    assert 0.3 < np.mean([bool(thing.register) for thing in unseen]) < 0.9
    words = {w for p in plans["train"] for e in p.expressions for w in e.text.split()}
    for split in ("val", "test_s", "test_u"):
        assert {w for p in plans[split] for e in p.expressions for w in e.text.split()} <= words


def test_neither_look_nor_movement_tells_the_sound():
    plans = plan_all("train", 400)
    rows = [(thing, item) for p in plans for thing, item in
            zip(p.things, p.scene.objects, strict=True)]  # fmt: skip
    loud = np.array([bool(thing.register) for thing, _ in rows])
    low = np.array([thing.register == "low" for thing, _ in rows])
    for name in ("class_name", "color", "pattern"):
        values = np.array([getattr(thing, name) for thing, _ in rows])
        for value in np.unique(values):
            chosen = values == value
            assert abs(loud[chosen].mean() - loud.mean()) < 0.12, value
            assert abs(low[chosen & loud].mean() - 0.5) < 0.15, value
    time = np.arange(0, 10, 0.1)
    moved = np.array(
        [np.abs(np.diff(object_track(item, time), axis=0)).sum() for _, item in rows[:600]]
    )
    assert abs(moved[loud[:600]].mean() / moved[~loud[:600]].mean() - 1) < 0.08


def test_classes_and_registers_differ_by_sound():
    """Spectrum and rhythm of two seconds tell class and register: 90 % and more."""
    rng = np.random.default_rng(0)
    timbres = [
        refer._make_category(name, "red", "plain", register).timbre
        for name in refer.SEEN
        for register in refer.REGISTERS
    ]

    def feature(timbre):
        wave_form = sounds.synthesize(timbre, 32_000, 16_000, rng)
        power = np.abs(np.fft.rfft(wave_form.reshape(-1, 320) * np.hanning(320))) ** 2
        spectrum = np.log(power.mean(0)[1:130].reshape(-1, 3).sum(1) + 1e-3)
        envelope = np.sqrt(power.sum(1))
        rhythm = np.abs(np.fft.rfft(envelope / envelope.mean() - 1))[1:40]
        peaks = np.log(power.max(1) / power.mean(1)).mean()
        rhythm = np.convolve(rhythm, np.ones(5) / 5, "same")
        return np.concatenate([spectrum / 8, rhythm / 10, [peaks]])

    centroids = np.stack([np.mean([feature(t) for _ in range(10)], 0) for t in timbres])
    asked = np.stack([[feature(t) for _ in range(6)] for t in timbres])
    nearest = ((asked[:, :, None] - centroids) ** 2).sum(-1).argmin(-1)
    assert np.mean(nearest == np.arange(len(timbres))[:, None]) >= 0.9


def test_some_objects_disappear(plans):
    gone = [
        item.visible
        for plan in plans["train"]
        for item in plan.scene.objects
        if item.visible is not None
    ]
    assert 8 <= len(gone) <= 35
    assert all(
        v[:4].all() and not v[8:].any() and (np.diff(v.astype(int)) <= 0).all() for v in gone
    )

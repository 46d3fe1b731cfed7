"""The setting moments: QVHighlights' format, true windows, and halves that only sound tells."""

import json
import shutil

import av
import numpy as np
import pytest

from avs_jax.data.avsbench_folders import MANIFEST, OBJECTS
from avs_jax.data.records import Records
from avs_jax.generate import moments, sounds
from avs_jax.generate.categories import CATEGORIES
from avs_jax.generate.datasets import write_clips
from avs_jax.generate.rendering import draw_frames, video_times
from avs_jax.generate.setting import DETAILS, Options
from avs_jax.programs import build_dataset
from avs_jax.spec import InputError

COUNTS = dict(num_train=2, num_val=1, num_test=1, size=32, setting="moments")
CATEGORY = {category.semantic: category for category in CATEGORIES}


def plan_all(kind, count, split="train"):
    options = Options(seed=0, size=32, kind=kind, num_categories=12)
    return [moments.plan_moments(options, split, i) for i in range(count)]


def in_windows(plan, query):
    """Bool per second."""
    active = np.zeros(int(plan.scene.seconds), bool)
    for start, stop in query.windows:
        active[2 * start : 2 * stop] = True
    return active


def seen(plan, category):
    """The object of a category, or None."""
    return next((o for o in plan.scene.objects if o.category.semantic == category), None)


def heard(plan, category):
    """Bool per second: the category sounds, in whatever register."""
    active = [sound.active for sound in plan.sounds if is_of(sound, category)]
    return np.any(active, axis=0) if active else np.zeros(int(plan.scene.seconds), bool)


def is_of(sound, category):
    own = CATEGORY[category].timbre
    return any(
        sound.timbre == sounds.shift_timbre(own, octaves)
        for octaves in (0, *moments.REGISTERS.values())
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("moments")
    assert write_clips(path, workers=1, **COUNTS) == 4
    assert write_clips(path, workers=1, **COUNTS) == 0
    return path


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_annotations_are_those_of_qvhighlights(root):
    seen_qids, videos = set(), set()
    details = json.loads((root / DETAILS).read_text())
    for split in ("train", "val", "test"):
        for line in (root / f"moments_{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            assert list(row) == [
                "qid", "query", "duration", "vid", "clip_seconds",
                "relevant_windows", "relevant_clip_ids", "saliency_scores", "domain",
            ]  # fmt: skip
            assert isinstance(row["qid"], int) and row["qid"] not in seen_qids
            seen_qids.add(row["qid"])
            videos.add(row["vid"])
            assert row["vid"].startswith(split)
            assert row["vid"].endswith(f"_0.0_{row['duration']:.1f}")
            assert 20 <= row["duration"] <= 60 and row["duration"] % 2 == 0
            windows = row["relevant_windows"]
            flat = [edge for window in windows for edge in window]
            assert flat == sorted(set(flat)) and flat[0] >= 0 and flat[-1] <= row["duration"]
            ids = [i for start, stop in windows for i in range(start // 2, stop // 2)]
            assert row["relevant_clip_ids"] == ids
            assert np.shape(row["saliency_scores"]) == (len(ids), 3)
            assert set(np.ravel(row["saliency_scores"])) <= {0, 1, 2, 3, 4}
            assert details[str(row["qid"])]["vid"] == row["vid"]
            assert details[str(row["qid"])]["answered_by"] in ("sound", "look", "both")
    assert len(details) == len(seen_qids)
    expected = {f"videos/{vid}.mp4" for vid in videos} | {MANIFEST, OBJECTS, DETAILS}
    expected |= {f"moments_{split}.jsonl" for split in ("train", "val", "test")}
    assert {str(path) for path in files(root)} == expected
    assert set(json.loads((root / OBJECTS).read_text())) == videos


def test_own_moments_reads_the_annotations(root, tmp_path):
    source = shutil.copytree(root, tmp_path / "moments")
    lines = {}
    for split in ("train", "val", "test"):
        text = (source / f"moments_{split}.jsonl").read_text()
        lines[split] = [json.loads(line) for line in text.splitlines()]
    for kind in ("video", "text"):
        (source / "features" / kind).mkdir(parents=True)
    for line in [line for of_split in lines.values() for line in of_split]:
        video = np.zeros((line["duration"] // 2, 4), np.float32)
        np.save(source / f"features/video/{line['vid']}.npy", video)
        np.save(source / f"features/text/{line['qid']}.npy", np.zeros((3, 4), np.float32))
    flags = ["--dataset=own_moments", f"--manual_dir={source}", f"--data_dir={tmp_path / 'tfds'}"]
    assert build_dataset.main(flags) == 0
    for split, of_split in lines.items():
        records = Records(tmp_path / "tfds/own_moments/folder/1.0.0", split)
        assert len(records) == len(of_split)
        for record, line in zip(records, of_split, strict=True):
            assert record["query"].decode() == line["query"]
            np.testing.assert_array_equal(record["windows"], line["relevant_windows"])


def test_videos_have_their_length_and_sound(root):
    for path in root.glob("videos/*.mp4"):
        duration = float(path.stem.split("_")[-1])
        with av.open(str(path)) as container:
            assert container.streams.video[0].average_rate == moments.FPS
            assert sum(1 for _ in container.decode(video=0)) == duration * moments.FPS
        with av.open(str(path)) as container:
            assert container.streams.audio[0].rate == 16_000
            samples = sum(frame.samples for frame in container.decode(audio=0))
        assert abs(samples / 16_000 - duration) < 0.2


def test_everything_follows_from_the_seed(root, tmp_path):
    write_clips(tmp_path / "again", workers=2, **COUNTS)
    assert files(tmp_path / "again") == files(root)
    path = next((tmp_path / "again").glob("videos/test*.mp4"))
    path.unlink()
    assert write_clips(tmp_path / "again", workers=1, **COUNTS) == 1
    assert files(tmp_path / "again") == files(root)


def test_what_answers_a_query():
    """sound: the object is in view always or never; look: it is silent; both: both at once."""
    counts = dict.fromkeys(("sound", "look", "both"), 0)
    in_view = []
    for plan in plan_all("mixed", 150):
        for query in plan.queries:
            counts[query.answered_by] += 1
            windows, item = in_windows(plan, query), seen(plan, query.category)
            sounding = heard(plan, query.category)
            if query.answered_by == "sound":
                in_view.append(item is not None)
                assert item is None or item.visible.all()
            else:
                np.testing.assert_array_equal(item.visible, windows)
            if query.answered_by == "look":
                assert not sounding.any()
            elif not query.text.startswith(("a low", "a high")):
                np.testing.assert_array_equal(sounding, windows)
    assert counts["look"] == 150 and counts["both"] == 300 and counts["sound"] > 200
    assert 0.35 < np.mean(in_view) < 0.65


def test_low_and_high_come_in_pairs():
    pairs = 0
    for plan in plan_all("mixed", 150):
        texts = {query.text: query for query in plan.queries}
        for text, low in texts.items():
            if not text.startswith("a low "):
                continue
            high = texts[text.replace("low", "high")]
            pairs += 1
            assert not (in_windows(plan, low) & in_windows(plan, high)).any()
            for query in (low, high):
                octaves = moments.REGISTERS[query.text.split()[1]]
                timbre = sounds.shift_timbre(CATEGORY[query.category].timbre, octaves)
                (sound,) = (s for s in plan.sounds if s.timbre == timbre)
                np.testing.assert_array_equal(sound.active, in_windows(plan, query))
    assert pairs > 20


def test_objects_are_drawn_in_their_windows_only():
    plan = next(p for p in plan_all("mixed", 20) if len(p.scene.objects) == 3)
    time = video_times(plan.scene.seconds, 1)
    every = np.arange(len(time))
    _, labels = draw_frames(plan.scene, time, every, (64, 64), np.random.default_rng(0))
    for i, item in enumerate(plan.scene.objects):
        area = (labels == i + 1).sum((1, 2))
        assert (area[~item.visible] == 0).all()
        assert np.median(area[item.visible]) > 60


def test_mix_sounds_in_active_seconds_at_the_same_level():
    active = np.array([0, 0, 1, 1, 1, 0, 0, 1, 0], bool)
    rng = np.random.default_rng(0)
    levels = []
    for category in CATEGORIES:
        one = sounds.Sound(category.timbre, rng.uniform(0.4, 1, 20), active)
        audio = sounds.mix([one], -30.0, 16_000, rng) / 32768.0
        second = audio.reshape(9, 16_000)[:, 400:-400]
        loud = 20 * np.log10(np.sqrt((second**2).mean(1)))
        assert (loud[active] > -48).all() and (loud[~active] < -58).all(), category.name
        levels.append(10 * np.log10((audio[np.repeat(active, 16_000)] ** 2).mean()))
    np.testing.assert_allclose(levels, -30, atol=0.4)
    assert sounds.runs(active) == [(2, 5), (7, 8)]
    assert sounds.runs(np.ones(3, bool)) == [(0, 3)]


def test_registers_differ_by_sound_alone():
    """Nearest centroid of a mean log spectrum tells category and register: 90 % and more."""
    rng = np.random.default_rng(0)

    def feature(timbre):
        wave = sounds.synthesize(timbre, 32_000, 16_000, rng)
        blocks = wave.reshape(-1, 500)
        bands = np.abs(np.fft.rfft(blocks * np.hanning(500)))[:, 3:243].reshape(64, 60, 4)
        logs = np.log(bands.sum(-1) + 0.05).mean(0)
        return logs - logs.mean()

    timbres = [c.timbre for c in CATEGORIES if c.semantic not in moments.PITCHED]
    for name in moments.PITCHED:
        for octaves in moments.REGISTERS.values():
            timbres.append(sounds.shift_timbre(CATEGORY[name].timbre, octaves))
    centroids = np.stack([np.mean([feature(t) for _ in range(6)], 0) for t in timbres])
    asked = np.stack([[feature(t) for _ in range(5)] for t in timbres])
    nearest = ((asked[:, :, None] - centroids) ** 2).sum(-1).argmin(-1)
    assert np.mean(nearest == np.arange(len(timbres))[:, None]) >= 0.9


def overlap(a, b):
    """Intersection over union of two windows."""
    inner = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return inner / (a[1] - a[0] + b[1] - b[0] - inner)


@pytest.mark.parametrize("kind", moments.KINDS)
def test_another_query_does_not_answer(kind):
    plans, hits = plan_all(kind, 200), []
    for plan in plans:
        for query in plan.queries:
            for other in plan.queries:
                if other is not query:
                    best = max(overlap(other.windows[0], window) for window in query.windows)
                    hits.append(best >= 0.5)
    assert np.mean(hits) < 0.3


def test_gates_halves_differ_in_sound_only():
    plans = plan_all("gates", 200)
    halves = {noise: [p for p in plans if p.has_noise == noise] for noise in (False, True)}
    assert len(halves[True]) == len(halves[False]) == 100
    texts, active, levels, lengths, num_visible = {}, {}, {}, {}, {}
    for noise, half in halves.items():
        texts[noise] = {query.text for plan in half for query in plan.queries}
        active[noise] = [np.sum([s.active for s in plan.sounds], 0).mean() for plan in half]
        levels[noise] = [plan.scene.level for plan in half]
        bursts = [run for p in half for s in p.sounds for run in sounds.runs(s.active)]
        lengths[noise] = [stop - start for start, stop in bursts]
        num_visible[noise] = [np.mean([o.visible for o in p.scene.objects]) for p in half]
        for plan in half:
            assert len(plan.sounds) == 3 and len(plan.scene.objects) == 4
            for query in plan.queries:
                item, windows = seen(plan, query.category), in_windows(plan, query)
                if noise:
                    np.testing.assert_array_equal(item.visible, windows)
                    assert all(s.timbre == moments.NOISE for s in plan.sounds)
                else:
                    assert item is None
                    np.testing.assert_array_equal(heard(plan, query.category), windows)
                assert query.answered_by == ("look" if noise else "sound")
    assert texts[True] == texts[False] and len(texts[True]) == 12
    for values in (active, lengths, num_visible):
        assert abs(np.mean(values[True]) / np.mean(values[False]) - 1) < 0.12
    assert abs(np.mean(levels[True]) - np.mean(levels[False])) < 1
    energy = {}
    for noise, half in halves.items():
        audio = [sounds.mix(p.sounds, -19.0, 16_000, np.random.default_rng(0)) for p in half[:20]]
        seconds = sum(np.sum([s.active for s in p.sounds]) for p in half[:20])
        total = sum(np.sum((a / 32768.0) ** 2) / 16_000 for a in audio)
        energy[noise] = 10 * np.log10(total / seconds)
    assert abs(energy[True] - energy[False]) < 0.5  # dB


def test_too_few_categories(tmp_path):
    with pytest.raises(InputError, match="categories=6, expected 7 to 12"):
        write_clips(tmp_path, setting="moments", num_categories=6)

"""False sounds: their content, their level, and the frozen manifest."""

import json

import numpy as np
import pytest

from avs_jax.controls import false_motion
from avs_jax.controls import false_sounds as negative
from avs_jax.data.audio import log_mel
from avs_jax.data.avsbench_folders import S4_CATEGORIES
from avs_jax.data.clip import ClipRows
from avs_jax.data.decode import decode_text
from avs_jax.data.motion import moving_pixels
from avs_jax.data.pipeline import EvalBatches
from avs_jax.spec import NEGATIVE_AUDIO, SAMPLE_RATE, InputError
from tests.small import records as small_records
from tests.small import small_config

CONDITIONS = [name for names in NEGATIVE_AUDIO.values() for name in names]
CATEGORIES = ("dog_barking", "male_speech", "playing_violin", "race_car", "cat_meowing")


def record(index, rate=SAMPLE_RATE, seconds=5, category=None, level=0.05, visible=()):
    """A tone of its own level in stereo; frames are never decoded here."""
    time = np.arange(int(rate * seconds)) / rate
    tone = level * np.sin(2 * np.pi * (200 + 40 * index) * time) * (1 + np.floor(time))
    return {
        "clip_id": f"clip{index:02d}".encode(),
        "category": (category or CATEGORIES[index % 5]).encode(),
        "category_label": 0 if "+" in (category or "") else 1 + index % 5,
        "frames": [b""] * int(seconds),
        "visible_labels": np.array(visible, np.int32),
        "waveform": (32768 * np.stack([tone, tone], axis=-1)).astype(np.int16),
        "sample_rate": rate,
    }


def a_split(count=20):
    return [record(i, level=0.01 * (1 + i % 4)) for i in range(count)]


def a_manifest(records):
    return negative.build_manifest(negative.collect_facts(records), "avsbench_s4", "test")


def sounds(records, manifest, condition):
    ids = [r["clip_id"].decode() for r in records]
    return negative.with_false_sounds(records, ids, manifest, condition)


# ---- waveforms ----


@pytest.mark.parametrize("condition", ["noise_white", "noise_pink", "offscreen", "shift", "late"])
def test_false_sounds_have_the_level_of_the_clips_own_sound(condition):
    records = a_split()
    manifest = a_manifest(records)
    for own, false in zip(records, sounds(records, manifest, condition), strict=True):
        heard = negative.own_sound(own)
        assert false["waveform"].shape == heard.shape and false["sample_rate"] == SAMPLE_RATE
        assert negative.rms(false["waveform"]) == pytest.approx(negative.rms(heard), rel=1e-6)
        assert np.abs(false["waveform"] - heard).max() > 0.001


def test_silence_is_zero_or_dither_at_minus_80_dbfs():
    records = a_split(4)
    manifest = a_manifest(records)
    for zero, faint in zip(
        sounds(records, manifest, "silence_zeros"),
        sounds(records, manifest, "silence_dither"),
        strict=True,
    ):
        assert not zero["waveform"].any()
        level = 20 * np.log10(negative.rms(faint["waveform"]))
        assert level == pytest.approx(-80, abs=1e-6)
        # Triangular: bounded by sqrt(6) of its RMS, and 1 / 6 of it squared is its variance.
        peak = np.abs(faint["waveform"]).max() / negative.rms(faint["waveform"])
        assert 2.3 < peak < 2.48
    log = log_mel(zero["waveform"], SAMPLE_RATE, 5)
    np.testing.assert_allclose(log, np.log(0.01), atol=1e-6)


@pytest.mark.parametrize("make, slope", [(negative.white_noise, 0), (negative.pink_noise, -3.01)])
def test_slope_of_the_noise_in_db_per_octave(make, slope):
    noise = make(1 << 18, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    edges = 2 ** np.arange(6, 17)
    levels = [10 * np.log10(power[a:b].mean()) for a, b in zip(edges, edges[1:], strict=False)]
    fitted = np.polyfit(np.arange(len(levels)), levels, 1)[0]
    assert fitted == pytest.approx(slope, abs=0.1)
    assert abs(noise.mean()) < 0.01 and negative.rms(noise) == pytest.approx(1)


def test_noise_depends_on_the_clip_id():
    records = a_split(3)
    manifest = a_manifest(records)
    first = [r["waveform"] for r in sounds(records, manifest, "noise_white")]
    again = [r["waveform"] for r in sounds(records[::-1], a_manifest(records[::-1]), "noise_white")]
    for a, b in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.corrcoef(first[0], first[1])[0, 1] < 0.1


@pytest.mark.parametrize("rate, seconds", [(16000, 5), (44100, 10)])
def test_shift_gives_every_frame_another_second_of_the_clip(rate, seconds):
    rng = np.random.default_rng(0)
    own = record(3, rate=rate, seconds=seconds)
    own["waveform"] = rng.integers(-3000, 3000, own["waveform"].shape).astype(np.int16)
    manifest = a_manifest([own])
    step = manifest["clips"]["clip03"]["shift"]
    assert 1 <= step < seconds
    (false,) = sounds([own], manifest, "shift")
    before = log_mel(own["waveform"], rate, seconds)
    after = log_mel(false["waveform"], SAMPLE_RATE, seconds)
    for t in range(seconds):
        # The last two 25 ms windows of an example reach into the next one.
        np.testing.assert_allclose(after[t, :-2], before[(t + step) % seconds, :-2], atol=2e-5)
        assert np.abs(after[t] - before[t]).max() > 0.1


def test_a_shorter_partner_is_repeated():
    short = record(0, seconds=2, level=0.02)
    long = record(1, seconds=5, rate=44100)
    entry = a_manifest([short, long])["clips"]["clip01"]
    assert entry["offscreen"] == "clip00"
    heard = negative.false_sound("offscreen", long, entry, short)
    own = negative.own_sound(short)
    scale = negative.rms(negative.own_sound(long)) / negative.rms(heard / heard.max() * own.max())
    np.testing.assert_allclose(heard[: len(own)], own * scale, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(heard[len(own) : 2 * len(own)], heard[: len(own)])


def test_an_unknown_condition_is_an_error():
    with pytest.raises(ValueError, match="silence_zeros"):
        negative.false_sound("hum", record(0), {"noise_seed": 0})


# ---- who gets what ----


def test_offscreen_is_of_another_group_and_used_evenly():
    records = a_split(40)
    facts = {f.clip_id: f for f in negative.collect_facts(records)}
    clips = a_manifest(records)["clips"]
    used = [entry["offscreen"] for entry in clips.values()]
    for clip, entry in clips.items():
        own, other = (negative.groups_of(facts[c].names) for c in (clip, entry["offscreen"]))
        assert own and other and not own & other
        assert entry["groups"] == sorted(own)
    # dog_barking and cat_meowing are one group, so two categories exclude each other.
    assert negative.groups_of(["dog_barking"]) == negative.groups_of(["cat_meowing"])
    assert max(used.count(clip) for clip in clips) <= 2


def test_few_partners_are_used_evenly():
    kinds = ["dog_barking"] * 9 + ["male_speech", "playing_violin", "race_car"]
    records = [record(i, category=kind) for i, kind in enumerate(kinds)]
    clips = a_manifest(records)["clips"]
    used = [clips[f"clip{i:02d}"]["offscreen"] for i in range(9)]
    assert sorted(used.count(f"clip{i:02d}") for i in (9, 10, 11)) == [3, 3, 3]


def labels_of(*names):
    return [1 + S4_CATEGORIES.index(name) for name in names]


def test_offscreen_sound_is_not_of_a_visible_object():
    # The dog's frames also show a man and a violin: only the car's sound is off-screen.
    visible = labels_of("dog_barking", "male_speech", "playing_violin")
    records = [record(0, visible=visible), *(record(i) for i in (1, 2, 3, 4))]
    assert a_manifest(records)["clips"]["clip00"]["offscreen"] == "clip03"


def test_nor_where_clips_have_several_categories():
    visible = labels_of("dog_barking", "male_speech", "playing_violin")
    names = ["dog_barking", "male_speech+race_car", "playing_violin+race_car", "race_car"]
    records = [record(i, category=name) for i, name in enumerate(names)]
    records[0]["visible_labels"] = np.array(visible, np.int32)
    for clip in records:
        clip["category_label"] = 0
    assert a_manifest(records)["clips"]["clip00"]["offscreen"] == "clip03"


def test_nor_where_masks_have_classes():
    names = ["background", "dog", "man", "violin"]
    records = [record(0, visible=(1, 2)), *(record(i) for i in (1, 2))]
    for clip, label in zip(records, (1, 2, 3), strict=True):
        clip["masks"], clip["category_label"] = [np.array([[label]], np.uint8)], 0
    facts = negative.collect_facts(records, 4, names)
    assert facts[0].visible == {"dog", "man"}
    clips = negative.build_manifest(facts, "avsbench_semantic", "test")["clips"]
    assert clips["clip00"]["offscreen"] == "clip02"


def test_sets_of_categories_have_no_group_in_common():
    names = ["dog_barking+male_speech", "male_speech+race_car", "playing_violin", "cat_meowing"]
    records = [record(i, category=name) for i, name in enumerate(names)]
    clips = a_manifest(records)["clips"]
    assert clips["clip00"]["offscreen"] == "clip02"
    assert clips["clip01"]["offscreen"] in ("clip02", "clip03")
    assert clips["clip03"]["offscreen"] in ("clip01", "clip02")


def test_with_several_classes_those_of_the_masks_sound():
    records = a_split(3)
    for own, classes in zip(records, ([0, 1], [0, 2, 255], [3, 4]), strict=True):
        own["masks"] = [np.array([classes[-1:]], np.uint8), np.array([classes], np.uint8)]
    facts = negative.collect_facts(records, 71, ["background", "dog", "wolf", "violin"])
    assert [f.names for f in facts] == [("dog",), ("wolf",), ("class 4", "violin")]
    clips = negative.build_manifest(facts, "avsbench_semantic", "test")["clips"]
    assert clips["clip00"]["groups"] == clips["clip01"]["groups"] == ["animal"]
    assert clips["clip02"]["groups"] == ["class 4", "instrument"]
    assert {clips[c]["offscreen"] for c in ("clip00", "clip01")} == {"clip02"}


def test_clips_without_such_a_sound_are_skipped():
    records = [record(i, category="dog_barking", seconds=1 + i) for i in range(3)]
    records[2]["category"] = b""
    manifest = a_manifest(records)
    assert all(entry["offscreen"] is None for entry in manifest["clips"].values())
    assert manifest["clips"]["clip00"]["shift"] is None
    assert len(sounds(records, manifest, "offscreen")) == 0
    for condition in ("shift", "late"):
        left = [decode_text(r["clip_id"]) for r in sounds(records, manifest, condition)]
        assert left == ["clip01", "clip02"]


def test_manifest_is_the_same_for_any_order_and_frozen():
    records = a_split(15)
    manifest = a_manifest(records)
    assert a_manifest(records[::-1]) == manifest
    assert len(manifest["sha256"]) == 64
    fewer = a_manifest(records[1:])
    assert fewer["sha256"] != manifest["sha256"]
    # Changing the rule that pairs clips makes old results incomparable: raise VERSION with it.
    assert manifest["sha256"] == "aeed1fd38319ff5d0466cd5b3b3b5640c28255911df975c4df188fac5e67d715"


def test_manifest_round_trip_and_refusals(tmp_path):
    records = a_split(6)
    manifest, path = a_manifest(records), tmp_path / "manifest.json"
    ids = [f"clip{i:02d}" for i in range(6)]
    path.write_text(negative.manifest_text(manifest))
    assert negative.load_manifest(path, ids) == manifest

    def refused(match, ids=ids, rehash=True, **changes):
        changed = json.loads(json.dumps(manifest)) | changes
        if rehash:
            changed["sha256"] = negative.manifest_digest(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=match):
            negative.load_manifest(path, ids)

    refused("sha256 of its contents", rehash=False, split="val")
    refused("1 of this split are missing .'clip06'.*0 are not", ids=[*ids, "clip06"])
    refused("0 of this split are missing.*1 are not in it .'clip05'", ids=ids[:5])
    refused("version 7", version=7)
    entry = manifest["clips"]["clip00"]
    wrong = {"offscreen": "elsewhere", "shift": -1, "noise_seed": None}
    for field, value in wrong.items():
        clips = manifest["clips"] | {"clip00": entry | {field: value}}
        refused(f"clip clip00: {field} is {value!r}", clips=clips)
    refused("expected the fields", clips=manifest["clips"] | {"clip00": {}})
    refused("lacks `clips`", clips=[])
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        negative.load_manifest(path, ids)


def test_types_on_the_command_line():
    assert negative.conditions("shift, silence") == ["silence_zeros", "silence_dither", "shift"]
    assert negative.conditions("silence,noise,offscreen,shift,late") == CONDITIONS
    assert negative.conditions("") == []
    with pytest.raises(InputError, match="'offsceen'.*nearest: offscreen"):
        negative.conditions("offsceen")
    with pytest.raises(InputError, match="twice"):
        negative.conditions("noise,noise")
    assert false_motion.motion_controls("shuffled,zero") == ["zero_flow", "shuffled_flow"]
    with pytest.raises(InputError, match="zero, shuffled, scrambled"):
        false_motion.motion_controls("still")


# ---- motion ----


def motion_split():
    config, clips = small_config(), small_records(3)
    config.evaluate.audio = "silence"
    config.evaluate.moving_threshold = 0.5
    return config, clips


def test_zero_and_shuffled_motion_only_change_motion():
    config, clips = motion_split()
    ids = [clip["clip_id"] for clip in clips]
    manifest = a_manifest(clips)
    partners = [ids.index(manifest["clips"][clip]["motion"]) for clip in ids]
    assert sorted(partners) == [0, 1, 2] and all(p != i for i, p in enumerate(partners))
    rows = ClipRows(config)
    own = EvalBatches(clips, rows, 4)[0]
    false = {
        name: EvalBatches(
            false_motion.with_false_motion(clips, ids, manifest, name, rows.motion_maps), rows, 4
        )[0]
        for name in false_motion.MOTION_CONTROLS.values()
    }
    for batch in false.values():
        assert set(batch) == set(own)
        for name in set(own) - {"motion"}:
            np.testing.assert_array_equal(batch[name], own[name])
    assert own["motion"].any() and not false["zero_flow"]["motion"].any()
    np.testing.assert_array_equal(false["scrambled_track"]["motion"], own["motion"])
    shuffled = false["shuffled_flow"]["motion"]
    np.testing.assert_array_equal(shuffled[:3], own["motion"][partners])


def tracked():
    """A clip of noise with a track, and what a model with synchrony reads of its frame 2."""
    config, (clip, *_) = motion_split()
    config.data.track.update(source="stored", rate=4.0, window_seconds=5.0)
    rng = np.random.default_rng(0)
    track = rng.normal(0, 0.1, (20, 24, 24, 2)).astype(np.float16)
    loud = rng.uniform(0, 3000, 100).repeat(800)  # changes every 50 ms
    clip |= {"motion_track": track, "motion_track_rate": 4.0}
    clip["waveform"] = (rng.normal(size=len(loud)) * loud).astype(np.int16)
    rows = ClipRows(config)

    def read(clip):
        row = rows.prepare(clip)
        return {name: row[name] for name in ("motion_track", "sound_track", "motion", "log_mel")}

    return clip, rows, read


def test_a_scrambled_track_has_the_same_samples_in_another_order():
    clip, rows, read = tracked()
    (false,) = false_motion.with_false_motion(
        [clip], [clip["clip_id"]], a_manifest([clip]), "scrambled_track", rows.motion_maps
    )
    own, found = read(clip), read(false)
    for name in ("sound_track", "motion", "log_mel"):
        np.testing.assert_array_equal(found[name], own[name])
    before, after = own["motion_track"][2], found["motion_track"][2]
    order = [int(np.abs(before - sample).sum((1, 2, 3)).argmin()) for sample in after]
    assert sorted(order) == list(range(20)) != order
    np.testing.assert_array_equal(after, before[order])


def test_late_sound_is_half_a_second_behind_the_track():
    clip, _, read = tracked()
    (late,) = negative.with_false_sounds([clip], [clip["clip_id"]], a_manifest([clip]), "late")
    own, found = read(clip), read(late)
    for name in ("motion_track", "motion"):
        np.testing.assert_array_equal(found[name], own[name])
    before, after = own["sound_track"][2], found["sound_track"][2]
    # Two samples are half a second. The last 0.2 s are no log-mel example's and stay.
    np.testing.assert_allclose(after[3:18], before[1:16], atol=1e-4)
    assert np.abs(after[3:18] - before[3:18]).max() > 0.1


def test_the_motion_of_a_shorter_clip_repeats():
    config, (clip, other, _) = motion_split()
    for field in ("frames", "pre_masks"):
        other[field] = other[field][:2]
    rows = ClipRows(config)
    want = rows.motion_maps(other)
    given = rows.prepare({**clip, "motion": want})["motion"]
    assert len(want) == 2
    np.testing.assert_array_equal(given, want[[0, 1, 0, 1, 0]])


def test_moving_pixels_do_not_need_a_model_that_reads_motion():
    reads, clips = motion_split()
    still = small_config("none")
    still.evaluate.update(audio="silence", moving_threshold=0.5)
    batch, want = (EvalBatches(clips, ClipRows(config), 4)[0] for config in (still, reads))
    assert "motion" not in batch
    np.testing.assert_array_equal(batch["moving"], want["moving"])
    assert batch["moving"][:3].any() and not batch["moving"][:3].all()
    assert not batch["moving"][3].any()  # the row that only fills the batch
    reads.evaluate.audio = ""
    assert "moving" not in EvalBatches(clips, ClipRows(reads), 4)[0]


def test_motion_maps_are_those_of_the_evaluation():
    config, clips = motion_split()
    rows = ClipRows(config)
    want = rows.prepare(clips[0])["motion"]
    np.testing.assert_array_equal(rows.motion_maps(clips[0]), want)


def test_moving_pixels_at_the_score_size():
    strength = np.zeros((8, 8, 2), np.float32)
    strength[:4, :, 0], strength[:4, :, 1] = 0.3, -0.4  # a length of 0.5
    moving = moving_pixels(strength, 4, 0.4)
    np.testing.assert_array_equal(moving, [[True] * 4] * 2 + [[False] * 4] * 2)
    assert not moving_pixels(strength, 4, 0.51).any()

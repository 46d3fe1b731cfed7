"""Windows of motion and sound: in step with each other, and with what the augmentation shows."""

import numpy as np
import pytest

from avs_jax.data import synchrony, transforms
from avs_jax.data.clip import ClipRows
from avs_jax.spec import InputError
from tests.clip_records import make_config, make_record

RATE = 10.0


def config_with_track(**track):
    config = make_config(num_supervised=5)
    config.data.track.update(source="stored", rate=RATE, window_seconds=2.0, **track)
    return config


def with_track(track, rate=RATE, index=0):
    record = make_record(index, masks=range(5))
    return record | {"motion_track": track, "motion_track_rate": np.float32(rate)}


def numbered(count=50, channels=2):
    """Sample k moves by k / 10 everywhere."""
    values = np.arange(count, dtype=np.float16) / np.float16(10)
    track = np.zeros((count, 24, 24, channels), np.float16)
    track[..., 0] = values[:, None, None]
    return track


@pytest.mark.parametrize("train", [False, True])
def test_windows_lie_around_their_seconds_within_the_clip(train):
    rows = ClipRows(config_with_track())
    row = rows.prepare(with_track(numbered()), np.random.default_rng(0) if train else None)
    assert row["motion_track"].shape == (5, 20, 24, 24, 2)
    assert row["motion_track"].dtype == np.float16 and row["sound_track"].shape == (5, 20, 16)
    found = np.abs(row["motion_track"][..., 0].astype(np.float32)).max((2, 3))
    if train:
        found = found / found[0, 1] * 0.1
    for t, first in enumerate([0, 9, 19, 29, 30]):
        np.testing.assert_allclose(found[t], (first + np.arange(20)) / 10, atol=2e-2)


def test_another_rate_is_averaged():
    rows = ClipRows(config_with_track())
    fine = rows.prepare(with_track(numbered(125) / np.float16(2.5), rate=25.0))
    coarse = rows.prepare(with_track(numbered()))
    # Sample k of 10 per second averages 2.5 of 25 per second: their middle is 0.3 later.
    want = coarse["motion_track"][2, :, 0, 0, 0].astype(np.float32) + 0.03
    np.testing.assert_allclose(fine["motion_track"][2, :, 0, 0, 0], want, atol=1e-2)


def test_overlaps_are_averages():
    times = np.array([0.0, 0.3, 0.4, 1.0])
    values = np.array([1.0, 5.0, 2.0])
    fine = values[np.searchsorted(times, (np.arange(1000) + 0.5) / 1000, side="right") - 1]
    weights = synchrony.overlaps(times, 4.0, 5)
    np.testing.assert_allclose(weights[:4] @ values, fine.reshape(4, 250).mean(1), atol=1e-3)
    assert not weights[4].any()


@pytest.mark.parametrize("seed", range(6))
def test_tracks_move_with_the_images(seed):
    """Against a lookup of every pixel of the augmented image in the cells of the frame."""
    rng = np.random.default_rng(seed)
    size, side = (60, 80), 48
    draw = transforms.draw_augmentation(rng, size, 1, side, (32, 44, 60, 90), 200)
    track = rng.normal(size=(1, 24, 24, 2)).astype(np.float32)
    found = synchrony.augment_track(track, draw, has_vectors=True)
    fine = side * 40
    want = np.zeros((1, fine, fine, 2))
    position = (np.arange(fine) + 0.5) * side / fine
    (height, width), (top, left) = draw.crop_size, draw.crop_origin
    rows, columns = position[position < height], position[position < width]
    if draw.flip:
        columns = width - columns
    i = ((rows + top) / draw.resized[0] * 24).astype(int)
    j = ((columns + left) / draw.resized[1] * 24).astype(int)
    want[:, : len(i), : len(j)] = track[:, i][:, :, j]
    want *= np.array([draw.resized[1] * (-1 if draw.flip else 1), draw.resized[0]]) / side
    want = want.reshape(1, 24, fine // 24, 24, fine // 24, 2).mean((2, 4))
    np.testing.assert_allclose(found, want, atol=0.12)
    magnitude = synchrony.augment_track(track[..., :1], draw, has_vectors=False)
    factor = draw.resized[1] / side * (-1 if draw.flip else 1)
    np.testing.assert_allclose(magnitude * factor, found[..., :1], atol=1e-5)


def test_a_click_is_in_the_sample_of_its_time():
    waveform = np.zeros((5 * 16_000, 1), np.int16)
    waveform[int(2.55 * 16_000) : int(2.56 * 16_000)] = 20_000
    record = with_track(numbered()) | {"waveform": waveform}
    row = ClipRows(config_with_track()).prepare(record)
    rises = row["sound_track"][..., 8:].sum(-1)
    assert rises[1].argmax() == 25 - 9 and rises[2].argmax() == 25 - 19 and not rises[0].any()


@pytest.mark.parametrize("window_seconds", [2.0, 7.0])
def test_a_sound_that_ends_early_is_followed_by_silence(window_seconds):
    config = config_with_track()
    config.data.track.window_seconds = window_seconds
    noise = np.random.default_rng(0).integers(-9000, 9000, (5 * 16_000, 2)).astype(np.int16)
    noise[4 * 16_000 :] = 0
    whole, cut = (
        ClipRows(config).prepare(with_track(numbered()) | {"waveform": waveform})["sound_track"]
        for waveform in (noise, noise[: 4 * 16_000])
    )
    np.testing.assert_array_equal(cut, whole)
    assert (np.sort(cut[4, :, 0])[:8] < -4.5).all()


def test_features_follow_their_definition():
    waveform = np.random.default_rng(0).integers(-9000, 9000, 4000).astype(np.int16)
    found = synchrony.sound_features(waveform, 16_000)
    assert found.shape == (23, 16)
    samples, previous = waveform / 32768, None
    for n in (0, 1, 22):
        part = samples[160 * n : 160 * n + 400] * (0.5 - 0.5 * np.cos(np.pi * np.arange(400) / 200))
        mel = np.abs(np.fft.rfft(part, 512)) @ synchrony.audio.mel_matrix()
        energy = np.log([mel[8 * b : 8 * b + 8].mean() + 0.01 for b in range(8)])
        np.testing.assert_allclose(found[n, :8], energy, rtol=1e-4, atol=1e-5)
        if n == 1:
            np.testing.assert_allclose(found[n, 8:], np.maximum(energy - previous, 0), atol=1e-5)
        previous = energy


def test_changes_have_no_direction_and_no_track_is_silence():
    rows = ClipRows(config_with_track())
    row = rows.prepare(with_track(numbered(channels=1)), np.random.default_rng(3))
    assert row["motion_track"][..., 0].min() >= 0 and not row["motion_track"][..., 1].any()
    for record in (make_record(0), with_track(np.zeros((0, 0, 0, 0), np.float16), 0.0)):
        row = rows.prepare(record)
        assert not row["motion_track"].any() and not row["sound_track"].any()
    assert "motion_track" not in ClipRows(make_config()).prepare(with_track(numbered()))


def test_the_other_fields_do_not_change():
    """Reading a track draws nothing."""
    record = with_track(numbered())
    with_it = ClipRows(config_with_track()).prepare(record, np.random.default_rng(5))
    without = ClipRows(make_config(num_supervised=5)).prepare(record, np.random.default_rng(5))
    for name, value in without.items():
        np.testing.assert_array_equal(with_it[name], value)


@pytest.mark.parametrize("key, value, message", [
    ("source", "video", "expected ('none', 'stored')"),
    ("model", "farneback", "expected ('difference',"),
    ("rate", 0.5, "expected 1 to 60 per second"),
    ("window_seconds", 0.0, "expected more than 0"),
])  # fmt: skip
def test_bad_values_are_named(key, value, message):
    config = config_with_track()
    with config.unlocked():
        config.data.track[key] = value
    with pytest.raises(InputError) as error:
        ClipRows(config)
    assert f"config.data.track.{key}" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("change, message", [
    ({"motion_track": np.zeros((9, 24, 24), np.float16)}, "motion_track is"),
    ({"motion_track": np.zeros((9, 24, 23, 2), np.float16)}, "motion_track of shape"),
    ({"motion_track_rate": np.float32(np.nan)}, "motion_track_rate is"),
])  # fmt: skip
def test_damaged_tracks_are_named(change, message):
    with pytest.raises(InputError, match=f"clip clip0: .*{message}"):
        ClipRows(config_with_track()).prepare(with_track(numbered()) | change)

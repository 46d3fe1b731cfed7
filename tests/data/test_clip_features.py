"""Features without weights: colors, mel bands and hashed words."""

import colorsys

import numpy as np
import pytest

from avs_jax.data import clip_features
from avs_jax.data.clip_features import (
    COLORS_DIM,
    MEL_DIM,
    NUM_HUES,
    clip_log_mel,
    color_histogram,
    hashed_words,
    mel_statistics,
)
from avs_jax.spec import InputError


def plain(hue, saturation=1.0, value=1.0):
    color = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    return np.full((6, 8, 3), np.round(255 * color), np.uint8)


@pytest.mark.parametrize("hue", [0.0, 0.08, 0.35, 0.58, 0.75, 0.97])
def test_a_frame_of_one_hue_fills_the_bins_around_it(hue):
    shares = color_histogram(plain(hue)[None]) ** 2
    assert shares.shape == (COLORS_DIM,) and shares.sum() == pytest.approx(1, abs=1e-5)
    place = hue * NUM_HUES
    expected = {int(place) % NUM_HUES: 1 - place % 1, (int(place) + 1) % NUM_HUES: place % 1}
    for index, share in expected.items():
        assert shares[index] == pytest.approx(share, abs=0.05)


def test_dark_and_gray_pixels_have_bins_of_their_own():
    dark = color_histogram(plain(0.25, value=0.4)[None])
    assert np.flatnonzero(dark > 0.2).tolist() == [NUM_HUES + 9]
    gray = color_histogram(plain(0.25, saturation=0.1, value=0.5)[None])
    assert np.flatnonzero(gray).min() >= 2 * NUM_HUES
    black = color_histogram(np.zeros((1, 4, 4, 3), np.uint8))
    assert np.flatnonzero(black).tolist() == [2 * NUM_HUES]


def test_a_clip_is_the_mean_of_its_frames():
    frames = np.stack([plain(0.1), plain(0.6)])
    mean = (color_histogram(frames[:1]) + color_histogram(frames[1:])) / 2
    np.testing.assert_allclose(color_histogram(frames), mean, atol=1e-6)


def test_silence_is_zero_and_a_tone_is_in_its_band():
    rate = 16_000
    silence = clip_log_mel(np.zeros(2 * rate, np.int16), rate, 2)
    np.testing.assert_allclose(mel_statistics(silence), np.zeros(MEL_DIM), atol=1e-6)
    time = np.arange(2 * rate) / rate
    peaks = []
    for hertz in (300, 1000, 4000):
        tone = np.round(8000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)
        found = mel_statistics(clip_log_mel(tone, rate, 2))
        peaks.append(int(found[: MEL_DIM // 2].argmax()))
        assert found[MEL_DIM // 2 :].max() < 0.5  # a steady tone does not vary
    assert peaks == sorted(set(peaks))


def test_a_sound_that_ends_early_is_followed_by_silence():
    rate = 16_000
    noise = np.random.default_rng(0).integers(-5000, 5000, (rate, 2)).astype(np.int16)
    short = clip_log_mel(noise, rate, 2)
    whole = clip_log_mel(np.concatenate([noise, np.zeros_like(noise)]), rate, 2)
    np.testing.assert_array_equal(short, whole)


def test_equal_words_are_equal_and_a_stem_is_close():
    words = hashed_words("The violin, a VIOLIN; violins and 'sirens'", 64)
    assert words.shape == (7, 64) and words.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-5)
    the, violin, _, again, plural, _, sirens = words
    np.testing.assert_array_equal(violin, again)
    assert violin @ plural > 0.3 > abs(violin @ sirens)
    clip_features._word_vector.cache_clear()
    np.testing.assert_array_equal(hashed_words("violin", 64)[0], violin)
    with pytest.raises(InputError, match="has no word"):
        hashed_words(" ?! ", 64)

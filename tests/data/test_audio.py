"""The log-mel front end against the original's, resampler included."""

import json

import numpy as np
import pytest

from avs_jax.data import audio
from avs_jax.spec import InputError


@pytest.fixture(scope="module")
def vggish():
    from tests.conftest import GOLDEN

    with np.load(GOLDEN / "golden_vggish.npz") as golden:
        return dict(golden)


def test_log_mel_of_every_measured_clip(vggish):
    for name, facts in json.loads(str(vggish["meta_json"]))["clips"].items():
        got = audio.log_mel(vggish[f"wave/{name}"], facts["sr"])
        np.testing.assert_allclose(got, vggish[f"logmel/{name}"][:, 0], atol=2e-7, err_msg=name)
        assert got.dtype == np.float32


def test_log_mel_of_the_original_job(golden_dir):
    golden = np.load(golden_dir / "golden_audio.npz")
    got = audio.log_mel(golden["wav16k_stereo_int16"], 16_000)
    np.testing.assert_allclose(got, golden["log_mel"][:, 0], atol=2e-7)
    got = audio.log_mel(golden["wav48k_int16"], 48_000)
    np.testing.assert_allclose(got, golden["log_mel_48k"][:, 0], atol=2e-7)


@pytest.mark.parametrize(
    "name, tolerance",  # at 44.1 and 22.05 kHz resampy's clock accumulates rounding of its own
    [
        ("stereo_48k_2s", 1e-14),
        ("mono_8k_3s", 1e-14),
        ("mono_44k1_2s", 5e-12),
        ("mono_22k05_2s", 5e-12),
    ],
)
def test_resampler(vggish, name, tolerance):
    facts = json.loads(str(vggish["meta_json"]))["clips"][name]
    got = audio.resample(audio.to_mono(vggish[f"wave/{name}"]), facts["sr"])
    np.testing.assert_allclose(got, vggish[f"resampled/{name}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("rate", [11_025, 32_000, 44_100, 96_000, 16_001])
@pytest.mark.parametrize("length", [0, 1, 2, 37, 1000])
def test_resampler_against_the_plain_sum(rate, length):
    """The block products give what the definition gives, sample by sample, also for tiny sounds."""
    samples = np.random.default_rng(length).standard_normal(length)
    got = audio.resample(samples, rate)
    half, slope = audio._kaiser_best()
    scale = min(1.0, 16_000 / rate)
    step = int(scale * audio.POINTS_PER_CROSSING)
    want = np.zeros(length * 16_000 // rate)
    for output in range(len(want)):
        time = output * (1 / (16_000 / rate))
        left = int(time)
        for direction, distance in ((-1, time - left), (1, 1 - (time - left))):
            position = scale * distance * audio.POINTS_PER_CROSSING
            index = int(position)
            sample = left if direction < 0 else left + 1
            for _ in range((len(half) - index) // step):
                if not 0 <= sample < length:
                    break
                weight = half[index] + (position - int(position)) * slope[index]
                want[output] += scale * weight * samples[sample]
                index, sample = index + step, sample + direction
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)


def test_constants(vggish):
    np.testing.assert_allclose(audio.mel_matrix(), vggish["stages/mel_matrix"], atol=1e-13)
    np.testing.assert_allclose(audio.hann_window(), vggish["stages/hann400"], atol=1e-15)
    table = vggish["resampy/kaiser_best_every_1000"]
    np.testing.assert_allclose(audio._kaiser_best()[0][::1000], table, atol=1e-15)


def test_short_sounds():
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000)  # 2.5 s: two examples
    two = audio.log_mel(sound, 16_000)
    assert two.shape == (2, 96, 64)
    repeated = audio.log_mel(sound, 16_000, num_examples=5)
    np.testing.assert_array_equal(repeated, two[[0, 1, 1, 1, 1]])
    filled = audio.log_mel(sound, 16_000, num_examples=4, short="zeros")
    np.testing.assert_array_equal(filled, np.concatenate([two, np.zeros_like(two)]))
    np.testing.assert_array_equal(audio.log_mel(sound, 16_000, num_examples=1), two[:1])
    for short, every in (("repeat", repeated[:4]), ("zeros", filled)):
        some = audio.log_mel(sound, 16_000, 4, short, only=[1, 2, 3])
        np.testing.assert_array_equal(some, every[1:])
        assert not audio.log_mel(sound, 16_000, 4, short, only=[]).size


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="0.500 s is too short .* 0.975 s"):
        audio.log_mel(np.zeros(8000, np.int16), 16_000, num_examples=5)
    with pytest.raises(ValueError, match="int32"):
        audio.log_mel(np.zeros(16_000, np.int32), 16_000)
    with pytest.raises(ValueError, match=r"\(1, 2, 3\)"):
        audio.log_mel(np.zeros((1, 2, 3)), 16_000)
    with pytest.raises(ValueError, match="'loop'"):
        audio.log_mel(np.zeros(16_000), 16_000, 1, short="loop")
    for rate in (0, 7, 999, 384_001):  # damaged headers; resampling 7 Hz would take gigabytes
        with pytest.raises(InputError, match=f"sampled at {rate} Hz, expected 1000 to 384000"):
            audio.log_mel(np.zeros(16_000), rate)

"""Another record's sound."""

import numpy as np

from avs_jax.controls.pairing import with_audio_of


def record(seconds, rate, level):
    return {"waveform": np.full((seconds * rate, 2), level, np.int16), "sample_rate": rate}


def test_a_short_sound_is_repeated_over_a_long_clip():
    long, short = record(10, 100, 1), record(4, 50, 2)
    short["waveform"][0] = 7
    taken = with_audio_of([long, short], [(0, 1), (1, 0)])
    assert taken[0]["sample_rate"] == 50 and taken[0]["waveform"].shape == (500, 2)
    assert np.flatnonzero(taken[0]["waveform"][:, 0] == 7).tolist() == [0, 200, 400]
    assert taken[1]["waveform"] is long["waveform"]

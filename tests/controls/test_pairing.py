"""Another record's sound."""

import numpy as np
import pytest

from avs_jax.controls.clip_controls import clip_controls
from avs_jax.controls.pairing import swap_audio, with_audio_of
from configs.segment import segment_config


def record(seconds, rate, level):
    return {"waveform": np.full((seconds * rate, 2), level, np.int16), "sample_rate": rate}


def test_a_short_sound_is_repeated_over_a_long_clip():
    long, short = record(10, 100, 1), record(4, 50, 2)
    short["waveform"][0] = 7
    taken = with_audio_of([long, short], [(0, 1), (1, 0)])
    assert taken[0]["sample_rate"] == 50 and taken[0]["waveform"].shape == (500, 2)
    assert np.flatnonzero(taken[0]["waveform"][:, 0] == 7).tolist() == [0, 200, 400]
    assert taken[1]["waveform"] is long["waveform"]


def test_clips_of_several_categories_swap_with_none_of_their_own():
    """Neighbors of the alphabet share a sound; the partners do not, and are used evenly."""
    names = ("bus", "cat", "dog", "man", "owl", "pig")
    joined = [f"{a}+{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    categories = {f"c{i:02d}": name for i, name in enumerate(joined)}
    pairs = swap_audio(categories)
    sounds = {clip: set(name.split("+")) for clip, name in categories.items()}
    assert pairs.keys() == categories.keys()
    assert all(sounds[a].isdisjoint(sounds[b]) for a, b in pairs.items())
    assert len(set(pairs.values())) >= 12
    assert swap_audio(dict(reversed(categories.items()))) == pairs
    with pytest.raises(ValueError, match="without a category in common"):
        swap_audio({"a": "dog+cat", "b": "cat", "c": ""})


def test_clips_of_one_category_swap_as_ever():
    """Scores with swapped sounds stay comparable with earlier ones."""
    categories = {"a": "dog", "b": "cow", "c": "cat", "d": "dog", "e": "ant", "f": "cow"}
    assert swap_audio(categories) == {"a": "e", "b": "a", "c": "f", "d": "c", "e": "b", "f": "d"}


def test_what_clips_of_several_categories_lack_is_noted():
    records = [
        {"clip_id": f"clip{i}", "category": name, "category_label": 0, "visible_labels": [1, 2]}
        for i, name in enumerate(("dog+cat", "cow", "cat+cow+dog"))
    ]
    found = clip_controls(segment_config(), None, records, "test")
    assert {name: len(heard) for name, heard in found.records.items()} == {"swapped_audio": 2}
    swapped, shown = found.notes
    assert swapped.startswith("swapped_audio: 2 of 3 clips;")
    assert shown.startswith("audio_in_picture left out:") and "no single category" in shown

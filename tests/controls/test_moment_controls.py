"""Controls of grounding in time: what a record keeps of its own."""

import numpy as np

from avs_jax.controls.moment_controls import moment_controls


def record(name, num_clips, query):
    return {
        "vid": name,
        "query": query,
        "text": np.full((2, 3), num_clips, np.float32),
        "audio": np.arange(2 * num_clips, dtype=np.float32).reshape(num_clips, 2),
        "energy": -np.arange(num_clips, dtype=np.float32),
    }


def test_another_sound_is_as_long_as_the_own():
    long, short = record("a", 5, "a dog barks"), record("b", 2, "the violin")
    found = moment_controls(True, [long, short], "test").records["another_sound"]
    np.testing.assert_array_equal(found[0]["audio"], short["audio"][[0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(found[0]["energy"], [0, -1, 0, -1, 0])
    np.testing.assert_array_equal(found[1]["audio"], long["audio"][:2])
    np.testing.assert_array_equal(found[1]["energy"], [0, -1])
    assert found[0]["text"] is long["text"]


def test_another_query_keeps_the_sound():
    records = [record("a", 5, "a dog barks"), record("b", 2, "the violin")]
    found = moment_controls(False, records, "test")
    assert list(found.records) == ["another_query"]
    taken = found.records["another_query"][0]
    assert taken["text"] is records[1]["text"] and taken["audio"] is records[0]["audio"]
    assert found.notes == ["silence, another_sound left out: the model reads no sound"]

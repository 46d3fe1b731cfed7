"""Strips of maps: frames and maps of the same seconds, under each other."""

import numpy as np

from avs_jax.results.strip_figure import STRIP_HEIGHT, map_strips


def test_maps_are_drawn_below_their_frames():
    frames = [np.full((40, 60, 3), 50 * k, np.uint8) for k in range(3)]
    values = np.zeros((5, 4, 6), np.float32)  # two more seconds than frames
    values[1], values[2] = 2, -1
    (shown, _), (drawn, caption) = map_strips(frames, {"motion_weight": values})
    width = round(STRIP_HEIGHT * 60 / 40)
    assert shown.shape == drawn.shape == (STRIP_HEIGHT, 3 * width, 3)
    assert [int(shown[0, k * width, 0]) for k in range(3)] == [0, 50, 100]
    dark, bright, negative = (drawn[0, k * width].astype(int).sum() for k in range(3))
    assert dark == negative < bright
    assert caption == "motion_weight, from 0 (dark) to 2"

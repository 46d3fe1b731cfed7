"""Figures: the right pixels are tinted, nothing else is, and sizes are consistent."""

import base64
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from avs_jax.results import segmentation, visualize
from tests.conftest import ROOT


def disk(size, center, radius):
    y, x = np.mgrid[:size, :size]
    return np.hypot(y - center[0], x - center[1]) < radius


def a_clip(num_frames=3, height=48, width=64):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (num_frames, height, width, 3)).astype(np.uint8)
    masks = np.stack([disk(32, (16, 8 + 6 * t), 7) for t in range(num_frames)])
    return dict(
        frames=frames,
        prob=np.where(masks, 0.9, 0.1).astype(np.float32),
        labels=masks.astype(np.uint8),
        log_mel=rng.normal(-2, 1, (num_frames, 96, 64)).astype(np.float32),
        motion=rng.random((num_frames, height, width, 1)).astype(np.float32),
        motion_weight=rng.random((num_frames, 24, 24)).astype(np.float32),
    )


def test_overlay_tints_the_mask_and_nothing_else():
    image = np.full((40, 40, 3), 100, np.uint8)
    mask = disk(40, (20, 20), 10)
    result = visualize.overlay(image, mask, color=(200, 0, 0), opacity=0.5)
    np.testing.assert_array_equal(result[~mask], 100)
    np.testing.assert_array_equal(result[20, 20], (150, 50, 50))
    np.testing.assert_array_equal(result[20, 11], (200, 0, 0))  # the contour, inside the mask
    assert (image == 100).all()


def test_overlay_takes_a_probability_of_another_size():
    image = np.zeros((40, 60, 3), np.uint8)
    prob = np.zeros((10, 10), np.float32)
    prob[:, 5:] = 1
    result = visualize.overlay(image, prob)
    assert (result[:, :28] == 0).all() and (result[:, 32:] > 0).any(axis=-1).all()
    flat = visualize.overlay(image, prob, (200, 0, 0), opacity=0.5, contour=0)
    assert set(np.unique(flat)) == {0, 100}
    empty = visualize.overlay(image, np.zeros((10, 10), bool))
    np.testing.assert_array_equal(empty, image)


def test_color_map_is_monotonic_in_lightness():
    for name in ("inferno", "viridis"):
        colors = visualize.color_map(np.linspace(0, 3, 50)[None], name)[0].astype(float)
        assert (np.diff(colors @ (0.299, 0.587, 0.114)) > 0).all()
    flat = visualize.color_map(np.zeros((2, 2)))
    np.testing.assert_array_equal(flat[0, 0], visualize.color_map(np.ones((1, 2)), high=1e9)[0, 0])
    holes = visualize.color_map(np.array([[np.nan, 1, 2]]))[0]
    np.testing.assert_array_equal(holes[0], flat[0, 0])
    assert holes.dtype == np.uint8 and (holes[1] != holes[2]).any()


def test_log_mel_has_low_bands_at_the_bottom_and_time_to_the_right():
    log_mel = np.full((96, 64), -4.6)
    log_mel[90:, :3] = 2
    picture = visualize.log_mel_picture(log_mel)
    assert picture.shape == (64, 96, 3)
    bright = np.argwhere(picture.sum(-1) > 400)
    assert bright[:, 0].min() == 61 and bright[:, 1].min() == 90


def test_rows_are_added_by_what_is_given():
    clip = a_clip()
    whole = visualize.clip_picture(**clip, heading="dog")
    assert whole.dtype == np.uint8 and whole.shape[2] == 3
    for name in ("labels", "log_mel", "motion", "motion_weight"):
        fewer = visualize.clip_picture(**{**clip, name: None}, heading="dog")
        assert fewer.shape[0] < whole.shape[0] and fewer.shape[1] == whole.shape[1]


def test_tiles_are_drawn_pixel_by_pixel():
    """Whatever the size of the figure: inches times dpi must not lose a pixel."""
    rng = np.random.default_rng(1)
    for num_frames, width in ((1, 38), (3, 64), (5, 61)):
        frames = rng.integers(0, 255, (num_frames, 64, width, 3)).astype(np.uint8)
        figure = visualize.clip_picture(frames, np.zeros((num_frames, 8, 8)), heading="$\\frac{$")
        tile = visualize._resize_image(frames[-1], visualize._tile_size((64, width)))
        height, width = tile.shape[:2]
        left, right, above, below = visualize._MARGINS
        assert figure.shape[0] == above + 2 * height + visualize.GAP + below
        assert (
            figure.shape[1] == left + num_frames * (width + visualize.GAP) - visualize.GAP + right
        )
        np.testing.assert_array_equal(figure[above : above + height, -right - width : -right], tile)


def test_longer_titles_have_room_above_the_tiles():
    """Between them and the heading, and between the columns, nothing is drawn."""
    frames, prob = np.zeros((3, 96, 96, 3), np.uint8), np.zeros((3, 8, 8))
    scores = {"motion_gate": np.ones(3), "sync_gate": np.ones(3), "sync_lag": np.full(3, -12)}
    titles = segmentation.frame_titles(np.array([0, 1, 9]), scores)
    plain = visualize.clip_picture(frames, prob, heading="dog")
    figure = visualize.clip_picture(frames, prob, heading="dog", titles=titles)
    more = visualize._LINE
    assert figure.shape == (plain.shape[0] + more, *plain.shape[1:])
    left, _, above, _ = visualize._MARGINS
    np.testing.assert_array_equal(figure[above + more :, left:], plain[above:, left:])
    is_blank = (figure[: above + more] == 255).all(-1)
    assert is_blank[24:30].all() and is_blank[-3:].all()
    for column in (1, 2):
        edge = left + column * (visualize.TILE + visualize.GAP) - visualize.GAP
        assert is_blank[:, edge : edge + visualize.GAP].all()


def test_matplotlib_is_imported_only_to_draw():
    """An evaluation without figures does not pay for it, and no display is needed."""
    code = """
import sys, numpy as np
from avs_jax.results import visualize
visualize.overlay(np.zeros((4, 4, 3), np.uint8), np.eye(4))
assert "matplotlib" not in sys.modules
visualize.clip_picture(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8)))
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    environment = {**os.environ, "DISPLAY": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=ROOT)


def test_a_frame_without_ground_truth_is_gray():
    clip = a_clip()
    clip["labels"][1] = 255
    kept = dict(frames=clip["frames"], prob=clip["prob"], labels=clip["labels"])
    picture = visualize.clip_picture(**kept)
    gray = (picture == visualize.FAINT).all(axis=-1)
    assert 120 * 160 <= gray.sum() < 120 * 160 + 20  # text is anti-aliased in grays


def test_classes_have_their_colors_in_prediction_and_truth():
    palette = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)
    clip = a_clip(num_frames=2)
    clip["frames"][:] = 100
    classes = np.zeros((2, 48, 64), np.int32)
    classes[:, 10:20, 10:30], classes[:, 25:45, 40:60] = 1, 2
    unknown = classes.astype(np.uint8)
    unknown[:, :, 45:] = 255
    picture = visualize.clip_picture(clip["frames"], classes, unknown, palette=palette)
    for tint, count in ((palette[1], 2), (palette[2], 2)):
        seen = (picture == np.round(0.4 * 100 + 0.6 * tint)).all(axis=-1)
        columns = np.flatnonzero(np.diff(np.r_[0, seen.any(axis=0), 0]) > 0)
        rows = np.flatnonzero(np.diff(np.r_[0, seen.any(axis=1), 0]) > 0)
        assert len(columns) == count and len(rows) == 2  # two frames; prediction and truth
    seen = (picture == np.round(0.4 * 100 + 0.6 * palette[2])).all(axis=-1).sum(axis=1)
    truth = seen[-120 - visualize._MARGINS[3] :]
    assert 0 < truth.max() < seen.max() / 3  # much of it is unknown
    only = visualize.overlay_classes(clip["frames"][0], np.full((4, 4), 255), palette)
    np.testing.assert_array_equal(only, clip["frames"][0])


def test_wrong_lengths_are_named():
    clip = a_clip()
    with pytest.raises(ValueError, match="motion_weight: 2 for a clip of 3"):
        visualize.clip_picture(**{**clip, "motion_weight": clip["motion_weight"][:2]})
    with pytest.raises(ValueError, match="titles: 1"):
        visualize.clip_picture(**clip, titles=["a"])


def test_save_png(tmp_path):
    picture = visualize.clip_picture(**a_clip())
    visualize.save_png(tmp_path / "clip.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "clip.png")), picture)


def test_flow_colors():
    """Directions in image coordinates (v points down), saturation by length up to `high`."""
    vectors = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], float)[None]
    right, down, left, up = visualize.flow_colors(vectors)[0]
    np.testing.assert_array_equal([right, left], [(255, 0, 0), (0, 255, 255)])
    np.testing.assert_array_equal([down, up], [(128, 255, 0), (128, 0, 255)])
    line = np.linspace(0, 1, 5)[:, None] * [1, 0]
    ramp = visualize.flow_colors(line[None])[0]
    np.testing.assert_array_equal(ramp[0], 255)
    assert (np.diff(ramp[:, 1].astype(int)) < 0).all() and (ramp[:, 0] == 255).all()
    np.testing.assert_array_equal(visualize.flow_colors(2 * line[None], 1.0)[0, -1], (255, 0, 0))
    np.testing.assert_array_equal(visualize.flow_colors(np.full((1, 2, 2), np.nan)), 255)
    assert (visualize.flow_colors(np.zeros((3, 4, 2))) == 255).all()


def test_clip_figure_shows_vectors_in_colors():
    clip = a_clip()
    vectors = np.zeros((3, 48, 64, 2), np.float32)
    vectors[..., 0] = np.array([1, 2, 4])[:, None, None]
    picture = visualize.clip_picture(**{**clip, "motion": vectors})
    rows = len(picture) - len(visualize.clip_picture(**clip))
    assert rows == 120 + visualize.GAP  # a row of flow above that of its length
    np.testing.assert_array_equal(
        picture, visualize.clip_picture(**{**clip, "motion": vectors[..., :1]}, flow=vectors)
    )
    with pytest.raises(ValueError, match="flow: 2 for a clip of 3"):
        visualize.clip_picture(**clip, flow=vectors[:2])
    assert (picture == (255, 0, 0)).all(axis=-1).sum() >= 100 * 100  # the fastest frame, whole


def test_a_page_contains_its_figures(tmp_path):
    pictures = {"a <b>": a_clip()["frames"][0], "c": a_clip()["frames"][1]}
    visualize.save_page(tmp_path / "page.html", "S4 & more", pictures)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "S4 &amp; more" in text and "a &lt;b&gt;" in text and "<b>" not in text
    stored = re.findall(r"base64,([^\"]+)", text)
    for data, picture in zip(stored, pictures.values(), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            np.testing.assert_array_equal(np.asarray(image), picture)

"""The joint augmentation: what coincides in image, mask and motion still does afterwards."""

import colorsys

import jax
import numpy as np
import pytest

from avs_jax.data import transforms
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import IGNORE_LABEL, IMAGE_PAD

SIZES = (80, 96, 112, 150)


def draw(seed, size=(90, 130), output=96, color=False, **options):
    rng = np.random.default_rng(seed)
    return transforms.draw_augmentation(rng, size, 5, output, SIZES, 300, color=color, **options)


def disk(height, width):
    y, x = np.mgrid[:height, :width]
    return (y - 0.45 * height) ** 2 + (x - 0.3 * width) ** 2 < (0.3 * height) ** 2


@pytest.mark.parametrize("seed", range(12))
def test_image_labels_and_motion_stay_aligned(seed):
    """An image, a mask and a map that show the same disk still do, wherever nothing is padded."""
    mask = disk(90, 130)
    augmentation = draw(seed)
    image = transforms.augment_image(
        np.repeat(mask[..., None] * np.uint8(200), 3, axis=2),
        augmentation,
        transforms.ColorJitter(),
    )
    labels = transforms.augment_labels(mask.astype(np.uint8), augmentation)
    motion = transforms.augment_motion(mask[..., None].astype(np.float32), augmentation)
    inside = labels != IGNORE_LABEL
    assert image.shape == (96, 96, 3) and labels.shape == (96, 96) and motion.shape == (96, 96, 1)
    assert ((image[..., 0] > 100) == (labels == 1))[inside].mean() > 0.985
    assert ((motion[..., 0] > 0.5) == (labels == 1))[inside].mean() > 0.985
    assert (image[~inside] == IMAGE_PAD).all() and not motion[~inside].any()
    assert inside.sum() == np.prod(augmentation.crop_size)
    assert inside[: augmentation.crop_size[0], : augmentation.crop_size[1]].all()


def test_draws_cover_what_they_should():
    draws = [draw(seed) for seed in range(300)]
    assert {min(d.resized) for d in draws} == set(SIZES)
    assert 0.4 < np.mean([d.flip for d in draws]) < 0.6
    large = [d for d in draws if min(d.resized) == 150]
    tops = {d.crop_origin[0] for d in large}
    assert min(tops) >= 0 and max(tops) <= 150 - 96 and len(tops) > 25
    assert all(d.crop_size[0] == 80 for d in draws if min(d.resized) == 80)
    assert not any(d.flip for d in (draw(seed, flip=0.0) for seed in range(20)))
    squashed = draw(0, crop=False)
    assert squashed.resized == squashed.crop_size == (96, 96)


@pytest.mark.parametrize("size", [(20, 33), (7, 24), (14, 11)])
def test_enlarging_is_the_rule_of_ops(size):
    """Frames, motion and labels are resized here, masks and scores there; pixel centers agree."""
    rng = np.random.default_rng(2)
    values = rng.random((7, 11), np.float32)
    want = resize_bilinear(values[..., None], size)[..., 0]
    resized = transforms.resize(values, size, transforms.BILINEAR)
    np.testing.assert_allclose(resized, want, atol=1e-6)
    image = rng.integers(0, 256, (7, 11, 3), dtype=np.uint8)
    resized = transforms.resize(image, size, transforms.BILINEAR).astype(float)
    np.testing.assert_allclose(resized, resize_bilinear(image, size), atol=1.01)  # two roundings


def test_shrinking_antialiases():
    values = np.random.default_rng(3).random((40, 33), np.float32)
    resized = transforms.resize(values, (17, 9), transforms.BILINEAR)
    want = jax.image.resize(values, (17, 9), "bilinear", antialias=True)
    np.testing.assert_allclose(resized, want, atol=1e-5)
    assert np.abs(resized - resize_bilinear(values[..., None], (17, 9))[..., 0]).max() > 0.1


def test_nearest_takes_the_pixel_below_the_center():
    labels = np.random.default_rng(4).integers(0, 71, (40, 33), dtype=np.uint8)
    for size in ((17, 9), (80, 50)):
        y, x = (
            ((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(size, (40, 33), strict=True)
        )
        resized = transforms.resize(labels, size, transforms.NEAREST)
        np.testing.assert_array_equal(resized, labels[y][:, x])


def test_long_side_is_limited():
    assert transforms.shortest_edge_size((100, 200), 96, 150) == (75, 150)
    assert transforms.shortest_edge_size((200, 100), 96, 400) == (192, 96)
    assert transforms.shortest_edge_size((384, 384), 768, 896) == (768, 768)


def test_vectors_scale_and_flip():
    flow = np.ones((90, 130, 2), np.float32) * np.float32([2, 3])
    for seed in range(6):
        augmentation = draw(seed)
        moved = transforms.augment_motion(flow, augmentation)[0, 0]
        sign = -1 if augmentation.flip else 1
        height, width = augmentation.resized
        np.testing.assert_allclose(moved, [2 * sign * width / 130, 3 * height / 90], rtol=1e-5)


def test_jitter_is_per_frame_and_apart_for_the_pre_mask():
    augmentation = draw(3, color=True)
    jitters = (*augmentation.image_jitter, *augmentation.pre_mask_jitter)
    assert len(jitters) == 10 and len(set(jitters)) == 10
    many = [j for seed in range(200) for j in draw(seed, color=True).image_jitter]
    for name, off, low, high in [
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -18, 18),
    ]:
        values = np.array([getattr(j, name) for j in many])
        on = values[values != off]
        assert 0.42 < len(on) / len(values) < 0.58, name
        assert low <= on.min() < low + 0.1 * (high - low), name
        assert high >= on.max() > high - 0.1 * (high - low), name
    assert 0.45 < np.mean([j.contrast_first for j in many]) < 0.55


def test_hsv_against_colorsys():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image[0, :3] = [[0, 0, 0], [255, 255, 255], [255, 0, 1]]
    hue, saturation, value = transforms.rgb_to_hsv(image)
    assert hue.max() < 180
    back = transforms.hsv_to_rgb(hue, saturation, value)
    for index in np.ndindex(40, 50):
        h, s, v = colorsys.rgb_to_hsv(*(image[index] / 255.0))
        assert abs((hue[index] - 180 * h + 90) % 180 - 90) < 0.501
        assert abs(saturation[index] - 255 * s) < 0.501 and value[index] == image[index].max()
        want = colorsys.hsv_to_rgb(hue[index] / 180, saturation[index] / 255, value[index] / 255)
        assert np.abs(back[index] - 255 * np.array(want)).max() < 0.51


def test_jitter_arithmetic():
    image = np.array([[[10, 100, 250]]], np.uint8)
    jitter = transforms.ColorJitter
    np.testing.assert_array_equal(transforms.jitter_color(image, jitter()), image)
    bright = transforms.jitter_color(image, jitter(brightness=20.7))
    np.testing.assert_array_equal(bright, [[[30, 120, 255]]])  # truncated and clipped
    dark = transforms.jitter_color(image, jitter(brightness=-20, contrast=1.5))
    np.testing.assert_array_equal(dark, [[[0, 120, 255]]])
    gray = transforms.jitter_color(image, jitter(saturation=0.5))
    assert gray.max() == 250 and 125 < gray.min() < 135
    red = np.array([[[200, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(
        transforms.jitter_color(red, jitter(hue=-18)), [[[200, 0, 120]]]
    )  # 36 degrees back


def test_order_of_contrast_matters():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    first, last = (
        transforms.jitter_color(
            image, transforms.ColorJitter(contrast=1.5, saturation=1.4, contrast_first=flag)
        )
        for flag in (True, False)
    )
    assert (first != last).any()

"""Motion maps: augmentation of vectors, and subtraction of camera motion."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from avs_jax.data import motion, transforms
from avs_jax.data.clip import ClipRows
from tests.clip_records import SIDE, make_config, make_record


def prepare_clip(record, config, rng=None):
    return ClipRows(config).prepare(record, rng)


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = gaussian_filter(noise, 4)
    return (127 + 110 * smooth / np.abs(smooth).max()).astype(np.float32)


def read(picture, flow):
    """Values of `picture` at (x + u, y + v)."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return map_coordinates(picture, (y + flow[..., 1], x + flow[..., 0]), order=1, mode="nearest")


def zooming_pair(height, width):
    """Two frames and the flow between them: a zoom by 4 % with a shift."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    flow = np.stack([0.04 * (x - width / 2) + 3, 0.04 * (y - height / 2) - 2], axis=-1)
    second = texture(height, width)
    return read(second, flow), second, flow


@pytest.mark.parametrize("seed", range(6))
def test_vectors_stay_correct_under_resize_crop_and_flip(seed):
    """Warping the augmented second frame by the augmented flow gives the augmented first."""
    first, second, flow = zooming_pair(90, 130)
    draw = transforms.draw_augmentation(
        np.random.default_rng(seed), (90, 130), 1, 96, (64, 90, 120, 150), 400, color=False
    )
    a, b = (transforms.augment_motion(x[..., None], draw)[..., 0] for x in (first, second))
    moved = transforms.augment_motion(flow, draw)
    height, width = draw.crop_size
    inside = slice(12, height - 12), slice(14, width - 14)
    error = np.abs(read(b, moved) - a)[inside].mean()
    assert error < 1.0
    unmoved = np.abs(b - a)[inside].mean()
    mirrored = np.abs(read(b, moved * np.float32([-1, 1])) - a)[inside].mean()
    assert min(unmoved, mirrored) > 4 * error


def test_squashed_vectors_are_correct():
    first, second, flow = zooming_pair(90, 130)
    a, b = (transforms.resize_motion(x[..., None], (64, 64))[..., 0] for x in (first, second))
    moved = transforms.resize_motion(flow, (64, 64))
    error = np.abs(read(b, moved) - a)[10:-10, 10:-10].mean()
    assert error < 1.0 < np.abs(b - a)[10:-10, 10:-10].mean() / 4


def affine_flow(height, width, parameters):
    y, x = np.mgrid[:height, :width].astype(np.float64)
    ones = np.stack([np.ones_like(x), x, y], axis=-1)
    return ones @ np.reshape(parameters, (3, 2))


@pytest.mark.parametrize("seed", range(4))
def test_camera_motion_despite_moving_objects(seed):
    """An affine motion (pan, zoom, rotation, shear) with 30 % of the frame moving otherwise."""
    rng = np.random.default_rng(seed)
    height, width = 120, 160
    pan = rng.uniform(-12, 12, 2)
    linear = rng.uniform(-0.05, 0.05, 4)
    camera = affine_flow(height, width, [*pan, *linear])
    moving = np.zeros((height, width), bool)
    moving[20 : 20 + 72, 15 : 15 + 80] = True  # 72 * 80 / (120 * 160) = 30 %
    flow = camera + rng.normal(scale=0.1, size=camera.shape)
    flow[moving] += rng.uniform(6, 15) * np.array([np.cos(seed), np.sin(seed)])
    found = motion.camera_flow(flow.astype(np.float16))
    assert found.dtype == np.float32 and found.shape == flow.shape
    assert np.hypot(*(found - camera).T).max() < 0.15
    left = flow - found
    assert np.abs(left[~moving]).mean() < 0.12 and np.hypot(*left[moving].T).min() > 5


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (300, 7)])
def test_camera_motion_of_any_size(shape):
    flow = np.broadcast_to(np.float32([3, -4]), (*shape, 2))
    np.testing.assert_allclose(motion.camera_flow(flow), flow, atol=1e-3)
    assert not motion.camera_flow(np.zeros((*shape, 2))).any()


def moving_square():
    """A square that moves by (3, 4) before a background that moves by (8, 0)."""
    record = make_record(0, flow=True)
    record["flow"] = record["flow"] + np.float16([8, 0])
    record["flow"][0] = 0
    return record


def maps(record, rng=None, **keys):
    config = make_config(train_frames="all")
    config.data.image_size = SIDE
    config.data.motion.update(keys)
    return prepare_clip(record, config, rng)["motion"]


def test_kinds_of_maps():
    record = moving_square()
    vectors = maps(record, map="uv", scale=4.0)
    assert vectors.shape == (5, SIDE, SIDE, 2) and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[2, 25, 10], [11 / 4, 1])
    np.testing.assert_array_equal(vectors[2, 50, 50], [2, 0])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    absolute = maps(record, map="magnitude_absolute", scale=4.0)
    np.testing.assert_allclose(absolute, np.hypot(*np.moveaxis(vectors, -1, 0))[..., None])
    relative = maps(record)
    np.testing.assert_allclose(relative, absolute / absolute[2].max(), atol=1e-5)
    for name in ("magnitude_max", "magnitude_absolute"):
        still = maps(record, map=name, compensate_camera=True, scale=1.0)
        assert np.abs(still[2, 50:]).max() < 1e-3
        assert still[2, 25, 10, 0] == pytest.approx(1 if name == "magnitude_max" else 5, abs=1e-3)
    assert not maps(record, map="uv", first_frame="zeros")[0].any()


def test_vectors_of_a_flipped_and_resized_clip():
    record = moving_square()
    seen = set()
    for seed in range(12):
        config = make_config(train_frames="all")
        config.data.image_size = SIDE
        config.data.augment.min_sizes = (48,)
        config.data.motion.update(map="uv", scale=1.0)
        found = prepare_clip(record, config, np.random.default_rng(seed))["motion"][2]
        seen.add(float(np.sign(found[40, 44, 0])))
        np.testing.assert_allclose(np.abs(found[40, 44]), [8 * 48 / SIDE, 0], atol=1e-5)
        assert not found[48:].any() and not found[:, 48:].any()  # padding does not move
    assert seen == {-1.0, 1.0}


def test_frame_0_may_have_its_own_flow():
    """Flow estimated within the video has one for the first frame, too."""
    record = moving_square()
    record["flow"][0] = (1, 1)
    own = maps(record, map="uv", scale=1.0)
    assert (own[0] == 1).all() and (own[1] != own[0]).any()
    assert not maps(record, map="uv", first_frame="zeros")[0].any()


def test_invalid_settings_are_named():
    record = moving_square()
    magnitude = record | {"flow": np.hypot(*np.moveaxis(record["flow"], -1, 0))[..., None]}
    assert maps(magnitude)[2].max() == pytest.approx(1, abs=1e-3)
    without = make_record(0)
    for keys, given, match in (
        (dict(map="uv"), magnitude, "clip clip0: .*map = 'uv'.*magnitudes are stored"),
        (dict(compensate_camera=True), magnitude, "compensate_camera = True needs flow"),
        (dict(map="magnitude_absolute"), without, "no flow is stored"),
        (dict(map="uv", source="difference"), record, "source = 'difference' has none"),
        (dict(map="speed"), record, "config.data.motion.map is 'speed', expected one of"),
        (dict(scale=0.0), record, "config.data.motion.scale is 0.0"),
    ):
        with pytest.raises(ValueError, match=match):
            maps(given, **keys)
    with pytest.raises(ValueError, match="flow: shape"):
        motion.flow_strength(np.zeros((4, 4, 3)))

"""Resizing and point sampling against plain loops and SciPy, on ordinary and degenerate input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import ndimage

from avs_jax.ops.sampling import resize_bilinear, sample_bilinear


def interpolate_axis(x, size, align_corners):
    """Linear interpolation along the first axis, one output pixel at a time."""
    rows = []
    for i in range(size):
        if align_corners:
            position = i * (len(x) - 1) / (size - 1) if size > 1 else 0.0
        else:
            position = max((i + 0.5) * len(x) / size - 0.5, 0.0)
        low = min(int(position), len(x) - 1)
        high = min(low + 1, len(x) - 1)
        fraction = min(position - low, 1.0)
        rows.append((1 - fraction) * x[low] + fraction * x[high])
    return np.stack(rows)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 7, 5, 3), (13, 4)),
        ((6, 9, 2), (3, 9)),
        ((1, 4, 1), (5, 8)),
        ((8, 8, 1), (1, 1)),
        ((2, 3, 24, 24, 1), (96, 96)),
    ],
)
def test_resize_is_separable_linear_interpolation(shape, size, align_corners):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows = np.moveaxis(x.astype(np.float64), -3, 0)
    rows = np.moveaxis(interpolate_axis(rows, size[0], align_corners), 0, -3)
    expected = np.moveaxis(rows, -2, 0)
    expected = np.moveaxis(interpolate_axis(expected, size[1], align_corners), 0, -2)
    result = jax.jit(lambda x: resize_bilinear(x, size, align_corners=align_corners))(x)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("old", "new"), [((5, 3), (13, 9)), ((7, 9), (3, 4)), ((1, 4), (6, 1))])
def test_gradient_of_a_resize_is_its_transposed_matrix(old, new, align_corners):
    """The matrix, from the resized images of single pixels."""
    pixels = np.eye(old[0] * old[1], dtype=np.float32).reshape(-1, *old, 1)
    resize = functools.partial(resize_bilinear, size=new, align_corners=align_corners)
    gradient = np.random.default_rng(0).normal(size=(1, *new, 1)).astype(np.float32)
    matrix = np.asarray(jax.jit(resize)(pixels)).reshape(len(pixels), -1)
    found = jax.jit(lambda g: jax.vjp(resize, jnp.zeros((1, *old, 1)))[1](g)[0])(gradient)
    np.testing.assert_allclose(found.ravel(), matrix @ gradient.ravel(), atol=1e-6)


def test_resize_of_equal_size_is_identity_and_dtypes_are_kept():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 2)), jnp.bfloat16)
    assert (resize_bilinear(x, (4, 6)) == x).all()
    assert resize_bilinear(x, (8, 6)).dtype == jnp.bfloat16
    assert resize_bilinear(x > 0, (4, 6)).dtype == jnp.float32


def points_of_interest(rng, num_points):
    """Inside, on edges, a little and far outside."""
    special = [[0, 0], [1, 1], [0.5, 0], [-0.01, 0.4], [1.02, 0.7], [-3, 2], [1e12, 0.5], [0.3, -1]]
    inside = rng.uniform(size=(num_points - len(special), 2))
    return np.concatenate([special, inside])


@pytest.mark.parametrize(("height", "width"), [(5, 8), (1, 6), (7, 1), (1, 1)])
def test_samples_equal_scipy(height, width):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    points = np.stack([points_of_interest(rng, 60) for _ in range(2)]).astype(np.float32)
    result = jax.jit(sample_bilinear)(x, points)
    assert result.shape == (2, 60, 3)
    limits = np.array([height + 1, width + 1])
    for n in range(2):
        at = points[n, :, ::-1] * np.array([height, width], np.float64) - 0.5
        for c in range(3):
            # Zeros all round: SciPy's constant mode does not interpolate beyond the last center.
            padded = np.pad(x[n, :, :, c], 2)
            expected = ndimage.map_coordinates(padded, np.clip(at, -2, limits).T + 2, order=1)
            np.testing.assert_allclose(result[n, :, c], expected, atol=2e-6)


def test_sampling_at_pixel_centers_reads_the_pixels():
    x = np.random.default_rng(3).normal(size=(1, 4, 6, 2)).astype(np.float32)
    rows, columns = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    points = np.stack([(columns + 0.5) / 6, (rows + 0.5) / 4], -1).reshape(1, 24, 2)
    np.testing.assert_allclose(sample_bilinear(x, jnp.asarray(points)), x.reshape(1, 24, 2), 1e-5)


def test_gradients_of_sampling_equal_finite_differences():
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 2)), jnp.float32)
    # Away from the pixel centers, where the slope jumps.
    cells = rng.integers(-1, 4, size=(2, 9, 2)) + rng.uniform(0.2, 0.8, size=(2, 9, 2)) + 0.5
    points = jnp.asarray(cells / [4, 5], jnp.float32)
    check_grads(sample_bilinear, (x, points), order=1, modes=["rev"], eps=1e-3, rtol=2e-3)


def test_bfloat16_images_are_interpolated_in_float32():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 6, 6, 4)), jnp.bfloat16)
    points = jnp.asarray(np.random.default_rng(6).uniform(size=(1, 20, 2)), jnp.float32)
    result = sample_bilinear(x, points)
    assert result.dtype == jnp.bfloat16
    exact = sample_bilinear(x.astype(jnp.float32), points)
    assert (result == exact.astype(jnp.bfloat16)).all()
    assert sample_bilinear(x > 0, points).dtype == jnp.float32


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_first_weight_is_one_minus_the_second_as_rounded(align_corners):
    one_hot = np.eye(7, dtype=np.float32)[:, :, None]
    new = np.asarray(resize_bilinear(one_hot, (40, 7), align_corners=align_corners))[..., 0]
    for weights in new:
        low = weights.nonzero()[0][0]
        assert weights[low] == np.float32(1) - weights[low + 1 :].sum()

"""Resampling matrices against the kernels written out, and their invariants."""

import numpy as np
import pytest

from avs_jax.ops.bicubic import bicubic_matrix
from avs_jax.ops.resampling import antialiased_matrix, area_matrix
from avs_jax.ops.sampling import resize_antialiased


def cubic(x, a=-0.75):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("size", [256, 224, 128, 96, 64, 56])
def test_bicubic_positions_of_hiera(size):
    expected = np.zeros((size, 7))
    for i in range(size):
        source = (i + 0.5) * 7 / size - 0.5
        for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            expected[i, min(max(tap, 0), 6)] += cubic(source - tap)
    np.testing.assert_allclose(bicubic_matrix(7, size), expected, rtol=0, atol=1e-12)


def test_antialiased_averages_when_shrinking():
    np.testing.assert_allclose(antialiased_matrix(5, 5), np.eye(5))
    row = antialiased_matrix(16, 4)[1]
    triangle = np.maximum(1 - np.abs(np.arange(16) - 5.5) / 4, 0)
    np.testing.assert_allclose(row, triangle / triangle.sum())


def test_antialiased_equals_plain_bilinear_when_growing():
    x = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    found = np.asarray(resize_antialiased(x, (6, 8)))[..., 0]
    np.testing.assert_allclose(found[:, 3], found[:, 0] + (found[0, 3] - found[0, 0]), atol=1e-5)
    np.testing.assert_allclose(found[0, 1], 0.25, atol=1e-6)


@pytest.mark.parametrize("size, new_size", [(12, 4), (5, 3), (3, 7), (4, 4)])
def test_area_means_are_those_of_a_fine_grid(size, new_size):
    values = np.random.default_rng(0).normal(size=size)
    fine = np.repeat(values, new_size)
    want = fine.reshape(new_size, size).mean(axis=1)
    np.testing.assert_allclose(area_matrix(size, new_size) @ values, want, atol=1e-12)

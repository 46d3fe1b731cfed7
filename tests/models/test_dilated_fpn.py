"""AVSBench's decoder: convolutions whose taps are apart, both ways; the residual unit's skip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models.decoders import dilated_fpn
from avs_jax.models.decoders.dilated_fpn import DILATIONS, ResidualUnit, dilated_convolve


def brute_force(x, kernel, dilation):
    """Sum over taps of the zero-padded map."""
    (_, h, w, _), d = x.shape, dilation
    padded = np.pad(x, ((0, 0), (d, d), (d, d), (0, 0)))
    views = [
        (i, j, padded[:, i * d : i * d + h, j * d : j * d + w]) for i in range(3) for j in range(3)
    ]
    return sum(view @ kernel[i, j] for i, j, view in views)


@pytest.mark.parametrize("dilation", DILATIONS)
@pytest.mark.parametrize("tap_share", [1.0, 0.0])
def test_dilated_convolution_follows_its_definition(dilation, tap_share, monkeypatch):
    """Tap by tap and as one convolution, where taps fall outside the map and where none does."""
    monkeypatch.setattr(dilated_fpn, "TAP_SHARE", tap_share)
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 3, 2)).astype(np.float32)
    for size in ((7, 7), (5, 13), (20, 20)):
        x = rng.standard_normal((2, *size, 3)).astype(np.float32)
        found = dilated_convolve(jnp.asarray(x), jnp.asarray(kernel), dilation)
        np.testing.assert_allclose(found, brute_force(x, kernel, dilation), atol=1e-5)


def test_both_ways_have_the_same_gradients(monkeypatch):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(s).astype(np.float32) for s in ((2, 9, 8, 3), (3, 3, 3, 4)))

    def loss(x, kernel):
        return jnp.sin(dilated_convolve(x, kernel, 3)).sum()

    monkeypatch.setattr(dilated_fpn, "TAP_SHARE", 1.0)
    taps = jax.grad(loss, (0, 1))(x, kernel)
    monkeypatch.setattr(dilated_fpn, "TAP_SHARE", 0.0)
    for a, b in zip(taps, jax.grad(loss, (0, 1))(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_residual_skip_carries_what_the_first_relu_left():
    unit = ResidualUnit(jnp.float32)
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 8)).astype(np.float32)
    variables = unit.init(jax.random.key(0), x)
    silent = jax.tree.map(jnp.zeros_like, variables)
    np.testing.assert_array_equal(unit.apply(silent, x), np.maximum(x, 0))
    np.testing.assert_array_equal(unit.apply(variables, x), unit.apply(variables, np.maximum(x, 0)))

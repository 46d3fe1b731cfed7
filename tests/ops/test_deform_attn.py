"""Deformable attention against a slow loop, on random, border and far-away points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.ops.deform_attn import deform_attn

SIZES = ((2, 3), (4, 5), (1, 1))


def slow_deform_attn(value, sizes, locations, weights):
    """One corner of one point of one head of one query at a time."""
    num_frames, num_queries, heads, levels, points = weights.shape
    out = np.zeros((num_frames, num_queries, heads, value.shape[-1]))
    starts = np.cumsum([0] + [h * w for h, w in sizes])
    for index in np.ndindex(num_frames, num_queries, heads, levels, points):
        n, s, g, level, _ = index
        height, width = sizes[level]
        image = value[n, starts[level] : starts[level + 1], g].reshape(height, width, -1)
        x, y = locations[index].astype(np.float64) * (width, height) - 0.5
        for i in (np.floor(y), np.floor(y) + 1):
            for j in (np.floor(x), np.floor(x) + 1):
                if 0 <= i < height and 0 <= j < width:
                    near = (1 - abs(y - i)) * (1 - abs(x - j))
                    out[n, s, g] += weights[index] * near * image[int(i), int(j)]
    return out.reshape(num_frames, num_queries, -1)


def random_input(seed=0):
    rng = np.random.default_rng(seed)
    tokens = sum(h * w for h, w in SIZES)
    value = rng.standard_normal((2, tokens, 2, 3)).astype(np.float32)
    locations = rng.uniform(-0.3, 1.3, (2, 7, 2, 3, 4, 2)).astype(np.float32)
    weights = rng.uniform(0, 1, (2, 7, 2, 3, 4)).astype(np.float32)
    return value, locations, weights


def degenerate(locations):
    """Corners of the image, pixel centers, and points that overflow an int32."""
    locations = locations.copy()
    locations[:, 0] = 0
    locations[:, 1] = 1
    locations[:, 2] = 0.5
    locations[:, 3, ..., 0] = 1e12
    locations[:, 4, ..., 1] = -1e12
    locations[:, 5] = np.array([-0.25, 1.25], np.float32)
    return locations


@pytest.mark.parametrize("change", [lambda x: x, degenerate], ids=["random", "degenerate"])
def test_agrees_with_a_slow_loop(change):
    value, locations, weights = random_input()
    locations = change(locations)
    ours = jax.jit(deform_attn, static_argnums=1)(value, SIZES, locations, weights)
    np.testing.assert_allclose(ours, slow_deform_attn(value, SIZES, locations, weights), atol=2e-6)


def test_gradient_agrees_with_finite_differences():
    value, locations, weights = random_input(1)

    def loss(value, locations, weights):
        return jnp.sum(jnp.sin(3 * deform_attn(value, SIZES, locations, weights)))

    with jax.enable_x64(True):
        arrays = [x.astype(np.float64) for x in (value, locations, weights)]
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
        rng = np.random.default_rng(2)
        for k, gradient in enumerate(gradients):
            direction = rng.standard_normal(arrays[k].shape)
            ends = []
            for step in (1e-6, -1e-6):
                moved = list(arrays)
                moved[k] = arrays[k] + step * direction
                total = slow_deform_attn(moved[0], SIZES, moved[1], moved[2])
                ends.append(np.sin(3 * total).sum())
            slope = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=1e-5)


def test_points_outside_give_zero_and_no_gradient():
    value, locations, weights = random_input()
    far = np.full_like(locations, 5.0)
    out, gradient = jax.jit(
        jax.value_and_grad(lambda v: jnp.square(1 + deform_attn(v, SIZES, far, weights)).sum())
    )(value)
    assert out == 2 * 7 * 6
    assert not np.any(gradient)


def test_the_backward_pass_saves_no_gathered_values():
    """Its temporaries stay below what gathering one level's points at once would take."""
    tokens, heads, channels = 64 + 16 + 4, 2, 16
    shapes = [(1, tokens, heads, channels), (1, tokens, heads, 3, 8, 2), (1, tokens, heads, 3, 8)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(value, locations, weights):
        return deform_attn(value, ((8, 8), (4, 4), (2, 2)), locations, weights).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
    one_level = 4 * 8 * tokens * heads * channels * 4  # corners * points * values * bytes
    assert compiled.memory_analysis().temp_size_in_bytes < one_level


def test_sizes_that_do_not_add_up_are_an_error():
    value, locations, weights = random_input()
    with pytest.raises(ValueError, match="hold 26 tokens, but value has shape"):
        deform_attn(value, ((2, 3), (4, 5)), locations[:, :, :, :2], weights[:, :, :, :2])

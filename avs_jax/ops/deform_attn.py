"""The parameter-free part of multi-scale deformable attention, in plain jnp.

out[n, s, g] = sum over levels l and points p of
               weights[n, s, g, l, p] * bilinear(value[n, :, g], locations[n, s, g, l, p])

Bilinear sampling has pixel centers at (i + 1/2) / size and zeros outside, decided per corner
(Deformable DETR, Zhu et al. 2021, section 4.1; PyTorch's grid_sample with zero padding and
align_corners=False).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def deform_attn(
    value: jax.Array,
    sizes: Sequence[tuple[int, int]],
    locations: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """Weighted sum of sampled values, [N, S, G * C] in the dtype of value.

    A scan runs over the L P points of a query, and the backward pass samples again. Gathering all
    points at once takes 18 times the memory in the forward and 9 times in the backward pass, and is
    slower on a CPU. The gradient is written out: JAX's would scatter each corner into zeros of its
    own and add these up. There is no second derivative and no forward mode.

    Args:
      value: [N, sum of h*w, G, C], levels concatenated, each row by row.
      sizes: (h, w) of each level.
      locations: [N, S, G, L, P, 2], (x, y) as fractions of the level's width and height.
      weights: [N, S, G, L, P].
    """
    areas = [height * width for height, width in sizes]
    num_frames, num_queries, num_heads, num_levels, num_points = weights.shape
    if sum(areas) != value.shape[1] or len(sizes) != num_levels:
        raise ValueError(
            f"deform_attn: levels of sizes {list(sizes)} hold {sum(areas)} tokens, but value has "
            f"shape {value.shape} and weights have shape {weights.shape}"
        )
    steps = num_levels * num_points
    value = jnp.moveaxis(value, 2, 1)  # [N, G, tokens, C]
    flat = locations.reshape(num_frames, num_queries, num_heads, steps, 2)
    points = jnp.transpose(flat, (3, 4, 0, 2, 1))  # [L P, 2, N, G, S]
    flat = weights.reshape(num_frames, num_queries, num_heads, steps)
    shares = jnp.transpose(flat, (3, 0, 2, 1))  # [L P, N, G, S]
    starts = np.cumsum([0, *areas[:-1]])
    levels = [(h, w, start) for (h, w), start in zip(sizes, starts, strict=True)]
    levels = jnp.asarray(np.repeat(np.array(levels, np.int32), num_points, axis=0))

    total = _sample(value, points, shares, levels)
    total = jnp.moveaxis(total, 1, 2).reshape(num_frames, num_queries, -1)
    return total.astype(value.dtype)


@jax.custom_vjp
def _sample(value, points, shares, levels):
    """value [N, G, tokens, C], points [L P, 2, N, G, S], shares [L P, N, G, S] -> [N, G, S, C].

    levels int [L P, 3]: height, width and first token of each point's level.
    """

    def add_point(total, step):
        point, share, level = step
        result = 0
        for corner in _corners(point, level):
            weight = jnp.where(corner.inside, corner.near * share, 0)
            sampled = _take(value, corner.token)
            result += jnp.einsum("ngs,ngsc->ngsc", weight, sampled, precision="highest")
        return total + result, None

    shape = (*shares.shape[1:], value.shape[-1])
    start = jnp.zeros(shape, jnp.promote_types(value.dtype, shares.dtype))
    return jax.lax.scan(add_point, start, (points, shares, levels))[0]


def _sample_forward(value, points, shares, levels):
    return _sample(value, points, shares, levels), (value, points, shares, levels)


def _sample_backward(inputs, gradient):
    """Gradients of the inputs, that of value summed in the dtype of the result."""
    value, points, shares, levels = inputs

    def add_point(total, step):
        point, share, level = step
        by_share, by_x, by_y = 0, 0, 0
        for corner in _corners(point, level):
            weight = jnp.where(corner.inside, corner.near * share, 0)
            total = _add_at(total, corner.token, weight[..., None] * gradient)
            # A matrix product: XLA:CPU adds a sum over the last axis channel by channel.
            sampled = _take(value, corner.token)
            by_weight = jnp.einsum("ngsc,ngsc->ngs", gradient, sampled, precision="highest")
            by_weight = jnp.where(corner.inside, by_weight, 0)
            by_share += by_weight * corner.near
            by_x += by_weight * corner.slope_x
            by_y += by_weight * corner.slope_y
        by_point = jnp.stack([by_x * share * level[1], by_y * share * level[0]])
        return total, (by_point, by_share)

    start = jnp.zeros(value.shape, gradient.dtype)
    by_value, (by_points, by_shares) = jax.lax.scan(add_point, start, (points, shares, levels))
    by_inputs = zip((by_value, by_points, by_shares), inputs[:3], strict=True)
    return (*(by.astype(x.dtype) for by, x in by_inputs), None)


_sample.defvjp(_sample_forward, _sample_backward)


class Corner(NamedTuple):
    """One of the four pixels around a point of each query; all [N, G, S].

    Attributes:
      token: its place in value.
      inside: it lies in the image.
      near: its bilinear weight; slope_x and slope_y are the derivatives, per pixel.
    """

    token: jax.Array
    inside: jax.Array
    near: jax.Array
    slope_x: jax.Array
    slope_y: jax.Array


def _corners(point, level) -> Iterator[Corner]:
    """Of a point (x, y) of each query, [2, N, G, S], on a level (height, width, first token)."""
    height, width, start = level
    x, y = point[0] * width - 0.5, point[1] * height - 0.5  # in pixels from the first center
    left, top = jnp.floor(x), jnp.floor(y)
    to_right, to_bottom = x - left, y - top
    # Far-away points would overflow int32; every corner outside the image counts as zero.
    left = jnp.clip(left, -2, width).astype(jnp.int32)
    top = jnp.clip(top, -2, height).astype(jnp.int32)
    for down in (0, 1):
        for across in (0, 1):
            i, j = top + down, left + across
            near_y = to_bottom if down else 1 - to_bottom
            near_x = to_right if across else 1 - to_right
            yield Corner(
                token=start + jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1),
                inside=(i >= 0) & (i < height) & (j >= 0) & (j < width),
                near=near_y * near_x,
                slope_x=near_y if across else -near_y,
                slope_y=near_x if down else -near_x,
            )


@jax.vmap
@jax.vmap
def _take(tokens, places):
    return tokens.at[places].get(mode="promise_in_bounds")


@jax.vmap
@jax.vmap
def _add_at(tokens, places, values):
    return tokens.at[places].add(values, mode="promise_in_bounds")

"""The parameter-free part of multi-scale deformable attention, in plain jnp.

out[n, s, g] = sum over levels l and points p of
               weights[n, s, g, l, p] * bilinear(value[n, :, g], locations[n, s, g, l, p])

Bilinear sampling has pixel centers at (i + 1/2) / size and zeros outside, decided per corner
(Deformable DETR, Zhu et al. 2021, section 4.1; PyTorch's grid_sample with zero padding and
align_corners=False).
"""

from collections.abc import Sequence

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
    slower on a CPU.

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

    def add_point(total, step):
        return total + _sample_point(value, *step), None

    shape = (num_frames, num_heads, num_queries, value.shape[-1])
    start = jnp.zeros(shape, jnp.promote_types(value.dtype, weights.dtype))
    add_point = jax.checkpoint(add_point, prevent_cse=False)
    total, _ = jax.lax.scan(add_point, start, (points, shares, levels))
    total = jnp.moveaxis(total, 1, 2).reshape(num_frames, num_queries, -1)
    return total.astype(value.dtype)


def _sample_point(value, point, share, level):
    """One point (x, y) of each query, [2, N, G, S], of a level (height, width, first token).

    value [N, G, tokens, C] and share [N, G, S] -> [N, G, S, C].
    """
    height, width, start = level
    x, y = point[0] * width - 0.5, point[1] * height - 0.5  # in pixels from the first center
    left, top = jnp.floor(x), jnp.floor(y)
    to_right, to_bottom = x - left, y - top
    # Far-away points would overflow int32; every corner outside the image counts as zero.
    left = jnp.clip(left, -2, width).astype(jnp.int32)
    top = jnp.clip(top, -2, height).astype(jnp.int32)
    take = jax.vmap(jax.vmap(lambda tokens, k: tokens.at[k].get(mode="promise_in_bounds")))
    result = 0
    for down in (0, 1):
        for across in (0, 1):
            i, j = top + down, left + across
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            near = (to_bottom if down else 1 - to_bottom) * (to_right if across else 1 - to_right)
            weight = jnp.where(inside, near * share, 0)
            index = start + jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)
            sampled = take(value, index)
            # An einsum makes the gradient of the weight a matrix product. As a sum over the last
            # axis, XLA:CPU adds channel by channel and doubles the time of the whole gradient.
            result += jnp.einsum("ngs,ngsc->ngsc", weight, sampled, precision="highest")
    return result

"""Multi-scale deformable attention, the part without parameters, in plain jnp.

out[n, s, g] = sum over levels l and points p of
               weights[n, s, g, l, p] * bilinear(value[n, :, g], locations[n, s, g, l, p])

Bilinear sampling sees pixel centres at (i + 1/2) / size and zeros outside, each of the four
corners by itself (Deformable DETR, Zhu et al. 2021, section 4.1; PyTorch's grid_sample with zero
padding and align_corners=False).
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
    """Weighted sum of sampled values.

    The gathered values, 4 L P times the size of the output, are never kept for the backward pass:
    it gathers again.

    Args:
      value: [N, sum of h*w, G, C], the levels one after the other, each row by row.
      sizes: (h, w) of each level.
      locations: [N, S, G, L, P, 2], (x, y) as fractions of the level's width and height.
      weights: [N, S, G, L, P].

    Returns:
      [N, S, G * C] in the dtype of value.

    Raises:
      ValueError: if the sizes do not add up to the tokens of value.
    """
    tokens = sum(height * width for height, width in sizes)
    if tokens != value.shape[1] or len(sizes) != locations.shape[3]:
        raise ValueError(
            f"deform_attn: levels of sizes {list(sizes)} hold {tokens} tokens, but value has shape "
            f"{value.shape} and locations have shape {locations.shape}"
        )
    sample = jax.checkpoint(_sample, static_argnums=(1,), prevent_cse=False)
    return sample(value, tuple(map(tuple, sizes)), locations, weights)


def _sample(value, sizes, locations, weights):
    num_frames, num_queries, num_heads = locations.shape[:3]
    value = jnp.moveaxis(value, 2, 1)  # [N, G, tokens, C]
    result, start = 0, 0
    for level, (height, width) in enumerate(sizes):
        pixels = value[:, :, start : start + height * width]
        start += height * width
        scale = np.array([width, height], np.float32)
        points = locations[:, :, :, level] * jnp.broadcast_to(scale, (1, 1, 1, 1, 2)) - 0.5
        x, y = jnp.transpose(points, (4, 0, 2, 1, 3))  # each [N, G, S, P]
        attention = jnp.moveaxis(weights[:, :, :, level], 2, 1)
        result += _sample_level(pixels, height, width, x, y, attention)
    return jnp.moveaxis(result, 1, 2).reshape(num_frames, num_queries, -1).astype(value.dtype)


def _sample_level(pixels, height, width, x, y, attention):
    """pixels [N, G, h*w, C]; x, y in pixels from the first centre, attention: [N, G, S, P]."""
    left, top = jnp.floor(x), jnp.floor(y)
    right_weight, bottom_weight = x - left, y - top
    # Far-away points would overflow int32; a corner outside counts as zero wherever it is.
    left = jnp.clip(left, -2, width).astype(jnp.int32)
    top = jnp.clip(top, -2, height).astype(jnp.int32)
    result = 0
    for down in (0, 1):
        for across in (0, 1):
            i, j = top + down, left + across
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            weight = (bottom_weight if down else 1 - bottom_weight) * (
                right_weight if across else 1 - right_weight
            )
            weight = jnp.where(inside, weight * attention, 0)
            index = jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)
            result += jnp.einsum("ngsp,ngspc->ngsc", weight, _take(pixels, index))
    return result


def _take(pixels, index):
    """[N, G, h*w, C] at [N, G, S, P]: [N, G, S, P, C]."""
    take = jax.vmap(jax.vmap(lambda p, k: p.at[k].get(mode="promise_in_bounds")))
    return take(pixels, index)

"""Masks of pixels as shares of the cells of a map."""

import jax
import jax.numpy as jnp


def cell_shares(masks: jax.Array, size: tuple[int, int], stride: int) -> jax.Array:
    """How much of each cell masks cover: bool [..., H, W] -> float32 [..., h, w].

    `size` is (h, w) of the map, which covers the image padded at the bottom and right; masks are
    padded alike.
    """
    *leading, height, width = masks.shape
    rows, columns = size
    more = [(0, 0)] * len(leading) + [(0, stride * rows - height), (0, stride * columns - width)]
    padded = jnp.pad(masks.astype(jnp.float32), more)
    return padded.reshape(*leading, rows, stride, columns, stride).mean((-3, -1))

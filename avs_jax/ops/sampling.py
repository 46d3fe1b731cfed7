"""Bilinear resizing and point sampling: the pixel-centre rule, once.

Pixel i of an axis of n pixels covers [i, i + 1) of the n units that the axis is long, so its centre
is at (i + 1/2) / n of the image. This is PyTorch's `align_corners=False`. Between centres the
value is linear. What differs is what lies outside:

  resize_bilinear  clamps to the edge             (torch.nn.functional.interpolate, no antialias)
  sample_bilinear  sees zeros beyond the edge     (torch.nn.functional.grid_sample, zero padding,
                                                   and detectron2's point_sample)
"""

import jax
import jax.numpy as jnp
import numpy as np


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
    """Resizes by bilinear interpolation without antialiasing, also when shrinking.

    Interpolation along an axis is a product with a constant matrix that has two entries per row;
    as matrix products its gradient needs no scatter.

    Args:
      x: [..., H, W, C]; integers and booleans count as float32.
      size: (h, w) of the result.
      align_corners: the centres of the corner pixels fall on each other, instead of their borders.

    Returns:
      [..., h, w, C] in the dtype of x (float32 for integers); computed in float32 at least.
    """
    height, width = x.shape[-3:-1]
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    if (height, width) == tuple(size):
        return x.astype(dtype)
    rows = _interpolation_matrix(height, size[0], align_corners)
    columns = _interpolation_matrix(width, size[1], align_corners)
    y = x.astype(jnp.promote_types(dtype, jnp.float32))
    if height != size[0]:
        y = jnp.einsum("hH,...HWC->...hWC", rows, y, precision="highest")
    if width != size[1]:
        y = jnp.einsum("wW,...HWC->...HwC", columns, y, precision="highest")
    return y.astype(dtype)


def _interpolation_matrix(size_in: int, size_out: int, align_corners: bool) -> np.ndarray:
    """float32 [size_out, size_in] whose rows sum to 1."""
    index = np.arange(size_out, dtype=np.float64)
    if align_corners:
        position = index * ((size_in - 1) / max(size_out - 1, 1))
    else:
        position = (index + 0.5) * (size_in / size_out) - 0.5
    position = np.clip(position, 0, size_in - 1)
    distance = np.abs(position[:, None] - np.arange(size_in)[None, :])
    return np.maximum(1 - distance, 0).astype(np.float32)


def sample_bilinear(x: jax.Array, points: jax.Array) -> jax.Array:
    """Reads an image at arbitrary points by bilinear interpolation; beyond its edge it is zero.

    Differentiable in both arguments.

    Args:
      x: [N, H, W, C]; integers and booleans count as float32.
      points: float [N, P, 2], (x, y) as fractions of the width and the height; (0, 0) is the
        outer corner of the first pixel, (1, 1) that of the last.

    Returns:
      [N, P, C] in the dtype of x (float32 for integers); interpolated in float32 at least.
    """
    height, width = x.shape[1:3]
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    accumulate = jnp.promote_types(dtype, jnp.float32)
    position = points.astype(jnp.float32) * jnp.array([width, height], jnp.float32)[None, None]
    position -= 0.5
    corner = jnp.floor(position)
    fraction = (position - corner).astype(accumulate)
    pixels = x.reshape(x.shape[0], height * width, x.shape[3])
    # Far-away points would overflow int32; a pixel outside counts as zero wherever it is.
    limit = jnp.array([width, height], jnp.float32)[None, None]
    column, row = jnp.moveaxis(jnp.clip(corner, -2, limit).astype(jnp.int32), -1, 0)

    result = 0
    for row_step in (0, 1):
        for column_step in (0, 1):
            i, j = row + row_step, column + column_step
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            weight_i = fraction[..., 1] if row_step else 1 - fraction[..., 1]
            weight_j = fraction[..., 0] if column_step else 1 - fraction[..., 0]
            weight = jnp.where(inside, weight_i * weight_j, 0)
            index = jnp.clip(i, 0, height - 1) * width + jnp.clip(j, 0, width - 1)
            values = jax.vmap(lambda p, k: p.at[k].get(mode="promise_in_bounds"))(pixels, index)
            result += weight[..., None] * values.astype(accumulate)
    return result.astype(dtype)

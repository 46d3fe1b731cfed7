"""Bilinear resizing and point sampling with one pixel-center rule.

The center of pixel i of n is at (i + 1/2) / n of the image (PyTorch's `align_corners=False`), and
values are linear between centers. The functions differ beyond the edge and when shrinking:

  resize_bilinear     clamps to the edge   (torch.nn.functional.interpolate, no antialias)
  resize_antialiased  averages new pixels  (the same with antialias)
  sample_bilinear     reads zeros          (torch.nn.functional.grid_sample, zero padding, and
                                            detectron2's point_sample)
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.ops.resampling import antialiased_matrix


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
    """Resizes [..., H, W, C] to [..., h, w, C] without antialiasing, also when shrinking.

    Uses two weighted gathers per axis. On a CPU, matrix products take about four times as long in
    the forward pass and no less in the backward pass.

    Integers and booleans count as float32. The result has the dtype of x, computed in at least
    float32. `align_corners` aligns the centers of the corner pixels instead of their outer edges.
    """
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    y = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis, size_out in ((x.ndim - 3, size[0]), (x.ndim - 2, size[1])):
        if y.shape[axis] != size_out:
            y = _interpolate_axis(y, axis, size_out, align_corners)
    return y.astype(dtype)


def _interpolate_axis(x: jax.Array, axis: int, size_out: int, align_corners: bool) -> jax.Array:
    """Interpolates one axis; the gradient gathers too, where autodiff would scatter.

    XLA:CPU scatters one index after the other, on one core.
    """
    size_in = x.shape[axis]
    low, high, fraction = _neighbors(size_in, size_out, align_corners)
    fraction = fraction.astype(x.dtype)  # rounded before 1 - fraction, as in PyTorch

    def along_axis(values: np.ndarray) -> np.ndarray:
        shape = [len(values) if a == axis else 1 for a in range(x.ndim)]
        return values.astype(x.dtype).reshape(shape)

    @jax.custom_vjp
    def interpolate(x):
        below, above = (jnp.take(x, i, axis=axis, mode="clip") for i in (low, high))
        return along_axis(1 - fraction) * below + along_axis(fraction) * above

    def pull_back(_, gradient):
        return (
            sum(
                along_axis(weight) * jnp.take(gradient, index, axis=axis, mode="clip")
                for index, weight in _readers(low, high, fraction, size_in)
            ),
        )

    interpolate.defvjp(lambda x: (interpolate(x), None), pull_back)
    return interpolate(x)


def _neighbors(
    size_in: int, size_out: int, align_corners: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each new pixel [size_out]: the old pixels at its sides, and how far the second counts."""
    index = np.arange(size_out, dtype=np.float64)
    if align_corners:
        position = index * ((size_in - 1) / max(size_out - 1, 1))
    else:
        position = (index + 0.5) * (size_in / size_out) - 0.5
    position = np.clip(position, 0, size_in - 1)
    low = np.floor(position).astype(np.int32)
    return low, np.minimum(low + 1, size_in - 1), position - low


def _readers(
    low: np.ndarray, high: np.ndarray, fraction: np.ndarray, size_in: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (index, weight), [size_in] each: a new pixel per old one, until all readers are met.

    New pixels that read an old one are neighbors. Past the last one, the weight is zero.
    """
    weights = np.zeros((size_in, len(low)))
    np.add.at(weights, (low, np.arange(len(low))), 1 - fraction)
    np.add.at(weights, (high, np.arange(len(low))), fraction)
    is_read = weights != 0
    first, last = is_read.argmax(1), len(low) - 1 - is_read[:, ::-1].argmax(1)
    count = np.where(is_read.any(1), last - first + 1, 0).max()
    padded = np.pad(weights, ((0, 0), (0, count)))
    for k in range(count):
        index = (first + k).astype(np.int32)
        yield index, padded[np.arange(size_in), index]


def resize_antialiased(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes [..., H, W, C] to float32 [..., h, w, C] bilinearly, with antialiasing."""
    rows, columns = (
        antialiased_matrix(old, new).astype(np.float32)
        for old, new in zip(x.shape[-3:-1], size, strict=True)
    )
    exact = jax.lax.Precision.HIGHEST
    y = jnp.einsum("yh,...hwc->...ywc", rows, x.astype(jnp.float32), precision=exact)
    return jnp.einsum("xw,...ywc->...yxc", columns, y, precision=exact)


def sample_bilinear(x: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear interpolation of an image at points, zero beyond its edge.

    Differentiable in both arguments. Dtypes are as in `resize_bilinear`.

    Args:
      x: [N, H, W, C].
      points: float [N, P, 2], (x, y) as fractions of width and height; (0, 0) and (1, 1) are
        opposite outer corners.

    Returns:
      [N, P, C].
    """
    height, width = x.shape[1:3]
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    accumulate = jnp.promote_types(dtype, jnp.float32)
    position = points.astype(jnp.float32) * jnp.array([width, height], jnp.float32)[None, None]
    position -= 0.5
    corner = jnp.floor(position)
    fraction = (position - corner).astype(accumulate)
    pixels = x.reshape(x.shape[0], height * width, x.shape[3])
    # Far-away points would overflow int32; every pixel outside the image counts as zero.
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

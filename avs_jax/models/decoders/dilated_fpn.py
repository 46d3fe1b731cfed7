"""AVSBench's neck and decoder: dilated convolutions per stage, top-down fusion, a head.

    c_i = sum over dilations of conv3x3(res_{i+1})
    p_4 = up2(rcu2(c_4))        p_i = up2(rcu2(p_{i+1} + rcu1(c_i)))
    rcu(x) = r + conv3x3(relu(conv3x3(r))), r = relu(x)

up2 doubles the sides, aligning the centers of the corner pixels. There are no norms. Source: Zhou
et al., ECCV 2022, section 3.3; OpenNLPLab/AVSBench, avs_*/model/*_AVSModel.py (Classifier_Module,
FeatureFusionBlock, output_conv). There the first ReLU of a residual unit works in place, so its
skip carries relu(x); the published weights were trained so, and it is the arithmetic here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import Conv, convolve, torch_uniform
from avs_jax.ops.sampling import resize_bilinear

DILATIONS = (3, 6, 12, 18)
TAP_SHARE = 0.7  # of the pixels that taps see; up to here, they are convolved tap by tap

Array = jax.Array


class DilatedSum(nn.Module):
    """The sum of 3 x 3 convolutions of one map, one per DILATIONS: [N, h, w, C] -> [.., D]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x, y = x.astype(self.dtype), 0
        for i, dilation in enumerate(DILATIONS):
            conv = DilatedConv(self.features, dilation, self.dtype, name=f"conv2d_list_{i}")
            y += conv(x)
        return y


class DilatedConv(nn.Module):
    """3 x 3 convolution with a bias whose taps are `dilation` pixels apart, zero-padded."""

    features: int
    dilation: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape)
        bias = self.param("bias", torch_uniform(9 * x.shape[-1]), (self.features,))
        y = dilated_convolve(x, kernel.astype(self.dtype), self.dilation)
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


def dilated_convolve(x: Array, kernel: Array, dilation: int) -> Array:
    """[N, h, w, C] with [3, 3, C, D], taps `dilation` pixels apart, zero-padded: [N, h, w, D].

    Taps that are far apart see much padding. A product per tap, of the pixels it sees, skips that
    work: on a 7 x 7 map, two of the four dilations are their center tap alone.
    """
    n, h, w, channels = x.shape
    if _seen_share(h, dilation) * _seen_share(w, dilation) > TAP_SHARE:
        return convolve(x, kernel, dilation)
    features = kernel.shape[-1]
    y = jnp.zeros((n, h, w, features), x.dtype)
    for i in range(3):
        for j in range(3):
            down, right = (i - 1) * dilation, (j - 1) * dilation
            if abs(down) >= h or abs(right) >= w:
                continue
            seen = x[:, max(down, 0) : h + min(down, 0), max(right, 0) : w + min(right, 0)]
            product = (seen.reshape(-1, channels) @ kernel[i, j]).reshape(*seen.shape[:3], features)
            rows, columns = ((max(-by, 0), max(by, 0)) for by in (down, right))
            y += jnp.pad(product, ((0, 0), rows, columns, (0, 0)))
    return y


def _seen_share(size: int, dilation: int) -> float:
    """Share of an axis that three taps see on average; the rest is padding."""
    return (size + 2 * max(size - dilation, 0)) / (3 * size)


class ResidualUnit(nn.Module):
    """rcu(x) of the module's docstring: [N, h, w, C] -> [N, h, w, C]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(x)
        y = Conv(x.shape[-1], 3, dtype=self.dtype, name="conv1")(x)
        return x + Conv(x.shape[-1], 3, dtype=self.dtype, name="conv2")(nn.relu(y))


class FusionBlock(nn.Module):
    """A stage's map joins the coarser path: [N, h, w, C], twice -> [N, 2 h, 2 w, C]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, path: Array | None) -> Array:
        """`path` None: the coarsest stage, whose map enters the second unit as it is."""
        if path is not None:
            x = path + ResidualUnit(self.dtype, name="resConfUnit1")(x)
        x = ResidualUnit(self.dtype, name="resConfUnit2")(x)
        size = (2 * x.shape[1], 2 * x.shape[2])
        return resize_bilinear(x, size, align_corners=True)

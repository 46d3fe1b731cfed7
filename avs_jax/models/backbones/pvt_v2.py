"""Pyramid Vision Transformer v2 (Wang et al., CVMJ 2022): images to maps of strides 4 to 32.

    z = x + drop_path(SRA(LN(x)))        y = z + drop_path(MLP(LN(z)))
    SRA = softmax(q k' / sqrt(d)) v      k and v from LN(conv_r(x)), x downsampled r times
    MLP = fc2(GELU(depthwise 3 x 3 (fc1(x))))

Overlapping patch embeddings connect the stages. A stage outputs its normalized map, which the next
stage also reads (unlike Swin). Source: whai362/PVT, classification/pvt_v2.py, as used by
OpenNLPLab/AVSBench; the defaults are its b5. Layer norms have two epsilons: 1e-6 before the
branches and at the end of a stage, PyTorch's 1e-5 in patch embeddings and after the reduction.

The blocks of a stage run as one scan; its parameters have a leading axis of the stage's depth.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.backbones.stages import (
    DROP_PATH_RULE,
    FEATURE_LEVELS,
    draw_drop_path,
    heads_rule,
)
from avs_jax.models.layers import LayerNorm, Linear, views_of_entries
from avs_jax.models.rules import per_stage
from avs_jax.ops.attention import softmax_attention
from avs_jax.spec import InputError, check_shape

EPSILON = 1e-6  # of the norms that do not use PyTorch's default

Array = jax.Array


def conv_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Normal with variance 2 / (kernel pixels * outputs per group), as in the original."""
    height, width, inputs, outputs = shape
    groups = outputs if inputs == 1 else 1
    std = (2 * groups / (height * width * outputs)) ** 0.5
    return std * jax.random.normal(key, shape, dtype)


def linear(features: int, dtype: jnp.dtype, name: str) -> Linear:
    """A linear layer with the original's initial values: truncated normal (0.02) and zero bias."""
    normal, zeros = nn.initializers.truncated_normal(0.02), nn.initializers.zeros
    return Linear(features, True, normal, zeros, dtype, name=name)


class PVTv2(nn.Module):
    """Four stages of global attention with keys and values on a coarser grid.

    Parameters, norms and softmax are float32.
    """

    embed_dims: Sequence[int] = (64, 128, 320, 512)  # channels per stage
    depths: Sequence[int] = (3, 6, 40, 3)  # blocks per stage
    num_heads: Sequence[int] = (1, 2, 5, 8)  # attention heads per stage
    mlp_ratios: Sequence[int] = (4, 4, 4, 4)  # hidden width of the MLPs over the channels
    sr_ratios: Sequence[int] = (8, 4, 2, 1)  # reduction of the key and value grid, per side
    drop_path_rate: float = 0.1  # of the last block; it grows linearly from 0 at the first block
    remat: bool = False  # recompute each block in the backward pass
    dtype: str = "float32"  # of matrix products and activations

    RULES = (
        *per_stage(*(f"backbone.{x}" for x in ("embed_dims", "depths", "mlp_ratios", "sr_ratios"))),
        heads_rule(lambda config: config["backbone"].get("embed_dims", PVTv2.embed_dims)),
        DROP_PATH_RULE,
    )

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, frame_ids: Array | None = None
    ) -> dict[str, Array]:
        """Feature maps of normalized images [N, H, W, 3] with sides of at least 32 px.

        `train` draws drop path as in Swin.

        Returns:
          {"res2": [N, ceil(H / 4), ceil(W / 4), embed_dims[0]], .., "res5"}, of `dtype`; each map
          has half the size of the previous one, rounded up.
        """
        num_frames = check_shape("x", x, "N H W 3")["N"]
        dtype = jnp.dtype(self.dtype)
        scales = draw_drop_path(self, num_frames, frame_ids, train)

        x, outputs, first = x.astype(dtype), {}, 0
        for i, (level, depth) in enumerate(zip(FEATURE_LEVELS, self.depths, strict=True)):
            dim = self.embed_dims[i]
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            x = PatchEmbed(dim, kernel, stride, dtype, name=f"patch_embed{i + 1}")(x)
            # A scan already keeps XLA from merging the forward pass and its recomputation.
            body = nn.remat(Block, prevent_cse=False) if self.remat else Block
            blocks = nn.scan(
                body, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth
            )
            block = blocks(
                num_heads=self.num_heads[i],
                mlp_dim=dim * self.mlp_ratios[i],
                reduction=self.sr_ratios[i],
                dtype=dtype,
                name=f"block{i + 1}",
            )
            x, _ = block(x, None if scales is None else scales[first : first + depth])
            x = LayerNorm(EPSILON, name=f"norm{i + 1}")(x)
            outputs[level] = x
            first += depth
        return outputs


class PatchEmbed(nn.Module):
    """Overlapping patches: [N, h, w, C] -> [N, ceil(h / stride), ceil(w / stride), dim]."""

    dim: int
    kernel: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        half = self.kernel // 2
        conv = nn.Conv(
            self.dim,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=((half, half), (half, half)),
            dtype=self.dtype,
            kernel_init=conv_init,
            name="proj",
        )
        return LayerNorm(name="norm")(conv(x))


class Block(nn.Module):
    """Pre-norm residual attention and MLP; the body of the scan."""

    num_heads: int
    mlp_dim: int
    reduction: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, scales: Array | None) -> tuple[Array, None]:
        """[N, h, w, C], drop-path scales [2, N] or None -> ([N, h, w, C], None)."""
        attn = Attention(self.num_heads, self.reduction, self.dtype, name="attn")
        mlp = ConvFeedForward(self.mlp_dim, self.dtype, name="mlp")
        for i, branch in enumerate((attn, mlp)):
            y = branch(LayerNorm(EPSILON, name=f"norm{i + 1}")(x))
            x = x + (y if scales is None else y * scales[i][:, None, None, None])
        return x, None


class Attention(nn.Module):
    """Every token attends to a grid `reduction` times coarser, from a strided convolution.

    Rows and columns at the bottom and right that do not fill a grid cell yield no keys.
    """

    num_heads: int
    reduction: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, h, w, dim = x.shape
        heads, ratio = self.num_heads, self.reduction

        q = linear(dim, self.dtype, "q")(x).reshape(n, h * w, heads, dim // heads)
        if ratio > 1:
            if min(h, w) < ratio:
                raise InputError(
                    f"PVTv2: a map of {h} x {w} has no cell of sr_ratios = {ratio}; images must "
                    "have sides of at least 32 px"
                )
            x = CellProjection(ratio, self.dtype, name="sr")(x)
            x = LayerNorm(name="norm")(x)
        kv = linear(2 * dim, self.dtype, "kv")(x).reshape(n, -1, 2, heads, dim // heads)
        out = softmax_attention(q, kv[:, :, 0], kv[:, :, 1])
        return linear(dim, self.dtype, "proj")(out.reshape(n, h, w, dim))


class ConvFeedForward(nn.Module):
    """Linear, depthwise 3 x 3 convolution, exact GELU, Linear."""

    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim = x.shape[-1]
        x = linear(self.hidden_dim, self.dtype, "fc1")(x)
        x = DepthwiseConv(self.dtype, name="dwconv")(x)
        return linear(dim, self.dtype, "fc2")(nn.gelu(x, approximate=False))


class CellProjection(nn.Module):
    """A convolution whose stride equals its kernel size, as one matrix product.

    [N, h, w, C] -> [N, h // side, w // side, C]. In a scan, XLA:CPU takes seconds for the kernel
    gradient of a real convolution (layers.convolve).
    """

    side: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        side, (n, h, w, dim) = self.side, x.shape
        kernel = self.param("kernel", conv_init, (side, side, dim, dim))
        bias = self.param("bias", nn.initializers.zeros, (dim,))
        rows, columns = h // side, w // side
        cells = x[:, : rows * side, : columns * side].astype(self.dtype)
        cells = cells.reshape(n, rows, side, columns, side, dim)
        y = jnp.einsum("nhiwjc,ijcd->nhwd", cells, kernel.astype(self.dtype))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


class DepthwiseConv(nn.Module):
    """A depthwise 3 x 3 convolution, zero-padded to keep h and w."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", conv_init, (3, 3, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = depthwise_convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


@jax.custom_vjp
def depthwise_convolve(x: Array, kernel: Array) -> Array:
    """[N, h, w, C] with [3, 3, 1, C], stride 1, zero-padded, as a sum of nine shifted maps.

    A grouped convolution takes XLA:CPU 20 times longer, and 1000 times longer for the kernel
    gradient in a scan. Autodiff would keep the nine maps.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    views = views_of_entries(x, kernel.shape[:2])
    terms = [view.astype(wide) * kernel[i : i + 1, j : j + 1] for i, j, view in views]
    return sum(terms[1:], terms[0]).astype(x.dtype)


def _depthwise_forward(x, kernel):
    return depthwise_convolve(x, kernel), (x, kernel)


def _depthwise_backward(kept, gradient):
    x, kernel = kept
    wide = jnp.promote_types(x.dtype, jnp.float32)
    views = views_of_entries(x, kernel.shape[:2])
    entries = [(view.astype(wide) * gradient).sum((0, 1, 2)) for _, _, view in views]
    d_kernel = jnp.stack(entries).reshape(kernel.shape).astype(kernel.dtype)
    return depthwise_convolve(gradient, kernel[::-1, ::-1]), d_kernel


depthwise_convolve.defvjp(_depthwise_forward, _depthwise_backward)

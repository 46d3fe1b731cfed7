"""Pyramid Vision Transformer v2 (Wang et al., CVMJ 2022): images to maps of strides 4 to 32.

    z = x + drop_path(SRA(LN(x)))        y = z + drop_path(MLP(LN(z)))
    SRA = softmax(q k' / sqrt(d)) v      k and v from LN(conv_r(x)), x made r times smaller
    MLP = fc2(GELU(depthwise 3 x 3 (fc1(x))))

The stages are joined by overlapping patch embeddings. A stage's output is its normed map, which is
also what the next stage reads (unlike Swin's). Source: whai362/PVT, classification/pvt_v2.py, as
OpenNLPLab/AVSBench uses it; the defaults are its b5. Layer norms have two epsilons: 1e-6 before the
branches and at the end of a stage, PyTorch's 1e-5 in patch embeddings and after the reduction.

The blocks of a stage run as one scan, whose parameters carry a leading axis of the stage's depth.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.backbones.stages import (
    LEVELS,
    check_drop_path_rate,
    check_stages,
    draw_drop_path,
)
from avs_jax.models.layers import LayerNorm, Linear, views_of_entries
from avs_jax.spec import InputError, check_shape

EPSILON = 1e-6  # of the norms that the two of PyTorch's default are not

Array = jax.Array


def conv_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Normal with variance 2 / (pixels of the kernel * outputs per group), as the original's."""
    height, width, inputs, outputs = shape
    groups = outputs if inputs == 1 else 1
    std = (2 * groups / (height * width * outputs)) ** 0.5
    return std * jax.random.normal(key, shape, dtype)


def linear(features: int, dtype: jnp.dtype, name: str) -> Linear:
    """A linear layer with the original's start: truncated normal of deviation 0.02, no bias yet."""
    normal, zeros = nn.initializers.truncated_normal(0.02), nn.initializers.zeros
    return Linear(features, True, normal, zeros, dtype, name=name)


class PVTv2(nn.Module):
    """Four stages of attention on all tokens, to keys and values of a coarser grid.

    Attributes:
      embed_dims: channels per stage.
      depths: blocks per stage, any positive number.
      num_heads: attention heads per stage.
      mlp_ratios: hidden width of the MLPs over the channels, per stage.
      sr_ratios: how much smaller the grid of keys and values is, per side and stage; 1 = not.
      drop_path_rate: of the last block; earlier ones have evenly less, the first none.
      remat: recompute each block in the backward pass instead of keeping its activations.
      dtype: of matrix products and activations; parameters, norms and softmax are float32.
    """

    embed_dims: Sequence[int] = (64, 128, 320, 512)
    depths: Sequence[int] = (3, 6, 40, 3)
    num_heads: Sequence[int] = (1, 2, 5, 8)
    mlp_ratios: Sequence[int] = (4, 4, 4, 4)
    sr_ratios: Sequence[int] = (8, 4, 2, 1)
    drop_path_rate: float = 0.1
    remat: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, frame_ids: Array | None = None
    ) -> dict[str, Array]:
        """Feature maps of frames.

        Args:
          x: [N, H, W, 3] normalized images; sides of at least 32 px.
          train: draw drop path, from the rng stream "drop_path".
          frame_ids: int32 [N], as of Swin: a frame's draws follow from the key and its id.

        Returns:
          {"res2": [N, ceil(H / 4), ceil(W / 4), embed_dims[0]], .., "res5"}, of `dtype`, each half
          the size of the one before, rounded up.

        Raises:
          ValueError: a field or a shape that does not fit.
        """
        self._check_fields()
        num_frames = check_shape("x", x, "N H W 3")["N"]
        dtype = jnp.dtype(self.dtype)
        scales = draw_drop_path(self, num_frames, frame_ids, train)

        x, outputs, first = x.astype(dtype), {}, 0
        for i, (level, depth) in enumerate(zip(LEVELS, self.depths, strict=True)):
            dim = self.embed_dims[i]
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            x = PatchEmbed(dim, kernel, stride, dtype, name=f"patch_embed{i + 1}")(x)
            # A scan keeps the forward pass and its recomputation apart without barriers.
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

    def _check_fields(self) -> None:
        check_stages(self, "embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios")
        check_drop_path_rate(self)
        for i, (dim, heads) in enumerate(zip(self.embed_dims, self.num_heads, strict=True)):
            if dim % heads:
                raise InputError(f"PVTv2.num_heads[{i}]: {heads} does not divide {dim} channels")


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
    """Attention and an MLP, each after a norm and around a residual; the body of the scan."""

    num_heads: int
    mlp_dim: int
    reduction: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, scales: Array | None) -> tuple[Array, None]:
        """[N, h, w, C], drop-path scales [2, N] or None -> (the map, nothing to collect)."""
        attn = Attention(self.num_heads, self.reduction, self.dtype, name="attn")
        mlp = ConvFeedForward(self.mlp_dim, self.dtype, name="mlp")
        for i, branch in enumerate((attn, mlp)):
            y = branch(LayerNorm(EPSILON, name=f"norm{i + 1}")(x))
            x = x + (y if scales is None else y * scales[i][:, None, None, None])
        return x, None


class Attention(nn.Module):
    """Every token attends to a grid `reduction` times coarser, made by a strided convolution.

    Rows and columns at the bottom and right that do not fill a cell of the grid are no keys.
    """

    num_heads: int
    reduction: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, h, w, C] -> [N, h, w, C]; the softmax in float32 at least."""
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
        wide = jnp.promote_types(self.dtype, jnp.float32)
        q = q * q.shape[-1] ** -0.5
        scores = jnp.einsum("nqgc,nkgc->ngqk", q, kv[:, :, 0], preferred_element_type=wide)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        out = jnp.einsum("ngqk,nkgc->nqgc", weights, kv[:, :, 1])
        return linear(dim, self.dtype, "proj")(out.reshape(n, h, w, dim))


class ConvFeedForward(nn.Module):
    """Linear, depthwise 3 x 3 convolution, GELU (the exact one), Linear."""

    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim = x.shape[-1]
        x = linear(self.hidden_dim, self.dtype, "fc1")(x)
        x = DepthwiseConv(self.dtype, name="dwconv")(x)
        return linear(dim, self.dtype, "fc2")(nn.gelu(x, approximate=False))


class CellProjection(nn.Module):
    """A convolution without overlap, its stride its kernel's side, as one product.

    [N, h, w, C] -> [N, h // side, w // side, C]. The gradient of a convolution's kernel takes
    XLA:CPU seconds in a scan (layers.convolve).
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
    """Convolution of each channel alone with a 3 x 3 kernel, zero-padded to keep h and w."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", conv_init, (3, 3, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = depthwise_convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)


@jax.custom_vjp
def depthwise_convolve(x: Array, kernel: Array) -> Array:
    """[N, h, w, C] with [3, 3, 1, C], stride 1, zero-padded: nine shifted maps, scaled and added.

    As a convolution of groups, XLA:CPU takes 20 times longer, for the kernel's gradient in a scan
    a thousand times. Autodiff would keep the nine maps.
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

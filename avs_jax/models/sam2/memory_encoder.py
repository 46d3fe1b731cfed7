"""SAM2's memory encoder: an image and the mask found in it to a map that later frames attend to.

    x = W f + downsample(20 sigmoid(mask) - 10)
    x = x + gamma MLP(LN(depthwise7x7(x)))             twice
    memory = W_o x

Source: facebookresearch/sam2, sam2/modeling/memory_encoder.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import LayerNorm, Linear

EPSILON = 1e-6
NUM_BLOCKS = 2
EXPANSION = 4

Array = jax.Array


class MemoryEncoder(nn.Module):
    """Encodes the masks of N objects; `memory_dim` is the width of the result."""

    memory_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, coarse: Array, masks: Array) -> Array:
        """coarse [N, h, w, D], masks [N, 16h, 16w] scaled to -10 .. 10 -> [N, h, w, memory_dim]."""
        dim = coarse.shape[-1]
        masks = MaskDownsampler(dim, self.dtype, name="mask_downsampler")(masks[..., None])
        self.sow("intermediates", "mask_downsampler_out", masks)
        x = Linear(dim, dtype=self.dtype, name="pix_feat_proj")(coarse) + masks
        for i in range(NUM_BLOCKS):
            x = ConvBlock(self.dtype, name=f"fuser_{i}")(x)
        self.sow("intermediates", "fuser_out", x)
        return Linear(self.memory_dim, dtype=self.dtype, name="out_proj")(x)


class MaskDownsampler(nn.Module):
    """Four convolutions of stride 2 that quadruple the channels: [N, H, W, 1] -> [N, h, w, D]."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(4):
            padding, name = ((1, 1), (1, 1)), f"encoder_{3 * i}"
            x = nn.Conv(4 ** (i + 1), (3, 3), 2, padding, dtype=self.dtype, name=name)(x)
            x = LayerNorm(EPSILON, name=f"encoder_{3 * i + 1}")(x)
            x = nn.gelu(x, approximate=False)
        return Linear(self.width, dtype=self.dtype, name="encoder_12")(x)


class ConvBlock(nn.Module):
    """ConvNeXt's block: [N, h, w, D] -> the same."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dim, padding = x.shape[-1], ((3, 3), (3, 3))
        y = nn.Conv(
            dim, (7, 7), 1, padding, feature_group_count=dim, dtype=self.dtype, name="dwconv"
        )(x)
        y = LayerNorm(EPSILON, name="norm")(y)
        y = Linear(EXPANSION * dim, dtype=self.dtype, name="pwconv1")(y)
        y = Linear(dim, dtype=self.dtype, name="pwconv2")(nn.gelu(y, approximate=False))
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (dim,))
        return x + gamma.astype(self.dtype)[None, None, None] * y

"""Hiera (Ryali et al., ICML 2023) as SAM2 uses it: images to maps of strides 4 to 32.

    z = S(x) + attention(LN(x))         y = z + drop_path(MLP(LN(z)))
    attention = softmax(q k' / sqrt(d)) v inside windows, or over the map in `global_blocks`

S is the identity, except in the first block of stages 2 to 4, which doubles the channels and halves
the map: there S(x) = maxpool2x2(W LN(x)), and the queries are max-pooled inside their windows.
Details that matter to pretrained weights:

- such a block still has the window of the stage before, on the map before pooling;
- maps are padded to whole windows with zeros after the norm and unmasked: the padding takes part
  with the biases of keys and values;
- positions are PyTorch's bicubic interpolation of `pos_embed`, plus `pos_embed_window`, tiled.

Source: facebookresearch/sam2 (2b90b9f), sam2/modeling/backbones/hieradet.py; no output norms. The
defaults are `tiny`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avs_jax.models.attention import split_heads
from avs_jax.models.backbones.stages import DROP_PATH_RULE, FEATURE_LEVELS, draw_drop_path
from avs_jax.models.layers import LayerNorm, Linear, max_pool
from avs_jax.models.rules import at_least, divides, per_stage
from avs_jax.ops.attention import map_attention
from avs_jax.ops.bicubic import bicubic_matrix
from avs_jax.spec import check_shape

EPSILON = 1e-6  # of the norms
PATCH = 4  # pixels per side of a token of the first stage
TILE = 8  # tokens per side of `pos_embed_window`
MLP_RATIO = 4

Array = jax.Array

token_init = nn.initializers.truncated_normal(0.02)


class Hiera(nn.Module):
    """Four stages of windowed and global attention.

    Attributes:
      embed_dim: channels of the first stage; doubled from stage to stage.
      num_heads: of the first stage; doubled likewise.
      depths: blocks per stage.
      windows: tokens per side of a window, per stage.
      global_blocks: numbers of the blocks that attend over the whole map.
      pos_grid: cells per side of `pos_embed`.
      drop_path_rate: of the last block; it grows linearly from 0 at the first block.
      remat: recompute each block in the backward pass.
      dtype: of matrix products and activations; parameters, norms and softmax are float32.
    """

    embed_dim: int = 96
    num_heads: int = 1
    depths: Sequence[int] = (1, 2, 7, 2)
    windows: Sequence[int] = (8, 4, 14, 7)
    global_blocks: Sequence[int] = (5, 7, 9)
    pos_grid: int = 7
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: str = "float32"

    RULES = (
        *at_least(1, "backbone.embed_dim", "backbone.pos_grid"),
        divides("backbone.num_heads", "backbone.embed_dim"),
        *per_stage("backbone.depths", "backbone.windows"),
        DROP_PATH_RULE,
    )

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, frame_ids: Array | None = None
    ) -> dict[str, Array]:
        """Feature maps of normalized images [N, H, W, 3], H and W multiples of 32.

        `train` draws drop path as in Swin.

        Returns:
          {"res2": [N, H / 4, W / 4, embed_dim], .., "res5"}, of `dtype`; each map has half the size
          of the previous one and twice the channels. The output of each block is sown as
          `block_out` in the collection "intermediates".
        """
        sizes = check_shape("x", x, "N H W 3")
        if sizes["H"] % 32 or sizes["W"] % 32:
            raise ValueError(f"x: sides {sizes['H']} x {sizes['W']} are not multiples of 32")
        dtype = jnp.dtype(self.dtype)
        scales = draw_drop_path(self, sizes["N"], frame_ids, train)

        x = _patch_embed(self.embed_dim, dtype)(x.astype(dtype))
        x += self._positions(*x.shape[1:3]).astype(dtype)
        block, outputs, number = (nn.remat(Block) if self.remat else Block), {}, 0
        for stage, (level, depth) in enumerate(zip(FEATURE_LEVELS, self.depths, strict=True)):
            for i in range(depth):
                is_first = stage > 0 and i == 0
                window = self.windows[stage - is_first]
                x = block(
                    dim=self.embed_dim * 2**stage,
                    num_heads=self.num_heads * 2**stage,
                    window=0 if number in self.global_blocks else window,
                    pools=is_first,
                    dtype=dtype,
                    name=f"blocks_{number}",
                )(x, None if scales is None else scales[number])
                self.sow("intermediates", "block_out", x)
                number += 1
            outputs[level] = x
        return outputs

    def _positions(self, height: int, width: int) -> Array:
        """float32 [1, height, width, embed_dim]."""
        grid, dim = self.pos_grid, self.embed_dim
        coarse = self.param("pos_embed", token_init, (grid, grid, dim))
        fine = self.param("pos_embed_window", token_init, (TILE, TILE, dim))
        rows, columns = (bicubic_matrix(grid, n).astype(np.float32) for n in (height, width))
        exact = jax.lax.Precision.HIGHEST
        coarse = jnp.einsum("yi,xj,ijc->yxc", rows, columns, coarse, precision=exact)
        return (coarse + jnp.tile(fine, (height // TILE, width // TILE, 1)))[None]


def _patch_embed(dim: int, dtype: jnp.dtype) -> nn.Conv:
    """Overlapping patches: [N, H, W, 3] -> [N, H / 4, W / 4, dim]."""
    padding = ((3, 3), (3, 3))
    return nn.Conv(dim, (7, 7), PATCH, padding, dtype=dtype, name="patch_embed")


class Block(nn.Module):
    """Attention and MLP.

    Attributes:
      dim: output channels.
      window: tokens per side; 0: the whole map.
      pools: halve the map and change the channels to `dim`.
    """

    dim: int
    num_heads: int
    window: int
    pools: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, scales: Array | None = None) -> Array:
        """[N, h, w, C], drop path scales [2, N] -> [N, h, w, dim], or half the size."""

        def scaled(y, branch):
            return y if scales is None else y * scales[branch][:, None, None, None]

        normed = LayerNorm(EPSILON, name="norm1")(x)
        if self.pools:
            x = max_pool(Linear(self.dim, dtype=self.dtype, name="proj")(normed), 2)
        attention = WindowAttention(
            self.dim, self.num_heads, self.window, self.pools, self.dtype, name="attn"
        )
        x = x + scaled(attention(normed), 0)
        y = LayerNorm(EPSILON, name="norm2")(x)
        y = Linear(MLP_RATIO * self.dim, dtype=self.dtype, name="mlp_0")(y)
        y = Linear(self.dim, dtype=self.dtype, name="mlp_1")(nn.gelu(y, approximate=False))
        return x + scaled(y, 1)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows; the fields are those of `Block`."""

    dim: int
    num_heads: int
    window: int
    pools: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, h, w, C] -> [N, h, w, dim], or half the size."""
        height, width = x.shape[1:3]
        side = self.window
        rows, columns = side or height, side or width
        down, right = -height % rows, -width % columns
        x = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))
        grid = {"i": (height + down) // rows, "j": (width + right) // columns}
        x = rearrange(x, "n (i a) (j b) c -> (n i j) a b c", **grid)

        q, k, v = jnp.split(Linear(3 * self.dim, dtype=self.dtype, name="qkv")(x), 3, axis=-1)
        if self.pools:
            q = max_pool(q, 2)
            height, width = height // 2, width // 2
        a = q.shape[1]
        tokens = (rearrange(y, "n a b c -> n (a b) c") for y in (q, k, v))
        x = map_attention(*(split_heads(y, self.num_heads) for y in tokens))
        x = rearrange(x, "n l g c -> n l (g c)")
        x = Linear(self.dim, dtype=self.dtype, name="proj")(x)
        x = rearrange(x, "(n i j) (a b) c -> n (i a) (j b) c", a=a, **grid)
        return x[:, :height, :width]

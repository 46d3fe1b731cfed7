"""SAM2's memory attention: the map of a frame attends to itself and to the memories.

    x = x + 0.1 positions                                             once
    x = x + RoPE(LN x);  x = x + RoPE(LN x, memory);  x = x + MLP(LN x)        in each layer

Keys of the memory carry its positions, values do not; object pointers are keys without rotation.
Source: facebookresearch/sam2, sam2/modeling/memory_attention.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.layers import LayerNorm, Linear, sine_position_encoding
from avs_jax.models.sam2.attention import ProjectedAttention, axial_angles

POSITION_WEIGHT = 0.1

Array = jax.Array


class MemoryAttention(nn.Module):
    """The layers and a norm."""

    num_layers: int
    ffn_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        coarse: Array,
        memory: Array,
        positions: Array,
        masked: Array,
        num_pointer_tokens: int,
    ) -> Array:
        """Conditions the maps of N objects.

        Args:
          coarse: [N, h, w, D].
          memory: [N, S h w + num_pointer_tokens, Dm]: S maps, then pointers.
          positions: of the memory, the same shape.
          masked: bool, the first two axes of `memory`; True where a slot is empty.

        Returns:
          [N, h, w, D].
        """
        height, width, dim = coarse.shape[1:]
        code = sine_position_encoding(height, width, dim)[None].astype(self.dtype)
        x = coarse + POSITION_WEIGHT * jnp.broadcast_to(code, coarse.shape)
        x = x.reshape(x.shape[0], height * width, dim)
        angles = axial_angles(height, width, dim)
        keys = memory + positions
        for i in range(self.num_layers):
            layer = MemoryAttentionLayer(self.ffn_dim, self.dtype, name=f"layers_{i}")
            x = layer(x, memory, keys, masked, angles, num_pointer_tokens)
            self.sow("intermediates", f"layer{i}", x)
        return LayerNorm(name="norm")(x).reshape(coarse.shape)


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to the memory, MLP; norms before each."""

    ffn_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Array,
        memory: Array,
        keys: Array,
        masked: Array,
        angles: np.ndarray,
        num_pointer_tokens: int,
    ) -> Array:
        """x [N, L, D], memory and keys [N, S, Dm], masked bool [N, S], angles [L, D / 2]."""
        dim = x.shape[-1]
        own = ProjectedAttention(1, dim, self.dtype, name="self_attn")
        look = ProjectedAttention(1, dim, self.dtype, name="cross_attn_image")
        y = LayerNorm(name="norm1")(x)
        x += own(y, y, y, angles=angles)
        y = LayerNorm(name="norm2")(x)
        x += look(y, keys, memory, masked, angles, num_pointer_tokens)
        y = LayerNorm(name="norm3")(x)
        y = nn.relu(Linear(self.ffn_dim, dtype=self.dtype, name="linear1")(y))
        return x + Linear(dim, dtype=self.dtype, name="linear2")(y)

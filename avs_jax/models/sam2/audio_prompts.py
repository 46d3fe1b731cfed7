"""A sound as tokens of a prompt: learned queries that attend to the cells of VGGish's map.

    c = LN(W a + e)                      a: cells (time, band) of the map, e: learned positions
    t = q + attention(q, c)              q: learned queries, one per token
    t = t + MLP(LN(t))

Source: ours. AuralSAM2 (arXiv 2506.01015) and SAM2-LOVE (arXiv 2506.01558) also prompt SAM2 with
tokens made of sound, from attention to image features as well; here image and tokens meet in SAM2's
own decoder.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import MLP, LayerNorm, Linear, MultiheadAttention

EXPANSION = 2  # of the MLP

normal = nn.initializers.normal(1.0)


class AudioPrompts(nn.Module):
    """Encodes the sounds of N frames.

    Attributes:
      num_tokens: P.
      width: D.
      num_heads: of the attention.
    """

    num_tokens: int
    width: int
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, cells: jax.Array) -> jax.Array:
        """[N, time, band, C] -> [N, P, D]."""
        cells = cells.reshape(cells.shape[0], -1, cells.shape[-1])
        num, count, _ = cells.shape
        places = self.param("positions", nn.initializers.normal(0.02), (count, self.width))
        cells = Linear(self.width, dtype=self.dtype, name="proj")(cells)
        cells = LayerNorm(name="norm_cells")(cells + places.astype(self.dtype)[None])
        queries = self.param("queries", normal, (self.num_tokens, self.width)).astype(self.dtype)
        tokens = jnp.broadcast_to(queries[None], (num, *queries.shape))
        attention = MultiheadAttention(self.num_heads, self.dtype, name="attention")
        tokens += attention(tokens, cells, cells)
        hidden = (EXPANSION * self.width, self.width)
        return tokens + MLP(hidden, self.dtype, name="mlp")(LayerNorm(name="norm")(tokens))

"""The text encoder: RoBERTa of any size, from a two-layer one trained in place to roberta-base.

  x = LN(word[id] + position[p] + type[0])                 p = PAD + rank among ids that are not PAD
  x = LN(x + MHA(x));  x = LN(x + W2 gelu(W1 x))           num_layers times, exact GELU

ids int32 [B, N] and mask bool [B, N] -> [B, N, D]. A token with mask False is never attended to,
but it still has features; readers of the tokens take the mask. A text without any valid token
attends evenly.

Source: RoBERTa (Liu et al., 2019) as in Hugging Face's modeling_roberta.py. Departures: no dropout
(the encoder is frozen, or small), and no pooler: the tokens are the result.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.attention import hide_padding, split_heads
from avs_jax.models.layers import LayerNorm, Linear
from avs_jax.models.rules import at_least, divides
from avs_jax.ops.attention import softmax_attention
from avs_jax.spec import check_shape

PAD = 1  # id of padding; positions of tokens start above it
INIT = nn.initializers.normal(0.02)


def position_ids(ids: jax.Array) -> jax.Array:
    """Positions int32 [B, N]: PAD + 1, PAD + 2, ... over the ids other than PAD, else PAD."""
    exists = (ids != PAD).astype(jnp.int32)
    return jnp.cumsum(exists, axis=1) * exists + PAD


class Table(nn.Module):
    """Rows of a learned table [num, features]."""

    num: int
    features: int

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        """int [...] -> [..., features]."""
        return self.param("embedding", INIT, (self.num, self.features))[index]


class TextLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual and a norm behind it."""

    num_heads: int
    ffn_dim: int
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, masked: jax.Array | None) -> jax.Array:
        """[B, N, D] and bool [B, 1, 1, N], True = hidden -> [B, N, D]."""
        width = x.shape[-1]

        def linear(features, name):
            zeros = nn.initializers.zeros
            return Linear(features, True, INIT, zeros, self.dtype, name=name)

        q, k, v = (
            split_heads(linear(width, name)(x), self.num_heads)
            for name in ("query", "key", "value")
        )
        mixed = softmax_attention(q, k, v, masked=masked).reshape(x.shape)
        mixed = linear(width, "attention_out")(mixed)
        x = LayerNorm(self.epsilon, name="attention_norm")(x + mixed)
        hidden = nn.gelu(linear(self.ffn_dim, "ffn_0")(x), approximate=False)
        return LayerNorm(self.epsilon, name="ffn_norm")(x + linear(width, "ffn_1")(hidden))


class TextEncoder(nn.Module):
    """The encoder; see the module's docstring. The defaults are those of `tiny`.

    Attributes:
      vocab_size: ids are below it.
      hidden_dim: D.
      num_layers, num_heads, ffn_dim: of the transformer.
      max_positions: rows of the table of positions; a text has at most PAD + 1 fewer tokens.
      epsilon: of the norms.
      dtype: of the computation; norms and softmax are float32 at least.
    """

    vocab_size: int = 4096
    hidden_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    ffn_dim: int = 256
    max_positions: int = 130
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    RULES = (
        *at_least(4, "text.vocab_size", "text.max_positions"),
        *at_least(1, *(f"text.{key}" for key in ("hidden_dim", "num_layers", "ffn_dim"))),
        divides("text.num_heads", "text.hidden_dim"),
    )

    @nn.compact
    def __call__(
        self, ids: jax.Array, mask: jax.Array | None = None, collect: list[jax.Array] | None = None
    ) -> jax.Array:
        """Encodes.

        Args:
          ids: int32 [B, N].
          mask: bool [B, N], True where the token exists; None: all do.
          collect: the embeddings and the result of every layer are appended to it.

        Returns:
          [B, N, D] in `dtype`.

        Raises:
          ValueError: a wrong shape, or more tokens than there are positions.
        """
        sizes = check_shape("ids", ids, "B N")
        if mask is not None:
            check_shape("mask", mask, "B N", **sizes)
        if sizes["N"] > self.max_positions - PAD - 1:
            raise ValueError(
                f"ids: {sizes['N']} tokens, but max_positions = {self.max_positions} has room for "
                f"{self.max_positions - PAD - 1}"
            )
        width, dtype = self.hidden_dim, jnp.dtype(self.dtype)
        x = Table(self.vocab_size, width, name="word_embeddings")(ids)
        x += Table(self.max_positions, width, name="position_embeddings")(position_ids(ids))
        x += Table(1, width, name="token_type_embeddings")(jnp.zeros_like(ids))
        x = LayerNorm(self.epsilon, name="embeddings_norm")(x).astype(dtype)
        steps = [x]
        for i in range(self.num_layers):
            layer = TextLayer(self.num_heads, self.ffn_dim, self.epsilon, dtype, name=f"layers_{i}")
            x = layer(x, hide_padding(mask))
            steps.append(x)
        if collect is not None:
            collect.extend(steps)
        return x

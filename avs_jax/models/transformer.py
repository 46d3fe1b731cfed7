"""The transformer block that CLIP, AST and ViT share: norms before, residuals around.

  x = x + W_o MHA(LN x)      x = x + W_2 act(W_1 LN x)

`quick_gelu` is CLIP's x sigmoid(1.702 x). Source: Vaswani et al. (NeurIPS 2017) with the order of
norms of Dosovitskiy et al. (ICLR 2021).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.attention import split_heads
from avs_jax.models.layers import LayerNorm, Linear
from avs_jax.ops.attention import softmax_attention

INIT = nn.initializers.normal(0.02)


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """With the normal distribution function itself."""
    return nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
}


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other, with learned projections in and out.

    Attributes:
      num_heads: G.
      dtype: of the projections; the softmax is float32 at least.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, masked: jax.Array | None = None) -> jax.Array:
        """[N, S, D] and bool [N or 1, 1, S or 1, S], True = hidden -> [N, S, D]."""
        q, k, v = (
            split_heads(self._linear(x.shape[-1], name)(x), self.num_heads)
            for name in ("query", "key", "value")
        )
        out = softmax_attention(q, k, v, masked=masked).reshape(x.shape)
        return self._linear(x.shape[-1], "out")(out)

    def _linear(self, features: int, name: str) -> Linear:
        return Linear(features, True, INIT, nn.initializers.zeros, self.dtype, name=name)


class MLP(nn.Module):
    """W_2 act(W_1 x) on the last axis; `activation` is a key of ACTIVATIONS."""

    hidden_dim: int
    activation: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        hidden = Linear(self.hidden_dim, True, INIT, zeros, self.dtype, name="fc1")(x)
        hidden = ACTIVATIONS[self.activation](hidden)
        return Linear(x.shape[-1], True, INIT, zeros, self.dtype, name="fc2")(hidden)


class Block(nn.Module):
    """One layer; see the module's docstring."""

    num_heads: int
    ffn_dim: int
    activation: str = "gelu"
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, masked: jax.Array | None = None) -> jax.Array:
        """[N, S, D] and bool, 4 axes, True = hidden -> [N, S, D]."""
        normed = LayerNorm(self.epsilon, name="norm1")(x)
        x = x + SelfAttention(self.num_heads, self.dtype, name="attention")(normed, masked)
        normed = LayerNorm(self.epsilon, name="norm2")(x)
        return x + MLP(self.ffn_dim, self.activation, self.dtype, name="mlp")(normed)

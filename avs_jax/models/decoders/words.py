"""Decoders of words: from features of an object and the words so far to scores of the next word.

  lstm         image = relu(W m), m the mean of the features; an LSTM layer over [embed(word) ;
               image]; logits = W_o h + b
  transformer  pre-norm layers over embed(word) + place: causal self-attention, attention to the
               features, MLP; logits = W_o LN x + b

LSTM: i, f, g, o = split(x W_x + b_x + h W_h + b_h);  c = sig(f) c + sig(i) tanh(g);
h = sig(o) tanh(c).

Source of lstm: a textbook captioner, equal to it in eval mode, with PyTorch's two biases.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.attention import Attention, hide_padding
from avs_jax.models.fusion.gated import pool_tokens
from avs_jax.models.layers import LayerNorm, Linear, torch_uniform
from avs_jax.models.transformer import INIT, MLP, SelfAttention

MAX_PLACES = 64
Seen = tuple[jax.Array, jax.Array | None]  # features [B, M, C] and which exist, bool [B, M]


class LSTM(nn.Module):
    """One layer over time; see the module's docstring."""

    hidden_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [B, L, C] -> [B, L, D], from a state of zeros."""
        width, init = 4 * self.hidden_dim, torch_uniform(self.hidden_dim)
        input_kernel = self.param("input_kernel", init, (x.shape[-1], width))
        state_kernel = self.param("state_kernel", init, (self.hidden_dim, width))
        biases = [self.param(name, init, (width,)) for name in ("input_bias", "state_bias")]
        given = x @ input_kernel + (biases[0] + biases[1])[None, None]

        def step(carry, row):
            h, c = carry
            i, f, g, o = jnp.split(row + h @ state_kernel, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], self.hidden_dim), x.dtype)
        _, states = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(given, 0, 1))
        return jnp.swapaxes(states, 0, 1)


class LSTMDecoder(nn.Module):
    """See the module's docstring.

    Attributes:
      vocab_size: V.
      embed_dim: of a word.
      hidden_dim: of the image vector and the state.
      dropout: rate on the image vector, from the rng stream "dropout".
    """

    vocab_size: int
    embed_dim: int = 256
    hidden_dim: int = 512
    dropout: float = 0.0

    @nn.compact
    def __call__(self, seen: Seen, ids: jax.Array, train: bool = False) -> jax.Array:
        """Features and words int32 [B, L] -> float32 [B, L, V]."""
        pooled = pool_tokens(*seen)[:, 0]
        image = nn.relu(Linear(self.hidden_dim, name="image_encoder")(pooled))
        image = nn.Dropout(self.dropout, deterministic=not train)(image)
        table = self.param(
            "embedding", nn.initializers.normal(1.0), (self.vocab_size, self.embed_dim)
        )
        image = jnp.broadcast_to(image[:, None], (*ids.shape, self.hidden_dim))
        states = LSTM(self.hidden_dim, name="lstm")(jnp.concatenate([table[ids], image], axis=-1))
        return Linear(self.vocab_size, name="output")(states)


class TransformerDecoder(nn.Module):
    """See the module's docstring.

    Attributes:
      vocab_size: V.
      hidden_dim, num_layers, num_heads, ffn_dim: of the layers.
      dropout: rate on the words, from the rng stream "dropout".
    """

    vocab_size: int
    hidden_dim: int = 256
    num_layers: int = 2
    num_heads: int = 8
    ffn_dim: int = 1024
    dropout: float = 0.0

    @nn.compact
    def __call__(self, seen: Seen, ids: jax.Array, train: bool = False) -> jax.Array:
        """As LSTMDecoder."""
        features, features_mask = seen
        length, width = ids.shape[1], self.hidden_dim
        if length > MAX_PLACES:
            raise ValueError(f"ids: {length} words, at most {MAX_PLACES}")
        memory = Linear(width, name="memory")(features)
        table = self.param("embedding", INIT, (self.vocab_size, width))
        places = self.param("position_embedding", INIT, (MAX_PLACES, width))
        x = table[ids] + places[:length][None]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        later = ~jnp.tril(jnp.ones((length, length), bool))[None, None]
        for i in range(self.num_layers):
            normed = LayerNorm(name=f"norm_self_{i}")(x)
            x = x + SelfAttention(self.num_heads, name=f"self_{i}")(normed, later)
            normed = LayerNorm(name=f"norm_cross_{i}")(x)
            cross = Attention(self.num_heads, name=f"cross_{i}")
            x = x + cross(normed, memory, memory, hide_padding(features_mask))[0]
            normed = LayerNorm(name=f"norm_mlp_{i}")(x)
            x = x + MLP(self.ffn_dim, "gelu", name=f"mlp_{i}")(normed)
        return Linear(self.vocab_size, name="output")(LayerNorm(name="norm")(x))


DECODERS = {"lstm": LSTMDecoder, "transformer": TransformerDecoder}

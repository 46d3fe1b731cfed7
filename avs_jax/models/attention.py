"""Multi-head attention that returns its weights, drops them out and takes a mask per head.

  weights = softmax(q k^T / sqrt(c)) over the S keys, c the width of a head;  out = weights v

`layers.MultiheadAttention` has the same parameters, keeps no weights and has no dropout.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import Initializer, InProjection, Linear
from avs_jax.spec import InputError


def hide_padding(valid: jax.Array | None) -> jax.Array | None:
    """bool [B, S], True = valid, to the `masked` of `attend`; None = all valid."""
    return None if valid is None else ~valid[:, None, None]


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, L, D] -> [B, L, G, D / G]."""
    if x.shape[-1] % num_heads:
        raise InputError(f"num_heads = {num_heads} does not divide a width of {x.shape[-1]}")
    return x.reshape(*x.shape[:2], num_heads, -1)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masked: jax.Array | None = None,
    dropout: nn.Dropout | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of G heads, with the softmax in float32.

    Args:
      q, k, v: [B, Q, G, c], [B, S, G, c] and [B, S, G, e].
      masked: bool, 4 axes that broadcast to [B, G, Q, S], True where a query must not look. A row
        that is all True attends evenly.
      dropout: of the weights.

    Returns:
      [B, Q, G e] in the dtype of v; and the weights before dropout, float32 [B, G, Q, S].
    """
    wide = jnp.promote_types(v.dtype, jnp.float32)
    scores = jnp.einsum("bqgc,bsgc->bgqs", q, k, preferred_element_type=wide)
    scores = scores * q.shape[-1] ** -0.5
    if masked is not None:
        scores = jnp.where(masked, jnp.finfo(wide).min, scores)
    weights = nn.softmax(scores, axis=-1)
    kept = weights if dropout is None else dropout(weights)
    out = jnp.einsum("bgqs,bsge->bqge", kept.astype(v.dtype), v)
    return out.reshape(*out.shape[:2], -1), weights


class Attention(nn.Module):
    """torch.nn.MultiheadAttention, batch first.

    Attributes:
      num_heads: G.
      dropout: rate on the weights, from the rng stream "dropout".
      out_init: of the kernel of out_proj; None = PyTorch's default.
      dtype: of the projections.
    """

    num_heads: int
    dropout: float = 0.0
    out_init: Initializer | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        masked: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """query [B, Q, D], key and value [B, S, D] -> [B, Q, D], weights [B, G, Q, S]."""
        projected = InProjection(self.dtype, name="in_proj")(query, key, value)
        q, k, v = (split_heads(x, self.num_heads) for x in projected)
        out, weights = attend(q, k, v, masked, nn.Dropout(self.dropout, deterministic=not train))
        width, zeros = query.shape[-1], nn.initializers.zeros
        return Linear(width, True, self.out_init, zeros, self.dtype, name="out_proj")(out), weights

"""Attention of several heads that keeps no weights: softmax(q k' / sqrt(c) + bias) v.

On CPUs, what surrounds the two products takes longer than they do. So nothing of the scores' size
is transposed, the result is divided by the weights' sum instead of the weights, and many queries
are taken in blocks whose scores stay in the cache.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Queries of a block; if their number has only smaller divisors than the minimum, there are none.
BLOCK_QUERIES, MIN_BLOCK_QUERIES = 256, 32

Array = jax.Array


def softmax_attention(
    q: Array, k: Array, v: Array, biases: Sequence[Array] = (), masked: Array | None = None
) -> Array:
    """Attention of G heads, with scores and softmax in at least float32.

    Args:
      q, k, v: [..., Q, G, c], [..., S, G, c] and [..., S, G, e].
      biases: added to the scores, with axes that broadcast to [..., G, Q, S].
      masked: bool, broadcasts likewise, True where a query must not look. A row that is all True
        attends evenly.

    Returns:
      [..., Q, G, e] in the dtype of v.
    """
    wide = jnp.promote_types(v.dtype, jnp.float32)
    q, v = jnp.swapaxes(q * q.shape[-1] ** -0.5, -3, -2), jnp.swapaxes(v, -3, -2)
    scores = jnp.matmul(q, jnp.moveaxis(k, -3, -1), preferred_element_type=wide)
    for bias in biases:
        scores = scores + bias
    if masked is not None:
        scores = jnp.where(masked, jnp.finfo(wide).min, scores)
    highest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # its derivative is 0
    weights = jnp.exp(scores - highest)
    out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide)
    out = out / weights.sum(-1, keepdims=True)
    return jnp.swapaxes(out, -3, -2).astype(v.dtype)


def map_attention(q: Array, k: Array, v: Array, masked: Array | None = None) -> Array:
    """`softmax_attention` of the many queries of a map, block by block: less memory, same result.

    The backward pass recomputes the scores of a block.

    Args:
      q, k, v: [N, Q, G, c], [N, S, G, c] and [N, S, G, e].
      masked: bool, broadcasts to [N, G, 1, S]: the same for all queries.
    """
    count = q.shape[1]
    size = max(n for n in range(1, BLOCK_QUERIES + 1) if count % n == 0)
    if count <= BLOCK_QUERIES or size < MIN_BLOCK_QUERIES:
        return softmax_attention(q, k, v, masked=masked)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a loop needs no prevention
    def of_block(block: Array) -> Array:
        return softmax_attention(block, k, v, masked=masked)

    blocks = jnp.moveaxis(q.reshape(q.shape[0], -1, size, *q.shape[2:]), 1, 0)
    out = jnp.moveaxis(jax.lax.map(of_block, blocks), 0, 1)
    return out.reshape(*q.shape[:3], -1)

"""Beam search over words, of a fixed shape; with a beam of one, it is greedy decoding.

A sequence ends with `end`, or is cut at L words. Beams are compared by

  s(y) / |y|^a,  s(y) = sum_t log p(y_t | y_<t)

with |y| the words including `end`; a = 0 prefers short ones, a = 1 is the mean. A beam that ended
stays as it is. Of equal scores, the earlier beam and the smaller word win.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

FILL = -1  # after the end


class Sequences(NamedTuple):
    """What was found, the best beam first.

    Attributes:
      ids: int32 [B, W, L], FILL after the end; the start is not part of it.
      log_probs: float32 [B, W], s of the whole sequence.
      scores: float32 [B, W], what they are ordered by.
    """

    ids: jax.Array
    log_probs: jax.Array
    scores: jax.Array


def beam_search(
    logits: Callable[[jax.Array], jax.Array],
    batch_size: int,
    vocab_size: int,
    max_words: int,
    start: int,
    end: int,
    num_beams: int = 1,
    length_power: float = 1.0,
) -> Sequences:
    """Searches; traceable.

    Args:
      logits: int32 [B, W, L], words that begin with the start -> float32 [B, W, L, V], scores of
        the word after each. A word may depend on none that come later.
      batch_size, vocab_size: B and V.
      max_words: L.
      start, end: words.
      num_beams: W.
      length_power: a.
    """
    count, low = num_beams, jnp.finfo(jnp.float32).min

    def step(carry, t):
        ids, log_probs, ended = carry
        words = jnp.where(ids < 0, end, ids)  # what follows the end is never read
        begun = jnp.full((batch_size, count, 1), start, jnp.int32)
        given = jnp.concatenate([begun, words[..., :-1]], axis=-1)
        now = jax.lax.dynamic_index_in_dim(logits(given), t, axis=2, keepdims=False)
        now = jax.nn.log_softmax(now.astype(jnp.float32), axis=-1)
        stays = jnp.where(jnp.arange(vocab_size) == 0, 0.0, low)[None, None]
        total = log_probs[..., None] + jnp.where(ended[..., None], stays, now)
        total = jnp.maximum(total, low)
        length = jnp.where(ended, (ids >= 0).sum(-1), t + 1)[..., None].astype(jnp.float32)
        ranked = jnp.where(total > low / 2, total / length**length_power, low)
        _, best = jax.lax.top_k(ranked.reshape(batch_size, -1), count)
        beam, word = best // vocab_size, best % vocab_size
        ids = jnp.take_along_axis(ids, beam[..., None], axis=1)
        was_ended = jnp.take_along_axis(ended, beam, axis=1)
        added = jnp.where(was_ended, FILL, word).astype(jnp.int32)
        ids = jnp.where(jnp.arange(max_words)[None, None] == t, added[..., None], ids)
        log_probs = jnp.take_along_axis(total.reshape(batch_size, -1), best, axis=1)
        return (ids, log_probs, was_ended | (added == end)), None

    ids = jnp.full((batch_size, count, max_words), FILL, jnp.int32)
    log_probs = jnp.where(jnp.arange(count) == 0, 0.0, low)[None]  # beams start as one
    log_probs = jnp.broadcast_to(log_probs, (batch_size, count))
    first = ids, log_probs, jnp.zeros((batch_size, count), bool)
    (ids, log_probs, _), _ = jax.lax.scan(step, first, jnp.arange(max_words))
    length = jnp.maximum((ids >= 0).sum(-1), 1).astype(jnp.float32)
    scores = jnp.where(log_probs > low / 2, log_probs / length**length_power, low)
    return Sequences(ids, log_probs, scores)

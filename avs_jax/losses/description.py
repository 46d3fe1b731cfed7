"""Cross-entropy of the words of descriptions; padding, and rows without an object, do not count.

  L = mean over real words of -sum_v q_v log softmax(z)_v,  q = (1 - s) onehot + s / V

s is the label smoothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def counted_words(batch: Mapping[str, Array]) -> Array:
    """bool [B, N - 1]: the word after each position exists and counts."""
    return batch["text_mask"][:, 1:] & batch["has_object"][:, None]


def loss_norms(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Words that count, at least 1."""
    return {"words": jnp.maximum(counted_words(batch).sum(), 1).astype(jnp.float32)}


def word_losses(logits: Array, words: Array, smoothing: float = 0.0) -> Array:
    """float32 [B, L] of logits [B, L, V] and int32 [B, L]."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = -jnp.take_along_axis(log_p, words[..., None], axis=-1)[..., 0]
    return (1 - smoothing) * own - smoothing * log_p.mean(-1)


def compute_losses(
    outputs: Mapping[str, Array],
    batch: Mapping[str, Array],
    key: Array | None,
    norms: Mapping[str, Array] | None = None,
    *,
    loss_config: Any,
) -> tuple[Array, dict[str, Array]]:
    """The loss, and loss_words and word_accuracy, the share of the words that are ranked first."""
    del key
    norms = loss_norms(batch) if norms is None else norms
    logits, words = outputs["word_logits"][:, :-1], batch["text_ids"][:, 1:]
    counts = counted_words(batch)
    found = jnp.where(counts, word_losses(logits, words, loss_config.smoothing), 0.0)
    loss = found.sum() / norms["words"]
    right = counts & (logits.argmax(-1) == words)
    return loss, {"loss_words": loss, "word_accuracy": right.sum() / norms["words"]}

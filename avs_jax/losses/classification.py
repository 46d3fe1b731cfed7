"""Cross-entropies of clip-level classes: of the fused scores, and of each modality by itself.

  one class per clip    -sum_k q_k log softmax(z)_k,  q = (1 - s) onehot + s / K
  multi-label           mean_k of softplus(z_k) - y_k z_k

s is the label smoothing. The mean is over the clips whose classes are known. A single modality's
term counts where the clip has that modality.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def loss_norms(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Clips whose classes are known, at least 1."""
    return {"clips": jnp.maximum(batch["known"].sum(), 1).astype(jnp.float32)}


def class_loss(logits: Array, classes: Array, multi_label: bool, smoothing: float = 0.0) -> Array:
    """float32 [B] of logits [B, K] and classes, 0 or 1 [B, K]."""
    logits, classes = logits.astype(jnp.float32), classes.astype(jnp.float32)
    if multi_label:
        return (jax.nn.softplus(logits) - classes * logits).mean(-1)
    wanted = (1 - smoothing) * classes + smoothing / logits.shape[-1]
    return -(wanted * jax.nn.log_softmax(logits)).sum(-1)


def compute_losses(
    outputs: Mapping[str, Array],
    batch: Mapping[str, Array],
    key: Array | None,
    norms: Mapping[str, Array] | None = None,
    *,
    loss_config: Any,
    multi_label: bool,
) -> tuple[Array, dict[str, Array]]:
    """The weighted terms and their sum.

    Args:
      outputs: of models/classify.py.
      batch: classes float32 [B, K], known bool [B], present bool [B, 2].
      key: unused, nothing is drawn.
      norms: of the whole batch, where this is a part of it; None: this is all.
      loss_config: config.loss: smoothing and single_weight.
      multi_label: whether a clip may have several classes.

    Returns:
      float32 []; and the terms loss_class, loss_frames and loss_audio that sum to it.
    """
    del key
    norms = loss_norms(batch) if norms is None else norms
    weight, present = loss_config.single_weight, batch["present"]
    rows = {
        "class": ("logits", present.any(1), 1.0),
        "frames": ("frames_logits", present[:, 0], weight),
        "audio": ("audio_logits", present[:, 1], weight),
    }
    terms = {}
    for name, (field, counts, factor) in rows.items():
        found = class_loss(outputs[field], batch["classes"], multi_label, loss_config.smoothing)
        terms[f"loss_{name}"] = (
            factor * jnp.where(counts & batch["known"], found, 0.0).sum() / norms["clips"]
        )
    return sum(terms.values()), terms

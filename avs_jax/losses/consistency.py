"""Consistency of AMA: what moves where it looks must say which sound it belongs to.

  z_i = motion embedding of frame i, u_j = audio embedding of frame j, both of unit length
  s_ij = z_i . u_j / tau
  loss = mean over i of (-log softmax_j(s_ij)[i] - log softmax_j(s_ji)[i]) / 2

Frames take part if they are supervised, show an object (so not those with a false sound) and move.
Other frames of the same clip are not negatives, because neighboring seconds sound alike.

Source: the AMA authors' notes (see models/fusion/ama.py) propose the loss; the choice of frames is
ours.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.losses.boundary import foreground
from avs_jax.ops.frames import fold_frames
from avs_jax.spec import FRAMES_PER_CLIP, InputError, frame_ids

STILL = 1e-6  # mean squared motion below which a frame does not take part


def consistency_loss(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    loss_config: Any,
    norms: Mapping[str, jax.Array],
) -> jax.Array:
    """The weighted term, float32 [].

    Args:
      outputs: motion_embed and motion_audio_embed [B, T, E], motion_energy and motion_ramp [B, T].
      targets: supervised, frame_index, target_masks, target_labels and target_valid.
      norms: not empty if this is a micro-batch.

    Raises:
      InputError: this is a micro-batch, whose frames would lack the others' as negatives.
    """
    if norms:
        raise InputError(
            "model.fusion.consistency compares all frames of a batch: config.train.accumulate "
            "must be 1"
        )
    if not loss_config.consistency.tau > 0:
        raise InputError(f"loss.consistency.tau = {loss_config.consistency.tau}: expected above 0")
    motion, audio, energy, ramp = (
        fold_frames(outputs[name])
        for name in ("motion_embed", "motion_audio_embed", "motion_energy", "motion_ramp")
    )
    takes_part = fold_frames(targets["supervised"]) & foreground(targets).any((1, 2))
    takes_part &= energy > STILL
    clip = frame_ids(targets["frame_index"]) // FRAMES_PER_CLIP
    is_other = (clip[:, None] != clip[None]) & takes_part[None]
    compared = is_other | jnp.eye(len(clip), dtype=bool)
    scores = (motion @ audio.T).astype(jnp.float32) / loss_config.consistency.tau

    def cross_entropy(scores):
        scores = jnp.where(compared, scores, -jnp.inf)
        return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)

    each = (cross_entropy(scores) + cross_entropy(scores.T)) / 2
    mean = jnp.where(takes_part, each, 0).sum() / jnp.maximum(takes_part.sum(), 1)
    return loss_config.consistency.weight * ramp.mean() * mean

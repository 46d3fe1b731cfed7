"""Consistency of AMA: what moves where it looks is what is heard, or what the ground truth shows.

"contrast": the motion must say which sound it belongs to.

  z_i = motion embedding of frame i, u_j = audio embedding of frame j, both of unit length
  s_ij = z_i . u_j / tau
  loss = mean over i of (-log softmax_j(s_ij)[i] - log softmax_j(s_ji)[i]) / 2

Frames take part if they are supervised, show an object (so not those with a false sound) and move.
Other frames of the same clip are not negatives, because neighboring seconds sound alike.

"map": the attention A, which sums to 1 over the cells, must lie inside the ground truth G
(padded as the motion is and area-averaged to the cells, in 0..1); m^2 is the squared motion of a
cell, as AMA sees it.

  e_t  = sum_x G_t m_t^2 / sum_x G_t
  loss = mean over supervised frames t of min(1, e_t / tau_motion) (-log sum_x A_t G_t)

A frame whose object stands still weighs nothing: AMA cannot find it by its motion. Nor does a frame
without an object.

"both" adds the two. All are multiplied by `weight` and the ramp of the model. Only "contrast" reads
the embeddings.

Source: the AMA authors' notes (see models/fusion/ama.py) propose both losses; the choice of frames
of "contrast", and the energy and threshold of "map", are ours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.losses.boundary import foreground, foreground_cells
from avs_jax.ops.frames import fold_frames
from avs_jax.spec import FRAMES_PER_CLIP, SIZE_DIVISOR, InputError, frame_ids

STILL = 1e-6  # mean squared motion below which a frame does not take part in "contrast"
EPSILON = 1e-6  # of a sum over the cells of the ground truth
LEAST = 1e-20  # attention inside the ground truth: no gradient below, where float32 ends


def consistency_loss(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    loss_config: Any,
    norms: Mapping[str, jax.Array],
) -> jax.Array:
    """The weighted term, float32 [].

    Args:
      outputs: motion_ramp [B, T]; for "contrast", motion_embed and motion_audio_embed [B, T, E] and
        motion_energy [B, T]; for "map", motion_attention and motion_cells [B, T, g, g].
      targets: supervised, frame_index, target_masks, target_labels and target_valid.
      norms: `frames` of the whole batch if this is a micro-batch, else {}.

    Raises:
      InputError: an unknown kind or a bad threshold; or this is a micro-batch, and its frames would
        lack the others' as negatives of "contrast".
    """
    config = loss_config.consistency
    if config.kind not in KINDS:
        raise InputError(f"loss.consistency.kind = {config.kind!r}: choose one of {sorted(KINDS)}")
    loss = sum(part(outputs, targets, config, norms) for part in KINDS[config.kind])
    return config.weight * fold_frames(outputs["motion_ramp"]).mean() * loss


def contrast(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    config: Any,
    norms: Mapping[str, jax.Array],
) -> jax.Array:
    """The loss "contrast", float32 []; `config` is loss.consistency, the rest as above."""
    if norms:
        raise InputError(
            "model.fusion.consistency compares all frames of a batch: config.train.accumulate "
            f"must be 1 (loss.consistency.kind = {config.kind!r}; 'map' has no such limit)"
        )
    if not config.tau > 0:
        raise InputError(f"loss.consistency.tau = {config.tau}: expected above 0")
    motion, audio, energy = (
        fold_frames(outputs[name])
        for name in ("motion_embed", "motion_audio_embed", "motion_energy")
    )
    takes_part = fold_frames(targets["supervised"]) & foreground(targets).any((1, 2))
    takes_part &= energy > STILL
    clip = frame_ids(targets["frame_index"]) // FRAMES_PER_CLIP
    is_other = (clip[:, None] != clip[None]) & takes_part[None]
    compared = is_other | jnp.eye(len(clip), dtype=bool)
    scores = (motion @ audio.T).astype(jnp.float32) / config.tau

    def cross_entropy(scores):
        scores = jnp.where(compared, scores, -jnp.inf)
        return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)

    each = (cross_entropy(scores) + cross_entropy(scores.T)) / 2
    return jnp.where(takes_part, each, 0).sum() / jnp.maximum(takes_part.sum(), 1)


def attention_in_truth(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    config: Any,
    norms: Mapping[str, jax.Array],
) -> jax.Array:
    """The loss "map", float32 []; `config` is loss.consistency, the rest as above."""
    if not config.tau_motion > 0:
        raise InputError(f"loss.consistency.tau_motion = {config.tau_motion}: expected above 0")
    attention, energy = (
        fold_frames(outputs[name]).astype(jnp.float32)
        for name in ("motion_attention", "motion_cells")
    )
    masks = targets["target_masks"]
    more = [(0, -side % SIZE_DIVISOR) for side in masks.shape[3:]]
    padded = {**targets, "target_masks": jnp.pad(masks, ((0, 0), (0, 0), (0, 0), *more))}
    truth = foreground_cells(padded, attention.shape[1:])
    supervised = fold_frames(targets["supervised"])
    inside = (truth * energy).sum((1, 2)) / jnp.maximum(truth.sum((1, 2)), EPSILON)
    weight = jnp.where(supervised, jnp.minimum(inside / config.tau_motion, 1), 0)
    looked_at = (attention * truth).sum((1, 2))
    missed = -jnp.log(jnp.maximum(looked_at, LEAST))
    count = norms.get("frames", jnp.maximum(supervised.sum(), 1))
    return (jax.lax.stop_gradient(weight) * missed).sum() / count


# loss.consistency.kind -> the parts that it adds up.
KINDS: dict[str, tuple[Callable[..., jax.Array], ...]] = {
    "contrast": (contrast,),
    "map": (attention_in_truth,),
    "both": (contrast, attention_in_truth),
}

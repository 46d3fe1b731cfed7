"""What an expression adds to the loss of masks: is it there, and which object does it mean.

  loss_presence  BCE of presence_logits with "the frame's truth is not empty", mean over frames with
                 ground truth
  loss_localization  of the localizer, where the model has one (losses/localization.py)
  loss_align     multi-positive InfoNCE between objects and expressions, both directions averaged:
                 v_i = unit(mean of align_map under the truth, over all frames of row i)
                 t_i = unit(align_text_i)
                 L = -1 / |P(i)| sum over p in P(i) of log softmax over j (exp(s) v_i . t_j)_p

P(i) are the rows of the same object of the same clip. Another object of the clip stays: a hard
negative. Rows without any object (null expressions) are no anchors and no objects, but their texts
are negatives. exp(s) starts at 1 / 0.07 and is at most 100. The rows of all devices count together,
so a batch cannot be cut into micro-batches.

Source: ours; the references that align text with masked features (SALMA) treat every other row as a
negative.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avs_jax.losses import criterion
from avs_jax.losses.alignment import infonce, scale_of
from avs_jax.losses.boundary import foreground
from avs_jax.losses.localization import localization_loss, phrase_pairs
from avs_jax.ops.frames import fold_frames, repeat_clips, unfold_frames
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.ops.unit_length import normalize

ALIGN_STRIDE = 8  # of align_map


def compute_losses(
    outputs: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    norms: Mapping[str, jax.Array] | None = None,
    *,
    loss_config: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch; see criterion.compute_losses and above.

    Besides the weighted terms come align_anchors and align_positives, counts that are logged.
    """
    everything, batch = batch, asked_targets(batch)
    supervised = batch["supervised"]
    masks = unfold_frames(foreground(batch), supervised.shape[1]) & supervised[..., None, None]
    present = masks.any((2, 3))
    total, terms, added = jnp.float32(0), {}, {}
    if loss_config.masks:
        total, terms = criterion.compute_losses(outputs, batch, key, norms, loss_config=loss_config)
        logits = outputs["presence_logits"].astype(jnp.float32)
        bce = jax.nn.softplus(logits) - logits * present
        frames = (norms or {}).get("frames", jnp.maximum(supervised.sum(), 1))
        presence = jnp.where(supervised, bce, 0).sum() / frames
        added["loss_presence"] = loss_config.presence_weight * presence
    if "location_logits" in outputs:
        found = localization_loss(outputs["location_logits"], everything, norms)
        added["loss_localization"] = loss_config.localization_weight * found
    if loss_config.align_weight:
        if "align_phrases" in outputs:
            mean, pairs = phrase_pairs(outputs["align_map"], everything)
            words = outputs["align_phrases"]
            text = normalize(words.reshape(-1, words.shape[-1]))
        else:
            mean = mean_under(outputs["align_map"], masks)
            pairs = {"object_id": batch["object_id"], "has_object": present.any(1)}
            text = normalize(outputs["align_text"])
        scale = scale_of(outputs["align_scale"].astype(jnp.float32))
        similarity = scale * jnp.einsum("ie,je->ij", normalize(mean), text, precision="highest")
        align, counts = info_nce(similarity, **pairs)
        added["loss_align"] = loss_config.align_weight * outputs["align_ramp"] * align
        terms |= counts
    return total + sum(added.values()), terms | added


def asked_targets(batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """The targets of every expression that is asked of a clip, each in a row.

    A clip's rows follow each other, as those of the model's outputs. Where a clip has fewer
    expressions, the rows that are left are not supervised.
    """
    if "asked_ids" not in batch:
        return batch
    num_asked = batch["asked_ids"].shape[1]
    inside = batch["target_masks"].any(2)[:, :, None]  # padding is in no mask
    meant = batch["phrase_targets"][:, :, :num_asked] & inside
    masks = jnp.stack([inside & ~meant, meant], axis=3)  # background and object
    masks = rearrange(masks, "b t e m h w -> (b e) t m h w")
    exists = rearrange(batch["phrase_valid"][:, :num_asked], "b e -> (b e) 1")
    return {
        "target_masks": masks,
        "target_labels": jnp.broadcast_to(jnp.arange(2)[None, None], masks.shape[:3]),
        "target_valid": masks.any((3, 4)),
        "supervised": repeat_clips(batch["supervised"], 1, num_asked) & exists,
        "frame_index": repeat_clips(batch["frame_index"], 1, num_asked),
    }


def info_nce(
    similarity: jax.Array,
    object_id: jax.Array,
    has_object: jax.Array,
    exists: jax.Array | None = None,
    ignored: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Multi-positive InfoNCE of rows [B] of objects against rows [B] of texts.

    Args:
      similarity: float32 [B, B], object i and text j, divided by the temperature.
      object_id: int32 [B], equal for rows that mean the same object.
      has_object: bool [B]; other rows are texts only.
      exists: bool [B], the text exists; None: all do.
      ignored: bool [B, B], neither positive nor negative; None: no pair is.

    Returns:
      the mean over anchors of both directions, 0 without anchors; and counts: align_anchors, and
      align_positives per anchor.
    """
    positive = (object_id[:, None] == object_id[None]) & has_object[:, None] & has_object[None]
    ignored = jnp.zeros_like(positive) if ignored is None else ignored
    no_text = ignored if exists is None else ignored | ~exists[None]
    by_object = infonce(similarity, 1.0, positive, no_text)
    by_text = infonce(similarity.T, 1.0, positive, ignored.T | ~has_object[None])
    loss, anchors = (by_object + by_text) / 2, jnp.maximum(has_object.sum(), 1)
    counts = {"align_anchors": has_object.sum(), "align_positives": positive.sum() / anchors}
    return loss, {name: value.astype(jnp.float32) for name, value in counts.items()}


def mean_under(features: jax.Array, masks: jax.Array) -> jax.Array:
    """The mean of features [B, T, h, w, E] under masks, bool [B, T, H, W]: float32 [B, E].

    Masks are padded as images are, then resized to the cells; 0 where they are empty.
    """
    height, width = features.shape[2:4]
    more = [
        (0, ALIGN_STRIDE * n - m) for n, m in zip((height, width), masks.shape[2:], strict=True)
    ]
    padded = jnp.pad(fold_frames(masks).astype(jnp.float32), ((0, 0), *more))
    share = resize_bilinear(padded[..., None], (height, width))
    share = unfold_frames(share, features.shape[1])
    total = (features.astype(jnp.float32) * share).sum((1, 2, 3))
    return total / jnp.maximum(share.sum((1, 2, 3)), np.float32(1e-6))

"""The losses of all expressions that a clip has in training, P of them per row.

  loss_localization  of location_logits, mean over the expressions of the supervised frames of
      BCE with the share of each cell that the expression's object covers, mean over cells; those
      that mean nothing count too, with empty masks
      + -log softmax over the objects o of the clip (mean of the logits under o) at its own object,
      where it has one and the clip has others
  loss_align         losses/referral.py's InfoNCE, of the objects and expressions of all rows; equal
      texts of different objects are neither positive nor negative

Source: ours, see models/decoders/localizer.py.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange

from avs_jax.losses.cells import cell_shares

STRIDE = 8  # pixels of the padded image per cell


def localization_loss(
    logits: jax.Array,
    batch: Mapping[str, jax.Array],
    norms: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
    """float32 [].

    Args:
      logits: [B, T, P, h, w], over images padded at the bottom and right.
      batch: phrase_targets bool [B, T, P, H, W], phrase_valid bool [B, P], phrase_objects int32
        [B, P] (-1: of none) and supervised bool [B, T].
      norms: `localization_norms` of the whole batch, where this is a part of it; None: this is all.
    """
    norms = localization_norms(batch) if norms is None else norms
    logits = logits.astype(jnp.float32)
    share = cell_shares(batch["phrase_targets"], logits.shape[3:], STRIDE)
    bce = (jax.nn.softplus(logits) - logits * share).mean((3, 4))
    counts, contrasted, own, is_object = _roles(batch)
    mean = jnp.einsum("btehw,btohw->bteo", logits, share)
    mean = mean / jnp.maximum(share.sum((3, 4)), 1e-6)[:, :, None]
    log_share = jax.nn.log_softmax(jnp.where(is_object[:, :, None], mean, -1e9), axis=-1)
    contrast = jnp.where(contrasted, -jnp.where(own, log_share, 0).sum(-1), 0).sum()
    return (
        jnp.where(counts, bce, 0).sum() / norms["expressions"]
        + contrast / norms["contrasted_expressions"]
    )


def localization_norms(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Divisors of the two terms, from the targets of a batch."""
    counts, contrasted, *_ = _roles(batch)
    return {
        "expressions": jnp.maximum(counts.sum(), 1),
        "contrasted_expressions": jnp.maximum(contrasted.sum(), 1),
    }


def _roles(batch):
    """What the expressions of a frame are, bool [B, T, P], [B, T, P, P] for pairs.

    Whether they count; whether they are compared with the objects of the frame; which of these is
    their own; which stand for an object, the first of each.
    """
    counts = jnp.asarray(batch["supervised"])[:, :, None] & batch["phrase_valid"][:, None]
    objects = jnp.asarray(batch["phrase_objects"])
    same = objects[:, :, None] == objects[:, None]  # [B, P, P]
    visible = counts & batch["phrase_targets"].any((3, 4))
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)[None]
    repeated = ((same & earlier)[:, None] & visible[:, :, None]).any(-1)
    is_object = visible & ~repeated
    own = same[:, None] & is_object[:, :, None]
    several = is_object.sum(-1, keepdims=True) > 1
    return counts, visible & several, own, is_object


def phrase_pairs(
    features: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Objects of all expressions of a batch, and which of them go with which expression.

    Args:
      features: [B, T, h, w, E] at stride 8.
      batch: see `localization_loss`, and phrase_ids int32 [B, P, N].

    Returns:
      the mean of the features under each expression's masks, float32 [B P, E], 0 where they are
      empty; and for info_nce `object_id` int32, `has_object` and `exists` bool [B P], and `ignored`
      bool [B P, B P], pairs of an object with the text of another that is the same.
    """
    share = cell_shares(batch["phrase_targets"], features.shape[2:4], STRIDE)
    share = jnp.where(batch["supervised"][:, :, None, None, None], share, 0)
    total = share.sum((1, 3, 4))
    mean = jnp.einsum("bthwe,btphw->bpe", features.astype(jnp.float32), share)
    mean = rearrange(mean / jnp.maximum(total, 1e-6)[..., None], "b p e -> (b p) e")
    ids = rearrange(batch["phrase_ids"], "b p n -> (b p) n")
    object_id = batch["phrase_objects"].reshape(-1)
    equal = (ids[:, None] == ids[None]).all(-1)
    exists = batch["phrase_valid"].reshape(-1)
    return mean, {
        "object_id": object_id,
        "has_object": (total > 0).reshape(-1) & exists,
        "exists": exists,
        "ignored": equal & (object_id[:, None] != object_id[None]),
    }

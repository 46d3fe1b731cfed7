"""The loss of a prompted model: SAM2's terms for candidate masks, and the classes of their cells.

Over supervised frames with an object, for the candidate with the least focal and dice loss
(`candidates` = "best") or the mean of all ("all"):

  loss_focal  mean over pixels of a (1 - p)^2 BCE, a = 0.25 on the object, 0.75 elsewhere
  loss_dice   1 - (2 sum(p t) + 1) / (sum p + sum t + 1)

and of all candidates:

  loss_iou    |predicted IoU - IoU of (logit > 0)|, mean over the candidates
  loss_class  cross entropy of the cells' classes inside the object, mean over the object's area

Over all supervised frames:

  loss_presence  BCE of the object score with "the frame has an object": silence is an example

Logits are resized to the image, targets of classes are averaged to the cells. Source:
facebookresearch/sam2 (2b90b9f), training/loss_fns.py and its weights, with "best"; "all" and
loss_class are ours. SAM2 trains the best of three masks because a click is ambiguous; a model that
starts from scratch can fit clips of few objects that way and ignore the sound.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.losses.boundary import foreground
from avs_jax.losses.cells import cell_shares
from avs_jax.ops.frames import fold_frames
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import MASK_STRIDE, InputError

CANDIDATES = ("best", "all")
ALPHA = 0.25
GAMMA = 2

Array = jax.Array


def loss_norms(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Divisors of the terms, from targets alone: supervised frames, and those with an object."""
    is_supervised = fold_frames(batch["supervised"])
    has_object = foreground(batch).any((1, 2)) & is_supervised
    counts = {"frames": is_supervised.sum(), "objects": has_object.sum()}
    return {name: jnp.maximum(x, 1).astype(jnp.float32) for name, x in counts.items()}


def compute_losses(
    outputs: Mapping[str, Any],
    batch: Mapping[str, Array],
    key: Array,
    norms: Mapping[str, Array] | None = None,
    *,
    loss_config: Any,
) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, or a micro-batch's share of it, by the `norms` of the whole batch.

    Args:
      outputs: of models.sam2.host.SAM2Host.
      batch: reads target_masks, target_labels, target_valid and supervised.
      key: not read; nothing is drawn.

    Raises:
      InputError: loss_config.candidates is not in CANDIDATES.

    Returns:
      float32 [], the sum of the terms; and the terms, weighted.
    """
    del key
    if loss_config.candidates not in CANDIDATES:
        raise InputError(
            f"config.loss.candidates = {loss_config.candidates!r}: choose one of {CANDIDATES}"
        )
    counts = loss_norms(batch) if norms is None else norms
    is_supervised = fold_frames(batch["supervised"])
    target = foreground(batch)
    has_object = target.any((1, 2)) & is_supervised
    terms = candidate_losses(
        fold_frames(outputs["candidate_masks"]), fold_frames(outputs["candidate_ious"]), target
    )
    per_frame = {name: x.mean(-1) for name, x in terms.items()}
    if loss_config.candidates == "best":
        cost = loss_config.focal_weight * terms["focal"] + loss_config.dice_weight * terms["dice"]
        best = cost.argmin(-1)[:, None]
        for name in ("focal", "dice"):
            per_frame[name] = jnp.take_along_axis(terms[name], best, axis=1)[:, 0]
    if "class_logits" in outputs:
        per_frame["class"] = class_loss(fold_frames(outputs["class_logits"]), batch)
    losses = {
        name: jnp.where(has_object, x, 0).sum() / counts["objects"] for name, x in per_frame.items()
    }
    score = fold_frames(outputs["object_score_logits"]).astype(jnp.float32)
    bce = jax.nn.softplus(score) - score * has_object
    losses["presence"] = jnp.where(is_supervised, bce, 0).sum() / counts["frames"]
    losses = {f"loss_{name}": loss_config[f"{name}_weight"] * x for name, x in losses.items()}
    return sum(losses.values()), losses


def candidate_losses(logits: Array, ious: Array, target: Array) -> dict[str, Array]:
    """{"focal", "dice", "iou"}, float32 [N, K], of K candidates.

    Args:
      logits: [N, h, w, K] at stride 4 of the padded image.
      ious: [N, K], predicted.
      target: bool [N, H, W].
    """
    height, width = target.shape[1:]
    size = tuple(MASK_STRIDE * side for side in logits.shape[1:3])
    logits = resize_bilinear(logits.astype(jnp.float32), size)[:, :height, :width]
    target = target[..., None]
    prob = jax.nn.sigmoid(logits)
    miss = jnp.where(target, 1 - prob, prob)
    bce = jax.nn.softplus(jnp.where(target, -logits, logits))
    focal = jnp.where(target, ALPHA, 1 - ALPHA) * miss**GAMMA * bce
    area, overlap = target.sum((1, 2)), jnp.where(target, prob, 0).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (prob.sum((1, 2)) + area + 1)
    inside = logits > 0
    union = jnp.maximum((inside | target).sum((1, 2)), 1)
    iou = (inside & target).sum((1, 2)) / union
    return {"focal": focal.mean((1, 2)), "dice": dice, "iou": jnp.abs(ious - iou)}


def class_loss(logits: Array, batch: Mapping[str, Array]) -> Array:
    """Mean cross entropy of a frame's object cells: float32 [N], 0 where it has none.

    A cell's target is the share of its pixels that each class has; background is ignored.

    Args:
      logits: [N, h, w, K - 1], of the classes 1 to K - 1.
    """
    masks, labels = fold_frames(batch["target_masks"]), fold_frames(batch["target_labels"])
    is_class = fold_frames(batch["target_valid"]) & (labels > 0)
    share = cell_shares(masks & is_class[:, :, None, None], logits.shape[1:3], MASK_STRIDE)
    share = jnp.moveaxis(share, 1, -1)  # [N, h, w, M]
    log_prob = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    index = jnp.broadcast_to(jnp.maximum(labels - 1, 0)[:, None, None], share.shape)
    chosen = jnp.take_along_axis(log_prob, index, axis=-1)
    total = share.sum((1, 2, 3))
    return -(share * chosen).sum((1, 2, 3)) / jnp.where(total > 0, total, 1)

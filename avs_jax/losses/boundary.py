"""The loss of the boundary refinement module: its edge map against the edges of the ground truth.

  target     b = maxpool3(m) - minpool3(m), soft in 0..1; m is the union of the foreground masks,
             area-averaged to the stride of the edge map
  weighted   BCE with `positive_weight` on the positive part, mean over pixels
  balanced   BCE with weights (1 - p) b and p (1 - b) over 2 p (1 - p), p the frame's mean of b
             clipped to PREVALENCE: the best constant prediction costs ln 2, whatever p is
             + Dice 1 - (2 <s, b> + 1) / (|s|^2 + |b|^2 + 1) where the frame has an edge

Both are means over the supervised frames. The total gets weight * loss, with

  weight = min(boundary.weight, boundary.max_share * sg(loss_mask + loss_dice) / sg(loss))

or boundary.weight alone if max_share is 0. The numerator holds the last decoder layer's weighted
terms, so the edge loss cannot outweigh the mask losses it supports. A micro-batch does not know the
others' terms and is capped by its own: the terms of micro-batches add up to at most the whole
batch's, and terms and gradients to exactly those where no micro-batch is capped.

"weighted" follows the AMA authors' notes (see models/fusion/ama.py). "balanced" and the cap are
departures: with the plain BCE, a constant prediction explains most of the early drop (it costs 0.15
at 3.5 % prevalence).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.losses.cells import cell_shares
from avs_jax.ops.frames import fold_frames
from avs_jax.ops.resampling import area_matrix
from avs_jax.spec import MASK_STRIDE, InputError

PREVALENCE = (0.02, 0.5)


def boundary_loss(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    mask_terms: jax.Array,
    loss_config: Any,
    norms: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted term, and values to log.

    Args:
      outputs: edge_logits [B, T, h, w] of the model.
      targets: target_masks, target_labels, target_valid and supervised.
      mask_terms: [], loss_mask + loss_dice of the last layer, weighted.
      norms: `frames` of the whole batch if this is a micro-batch, else {}.

    Returns:
      float32 [], `loss_boundary`; and boundary_bce and boundary_dice (unweighted) and
      boundary_weight, the factor of their sum (for a micro-batch, its share of it).
    """
    config = loss_config.boundary
    if config.kind not in KINDS:
        raise InputError(f"loss.boundary.kind = {config.kind!r}: choose one of {sorted(KINDS)}")
    logits = fold_frames(outputs["edge_logits"]).astype(jnp.float32)
    supervised = fold_frames(targets["supervised"])
    edges = edge_target(foreground(targets), logits.shape[1:])
    count = norms.get("frames", jnp.maximum(supervised.sum(), 1))
    bce, dice = (
        jnp.where(supervised, frame, 0).sum() / count
        for frame in KINDS[config.kind](logits, edges, config)
    )
    loss = bce + dice
    weight = jnp.float32(config.weight)
    if config.max_share:
        held_loss, held_terms = jax.lax.stop_gradient((loss, mask_terms))
        cap = config.max_share * held_terms / jnp.maximum(held_loss, 1e-6)
        weight = jnp.minimum(weight, cap)
    figures = {"bce": bce, "dice": dice, "weight": weight * (supervised.sum() / count)}
    return weight * loss, {f"boundary_{name}": value for name, value in figures.items()}


def foreground(targets: Mapping[str, jax.Array]) -> jax.Array:
    """The union of each frame's masks, background excluded: bool [N, H, W]."""
    masks, labels, valid = (
        fold_frames(targets[name]) for name in ("target_masks", "target_labels", "target_valid")
    )
    counts = valid & (labels > 0)
    return (masks & counts[:, :, None, None]).any(1)


def foreground_cells(targets: Mapping[str, jax.Array], size: tuple[int, int]) -> jax.Array:
    """The share of each cell that `foreground` covers: float32 [N, *size], in 0..1."""
    mask = foreground(targets).astype(jnp.float32)
    rows, columns = (
        area_matrix(*sizes).astype(np.float32) for sizes in zip(mask.shape[1:], size, strict=True)
    )
    return jnp.einsum("yh,nhw,xw->nyx", rows, mask, columns, precision="highest")


def edge_target(mask: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Soft edges of masks, bool [N, H, W] -> float32 [N, h, w] in 0..1.

    `size` is (h, w) of the edge map, which covers the image padded at the bottom and right. The
    border of the image is not an edge, and there is none in the padding.
    """
    whole = [(0, -side % MASK_STRIDE) for side in mask.shape[1:]]  # the last cells become whole
    mask = jnp.pad(mask, ((0, 0), *whole), mode="edge")
    rows, columns = (side // MASK_STRIDE for side in mask.shape[1:])
    area = cell_shares(mask, (rows, columns), MASK_STRIDE)

    def pool(start, function):
        return jax.lax.reduce_window(area, start, function, (1, 3, 3), (1, 1, 1), "SAME")

    edges = pool(-jnp.inf, jax.lax.max) - pool(jnp.inf, jax.lax.min)
    more = [(0, cells - inner) for cells, inner in zip(size, edges.shape[1:], strict=True)]
    return jnp.pad(edges, ((0, 0), *more))


def weighted_bce(logits: jax.Array, edges: jax.Array, config: Any) -> tuple[jax.Array, jax.Array]:
    """BCE [N] with a weight on the positive part, and zeros for Dice. logits, edges [N, h, w]."""
    missed = config.positive_weight * edges * jax.nn.softplus(-logits)
    bce = (missed + (1 - edges) * jax.nn.softplus(logits)).mean((1, 2))
    return bce, jnp.zeros_like(bce)


def balanced_bce_and_dice(
    logits: jax.Array, edges: jax.Array, config: Any
) -> tuple[jax.Array, jax.Array]:
    """Class-balanced BCE [N] and Dice [N], 0 in frames without an edge. logits, edges [N, h, w]."""
    del config
    prevalence = jnp.clip(edges.mean((1, 2)), *PREVALENCE)
    missed = (edges * jax.nn.softplus(-logits)).mean((1, 2)) / (2 * prevalence)
    invented = ((1 - edges) * jax.nn.softplus(logits)).mean((1, 2)) / (2 * (1 - prevalence))
    probability = jax.nn.sigmoid(logits)
    overlap = (probability * edges).sum((1, 2))
    size = (jnp.square(probability) + jnp.square(edges)).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return missed + invented, jnp.where(edges.any((1, 2)), dice, 0)


# (logits, edges, config.loss.boundary) -> per frame (BCE, Dice)
KINDS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "weighted": weighted_bce,
    "balanced": balanced_bce_and_dice,
}

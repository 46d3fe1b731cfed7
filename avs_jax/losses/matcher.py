"""Bipartite matching of queries to ground-truth masks, on the device.

The cost of assigning query q to target m, at random points that all masks of a frame share, is

  w_class * -softmax(logits_q)[label_m] + w_mask * mean BCE(mask_q, target_m)
    + w_dice * (1 - (2 <p_q, t_m> + 1) / (sum p_q + sum t_m + 1)),   p = sigmoid(mask)

with the weights of the loss. The matching minimizes the total cost of the frame.

Source: MaskFormer and Mask2Former (arXiv 2112.01527, section 3.3) as used by VCT (CVPR 2025). They
solve the assignment with SciPy on the host; here targets are padded to a fixed M and optax solves
it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from avs_jax.ops.rows import map_rows
from avs_jax.ops.sampling import sample_bilinear
from avs_jax.spec import InputError


def matching_cost(
    pred_logits: jax.Array,
    pred_masks: jax.Array,
    target_masks: jax.Array,
    target_labels: jax.Array,
    points: jax.Array,
    loss_config: Any,
) -> jax.Array:
    """The cost of every (query, target) pair of each frame, float32 [N, Q, M].

    Args:
      pred_logits: [N, Q, K+1].
      pred_masks: [N, h, w, Q], logits.
      target_masks: bool [N, M, H, W].
      target_labels: int32 [N, M]; padded targets hold any class in range.
      points: float32 [N, P, 2], (x, y) in 0..1.
    """
    mask = sample_bilinear(pred_masks.astype(jnp.float32), points)  # [N, P, Q]
    target = sample_bilinear(jnp.moveaxis(target_masks, 1, -1), points)  # [N, P, M]

    def inner(a, b):
        return jnp.einsum("NPQ,NPM->NQM", a, b, precision="highest")

    # BCE(x, t) = softplus(x) - x t, so the sum over points is one product.
    bce_sum = jax.nn.softplus(mask).sum(1)[:, :, None] - inner(mask, target)
    probability = jax.nn.sigmoid(mask)
    area = probability.sum(1)[:, :, None] + target.sum(1)[:, None, :]
    dice = 1 - (2 * inner(probability, target) + 1) / (area + 1)
    class_probability = jax.nn.softmax(pred_logits.astype(jnp.float32), axis=-1)
    class_cost = -jnp.take_along_axis(class_probability, target_labels[:, None, :], axis=-1)
    return (
        loss_config.class_weight * class_cost
        + loss_config.mask_weight * bce_sum / points.shape[1]
        + loss_config.dice_weight * dice
    )


def match(cost: jax.Array, target_valid: jax.Array) -> jax.Array:
    """The query of each target in the assignment of minimum total cost float32 [N, Q, M].

    int32 [N, M], distinct within a frame. Targets that are not valid (bool [N, M]) take leftover
    queries. InputError if there are more targets than queries.
    """
    num_queries, num_targets = cost.shape[1:]
    if num_targets > num_queries:
        raise InputError(
            f"{num_targets} targets per frame cannot each have one of {num_queries} queries: "
            "model.num_queries must be at least data.max_targets"
        )
    # A constant column does not change the optimum of the others. Non-finite costs would make
    # optax's result garbage; the loss itself still reports them.
    cost = jnp.where(target_valid[:, None, :], cost, 0)
    cost = jnp.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
    # optax returns the pairs in no particular order.
    solve = jax.vmap(optax.assignment.hungarian_algorithm)
    target, query = map_rows(solve, jnp.swapaxes(cost, 1, 2))
    order = jnp.argsort(target, axis=1)
    return jnp.take_along_axis(query, order, axis=1).astype(jnp.int32)

"""Losses of synchrony: the motion of what sounds fits the sound now, and better than other motion.

For a supervised frame with a truth G (area-averaged to the cells, in 0..1), e the cells' activity:

  p(l)   = sum_x G_x e_x C_x(l) / tau / sum_x G_x e_x
  lag    = -log sum_near exp p / (sum_near exp p + sum_far exp p)
  rank   = max(0, margin - (score in G - score outside)), e-weighted means; outside are the cells
           with less than half a cell of G and at least half the mean activity in G

The negatives of `lag` are the same cells at other times, and those of `rank` move as much, so
neither look nor amount of motion helps. Frames in which nothing moves in G take no part, nor do
frames without such cells outside in `rank`. Both are sums over frames divided by the number of
supervised frames.

Source: ours.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.losses.boundary import foreground_cells
from avs_jax.ops.frames import fold_frames

ACTIVE = 0.1  # mean activity in the truth below which nothing moves there
EPSILON = 1e-6


def synchrony_losses(
    outputs: Mapping[str, Any],
    targets: Mapping[str, jax.Array],
    loss_config: Any,
    norms: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """The weighted terms loss_sync_lag and loss_sync_rank, float32 [].

    Args:
      outputs: sync_lags [B, T, g, g, L], sync_near and sync_far [B, T, L], sync_score and
        sync_activity [B, T, g, g].
      targets: supervised, target_masks, target_labels and target_valid.
      norms: `frames` of the whole batch if this is a micro-batch, else {}.
    """
    config = loss_config.synchrony
    lags, near, far, score, activity = (
        fold_frames(outputs[f"sync_{name}"])
        for name in ("lags", "near", "far", "score", "activity")
    )
    truth = foreground_cells(targets, score.shape[1:])
    inside = jax.lax.stop_gradient(truth * activity)
    mean_activity = inside.sum((1, 2)) / jnp.maximum(truth.sum((1, 2)), EPSILON)
    supervised = fold_frames(targets["supervised"])
    takes_part = supervised & (mean_activity > ACTIVE)

    pooled = _mean(lags, inside[..., None])
    lag = _log_sum(pooled, near + far) - _log_sum(pooled, near)
    outside = (truth < 0.5) & (activity >= mean_activity[:, None, None] / 2)
    outside = jax.lax.stop_gradient(outside * activity)
    difference = _mean(score, inside) - _mean(score, outside)
    rank = jnp.maximum(config.margin - difference, 0)
    is_ranked = takes_part & (outside.sum((1, 2)) > 0)

    count = norms.get("frames", jnp.maximum(supervised.sum(), 1))
    return {
        "loss_sync_lag": config.weight * jnp.where(takes_part, lag, 0).sum() / count,
        "loss_sync_rank": config.rank_weight * jnp.where(is_ranked, rank, 0).sum() / count,
    }


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean over the cells of [N, g, g, ...]."""
    return (values * weights).sum((1, 2)) / jnp.maximum(weights.sum((1, 2)), EPSILON)


def _log_sum(scores: jax.Array, weights: jax.Array) -> jax.Array:
    """log of the weighted sum of exp over the last axis of [N, L]."""
    greatest = jax.lax.stop_gradient(scores.max(-1))
    total = (jnp.exp(scores - greatest[:, None]) * weights).sum(-1)
    return greatest + jnp.log(jnp.maximum(total, EPSILON**2))

"""Exponential moving average of the trained parameters.

  d_t = min(decay, (1 + t) / (10 + t))
  ema <- ema + (1 - d_t) * (value - ema)         after step t = 1, 2, ...

The growing d_t keeps the random initial values from dominating for 1 / (1 - decay) steps. The
average covers the trainable parameters and the running statistics of batch normalization, which
belong to them.

Source: Polyak and Juditsky, 1992; the growing decay is TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.runtime.optim import flatten, unflatten
from avs_jax.spec import Array


def init_ema(trainable: Mapping[str, Array], batch_stats: Any, decay: float) -> dict:
    """The average before the first step, from flat parameters and nested statistics.

    {"params": {path: array}, "batch_stats": nested}; {} if decay is 0.
    """
    if not decay:
        return {}
    # Copies, because the state is donated and a buffer can be donated only once.
    return jax.tree.map(jnp.copy, {"params": dict(trainable), "batch_stats": batch_stats})


def update_ema(
    ema: dict, trainable: Mapping[str, Array], batch_stats: Any, step: Array, decay: float
) -> dict:
    """The average after a step, from the values after it; step int [] counts this one."""
    if not ema:
        return {}
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)
    new = {"params": dict(trainable), "batch_stats": batch_stats}
    return jax.tree.map(lambda old, value: old + rate.astype(old.dtype) * (value - old), ema, new)


def ema_variables(params: Mapping, ema: Mapping) -> tuple[dict, Any]:
    """The averaged (params, batch_stats), both nested; frozen parameters come from `params`."""
    return unflatten(flatten(params) | dict(ema["params"])), ema.get("batch_stats", {})

"""Exponential moving average of trainable parameters and batch statistics.

  d_t = min(decay, (1 + t) / (10 + t))
  ema <- ema + (1 - d_t) * (value - ema)         after step t = 1, 2, ...

The growing d_t keeps the random start from weighing for 1 / (1 - decay) steps. The average covers
the trainable parameters and the running statistics of batch normalization, which belong to them.
Frozen parameters need none.

Source: Polyak and Juditsky, 1992; the growing decay is TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from avs_jax.runtime.optim import flatten, unflatten
from avs_jax.spec import Array, InputError


def init_ema(trainable: Mapping[str, Array], batch_stats: Any, decay: float) -> dict:
    """The average before the first step.

    Args:
      trainable: {path: parameter}.
      batch_stats: nested running statistics.
      decay: of config.train.ema_decay.

    Returns:
      {"params": {path: array}, "batch_stats": nested}, copies; {} if decay is 0.

    Raises:
      InputError: a decay outside 0 <= decay < 1.
    """
    if not 0 <= decay < 1:
        raise InputError(f"config.train.ema_decay = {decay}: expected 0 (off) <= decay < 1")
    if not decay:
        return {}
    # Copies, because the state is donated and a buffer can be donated only once.
    return jax.tree.map(jnp.copy, {"params": dict(trainable), "batch_stats": batch_stats})


def update_ema(
    ema: dict, trainable: Mapping[str, Array], batch_stats: Any, step: Array, decay: float
) -> dict:
    """The average after a step.

    Args:
      ema: from `init_ema`, or {}.
      trainable: {path: parameter} after the step.
      batch_stats: after the step.
      step: int [], steps done, including this one.
      decay: as in `init_ema`.
    """
    if not ema:
        return {}
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)
    new = {"params": dict(trainable), "batch_stats": batch_stats}
    return jax.tree.map(lambda old, value: old + rate.astype(old.dtype) * (value - old), ema, new)


def ema_variables(params: Mapping, ema: Mapping) -> tuple[dict, Any]:
    """The averaged (params, batch_stats), both nested; frozen parameters come from `params`.

    Args:
      params: nested, all of them.
      ema: from `update_ema`, not empty.
    """
    return unflatten(flatten(params) | dict(ema["params"])), ema.get("batch_stats", {})

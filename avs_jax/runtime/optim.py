"""AdamW with parameter groups by path, global gradient clipping, and a polynomial schedule.

One update for the gradient g of all trainable parameters, and per parameter p with group factors
(a, b):

  g <- g * min(1, clip / (|g| + 1e-6))
  p <- p - lr(t) * a * (m_hat / (sqrt(v_hat) + 1e-8) + b * weight_decay * p)
  lr(t) = base * ((steps - t) / steps) ** power, times (t + 1) / warmup_steps during the warm-up

m can be stored in bfloat16, which saves a quarter of the optimizer state: g moves it by a tenth,
which eight bits resolve, and the update uses its float32 value before rounding. v stays float32:
g^2 moves it by a thousandth, less than half of bfloat16's spacing, so it would never decrease.

Source: VCT train_net.py (build_optimizer, FullModelGradientClippingOptimizer, WarmupPolyLR),
torch.optim.AdamW.
Departures: groups are regular expressions over parameter paths instead of module types; frozen
parameters have no optimizer state; the warm-up has no constant part.

Parameter trees are nested dicts; here and in the optimizer state they are flat,
{"backbone/norm0/scale": array}.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from avs_jax.spec import Array, InputError, nearest

BETAS = (0.9, 0.999)
EPSILON = 1e-8
CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_
Group = tuple[str, float, float]  # path regex, learning-rate factor, weight-decay factor


def base_learning_rate(config: ConfigDict) -> float:
    """The configured rate; if it is 0, VCT's 1e-4 at batch 2 by the square-root rule."""
    return config.optim.learning_rate or 1e-4 * math.sqrt(config.train.batch_size / 2)


def make_schedule(base: float, steps: int, power: float, warmup_steps: int = 0) -> optax.Schedule:
    """Learning rate by step: `base` decays to 0 at `steps`, after a linear warm-up.

    Counts the steps left as integers, so float32 is precise up to the last one.
    """

    def schedule(step):
        left = jnp.maximum(steps - step, 0).astype(jnp.float32) / steps
        rate = base * left**power
        if warmup_steps:
            rate = rate * jnp.minimum(1.0, (step + 1) / warmup_steps)
        return rate

    return schedule


def flatten(params: Mapping) -> dict[str, Array]:
    """Nested parameters -> {path: leaf}, paths "/"-separated."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Array]) -> dict:
    """{path: leaf} -> nested parameters."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def split_frozen(
    params: Mapping, frozen: Sequence[str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Nested parameters -> (trainable, frozen), both flat; `frozen` are regexes of whole paths.

    Raises:
      InputError: a regex matches no parameter, so it would silently freeze nothing.
    """
    trainable, held = flatten(params), {}
    paths = list(trainable)
    for pattern in frozen:
        matched = [path for path in paths if re.fullmatch(pattern, path)]
        if not matched:
            raise InputError(
                f"config.optim.frozen: {pattern!r} matches no parameter; "
                f"nearest paths: {nearest(pattern, paths) or sorted(paths)[:3]}"
            )
        held |= {path: trainable.pop(path) for path in matched if path in trainable}
    return trainable, held


def assign_groups(paths: Iterable[str], groups: Sequence[Group]) -> dict[str, Group]:
    """The group of each path: the first row whose regex fully matches it.

    Raises:
      InputError: listing the unmatched paths and all rows.
    """
    assigned = {
        path: next((tuple(row) for row in groups if re.fullmatch(row[0], path)), None)
        for path in paths
    }
    missing = [path for path, row in assigned.items() if row is None]
    if missing:
        raise InputError(
            f"config.optim.groups: no row matches {missing}; rows: {[row[0] for row in groups]}"
        )
    return assigned


def describe_groups(params: Mapping, config: ConfigDict) -> str:
    """For the log, one line per group: number of tensors and values, and factors."""
    trainable, frozen = split_frozen(params, config.optim.frozen)
    assigned = assign_groups(trainable, config.optim.groups)
    lines = []
    for row in config.optim.groups:
        pattern, rate, decay = row
        leaves = [trainable[path] for path, group in assigned.items() if group == tuple(row)]
        lines.append(
            f"  {pattern}: {len(leaves)} tensors, {sum(x.size for x in leaves):,} values, "
            f"learning rate x{rate:g}, weight decay x{decay:g}"
        )
    size = sum(x.size for x in frozen.values())
    lines.append(f"  frozen: {len(frozen)} tensors, {size:,} values")
    return "\n".join(lines)


def make_optimizer(
    params: Mapping, config: ConfigDict
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of `config.optim`, over {path: gradient}, and the learning rate by step.

    Of nested `params`, only the paths are read. InputError lists paths without a group.
    """
    optim = config.optim
    trainable, _ = split_frozen(params, optim.frozen)
    groups = assign_groups(trainable, optim.groups)
    rate = {path: row[1] for path, row in groups.items()}
    decay = {path: row[2] * optim.weight_decay for path, row in groups.items()}
    schedule = make_schedule(
        base_learning_rate(config), config.train.steps, optim.power, optim.warmup_steps
    )
    optimizer = optax.chain(
        clip_by_norm(optim.clip_norm),
        optax.scale_by_adam(*BETAS, eps=EPSILON, mu_dtype=jnp.dtype(optim.moment_dtype)),
        optax.stateless(lambda u, p: {path: u[path] + decay[path] * p[path] for path in u}),
        optax.stateless(lambda u, _: {path: rate[path] * u[path] for path in u}),
        optax.scale_by_learning_rate(schedule),
    )
    return optimizer, schedule


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales the gradient by min(1, max_norm / (norm + 1e-6)), as torch does; 0 disables it."""

    def clip(updates, _):
        if not max_norm:
            return updates
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + CLIP_EPSILON))
        return jax.tree.map(lambda x: x * factor, updates)

    return optax.stateless(clip)

"""Shared by the image backbones: four maps, four stages, and stochastic depth per frame."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.rules import STAGES, Config, Rule, within
from avs_jax.spec import check_shape

FEATURE_LEVELS = ("res2", "res3", "res4", "res5")  # strides 4, 8, 16, 32

Array = jax.Array
DROP_PATH_RULE = within("backbone.drop_path_rate", lambda x: 0 <= x < 1, "a rate, 0 <= rate < 1")


def heads_rule(widths: Callable[[Config], Sequence[int]]) -> Rule:
    """Attention heads per stage that divide the stages' channels `widths(config.model)`."""

    def holds(heads, config):
        return len(heads) == STAGES and all(
            n >= 1 and width % n == 0 for n, width in zip(heads, widths(config), strict=True)
        )

    def wanted(config):
        return f"{STAGES} numbers that divide the stages' channels, {list(widths(config))}"

    return Rule("backbone.num_heads", holds, wanted)


def draw_drop_path(
    backbone: nn.Module, num_frames: int, frame_ids: Array | None, train: bool
) -> Array | None:
    """`drop_path_scales` for all blocks of a bound backbone, from its rng stream "drop_path".

    [sum(depths), 2, N] of the backbone's dtype; None if nothing is dropped. `frame_ids` are int32
    [N], by default 0 .. N - 1.
    """
    if not train or backbone.drop_path_rate == 0:
        return None
    if frame_ids is None:
        frame_ids = jnp.arange(num_frames)
    check_shape("frame_ids", frame_ids, "N", N=num_frames)
    key, depth = backbone.make_rng("drop_path"), sum(backbone.depths)
    scales = drop_path_scales(key, frame_ids, depth, backbone.drop_path_rate)
    return scales.astype(jnp.dtype(backbone.dtype))


def drop_path_scales(key: Array, frame_ids: Array, depth: int, max_rate: float) -> Array:
    """Factors float32 [depth, 2, N] of attention and MLP: 0 if dropped, else 1 / (1 - rate).

    Stochastic depth (Huang et al., ECCV 2016) per frame: block l drops at rate
    linspace(0, max_rate, depth)[l]. A frame's draws depend on the key and its id alone.
    """
    keep = jnp.asarray(1 - np.linspace(0, max_rate, depth), jnp.float32)[:, None, None]
    draw = jax.vmap(lambda frame: jax.random.uniform(jax.random.fold_in(key, frame), (depth, 2)))
    uniform = jnp.moveaxis(draw(frame_ids), 0, -1)
    return jnp.where(uniform < keep, 1 / keep, 0.0)

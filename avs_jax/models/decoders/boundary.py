"""Boundary refinement (BRM): an edge map from the mask features, optionally fed back into them.

auxiliary   e = conv1x1(ReLU(BN(conv3x3(F~, D -> 128))))               F is unchanged
refine      E = GELU(GN(conv3x3(GELU(GN(conv3x3([conv1x1 F~ ; conv1x1 R~]))))))        64 wide
            e = conv1x1 E
            F <- F + conv1x1 [E ; sigmoid(e) E]                        this conv1x1 starts at zero

F are the mask features and R is res2, per frame, at stride 4. Queries and masks both read the
refined features. X~ = sg(X) + r (X - sg(X)) has the value of X and r times its gradient: r ramps
from 0 to 1 during training, so the head first learns on features that it does not change.

`auxiliary` is the head in the AMA authors' notes (see fusion/ama.py; SKA-VCT's "boundary"). It
shapes features in training; masks do not read it. `refine` is a departure of this package. Because
its last convolution starts at zero, it does not change the masks of a checkpoint without BRM.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import BatchNorm, Conv, Linear, NormedConv
from avs_jax.models.rules import Rule
from avs_jax.models.stage import Stage, StageInputs, StageResult

AUXILIARY_CHANNELS = 128
REFINE_CHANNELS = 64
EDGE_PREVALENCE = 0.05  # initial edge probability of every pixel in `refine`
zeros = nn.initializers.zeros
RAMP_RULE = Rule(
    "refiner.ramp",
    lambda ramp, _: len(ramp) == 2 and 0 <= ramp[0] <= ramp[1] <= 1,
    lambda _: "(start, end) with 0 <= start <= end <= 1",
)


def ramp_value(progress: jax.Array | float, ramp: Sequence[float]) -> jax.Array:
    """The share r of the edge head's gradient that reaches the features, float32 [].

    It is 0 before, 1 after and linear between (start, end) as fractions of the training. Equal
    values make a step: (0, 0) is 1 from the beginning.
    """
    start, end = ramp
    progress = jnp.asarray(progress, jnp.float32)
    rising = jnp.clip((progress - start) / max(end - start, 1e-6), 0.0, 1.0)
    return jnp.where(progress >= end, 1.0, rising)


def scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """x unchanged, with its gradient scaled by `factor` []."""
    constant = jax.lax.stop_gradient(x)
    return constant + factor.astype(x.dtype) * (x - constant)


class AuxiliaryBoundary(nn.Module):
    """The edge head that only shapes features, in float32; the source's `ramp` is (0, 0)."""

    ramp: Sequence[float] = (0.0, 0.0)

    RULES = (RAMP_RULE,)

    @nn.compact
    def __call__(
        self,
        mask_features: jax.Array,
        res2: jax.Array,
        *,
        progress: jax.Array | float = 1.0,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """mask_features [N, h, w, D], unchanged, and edge logits, float32 [N, h, w].

        In training, the BatchNorm uses and records the statistics of the frames of `valid`, bool
        [N] (None for all). res2 [N, h, w, C] is not used.
        """
        ramp = ramp_value(progress, self.ramp)
        x = Conv(AUXILIARY_CHANNELS, 3, name="conv")(scale_gradient(mask_features, ramp))
        x = nn.relu(BatchNorm(name="norm")(x, train=train, valid=valid))
        edge = Linear(1, name="edge")(x)
        return mask_features, edge[..., 0]


class BoundaryRefinement(nn.Module):
    """The edge head whose features are added to the mask features, in float32."""

    ramp: Sequence[float] = (0.3, 0.6)

    RULES = (RAMP_RULE,)

    @nn.compact
    def __call__(
        self,
        mask_features: jax.Array,
        res2: jax.Array,
        *,
        progress: jax.Array | float = 1.0,
        train: bool = False,
        valid: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """As AuxiliaryBoundary, but returns new mask features.

        `train` and `valid` are not used, because the norms are per frame.
        """
        ramp = ramp_value(progress, self.ramp)
        x = jnp.concatenate(
            [
                Linear(REFINE_CHANNELS, name=f"{name}_proj")(scale_gradient(features, ramp))
                for name, features in (
                    ("mask_features", mask_features),
                    ("res2", res2.astype(jnp.float32)),
                )
            ],
            axis=-1,
        )
        for i in range(2):
            x = nn.gelu(NormedConv(REFINE_CHANNELS, 3, name=f"conv{i}")(x), approximate=False)
        prior = math.log(EDGE_PREVALENCE / (1 - EDGE_PREVALENCE))
        edge = Linear(1, bias_init=nn.initializers.constant(prior), name="edge")(x)
        both = jnp.concatenate([x, nn.sigmoid(edge) * x], axis=-1)
        delta = Linear(mask_features.shape[-1], True, zeros, zeros, name="delta")(both)
        return mask_features + delta, edge[..., 0]


def _apply(module: nn.Module, inputs: StageInputs) -> StageResult:
    mask_features, edges = module(
        inputs.mask_features,
        inputs.features["res2"],
        progress=inputs.progress,
        train=inputs.train,
        valid=inputs.valid,
    )
    return StageResult(features=mask_features, outputs={"edge_logits": edges})


def _make_stage(module: type[nn.Module]) -> Stage:
    def schedules(section: Mapping[str, Any]) -> dict[str, Callable]:
        ramp = section.get("ramp", module.ramp)
        return {"boundary_ramp": functools.partial(ramp_value, ramp=ramp)}

    places = ("features",)
    return Stage(module, parameter="brm", acts_on=places, apply=_apply, schedules=schedules)


AUXILIARY, REFINE = _make_stage(AuxiliaryBoundary), _make_stage(BoundaryRefinement)

"""SAM2's feature pyramid: backbone maps to the three maps that prompts are decoded from.

    p5 = W_5 r5      p4 = W_4 r4 + up2(p5)      p3 = W_3 r3      p2 = W_2 r2

Only stride 16 gets a coarser map, by nearest neighbors; p5 has no other use. The two fine maps are
narrowed for the mask decoder. Source: facebookresearch/sam2, FpnNeck in
sam2/modeling/backbones/image_encoder.py; the narrowing layers are the original mask decoder's.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import Linear

Array = jax.Array


class ImageFeatures(NamedTuple):
    """Maps of N images at strides 4, 8 and 16.

    Attributes:
      fine: [N, 4h, 4w, D / 8].
      middle: [N, 2h, 2w, D / 4].
      coarse: [N, h, w, D].
    """

    fine: Array
    middle: Array
    coarse: Array


class Neck(nn.Module):
    """The pyramid; `width` is D."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, Array]) -> dict[str, Array]:
        """{"res2", .., "res5"} of the backbone -> the same names, [N, h, w, D]."""
        levels = {
            level: Linear(self.width, dtype=self.dtype, name=f"convs_{i}")(maps[level])
            for i, level in enumerate(("res5", "res4", "res3", "res2"))
        }
        levels["res4"] += double(levels["res5"])
        return levels


def double(x: Array) -> Array:
    """Nearest neighbors: [N, h, w, C] -> [N, 2h, 2w, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)

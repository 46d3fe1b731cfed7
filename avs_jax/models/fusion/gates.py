"""The channel gate that lets a second visual branch into the first: image + gate(mask) * mask.

    gate(x) = sigmoid(W2 relu(W1 mean_hw(x) + b1) + b2)

Source: spyflying/VCT_AVS, models/utils/misc.py (channel_weighted_block); it is the
squeeze-and-excitation of Hu et al., CVPR 2018.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.backbones.swin import uniform_fan_in

REDUCTION = 16  # channels over hidden channels


class ChannelGate(nn.Module):
    """One weight in (0, 1) per channel of a feature map, from its average over the map.

    Attributes:
      dtype: of the result; the gate itself is computed in float32.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, C] -> [N, 1, 1, C]."""
        channels = x.shape[-1]
        hidden = max(1, channels // REDUCTION)
        gate = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        gate = nn.relu(_linear(hidden, channels, "fc1")(gate))
        gate = nn.sigmoid(_linear(channels, hidden, "fc2")(gate))
        return gate.astype(self.dtype)


def _linear(features: int, fan_in: int, name: str) -> nn.Dense:
    init = uniform_fan_in(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)

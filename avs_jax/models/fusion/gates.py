"""The channel gate that adds a second visual branch to the first: image + gate(mask) * mask.

    gate(x) = sigmoid(W2 relu(W1 mean_hw(x) + b1) + b2)

Source: spyflying/VCT_AVS, models/utils/misc.py (channel_weighted_block), the squeeze-and-excitation
of Hu et al., CVPR 2018.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import Linear

REDUCTION = 16  # channels per hidden channel


class ChannelGate(nn.Module):
    """One weight in (0, 1) per channel of a feature map, from the channel's mean."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, C] -> [N, 1, 1, C] in the dtype of x, computed in at least float32."""
        channels = x.shape[-1]
        hidden = max(1, channels // REDUCTION)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        gate = x.astype(wide).mean((1, 2), keepdims=True)
        gate = nn.relu(Linear(hidden, dtype=wide, name="fc1")(gate))
        gate = nn.sigmoid(Linear(channels, dtype=wide, name="fc2")(gate))
        return gate.astype(x.dtype)

"""The channel gate that lets a second visual branch into the first: image + gate(mask) * mask.

    gate(x) = sigmoid(W2 relu(W1 mean_hw(x) + b1) + b2)

Source: spyflying/VCT_AVS, models/utils/misc.py (channel_weighted_block); it is the
squeeze-and-excitation of Hu et al., CVPR 2018.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import Linear

REDUCTION = 16  # channels over hidden channels


class ChannelGate(nn.Module):
    """One weight in (0, 1) per channel of a feature map, from its average over the map."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, C] -> [N, 1, 1, C], computed in float32 at least, of the dtype of x."""
        channels = x.shape[-1]
        hidden = max(1, channels // REDUCTION)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        gate = x.astype(wide).mean((1, 2), keepdims=True)
        gate = nn.relu(Linear(hidden, dtype=wide, name="fc1")(gate))
        gate = nn.sigmoid(Linear(channels, dtype=wide, name="fc2")(gate))
        return gate.astype(x.dtype)

"""A gate per frame: is there anything to see and hear that could align?

    g = 2 sigmoid(MLP[mean_hw(features) ; audio ; log motion energy ; log audio energy] / T)

The last layer starts at zero, so g starts at exactly 1 and changes nothing; it stays in 0..2. The
energies are log(mean |motion|^2 + 1e-6) over pixels and log(mean mel) over the frame's sound, which
is silent where the log-mel is 0 throughout: there, data.short_audio = "zeros" has no sound.

Source: the AMA authors' notes (see ama.py) propose a gated AMA; inputs, range and start are ours.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.layers import Linear

EPSILON = 1e-6
HIDDEN = 64
SILENCE = np.log(0.01)  # log-mel of digital silence (data/audio.py)


class EvidenceGate(nn.Module):
    """The gate of each frame, float32 [N]."""

    temperature: float = 1.0  # T

    @nn.compact
    def __call__(
        self, features: jax.Array, audio: jax.Array, motion: jax.Array, log_mel: jax.Array
    ) -> jax.Array:
        """[N, h, w, D], [N, D], [N, H, W, C] and [N, 96, 64] -> [N]."""
        wide = jnp.promote_types(features.dtype, jnp.float32)
        strength = jnp.square(motion.astype(wide)).sum(-1).mean((1, 2))
        is_absent = (log_mel == 0).all((1, 2), keepdims=True)
        loudness = jnp.exp(jnp.where(is_absent, SILENCE, log_mel.astype(wide))).mean((1, 2))
        evidence = [
            features.astype(wide).mean((1, 2)),
            audio.astype(wide),
            jnp.log(strength + EPSILON)[:, None],
            jnp.log(loudness)[:, None],
        ]
        hidden = nn.gelu(Linear(HIDDEN, dtype=wide, name="fc1")(jnp.concatenate(evidence, axis=-1)))
        zeros = nn.initializers.zeros
        score = Linear(1, kernel_init=zeros, bias_init=zeros, dtype=wide, name="fc2")(hidden)
        return 2 * nn.sigmoid(score[:, 0] / self.temperature)

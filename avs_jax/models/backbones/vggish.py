"""VGGish (Hershey et al., ICASSP 2017) up to its convolution map: the audio backbone of VCT.

Six 3 x 3 convolutions with ReLU in four groups, each followed by 2 x 2 max pooling. The original
adds a 128-d embedding, which VCT loads but never runs; it has no parameters here. Source:
spyflying/VCT_AVS and OpenNLPLab/AVSBench; parameter names keep their layer numbers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.rules import at_least
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, check_shape

# Per group and convolution: layer number in the original, width as a multiple of `width`.
GROUPS = (((0, 1),), ((3, 2),), ((6, 4), (8, 4)), ((11, 8), (13, 8)))


class VGGish(nn.Module):
    """The convolution map of log-mel examples; `width` is that of the first convolution."""

    width: int = 64
    dtype: str = "float32"

    RULES = tuple(at_least(1, "audio_backbone.width"))

    @nn.compact
    def __call__(self, log_mel: jax.Array) -> jax.Array:
        """[N, 96, 64] (time, band) -> [N, 6, 4, 8 * width] (time, band, channel), of `dtype`."""
        check_shape("log_mel", log_mel, f"N {MEL_FRAMES} {MEL_BANDS}")
        x = log_mel[..., None].astype(self.dtype)
        for group in GROUPS:
            for number, factor in group:
                conv = nn.Conv(
                    factor * self.width,
                    (3, 3),
                    dtype=jnp.dtype(self.dtype),
                    kernel_init=nn.initializers.he_normal(),
                    name=f"features_{number}",
                )
                x = nn.relu(conv(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return x

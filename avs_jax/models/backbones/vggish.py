"""VGGish (Hershey et al., ICASSP 2017): log-mel examples to a convolution map or an embedding.

Six 3 x 3 convolutions with ReLU in four groups, each followed by 2 x 2 max pooling. With
`embedding`, linear layers follow, a ReLU after each, the last one included: TPAVI reads the 128-d
embedding. VCT reads the map; it loads the linear layers but never runs them, so they have no
parameters there. Neither applies the PCA of the original. Source: spyflying/VCT_AVS and
OpenNLPLab/AVSBench; parameter names keep their layer numbers.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import Conv, Linear, max_pool
from avs_jax.models.rules import at_least
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, check_shape

# Per group and convolution: layer number in the original, width as a multiple of `width`.
GROUPS = (((0, 1),), ((3, 2),), ((6, 4), (8, 4)), ((11, 8), (13, 8)))

he_normal = nn.initializers.he_normal()  # keeps the scale of standardized log-mels


class VGGish(nn.Module):
    """The convolution map of log-mel examples, or their embedding.

    Attributes:
      width: channels of the first convolution; the map has eight times as many.
      embedding: widths of the linear layers after the map; (4096, 4096, 128) in the original.
      dtype: of compute; parameters are float32.
    """

    width: int = 64
    embedding: Sequence[int] = ()
    dtype: str = "float32"

    RULES = tuple(at_least(1, "audio_backbone.width"))

    @nn.compact
    def __call__(self, log_mel: jax.Array) -> jax.Array:
        """Encodes examples.

        Args:
          log_mel: [N, 96, 64] (time, band).

        Returns:
          [N, 6, 4, 8 * width] (time, band, channel), or [N, embedding[-1]]; of `dtype`.
        """
        check_shape("log_mel", log_mel, f"N {MEL_FRAMES} {MEL_BANDS}")
        x = log_mel[..., None].astype(self.dtype)
        for group in GROUPS:
            for number, factor in group:
                conv = Conv(
                    factor * self.width,
                    kernel_size=3,
                    kernel_init=he_normal,
                    bias_init=nn.initializers.zeros,
                    dtype=jnp.dtype(self.dtype),
                    name=f"features_{number}",
                )
                x = nn.relu(conv(x))
            x = max_pool(x, 2)
        if self.embedding:
            # Rows last, and first again: else XLA:CPU gives the convolutions and the products with
            # few rows to YNNPACK as one kernel, which takes seven times as long as both.
            x = x.transpose(1, 2, 3, 0).reshape(-1, x.shape[0]).T
        for i, features in enumerate(self.embedding):
            linear = Linear(
                features,
                kernel_init=he_normal,
                bias_init=nn.initializers.zeros,
                dtype=jnp.dtype(self.dtype),
                name=f"embeddings_{2 * i}",
            )
            x = nn.relu(linear(x))
        return x

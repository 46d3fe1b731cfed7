"""AST, a transformer on patches of a log-mel: one example of sound to one vector.

  x = [class ; distillation ; patches W + b] + positions -> blocks -> LN -> mean of the first two

Patches of 16 x 16 (band, frame) overlap: the stride is 10. Patches are ordered band by band.
Source: Gong et al. (Interspeech 2021), as in Hugging Face's modeling_audio_spectrogram_
transformer.py. Departure: the number of positions follows from the examples that initialize it, the
96 x 64 of spec.py, where the published model reads ten seconds of 128 bands.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import LayerNorm, torch_uniform
from avs_jax.models.rules import at_least, divides, within
from avs_jax.models.transformer import INIT, Block
from avs_jax.spec import check_shape

PATCH = 16
NUM_TOKENS = 2  # before the patches
EPSILON = 1e-12  # of the norms, the original's


class AST(nn.Module):
    """The encoder; the default sizes are DeiT-B's.

    Attributes:
      hidden_dim: width.
      num_layers, num_heads, ffn_dim: of the transformer.
      stride: of the patches, in bands and frames.
      dtype: of matrix products; parameters, norms and softmax are float32.
    """

    hidden_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    stride: int = 10
    dtype: str = "float32"

    RULES = (
        *at_least(1, *(f"audio_backbone.{key}" for key in ("hidden_dim", "num_layers", "ffn_dim"))),
        divides("audio_backbone.num_heads", "audio_backbone.hidden_dim"),
        within("audio_backbone.stride", lambda x: 1 <= x <= PATCH, f"1 to {PATCH}"),
    )

    @nn.compact
    def __call__(
        self, log_mel: jax.Array, collect: dict[str, jax.Array] | None = None
    ) -> jax.Array:
        """Encodes examples.

        Args:
          log_mel: [N, frames, bands], at least 16 of each.
          collect: receives embeddings, the result of every layer, last and pooled.

        Returns:
          [N, hidden_dim] in `dtype`.
        """
        num_examples = check_shape("log_mel", log_mel, "N T F")["N"]
        steps = {} if collect is None else collect
        width, dtype = self.hidden_dim, jnp.dtype(self.dtype)
        init = torch_uniform(PATCH * PATCH)
        kernel = self.param("patch_embedding", init, (PATCH, PATCH, 1, width))
        bias = self.param("patch_bias", init, (width,))
        patches = jax.lax.conv_general_dilated(
            jnp.swapaxes(log_mel, 1, 2)[..., None].astype(dtype),
            kernel.astype(dtype),
            (self.stride, self.stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        patches = patches + bias.astype(dtype)[None, None, None]
        first = self.param("tokens", INIT, (NUM_TOKENS, width)).astype(dtype)
        first = jnp.broadcast_to(first[None], (num_examples, NUM_TOKENS, width))
        x = jnp.concatenate([first, patches.reshape(num_examples, -1, width)], axis=1)
        x = x + self.param("position_embedding", INIT, x.shape[1:])[None].astype(dtype)
        steps["embeddings"] = x
        for i in range(self.num_layers):
            block = Block(
                self.num_heads, self.ffn_dim, "gelu", EPSILON, dtype=dtype, name=f"layers_{i}"
            )
            x = steps[f"layer{i}"] = block(x)
        steps["last"] = LayerNorm(EPSILON, name="norm")(x)
        steps["pooled"] = steps["last"][:, :NUM_TOKENS].mean(1)
        return steps["pooled"]

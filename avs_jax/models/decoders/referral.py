"""Outputs of a model that reads an expression: is it there, and what in the image does it resemble.

  presence   p_t = sigmoid(MLP[mean query ; mean audio ; text ; max location])  per frame
  alignment  W_v F at every cell, and W_t text, for losses/alignment.py         E channels

text is the mean of the valid tokens, location the map of the localizer where there is one. F are
the features at stride 8 before any text has entered them: a map that already holds its expression
would always resemble it. The weight of the alignment rises over the fraction `align_warmup` of the
training.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.fusion.gated import pool_tokens
from avs_jax.models.layers import MLP, Linear
from avs_jax.models.rules import at_least, within

START_TEMPERATURE = 0.07


class ReferralHead(nn.Module):
    """See the module's docstring.

    Attributes:
      hidden_dim: of the presence MLP.
      embed_dim: E.
      align_warmup: see above.
    """

    hidden_dim: int = 256
    embed_dim: int = 128
    align_warmup: float = 0.2

    RULES = (
        *at_least(1, "head.hidden_dim", "head.embed_dim"),
        within("head.align_warmup", lambda x: 0 <= x <= 1, "a share, 0..1"),
    )

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        audio: jax.Array,
        text: jax.Array,
        text_mask: jax.Array,
        features: jax.Array,
        progress: jax.Array | float = 1.0,
        location: jax.Array | None = None,
        phrases: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Reads one frame per row.

        Args:
          queries: [N, Q, D], of the last decoder layer.
          audio: [N, 6, 4, D].
          text, text_mask: [N, L, Dt] and bool [N, L].
          features: [N, h, w, D], stride 8.
          progress: [], fraction of the training that is done.
          location: logits [N, h, w] of the localizer, or None.
          phrases: [N, P, Dt], means of the tokens of further expressions, or None.

        Returns:
          presence_logits [N], align_map [N, h, w, E], align_text [N, E] and, of the phrases,
          align_phrases [N, P, E], float32; and [] each
          align_scale, the log temperature of the alignment, and align_ramp, in 0..1.
        """
        words = pool_tokens(text, text_mask)[:, 0]
        joined = [
            queries.astype(jnp.float32).mean(1),
            audio.astype(jnp.float32).mean((1, 2)),
            words,
        ]
        if location is not None:
            # Without gradient: XLA may compute the map twice, not to the same bits; then no cell
            # equals the maximum, and its gradient is 0 / 0.
            joined.append(jax.lax.stop_gradient(location).max((1, 2))[:, None])
        presence = MLP((self.hidden_dim, 1), name="presence")(jnp.concatenate(joined, axis=-1))
        wide = features.astype(jnp.float32)
        embed = Linear(self.embed_dim, use_bias=False, name="align_text")
        outputs = {
            "presence_logits": presence[:, 0],
            "align_map": Linear(self.embed_dim, use_bias=False, name="align_visual")(wide),
            "align_text": embed(words),
        }
        if phrases is not None:
            outputs["align_phrases"] = embed(phrases)
        start = nn.initializers.constant(math.log(1 / START_TEMPERATURE))
        ramp = jnp.clip(jnp.asarray(progress, jnp.float32) / max(self.align_warmup, 1e-9), 0, 1)
        return outputs, {"align_scale": self.param("align_scale", start, ()), "align_ramp": ramp}

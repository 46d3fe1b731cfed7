"""Where is what an expression means: a logit for every cell and every expression of a frame.

  q_e = W_q w_e;  a_e = q_e + MHA(q_e, s + codes of place, s)    what is said, and heard in s
  l   = exp(s) cos(MLP(F at the cell), MLP([q_e ; a_e])) + b     exp(s), b: SCALE, BIAS at first

w_e is the mean of the expression's valid tokens. F are the features at stride 8 before any text has
entered them. The words read the sound before they are compared with a cell, since "the one making
the low sound" says nothing about looks: the tokens of the frame's second, and one per frequency
band and second of the clip (in training, data.text.num_seconds of them), since what sounds may be
silent now, and "first" needs the others.

In training it reads several expressions of every clip (data.text.num_phrases), and a loss tells
each cell which of them mean it (losses/localization.py). A batch with one expression per clip says
only which cells that one means, and a trunk that must learn shapes from it alone learns colors.

Source: ours. Text-to-pixel comparison is that of CRIS (Wang et al., CVPR 2022), whose text does not
hear and whose batch has one expression per image.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import MLP, Linear, MultiheadAttention, sine_code
from avs_jax.models.rules import at_least
from avs_jax.ops.unit_length import normalize

SCALE, BIAS = 10.0, -2.0  # an expression means few cells


class TextToPixel(nn.Module):
    """See the module's docstring.

    Attributes:
      embed_dim: E.
      num_heads: of the attention to the sound.
    """

    embed_dim: int = 128
    num_heads: int = 8

    RULES = at_least(1, "localizer.embed_dim", "localizer.num_heads")

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        audio: jax.Array,
        words: jax.Array,
        clip_audio: jax.Array,
        clip_valid: jax.Array,
        seconds: jax.Array,
    ) -> jax.Array:
        """Reads one frame per row.

        Args:
          features: [N, h, w, D], stride 8.
          audio: [N, 6, 4, D].
          words: [N, P, Dt], expressions of each frame.
          clip_audio: [N, F, 4, D], sound of seconds of the clip, (second, band).
          clip_valid: bool [N, F], the second exists.
          seconds: int [N, F], which they are.

        Returns:
          logits float32 [N, P, h, w].
        """
        features = features.astype(jnp.float32)
        width = features.shape[-1]
        audio, clip_audio = audio.astype(jnp.float32), clip_audio.astype(jnp.float32)
        tokens, codes, missing = self._sound(audio, clip_audio, clip_valid, seconds)
        said = Linear(width, name="words")(words.astype(jnp.float32))
        missing = jnp.broadcast_to(missing[:, None], (*said.shape[:2], missing.shape[1]))
        listen = MultiheadAttention(self.num_heads, name="listen")
        heard = listen(said, tokens + codes, tokens, missing)
        both = jnp.concatenate([said, said + heard], axis=-1)
        meant = normalize(MLP((width, self.embed_dim), name="meant")(both))
        seen = normalize(MLP((width, self.embed_dim), name="seen")(features))
        scale = self.param("scale", nn.initializers.constant(math.log(SCALE)), ())
        bias = self.param("bias", nn.initializers.constant(BIAS), ())
        return jnp.exp(scale) * jnp.einsum("npe,nhwe->nphw", meant, seen) + bias

    def _sound(self, audio, clip_audio, clip_valid, seconds):
        """The frame's sound and the clip's: tokens and codes [N, S, D], missing [N, S]."""
        normal, (bands, width) = nn.initializers.normal(0.02), audio.shape[-2:]
        now = self.param("sound_codes", normal, audio.shape[1:])
        times = sine_code(seconds, width)[:, :, None]
        places = times + self.param("band_codes", normal, (bands, width))[None, None]
        tokens, codes = (
            jnp.concatenate([x.reshape(x.shape[0], -1, width) for x in pair], axis=1)
            for pair in ((audio, clip_audio), (jnp.broadcast_to(now[None], audio.shape), places))
        )
        missing = jnp.repeat(~clip_valid, bands, axis=1)
        return tokens, codes, jnp.pad(missing, ((0, 0), (tokens.shape[1] - missing.shape[1], 0)))

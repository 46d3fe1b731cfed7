"""One vector for a clip from tokens of its frames and tokens of its sound.

v and a are the means of the tokens; p_v and p_a say whether the clip has the modality. A missing
modality has zeros for tokens, whatever the input held.

  early         relu(W [v ; a] + b)
  late_feature  (p_v v + p_a a) / (p_v + p_a)
  attention     w_v v + w_a a,  w = softmax of (s . v + c, s . a + c) over what the clip has
  gated         mean of the frames' tokens after one layer of gated.py: they attend to the sound
                behind gates that both decide on
  film          relu((1 + g) v + h),  (g, h) = p_a (W a + b), zero at first
  cross         a class token after one transformer block over itself and all tokens, each with a
                code of its modality

Source of the first three: a textbook example of early, late and attention fusion. FiLM is Perez et
al. (AAAI 2018). Departure: the example scores an absent modality like any other.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.attention import hide_padding
from avs_jax.models.fusion.gated import GatedLayer, make_gate_config, pool_tokens
from avs_jax.models.layers import LayerNorm, Linear
from avs_jax.models.transformer import INIT, Block

VECTORS = ("early", "late_feature", "attention", "film")  # read the means alone
TOKENS = ("gated", "cross")
FFN_RATIO = 2


class ClipFusion(nn.Module):
    """The fusion; see the module's docstring.

    Attributes:
      kind: one of VECTORS and TOKENS.
      num_heads: of gated and cross.
      dtype: of matrix products; weights, gates and softmax are float32 at least.
    """

    kind: str
    num_heads: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        frames: jax.Array,
        audio: jax.Array,
        present: jax.Array,
        frames_mask: jax.Array | None = None,
        audio_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Fuses.

        Args:
          frames, audio: tokens [B, T, D] and [B, U, D].
          present: bool [B, 2], whether the clip has frames and sound.
          frames_mask, audio_mask: bool [B, T] and [B, U], the token exists; None: all do.

        Returns:
          [B, D]; and the weights of the two, float32 [B, 2], where the fusion has some, else their
          share of what is present.
        """
        frames = jnp.where(present[:, :1, None], frames, 0)
        audio = jnp.where(present[:, 1:, None], audio, 0)
        share = shares(jnp.ones((2,)), present)
        if self.kind in TOKENS:
            mixed = self._gated if self.kind == "gated" else self._cross
            return mixed(frames, audio, present, frames_mask, audio_mask), share
        v, a = pool_tokens(frames, frames_mask)[:, 0], pool_tokens(audio, audio_mask)[:, 0]
        width = v.shape[-1]
        if self.kind == "early":
            hidden = Linear(width, dtype=self.dtype, name="fusion")(jnp.concatenate([v, a], -1))
            return nn.relu(hidden), share
        if self.kind == "film":
            zeros = nn.initializers.zeros
            project = Linear(2 * width, True, zeros, zeros, self.dtype, name="modulation")
            gain, shift = jnp.split(jnp.where(present[:, 1:], project(a), 0), 2, axis=-1)
            return nn.relu((1 + gain) * v + shift), share
        both = jnp.stack([v, a], axis=1)
        if self.kind == "attention":
            scores = Linear(1, name="attention")(both.astype(jnp.float32))[..., 0]
            share = nn.softmax(jnp.where(present, scores, jnp.finfo(scores.dtype).min), axis=-1)
        return (share[..., None] * both).sum(1), share

    def _gated(self, frames, audio, present, frames_mask, audio_mask) -> jax.Array:
        del present
        config = make_gate_config("custom", {"attn": "cross"})
        layer = GatedLayer(config, self.num_heads, self.dtype, name="gated")
        mixed, _ = layer(frames, audio, frames_mask, audio_mask)
        return pool_tokens(mixed, frames_mask)[:, 0]

    def _cross(self, frames, audio, present, frames_mask, audio_mask) -> jax.Array:
        width = frames.shape[-1]
        codes = self.param("modality_embedding", INIT, (2, width))
        token = self.param("class_embedding", INIT, (width,))
        parts, visible = [jnp.broadcast_to(token[None, None], (len(frames), 1, width))], []
        visible.append(jnp.ones((len(frames), 1), bool))
        for i, (x, mask) in enumerate(((frames, frames_mask), (audio, audio_mask))):
            parts.append(x + codes[i][None, None])
            exists = jnp.ones(x.shape[:2], bool) if mask is None else mask
            visible.append(exists & present[:, i : i + 1])
        tokens = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=1)
        masked = hide_padding(jnp.concatenate(visible, axis=1))
        block = Block(self.num_heads, FFN_RATIO * width, dtype=self.dtype, name="block")
        return LayerNorm(name="norm")(block(tokens, masked)[:, 0]).astype(jnp.float32)


def shares(weights: jax.Array, present: jax.Array) -> jax.Array:
    """Weights [2] over what is present, bool [B, 2], as float32 [B, 2] that sum to 1, or to 0."""
    kept = jnp.where(present, weights[None], 0.0)
    return kept / jnp.maximum(kept.sum(1, keepdims=True), 1e-6)

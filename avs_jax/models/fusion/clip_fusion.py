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

from collections.abc import Sequence
from typing import NamedTuple

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


class ClipTokens(NamedTuple):
    """The tokens of clips.

    Attributes:
      frames, audio: [B, T, D] and [B, U, D].
      present: bool [B, 2], whether the clip has frames and sound.
      frames_mask, audio_mask: bool [B, T] and [B, U], the token exists; None: all do.
    """

    frames: jax.Array
    audio: jax.Array
    present: jax.Array
    frames_mask: jax.Array | None = None
    audio_mask: jax.Array | None = None


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
    def __call__(self, clip: ClipTokens) -> tuple[jax.Array, jax.Array]:
        """Fuses.

        Returns:
          [B, D]; and the weights of the two, float32 [B, 2], where the fusion has some, else their
          share of what is present.
        """
        frames = jnp.where(clip.present[:, :1, None], clip.frames, 0)
        audio = jnp.where(clip.present[:, 1:, None], clip.audio, 0)
        clip = clip._replace(frames=frames, audio=audio)
        if self.kind in VECTORS:
            v = pool_tokens(frames, clip.frames_mask)[:, 0]
            a = pool_tokens(audio, clip.audio_mask)[:, 0]
            return fuse_vectors(self.kind, v, a, clip.present, self.dtype)
        fused = self._gated(clip) if self.kind == "gated" else self._cross(clip)
        return fused, shares(jnp.ones((2,)), clip.present)

    def _gated(self, clip: ClipTokens) -> jax.Array:
        mixed = attend_behind_gates(clip, self.num_heads, self.dtype)
        return pool_tokens(mixed, clip.frames_mask)[:, 0]

    def _cross(self, clip: ClipTokens) -> jax.Array:
        count, _, width = clip.frames.shape
        codes = self.param("modality_embedding", INIT, (2, width))
        token = self.param("class_embedding", INIT, (width,))
        parts = [
            (jnp.broadcast_to(token[None, None], (count, 1, width)), jnp.ones((count, 1), bool))
        ]
        given = ((clip.frames, clip.frames_mask), (clip.audio, clip.audio_mask))
        for i, (x, mask) in enumerate(given):
            exists = jnp.ones(x.shape[:2], bool) if mask is None else mask
            parts.append((x + codes[i][None, None], exists & clip.present[:, i : i + 1]))
        return attend_together(parts, self.num_heads, self.dtype)[:, 0]


def fuse_vectors(
    kind: str, v: jax.Array, a: jax.Array, present: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """One of VECTORS, from [B, D] each and bool [B, 2]; returns as ClipFusion.

    Creates submodules of the caller.
    """
    width, share = v.shape[-1], shares(jnp.ones((2,)), present)
    if kind == "early":
        hidden = Linear(width, dtype=dtype, name="fusion")(jnp.concatenate([v, a], -1))
        return nn.relu(hidden), share
    if kind == "film":
        zeros = nn.initializers.zeros
        project = Linear(2 * width, True, zeros, zeros, dtype, name="modulation")
        gain, shift = jnp.split(jnp.where(present[:, 1:], project(a), 0), 2, axis=-1)
        return nn.relu((1 + gain) * v + shift), share
    both = jnp.stack([v, a], axis=1)
    if kind == "attention":
        scores = Linear(1, name="attention")(both.astype(jnp.float32))[..., 0]
        share = nn.softmax(jnp.where(present, scores, jnp.finfo(scores.dtype).min), axis=-1)
    return (share[..., None] * both).sum(1), share


def attend_behind_gates(clip: ClipTokens, num_heads: int, dtype: jnp.dtype) -> jax.Array:
    """The frames' tokens [B, T, D] after one gated layer; a submodule of the caller."""
    config = make_gate_config("custom", {"attn": "cross"})
    layer = GatedLayer(config, num_heads, dtype, name="gated")
    return layer(clip.frames, clip.audio, clip.frames_mask, clip.audio_mask)[0]


def attend_together(
    parts: Sequence[tuple[jax.Array, jax.Array]], num_heads: int, dtype: jnp.dtype
) -> jax.Array:
    """The first part's tokens after a transformer block over all parts.

    Creates submodules of the caller.

    Args:
      parts: tokens [B, S, D] and which exist, bool [B, S].

    Returns:
      float32 [B, S, D].
    """
    tokens = jnp.concatenate([part.astype(dtype) for part, _ in parts], axis=1)
    masked = hide_padding(jnp.concatenate([exists for _, exists in parts], axis=1))
    block = Block(num_heads, FFN_RATIO * tokens.shape[-1], dtype=dtype, name="block")
    first = block(tokens, masked)[:, : parts[0][0].shape[1]]
    return LayerNorm(name="norm")(first).astype(jnp.float32)


def shares(weights: jax.Array, present: jax.Array) -> jax.Array:
    """Weights [2] over what is present, bool [B, 2], as float32 [B, 2] that sum to 1, or to 0."""
    kept = jnp.where(present, weights[None], 0.0)
    return kept / jnp.maximum(kept.sum(1, keepdims=True), 1e-6)

"""Divided space-time attention: every patch over time, then every frame over its patches.

  x = x + W_f Attn_time(LN x)       over the T tokens at one place; W_f starts at zero
  x = x + Attn_space(LN x)          over the patches of one frame and the class token
  x = x + W_2 gelu(W_1 LN x)

The class token, where there is one, takes no part in time; each frame attends with a copy of it,
and the mean of the frames' updates is added to it. A layer costs S T^2 + T S^2, where attention
over all tokens costs (S T)^2.

`DividedEncoder` puts such layers behind a level of a backbone. It projects in, adds sine codes of
place and time, and adds the result of a projection out that starts at zero: at first, its output is
its input.

Source: Bertasius et al. (ICML 2021), the formulas of the paper alone. Departures: frames that pad
a clip are not attended to; the encoder's projections and codes.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.layers import LayerNorm, Linear, sine_code, sine_position_encoding
from avs_jax.models.rules import at_least, divides, one_of
from avs_jax.models.transformer import MLP, SelfAttention
from avs_jax.ops.frames import fold_frames, unfold_frames

EPSILON = 1e-6  # of the norms, the original's
ZEROS = nn.initializers.zeros


class DividedBlock(nn.Module):
    """One layer; see the module's docstring."""

    num_heads: int
    ffn_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        class_token: jax.Array | None = None,
        valid: jax.Array | None = None,
        collect: dict[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Mixes the tokens of clips.

        Args:
          x: [B, T, S, D], S patches of T frames.
          class_token: [B, D], or None.
          valid: bool [B, T], the frame exists; None for all.
          collect: receives time_attention and time_update [B S, T, D], space_attention
            [B T, 1 + S, D] and after_space [B, T, S, D].

        Returns:
          x and class_token, updated.
        """
        steps = {} if collect is None else collect
        x = x + self._over_time(x, valid, steps)
        update, class_update = self._over_space(x, class_token, valid, steps)
        x = steps["after_space"] = x + update
        norm, mlp = (
            LayerNorm(EPSILON, name="norm2"),
            MLP(self.ffn_dim, "gelu", self.dtype, name="mlp"),
        )
        mixed = x + mlp(norm(x))
        if class_token is None:
            return mixed, None
        class_token = class_token + class_update
        return mixed, class_token + mlp(norm(class_token))

    def _over_time(self, x: jax.Array, valid, steps) -> jax.Array:
        num_clips, num_frames, num_patches, width = x.shape
        tokens = jnp.swapaxes(x, 1, 2).reshape(num_clips * num_patches, num_frames, width)
        masked = None
        if valid is not None:
            masked = ~jnp.repeat(valid, num_patches, axis=0)[:, None, None]
        normed = LayerNorm(EPSILON, name="norm0")(tokens)
        attention = SelfAttention(self.num_heads, self.dtype, name="time_attention")
        found = steps["time_attention"] = attention(normed, masked)
        project = Linear(width, True, ZEROS, ZEROS, self.dtype, name="time_projection")
        found = steps["time_update"] = project(found)
        return jnp.swapaxes(found.reshape(num_clips, num_patches, num_frames, width), 1, 2)

    def _over_space(self, x: jax.Array, class_token, valid, steps):
        num_clips, num_frames, _, width = x.shape
        tokens = fold_frames(x)
        if class_token is not None:
            copies = jnp.repeat(class_token, num_frames, axis=0)[:, None]
            tokens = jnp.concatenate([copies, tokens], axis=1)
        normed = LayerNorm(EPSILON, name="norm1")(tokens)
        attention = SelfAttention(self.num_heads, self.dtype, name="space_attention")
        found = steps["space_attention"] = attention(normed)
        found = unfold_frames(found, num_frames)
        if class_token is None:
            return found, None
        of_class = found[:, :, 0]
        if valid is None:
            return found[:, :, 1:], of_class.mean(1)
        kept = jnp.where(valid[..., None], of_class, 0).sum(1)
        count = jnp.maximum(valid.sum(1), 1)[:, None].astype(x.dtype)
        return found[:, :, 1:], kept / count


class DividedEncoder(nn.Module):
    """Layers of divided attention on one level of a backbone.

    Attributes:
      level: one of FEATURE_LEVELS.
      num_layers: of DividedBlock.
      hidden_dim, num_heads, ffn_dim: of the layers.
      dtype: of matrix products; parameters, norms and softmax are float32.
    """

    level: str = "res5"
    num_layers: int = 2
    hidden_dim: int = 256
    num_heads: int = 8
    ffn_dim: int = 1024
    dtype: jnp.dtype = jnp.float32

    RULES = (
        one_of("temporal.level", FEATURE_LEVELS),
        *at_least(1, *(f"temporal.{key}" for key in ("num_layers", "hidden_dim", "ffn_dim"))),
        divides("temporal.num_heads", "temporal.hidden_dim"),
    )

    @nn.compact
    def __call__(
        self, features: Mapping[str, jax.Array], num_frames: int, valid: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Adds what the frames of a clip know of each other to one level.

        Args:
          features: res2 .. res5, [N, h, w, C] with N = B T.
          num_frames: T.
          valid: bool [B, T], the frame exists; None for all.

        Returns:
          the features, that level replaced.
        """
        level = features[self.level]
        _, height, width, channels = level.shape
        x = Linear(self.hidden_dim, dtype=self.dtype, name="input_projection")(level)
        places = sine_position_encoding(height, width, self.hidden_dim).reshape(1, -1, x.shape[-1])
        times = sine_code(jnp.arange(num_frames), self.hidden_dim)
        x = unfold_frames(x.reshape(x.shape[0], height * width, -1), num_frames)
        x = x + (places + times[:, None])[None].astype(x.dtype)
        for i in range(self.num_layers):
            block = DividedBlock(self.num_heads, self.ffn_dim, self.dtype, name=f"layers_{i}")
            x, _ = block(x, valid=valid)
        x = LayerNorm(EPSILON, name="norm")(fold_frames(x))
        project = Linear(channels, True, ZEROS, ZEROS, self.dtype, name="output_projection")
        update = project(x).reshape(level.shape).astype(level.dtype)
        return {**features, self.level: level + update}

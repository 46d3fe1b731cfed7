"""TimeSformer with divided attention: a video to class scores.

  x = patches W + b + place + time;  class = token + its place -> DividedBlock -> LN(class) W + b

Videos of another size or length than the positions are made for take the nearest ones: index i of n
reads position floor(i m / n) of m, along each axis of the image and along time.

Source: Bertasius et al. (ICML 2021), the formulas of the paper alone; the nearest rule is that of
the original code at run time, measured.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.layers import LayerNorm, Linear, torch_uniform
from avs_jax.models.temporal.divided import EPSILON, DividedBlock
from avs_jax.models.transformer import INIT
from avs_jax.ops.frames import fold_frames, unfold_frames
from avs_jax.spec import check_shape


class TimeSformer(nn.Module):
    """The classifier; the defaults are those of the base model on Kinetics-400.

    Attributes:
      num_classes: of the scores; 0: the normed class token is the result.
      num_frames, image_size: that the positions are made for.
      patch_size: px per side of a patch.
      hidden_dim, num_layers, num_heads, ffn_dim: of the layers.
      dtype: of matrix products; parameters, norms and softmax are float32.
    """

    num_classes: int = 400
    num_frames: int = 8
    image_size: int = 224
    patch_size: int = 16
    hidden_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        video: jax.Array,
        valid: jax.Array | None = None,
        collect: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Scores clips.

        Args:
          video: [B, T, H, W, 3], normalized.
          valid: bool [B, T], the frame exists; None for all.
          collect: receives embeddings, layer0 .. and last_hidden_state as [B, 1 + S T, D], the
            class first, then patch by patch; and what the first layer collects, with layer0_.

        Returns:
          float32 [B, num_classes], or [B, hidden_dim] without classes.
        """
        check_shape("video", video, "B T H W 3")
        steps = {} if collect is None else collect
        x, class_token = self._embed(video)
        steps["embeddings"] = join_tokens(class_token, x)
        for i in range(self.num_layers):
            dtype = jnp.dtype(self.dtype)
            block = DividedBlock(self.num_heads, self.ffn_dim, dtype, name=f"layers_{i}")
            inside = {}
            x, class_token = block(x, class_token, valid, inside)
            steps |= {f"layer0_{k}": v for k, v in inside.items()} if i == 0 else {}
            steps[f"layer{i}"] = join_tokens(class_token, x)
        norm = LayerNorm(EPSILON, name="norm")
        steps["last_hidden_state"] = norm(steps[f"layer{self.num_layers - 1}"])
        found = norm(class_token).astype(jnp.float32)
        if not self.num_classes:
            return found
        return Linear(self.num_classes, True, INIT, nn.initializers.zeros, name="head")(found)

    def _embed(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Patches [B, T, S, D] and class token [B, D]."""
        width, patch, dtype = self.hidden_dim, self.patch_size, jnp.dtype(self.dtype)
        init = torch_uniform(patch * patch * 3)
        kernel = self.param("patch_embedding", init, (patch, patch, 3, width))
        bias = self.param("patch_bias", init, (width,))
        x = jax.lax.conv_general_dilated(
            fold_frames(video).astype(dtype),
            kernel.astype(dtype),
            (patch, patch),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        height, columns = x.shape[1:3]
        side, num_frames = self.image_size // patch, video.shape[1]
        places = self.param("position_embedding", INIT, (1 + side * side, width))
        times = self.param("time_embedding", nn.initializers.zeros, (self.num_frames, width))
        token = self.param("class_embedding", INIT, (width,))
        grid = places[1:].reshape(side, side, width)
        grid = grid[nearest_index(height, side)][:, nearest_index(columns, side)]
        times = times[nearest_index(num_frames, self.num_frames)]
        codes = times[:, None] + grid.reshape(1, -1, width)
        x = unfold_frames(x.reshape(x.shape[0], -1, width), num_frames)
        x = x + (codes + bias[None, None])[None].astype(dtype)
        first = jnp.broadcast_to((token + places[0])[None], (video.shape[0], width))
        return x, first.astype(dtype)


def nearest_index(count: int, size: int) -> np.ndarray:
    """int [count]: which of `size` entries each of `count` takes."""
    return np.arange(count) * size // count


def join_tokens(class_token: jax.Array, x: jax.Array) -> jax.Array:
    """[B, D] and [B, T, S, D] to [B, 1 + S T, D]: the class first, then patch by patch."""
    patches = jnp.swapaxes(x, 1, 2).reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([class_token[:, None], patches], axis=1)

"""SAM2's prompt encoder: points, boxes and masks to tokens and a map.

    code(p) = [sin(2 pi G (2p - 1)), cos(..)]      p = (x, y) as fractions of the image
    token = code((xy + 1/2) / size) + embedding[label]

A box is two points. Points that only fill an array are hidden from attention, so objects with
different numbers of points share one program. Source: facebookresearch/sam2,
sam2/modeling/sam/prompt_encoder.py. As there, "no prompt" exists twice: image prediction passes no
token at all, tracking passes two tokens NOT_A_POINT.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.models.layers import LayerNorm, Linear
from avs_jax.spec import ABSENT_POINT

Array = jax.Array

STRIDE = 16  # px per cell of the map that is decoded
EPSILON = 1e-6

normal = nn.initializers.normal(1.0)


class EncodedPrompts(NamedTuple):
    """Prompts of N objects.

    Attributes:
      tokens: [N, P, D].
      masked: bool [N, P], True for tokens that do not exist.
      dense: [N, h, w, D], added to the image.
      positions: float32 [h, w, D], the code of the cells.
    """

    tokens: Array
    masked: Array
    dense: Array
    positions: Array


class PromptEncoder(nn.Module):
    """Encodes the prompts of objects; `width` is D."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        points: Array,
        labels: Array,
        mask_logits: Array,
        has_mask: Array,
        image_size: tuple[int, int],
    ) -> EncodedPrompts:
        """Encodes N objects on images of (H, W) px.

        Args:
          points: float32 [N, P, 2], (x, y) in px, pixel centers at whole numbers; P may be 0.
          labels: int32 [N, P], see spec.py: ABSENT_POINT .. BOTTOM_RIGHT.
          mask_logits: float32 [N, H / 4, W / 4].
          has_mask: bool [N].
        """
        gaussian = self.param("gaussian", normal, (2, self.width // 2))
        blank = self.param("not_a_point_embed", normal, (1, self.width))
        kinds = [self.param(f"point_embeddings_{i}", normal, (1, self.width)) for i in range(4)]
        no_mask = self.param("no_mask_embed", normal, (1, self.width))

        height, width = image_size
        size = jnp.array([width, height], jnp.float32)[None, None]
        tokens = position_code((points.astype(jnp.float32) + 0.5) / size, gaussian)
        tokens += jnp.concatenate(kinds)[jnp.clip(labels, 0)]
        tokens = jnp.where((labels < 0)[..., None], blank[None], tokens)

        downscale = MaskDownscaling(self.width, dtype=self.dtype, name="mask_downscaling")
        dense = downscale(mask_logits[..., None])
        dense = jnp.where(has_mask[:, None, None, None], dense, no_mask[None, None])
        cells = cell_centers(height // STRIDE, width // STRIDE)
        code = position_code(jnp.asarray(cells), gaussian)
        return EncodedPrompts(tokens, labels == ABSENT_POINT, dense, code)


class MoreTokens(NamedTuple):
    """Tokens of a sound or a text [N, P, D], and which exist, bool [N, P]."""

    tokens: Array
    exists: Array


def append_tokens(prompts: EncodedPrompts, more: MoreTokens) -> EncodedPrompts:
    """The prompts with more tokens behind those of the points."""
    tokens = [prompts.tokens, more.tokens.astype(prompts.tokens.dtype)]
    masked = [prompts.masked, ~more.exists]
    return prompts._replace(
        tokens=jnp.concatenate(tokens, axis=1), masked=jnp.concatenate(masked, axis=1)
    )


class MaskDownscaling(nn.Module):
    """Mask logits to the size of the coarse map: [N, 4h, 4w, 1] -> [N, h, w, D]."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for number, channels in ((0, 4), (3, 16)):
            conv = nn.Conv(channels, (2, 2), 2, "VALID", dtype=self.dtype, name=f"{number}")
            x = LayerNorm(EPSILON, name=f"{number + 1}")(conv(x))
            x = nn.gelu(x, approximate=False)
        return Linear(self.width, dtype=self.dtype, name="6")(x)


def position_code(points: Array, gaussian: Array) -> Array:
    """Random Fourier features of fractions [..., 2]: float32 [..., D]."""
    exact = jax.lax.Precision.HIGHEST
    angle = 2 * np.pi * jnp.matmul(2 * points - 1, gaussian, precision=exact)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def cell_centers(height: int, width: int) -> np.ndarray:
    """float32 [height, width, 2]: (x, y) of the cells as fractions."""
    y, x = np.meshgrid(
        (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
    )
    return np.stack([x, y], axis=-1).astype(np.float32)

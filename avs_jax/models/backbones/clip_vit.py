"""CLIP's vision transformer: a frame to one vector.

  x = LN([class ; patches W] + positions) -> blocks -> LN(x_class)

Frames of another size than `image_size` resize the grid of positions (bicubic); the class keeps its
own. Source: Radford et al. (ICML 2021), as in Hugging Face's modeling_clip.py, whose patch
convolution has no bias.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.layers import LayerNorm, torch_uniform
from avs_jax.models.rules import Rule, at_least, divides, one_of
from avs_jax.models.transformer import ACTIVATIONS, INIT, Block
from avs_jax.ops.bicubic import bicubic_matrix
from avs_jax.spec import check_shape


def _holds_whole_patches(patch: int, config) -> bool:
    return patch >= 1 and config["backbone"].get("image_size", CLIPViT.image_size) % patch == 0


class CLIPViT(nn.Module):
    """The encoder; the defaults are those of ViT-B/32.

    Attributes:
      patch_size: px per side of a patch.
      image_size: px per side that the positions are made for.
      hidden_dim: width.
      num_layers, num_heads, ffn_dim: of the transformer.
      activation: "quick_gelu" (OpenAI's weights) or "gelu" (LAION's).
      dtype: of matrix products; parameters, norms and softmax are float32.
    """

    patch_size: int = 32
    image_size: int = 224
    hidden_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_dim: int = 3072
    activation: str = "quick_gelu"
    dtype: str = "float32"

    PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)  # of RGB 0..255
    PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)
    RULES = (
        *at_least(1, *(f"backbone.{key}" for key in ("hidden_dim", "num_layers", "ffn_dim"))),
        divides("backbone.num_heads", "backbone.hidden_dim"),
        one_of("backbone.activation", sorted(ACTIVATIONS)),
        Rule("backbone.patch_size", _holds_whole_patches, lambda _: "a divisor of image_size"),
    )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        frame_ids: jax.Array | None = None,
        collect: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Encodes frames.

        Args:
          x: [N, H, W, 3] normalized by PIXEL_MEAN and PIXEL_STD; pixels beyond whole patches at the
            bottom and right are not read.
          train, frame_ids: not used; other backbones draw drop path.
          collect: receives embeddings, the result of every layer, and pooled.

        Returns:
          [N, hidden_dim] in `dtype`.
        """
        del train, frame_ids
        check_shape("x", x, "N H W 3")
        steps = {} if collect is None else collect
        width, patch, dtype = self.hidden_dim, self.patch_size, jnp.dtype(self.dtype)
        shape = (patch, patch, 3, width)
        kernel = self.param("patch_embedding", torch_uniform(patch * patch * 3), shape)
        patches = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (patch, patch),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        grid = patches.shape[1:3]
        class_token = self.param("class_embedding", INIT, (width,)).astype(dtype)
        first = jnp.broadcast_to(class_token[None, None], (x.shape[0], 1, width))
        tokens = jnp.concatenate([first, patches.reshape(x.shape[0], -1, width)], axis=1)
        tokens = tokens + self._positions(grid)[None].astype(dtype)
        steps["embeddings"] = tokens
        tokens = steps["pre_norm"] = LayerNorm(name="pre_norm")(tokens)
        for i in range(self.num_layers):
            block = Block(
                self.num_heads, self.ffn_dim, self.activation, dtype=dtype, name=f"layers_{i}"
            )
            tokens = steps[f"layer{i}"] = block(tokens)
        steps["pooled"] = LayerNorm(name="post_norm")(tokens[:, 0])
        return steps["pooled"]

    def _positions(self, grid: tuple[int, int]) -> jax.Array:
        """float32 [1 + h w, D] for a grid of h x w patches."""
        side = self.image_size // self.patch_size
        table = self.param("position_embedding", INIT, (1 + side * side, self.hidden_dim))
        if grid == (side, side):
            return table
        rows, columns = (jnp.asarray(bicubic_matrix(side, n), jnp.float32) for n in grid)
        cells = table[1:].reshape(side, side, -1)
        cells = jnp.einsum("yi,xj,ijd->yxd", rows, columns, cells)
        return jnp.concatenate([table[:1], cells.reshape(-1, self.hidden_dim)])

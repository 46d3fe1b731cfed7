"""SAM2's mask decoder: an image and the tokens of a prompt to four masks and their scores.

    tokens = [object score, IoU, mask 0 .. 3, prompt ..]
    tokens, image = two-way transformer(tokens, image + dense prompt)
    mask_i = MLP_i(mask token i) . upscaled image

Mask 0 is for a complete prompt, masks 1 to 3 for an ambiguous one. If mask 0 changes much with its
threshold, the best of the others by predicted IoU replaces it (`choose`).

Source: facebookresearch/sam2, sam2/modeling/sam/mask_decoder.py and transformer.py. Transposed
convolutions with stride = kernel are a product and a reordering.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from avs_jax.models.layers import MLP, LayerNorm
from avs_jax.models.sam2.attention import ProjectedAttention
from avs_jax.models.sam2.neck import ImageFeatures
from avs_jax.models.sam2.prompts import EncodedPrompts

NUM_HEADS = 8
NUM_LAYERS = 2
FFN_DIM = 2048
NUM_MASKS = 4
SCORE_DIM = 256  # hidden width of the IoU head
EPSILON = 1e-6  # of the norm between the upscalings; the transformer's is 1e-5

Array = jax.Array

normal = nn.initializers.normal(1.0)


class DecodedMasks(NamedTuple):
    """Everything decoded for N objects.

    Attributes:
      masks: float32 logits [N, 4h, 4w, 4].
      ious: float32 [N, 4], predicted.
      tokens: [N, 4, D] of the masks.
      object_score: float32 logits [N, 1], whether the object is visible.
      image: [N, 4h, 4w, D / 8], the map that masks are products with.
    """

    masks: Array
    ious: Array
    tokens: Array
    object_score: Array
    image: Array


class MaskDecoder(nn.Module):
    """The decoder; intermediates are sown under the names of the original's variables."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: ImageFeatures, prompts: EncodedPrompts) -> DecodedMasks:
        """Decodes N objects; `features` are of N images."""
        num, height, width, dim = features.coarse.shape
        tokens = jnp.concatenate(
            [
                self.param(name, normal, (count, dim))
                for name, count in (("obj_score_token", 1), ("iou_token", 1), ("mask_tokens", 4))
            ]
        )
        num_output = len(tokens)
        tokens = jnp.broadcast_to(tokens[None], (num, num_output, dim))
        tokens = jnp.concatenate([tokens, prompts.tokens], axis=1).astype(self.dtype)
        masked = jnp.pad(prompts.masked, ((0, 0), (num_output, 0)))
        image = rearrange(features.coarse + prompts.dense, "n h w d -> n (h w) d")
        positions = rearrange(prompts.positions, "h w d -> 1 (h w) d").astype(self.dtype)

        transformer = TwoWayTransformer(dtype=self.dtype, name="transformer")
        tokens, image = transformer(tokens, image, positions, masked)
        self.sow("intermediates", "hs", tokens)
        image = rearrange(image, "n (h w) d -> n h w d", h=height)
        image = UpscaledImage(self.dtype, name="output_upscaling")(image, features)

        mask_tokens = tokens[:, 2:num_output]
        weights = [
            MLP((dim, dim, dim // 8), self.dtype, name=f"output_hypernetworks_mlps_{i}")(
                mask_tokens[:, i]
            )
            for i in range(NUM_MASKS)
        ]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        masks = jnp.einsum(
            "nhwc,nkc->nhwk", image, jnp.stack(weights, axis=1), preferred_element_type=wide
        )
        ious = MLP((SCORE_DIM, SCORE_DIM, NUM_MASKS), self.dtype, name="iou_prediction_head")
        score = MLP((dim, dim, 1), self.dtype, name="pred_obj_score_head")
        return DecodedMasks(
            masks,
            nn.sigmoid(ious(tokens[:, 1]).astype(wide)),
            mask_tokens,
            score(tokens[:, 0]).astype(wide),
            image,
        )


class UpscaledImage(nn.Module):
    """Four times the size, with the finer maps: [N, h, w, D] -> [N, 4h, 4w, D / 8]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, features: ImageFeatures) -> Array:
        dim = x.shape[-1]
        x = Upscaling(dim // 4, self.dtype, name="0")(x) + features.middle
        x = nn.gelu(LayerNorm(EPSILON, name="1")(x), approximate=False)
        x = Upscaling(dim // 8, self.dtype, name="3")(x) + features.fine
        return nn.gelu(x, approximate=False)


class Upscaling(nn.Module):
    """A transposed convolution, kernel and stride 2: y[2i + a, 2j + b] = x[i, j] W[:, a, b] + c."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[N, h, w, C] -> [N, 2h, 2w, features]."""
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=-1)
        kernel = self.param("kernel", init, (x.shape[-1], 2, 2, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jnp.einsum("nijc,cabo->niajbo", x.astype(self.dtype), kernel.astype(self.dtype))
        y = rearrange(y, "n i a j b o -> n (i a) (j b) o")
        return y + bias.astype(self.dtype)[None, None, None]


class TwoWayTransformer(nn.Module):
    """Tokens and image attend to each other."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, tokens: Array, image: Array, positions: Array, masked: Array
    ) -> tuple[Array, Array]:
        """tokens [N, Q, D], image [N, L, D], positions [1, L, D], masked bool [N, Q]."""
        first, positions = tokens, jnp.broadcast_to(positions, image.shape)
        for i in range(NUM_LAYERS):
            block = TwoWayBlock(is_first=i == 0, dtype=self.dtype, name=f"layers_{i}")
            tokens, image = block(tokens, image, first, positions, masked)
            self.sow("intermediates", f"layer{i}", (tokens, image))
        attention = ProjectedAttention(
            NUM_HEADS, tokens.shape[-1] // 2, self.dtype, name="final_attn_token_to_image"
        )
        tokens += attention(tokens + first, image + positions, image)
        return LayerNorm(name="norm_final_attn")(tokens), image


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; norms after each.

    `first` are the initial tokens: the positions of the tokens. The first block's self-attention
    replaces its input.
    """

    is_first: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens, image, first, positions, masked):
        dim = tokens.shape[-1]

        def attention(inner, name):
            return ProjectedAttention(NUM_HEADS, inner, self.dtype, name=name)

        own = attention(dim, "self_attn")
        if self.is_first:
            tokens = own(tokens, tokens, tokens, masked)
        else:
            tokens += own(tokens + first, tokens + first, tokens, masked)
        tokens = LayerNorm(name="norm1")(tokens)
        look = attention(dim // 2, "cross_attn_token_to_image")
        tokens += look(tokens + first, image + positions, image)
        tokens = LayerNorm(name="norm2")(tokens)
        tokens += MLP((FFN_DIM, dim), self.dtype, name="mlp")(tokens)
        tokens = LayerNorm(name="norm3")(tokens)
        back = attention(dim // 2, "cross_attn_image_to_token")
        image += back(image + positions, tokens + first, tokens, masked)
        return tokens, LayerNorm(name="norm4")(image)


class ChosenMask(NamedTuple):
    """One mask of each of N objects.

    Attributes:
      mask: logits [N, 4h, 4w].
      iou: [N], predicted.
      token: [N, D].
    """

    mask: Array
    iou: Array
    token: Array


def choose(
    decoded: DecodedMasks,
    is_ambiguous: Array,
    stability_delta: float = 0.05,
    stability_threshold: float = 0.98,
) -> ChosenMask:
    """The best of masks 1 to 3 where the prompt is ambiguous, else mask 0 if it is stable.

    Args:
      is_ambiguous: bool [N].
      stability_delta, stability_threshold: mask 0 is stable if the area above delta is at least
        this share of the area above -delta; 0 turns the test off.
    """
    best = 1 + decoded.ious[:, 1:].argmax(-1)
    first = decoded.masks[..., 0]
    inner = (first > stability_delta).sum((1, 2)).astype(jnp.float32)
    outer = (first > -stability_delta).sum((1, 2)).astype(jnp.float32)
    is_stable = jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 1.0) >= stability_threshold
    index = jnp.where(is_ambiguous | ~is_stable, best, 0)
    # An unstable mask is replaced, its token is not.
    token = jnp.where(is_ambiguous, best, 0)

    def pick(x, index, axis):
        index = index.reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=axis).squeeze(axis)

    return ChosenMask(
        pick(decoded.masks, index, 3), pick(decoded.ious, index, 1), pick(decoded.tokens, token, 1)
    )

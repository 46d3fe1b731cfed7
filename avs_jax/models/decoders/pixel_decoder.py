"""Pixel decoder: deformable attention over three scales, then one step of a feature pyramid.

  x_0 = GroupNorm(conv1x1(res5, res4, res3)), all pixels in one sequence
  x <- LN(x + MSDA(x + pos, x));  x <- LN(x + FFN(x))                        num_layers times
  mask_features = conv1x1(ReLU(GN(conv3x3(GN(conv1x1(res2)) + up2(x at stride 8)))))

Source: Mask2Former's MSDeformAttnPixelDecoder (Cheng et al. 2022) as used by VCT, with Deformable
DETR's encoder (Zhu et al. 2021), all in float32. The encoder layers are scanned; their parameters
are stacked along a leading axis.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from avs_jax.models.layers import (
    GroupNorm,
    LayerNorm,
    Linear,
    NormedConv,
    kaiming_uniform,
    remat_in_loop,
    sine_position_encoding,
    xavier_uniform,
)
from avs_jax.ops.deform_attn import deform_attn
from avs_jax.ops.sampling import resize_bilinear

ENCODER_LEVELS = ("res5", "res4", "res3")
# Besides an encoder layer's input. Norms, activations, softmax and sampling locations are cheap to
# recompute.
SAVED_FOR_BACKWARD = ("value", "offsets", "scores", "sampled", "residual", "hidden")
zeros = nn.initializers.zeros


def offset_bias(num_heads: int, num_levels: int, num_points: int) -> np.ndarray:
    """Initial sampling offsets in pixels: head g looks in direction g, point p at p + 1 steps.

    float32 [num_heads * num_levels * num_points * 2], (x, y) last.
    """
    angle = np.arange(num_heads) * (2 * np.pi / num_heads)
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    direction /= np.abs(direction).max(axis=-1, keepdims=True)
    steps = np.arange(1, num_points + 1)
    grid = direction[:, None, None, :] * steps[None, None, :, None]
    grid = np.broadcast_to(grid, (num_heads, num_levels, num_points, 2))
    return grid.reshape(-1).astype(np.float32)


def reference_points(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Centers of all pixels of all levels: float32 [sum of h*w, 2], (x, y) as fractions."""
    points = []
    for height, width in sizes:
        y, x = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
        )
        points.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(points).astype(np.float32)


class DeformableAttention(nn.Module):
    """Each token samples a few learned points around its position on every level."""

    num_heads: int
    num_points: int

    @nn.compact
    def __call__(
        self, query: jax.Array, value: jax.Array, sizes: Sequence[tuple[int, int]]
    ) -> jax.Array:
        """Query (positions added) and value are [N, S, D], S the tokens of `sizes`."""
        num_frames, num_tokens, width = query.shape
        heads, levels, points = self.num_heads, len(sizes), self.num_points
        value = Linear(width, True, xavier_uniform, zeros, name="value_proj")(value)
        value = checkpoint_name(value, "value")
        bias = offset_bias(heads, levels, points)
        offsets = Linear(
            bias.size, True, zeros, lambda key, shape: jnp.asarray(bias), name="sampling_offsets"
        )(query)
        scores = Linear(heads * levels * points, True, zeros, zeros, name="attention_weights")(
            query
        )
        offsets, scores = checkpoint_name(offsets, "offsets"), checkpoint_name(scores, "scores")
        weights = nn.softmax(scores.reshape(num_frames, num_tokens, heads, levels * points))
        shape = (num_frames, num_tokens, heads, levels, points)
        extent = np.array([(w, h) for h, w in sizes], np.float32)[None, None, None, :, None]
        center = reference_points(sizes)[None, :, None, None, None]
        locations = center + offsets.reshape(*shape, 2) / extent
        out = deform_attn(
            value.reshape(num_frames, num_tokens, heads, width // heads),
            sizes,
            locations,
            weights.reshape(shape),
        )
        out = checkpoint_name(out, "sampled")
        return Linear(width, True, xavier_uniform, zeros, name="output_proj")(out)


class EncoderLayer(nn.Module):
    """Post-norm residual deformable self-attention and ReLU network."""

    ffn_dim: int
    num_heads: int
    num_points: int
    sizes: tuple[tuple[int, int], ...]

    @nn.compact
    def __call__(self, x: jax.Array, position: jax.Array) -> tuple[jax.Array, dict]:
        """x, position: [N, S, D]. Returns x and the intermediates."""
        attend = DeformableAttention(self.num_heads, self.num_points, name="self_attn")
        attended = attend(x + position, x, self.sizes)
        x = LayerNorm(name="norm1")(checkpoint_name(x + attended, "residual"))
        hidden = Linear(self.ffn_dim, True, xavier_uniform, name="linear1")(x)
        hidden = nn.relu(checkpoint_name(hidden, "hidden"))
        y = x + Linear(x.shape[-1], True, xavier_uniform, name="linear2")(hidden)
        x = LayerNorm(name="norm2")(checkpoint_name(y, "residual"))
        return x, {"self_attn": attended, "output": x}


class Encoder(nn.Module):
    """`num_layers` encoder layers, scanned; `remat` recomputes each in the backward pass."""

    num_layers: int
    ffn_dim: int
    num_heads: int
    num_points: int
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, position: jax.Array, sizes: Sequence[tuple[int, int]]
    ) -> tuple[jax.Array, dict]:
        kept = jax.checkpoint_policies.save_only_these_names(*SAVED_FOR_BACKWARD)
        layers = nn.scan(
            nn.remat(EncoderLayer, policy=None if self.remat else kept),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.num_layers,
        )
        return layers(self.ffn_dim, self.num_heads, self.num_points, tuple(sizes), name="layers")(
            x, position
        )


class DeformableTransformer(nn.Module):
    """The encoder, with a learned vector per level added to its position encoding."""

    encoder: Mapping[str, Any]  # fields of Encoder

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> tuple[list[jax.Array], dict]:
        """Encodes [N, h, w, D] of each level; returns the encoded levels and intermediates."""
        num_frames, width = features[0].shape[0], features[0].shape[-1]
        sizes = [x.shape[1:3] for x in features]
        levels = self.param("level_embed", nn.initializers.normal(1.0), (len(sizes), width))
        x = jnp.concatenate([f.reshape(num_frames, -1, width) for f in features], axis=1)
        position = jnp.concatenate(
            [
                sine_position_encoding(h, w, width).reshape(-1, width) + level[None]
                for (h, w), level in zip(sizes, levels, strict=True)
            ]
        )[None]
        y, layers = Encoder(**self.encoder, name="encoder")(x, position, sizes)
        ends = np.cumsum([h * w for h, w in sizes])[:-1]
        encoded = [
            part.reshape(num_frames, *size, width)
            for part, size in zip(jnp.split(y, ends, axis=1), sizes, strict=True)
        ]
        return encoded, {"enc_src": x, "enc_pos": position, "enc_layers": layers}


class PixelDecoder(nn.Module):
    """Backbone maps res2..res5 to three encoded scales and mask features at stride 4.

    `remat` recomputes each encoder layer and the mask features in the backward pass.
    """

    hidden_dim: int = 256
    num_layers: int = 6
    ffn_dim: int = 1024
    num_heads: int = 8
    num_points: int = 4
    remat: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array]) -> tuple[list[jax.Array], jax.Array, dict]:
        """{"res2".."res5": [N, h, w, C]} to float32 maps [N, h, w, D]; and intermediates by name.

        A list of those at strides 32, 16 and 8, then the mask features at stride 4.
        """
        features = {name: x.astype(jnp.float32) for name, x in features.items()}
        projected = []
        for i, level in enumerate(ENCODER_LEVELS):
            x = Linear(self.hidden_dim, True, xavier_uniform, zeros, name=f"input_proj_{i}_0")(
                features[level]
            )
            projected.append(GroupNorm(name=f"input_proj_{i}_1")(x))
        names = ("num_layers", "ffn_dim", "num_heads", "num_points", "remat")
        encoder = {name: getattr(self, name) for name in names}
        transformer = DeformableTransformer(encoder, name="transformer")
        multi_scale, intermediates = transformer(projected)
        merge = PixelDecoder._merge
        if self.remat:
            merge = remat_in_loop(merge)
        mask_features, merged = merge(self, features["res2"], multi_scale[-1])
        intermediates |= {"input_proj": projected} | merged
        return multi_scale, mask_features, intermediates

    def _merge(self, res2, encoded):
        """Mask features from res2 and the finest encoded scale, and intermediates."""
        lateral = NormedConv(self.hidden_dim, 1, name="adapter_1")(res2)
        merged = lateral + resize_bilinear(encoded, lateral.shape[1:3])
        merged = nn.relu(NormedConv(self.hidden_dim, 3, name="layer_1")(merged))
        project = Linear(self.hidden_dim, True, kaiming_uniform, zeros, name="mask_features")
        return project(merged), {"adapter_1": lateral, "layer_1": merged}

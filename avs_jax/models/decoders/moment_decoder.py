"""The decoder of moment queries: Q anchors (center, width), refined layer by layer.

  s     = [sine code of c ; of w]                      D / 2 channels each
  p     = ref_point_head(s)                            the query's position
  s     = s * query_scale(t) * sigmoid(ref_anchor_head(t)) / w      the first factor from layer 1 on
  t     = DecoderLayer(t, p, s, clips)                 t starts at zero
  c, w  = sigmoid(bbox_embed(t) + logit(c, w))         the next anchor; no gradient through it there

Source: DAB-DETR (Liu et al., ICLR 2022) in one dimension, as QD-DETR has it (CVPR 2023,
wjun0830/QD-DETR, commit 56c63b2).
Departure: the original's sine code has 128 channels per coordinate and runs at D = 256 alone.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from avs_jax.models.attention import Attention, attend, split_heads
from avs_jax.models.layers import (
    Embedding,
    Initializer,
    LayerNorm,
    Linear,
    sine_code,
    xavier_uniform,
)

LOGIT_EPSILON = 1e-3
zeros = nn.initializers.zeros


def logit(x: jax.Array) -> jax.Array:
    """The inverse of the sigmoid; x and 1 - x count as LOGIT_EPSILON at least."""
    return jnp.log(jnp.maximum(x, LOGIT_EPSILON) / jnp.maximum(1 - x, LOGIT_EPSILON))


class Head(nn.Module):
    """Linear layers `layers_0`, ... with ReLU between them.

    Attributes:
      features: widths.
      kernel_init: None = PyTorch's default.
      is_zero: the last layer starts at zero.
    """

    features: tuple[int, ...]
    kernel_init: Initializer | None = None
    is_zero: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.features):
            init, bias_init = self.kernel_init, None
            if self.is_zero and i == len(self.features) - 1:
                init = bias_init = zeros
            x = nn.relu(x) if i else x
            x = Linear(width, True, init, bias_init, self.dtype, name=f"layers_{i}")(x)
        return x


class StackLayer(nn.Module):
    """What the layers of QD-DETR's three stacks share.

    Attributes:
      num_heads, ffn_dim: G, hidden width of the FFN.
      dropout: rate, from the rng stream "dropout".
      dtype: of the computation; norms and softmax are float32 at least.
    """

    num_heads: int
    ffn_dim: int
    dropout: float
    dtype: jnp.dtype

    def drop(self, x, train):
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def linear(self, features, name, bias_init=None):
        return Linear(features, True, xavier_uniform, bias_init, self.dtype, name=name)

    def self_attention(self):
        return Attention(self.num_heads, self.dropout, xavier_uniform, self.dtype, name="self_attn")

    def feed_forward(self, x, train):
        """Linear, PReLU with one learned slope, linear."""
        y = self.linear(self.ffn_dim, "linear1")(x)
        slope = self.param("slope", nn.initializers.constant(0.25), (1,)).astype(y.dtype)
        y = jnp.where(y >= 0, y, y * slope[0])
        return self.drop(self.linear(x.shape[-1], "linear2")(self.drop(y, train)), train)


class DecoderLayer(StackLayer):
    """Queries attend to each other, then to the clips; post-norm.

    In the second attention each head compares its part of the content beside its part of a
    position: of the scaled sine code in the query, of the clip's in the key. The first layer also
    adds the positions to the contents.
    """

    is_first: bool

    @nn.compact
    def __call__(self, t, query_pos, query_sine, memory, pos, masked, train):
        """t, query_pos, query_sine [B, Q, D], memory, pos [B, L, D] -> [B, Q, D], weights."""
        width = t.shape[-1]

        def project(x, name):
            return self.linear(width, f"{name}_proj")(x)

        def heads(x):
            return split_heads(x, self.num_heads)

        dropout = nn.Dropout(self.dropout, deterministic=not train)
        q = project(t, "sa_qcontent") + project(query_pos, "sa_qpos")
        k = project(t, "sa_kcontent") + project(query_pos, "sa_kpos")
        out, _ = attend(heads(q), heads(k), heads(project(t, "sa_v")), None, dropout)
        out = self.linear(width, "sa_out_proj", zeros)(out)
        t = LayerNorm(name="norm1")(t + self.drop(out, train))

        q, k = project(t, "ca_qcontent"), project(memory, "ca_kcontent")
        q_sine, k_pos = project(query_sine, "ca_qpos_sine"), project(pos, "ca_kpos")
        if self.is_first:
            q, k = q + project(query_pos, "ca_qpos"), k + k_pos
        q = jnp.concatenate([heads(q), heads(q_sine)], axis=-1)
        k = jnp.concatenate([heads(k), heads(k_pos)], axis=-1)
        out, weights = attend(q, k, heads(project(memory, "ca_v")), masked, dropout)
        out = self.linear(width, "ca_out_proj", zeros)(out)
        t = LayerNorm(name="norm2")(t + self.drop(out, train))
        return LayerNorm(name="norm3")(t + self.feed_forward(t, train)), weights


class MomentDecoder(nn.Module):
    """See the module's docstring.

    Attributes:
      num_layers, num_queries: of layers, Q.
      layer: fields of StackLayer.
    """

    num_layers: int
    num_queries: int
    layer: FrozenDict[str, Any]

    @nn.compact
    def __call__(
        self, memory: jax.Array, pos: jax.Array, masked: jax.Array, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
        """Decodes.

        Args:
          memory, pos: [B, L, D], clips and their position codes.
          masked: bool [B, 1, 1, L], True = padding.
          train: draw dropouts.

        Returns:
          By layer: normed queries [B, Q, D]; the anchors it started from, float32 [B, Q, 2], in
          which the heads' gradient reaches the layer before; attention over the clips, float32
          [B, G, Q, L].
        """
        width, dtype = memory.shape[-1], self.layer["dtype"]

        def head(name, *features, is_zero=False):
            return Head(features, xavier_uniform, is_zero, dtype, name=name)

        ref_point_head, query_scale = (
            head(name, width, width) for name in ("ref_point_head", "query_scale")
        )
        ref_anchor_head = head("ref_anchor_head", width, 1)
        bbox_embed = head("bbox_embed", width, width, 2, is_zero=True)
        norm = LayerNorm(name="norm")
        anchor = nn.sigmoid(Embedding(self.num_queries, 2, name="query_embed")())
        anchors = [jnp.broadcast_to(anchor[None], (memory.shape[0], *anchor.shape))]
        t = jnp.zeros((memory.shape[0], self.num_queries, width), dtype)
        states, weights = [], []
        for i in range(self.num_layers):
            anchor = jax.lax.stop_gradient(anchors[-1]) if i else anchors[-1]
            sine = sine_code(anchor * (2 * np.pi), width // 2).reshape(t.shape)
            query_pos = ref_point_head(sine)
            if i:
                sine = sine * query_scale(t).astype(jnp.float32)
            sine = sine * (nn.sigmoid(ref_anchor_head(t).astype(jnp.float32)) / anchor[..., 1:])
            layer = DecoderLayer(**self.layer, is_first=i == 0, name=f"layers_{i}")
            t, layer_weights = layer(t, query_pos, sine, memory, pos, masked, train)
            states.append(norm(t))
            weights.append(layer_weights)
            if i < self.num_layers - 1:
                anchors.append(nn.sigmoid(bbox_embed(t).astype(jnp.float32) + logit(anchor)))
        return states, anchors, weights

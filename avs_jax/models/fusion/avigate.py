"""AVIGATE's fusion: an audio resampler, gated layers, and a small share of their output.

  q      = learned queries; per layer q += SA(LN1 q); q += CA(LN3 q, LN3 a); q += MLP(LN2 q)
  v      = x + a learned position per frame
  fused  = share * gated layers(v, q) + (1 - share) * v

Source: Jeong et al., "Learning Audio-guided Video Representation with Gated Attention for
Video-Text Retrieval" (CVPR 2025), BoseungJeong/AVIGATE-CVPR2025, commit ca03ede. Published: D = 512
and the defaults below. There the self-attentions, MLPs and positions start as copies of CLIP's text
tower; here they start as the other parts do.
Departure: padding is masked, see gated.py.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from avs_jax.models.attention import Attention, hide_padding
from avs_jax.models.fusion.gated import (
    FFN_RATIO,
    GateConfig,
    GatedFusion,
    TwoLayers,
    make_gate_config,
)
from avs_jax.models.layers import LayerNorm
from avs_jax.spec import InputError


class ResamplerLayer(nn.Module):
    """Queries attend to each other, then to the audio tokens."""

    config: GateConfig
    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, q: jax.Array, a: jax.Array, masked: jax.Array | None) -> jax.Array:
        """q [B, M, D], a [B, La, D], masked as `attend` has it -> [B, M, D]."""
        config, width = self.config, q.shape[-1]
        norm1, norm2, norm3 = (LayerNorm(config.epsilon, name=f"norm{i}") for i in (1, 2, 3))
        self_attn, cross_attn = (
            Attention(self.num_heads, out_init=config.kernel_init, dtype=self.dtype, name=name)
            for name in ("self_attn", "cross_attn")
        )
        y = norm1(q)
        q = q + self_attn(y, y, y)[0]
        a = norm3(a)
        q = q + cross_attn(norm3(q), a, a, masked)[0]
        mlp = TwoLayers(config, (FFN_RATIO * width, width), dtype=self.dtype, name="mlp")
        return q + mlp(norm2(q))


class AvigateFusion(nn.Module):
    """See the module's docstring.

    Attributes:
      num_layers, num_resampler_layers, num_heads: of the stacks.
      num_audio_queries: M, audio tokens after the resampler.
      max_length: frames that have a position.
      share: of the gated layers in the result.
      gate: keys of GateConfig that differ from AVIGATE's.
      dtype: of the computation.
    """

    num_layers: int = 4
    num_resampler_layers: int = 4
    num_heads: int = 8
    num_audio_queries: int = 12
    max_length: int = 77
    share: float = 0.05
    gate: Mapping[str, Any] = FrozenDict()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        a: jax.Array,
        x_mask: jax.Array | None = None,
        a_mask: jax.Array | None = None,
        **gate_inputs: jax.Array | None,
    ) -> tuple[jax.Array, list[dict[str, Any]]]:
        """Fuses [B, La, D] audio tokens into [B, L, D]; the rest is `GatedFusion`'s."""
        config = make_gate_config("avigate", self.gate)
        length, width = x.shape[1:]
        if length > self.max_length:
            raise InputError(f"fusion.max_length = {self.max_length}: the input has {length} clips")
        normal, shape = nn.initializers.normal(0.02), (self.num_audio_queries, width)
        q = self.param("query_tokens", nn.initializers.orthogonal(), shape)
        q = q + self.param("query_positions", normal, shape)
        q = jnp.broadcast_to(q.astype(self.dtype)[None], (x.shape[0], *shape))
        masked = hide_padding(a_mask) if config.pooling == "masked" else None
        for i in range(self.num_resampler_layers):
            layer = ResamplerLayer(config, self.num_heads, self.dtype, name=f"resampler_{i}")
            q = layer(q, a.astype(self.dtype), masked)
        positions = self.param("frame_positions", normal, (self.max_length, width))
        x = x.astype(self.dtype) + positions[None, :length].astype(self.dtype)
        gated = GatedFusion(
            "avigate", self.num_layers, self.num_heads, self.gate, self.dtype, name="gated"
        )
        fused, layers = gated(x, q, x_mask, None, **gate_inputs)
        return self.share * fused + (1 - self.share) * x, layers

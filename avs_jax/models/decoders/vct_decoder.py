"""The VCT decoder: visual queries attend to audio and image in turn and predict after every layer.

  layer i: q <- LN(q + MHA(q + e, f + p, f) where the mask of prediction i allows)
           q <- LN(q + MHA(q + e, q + e, q));  q <- LN(q + FFN(q))
  prediction: q' = LN(q); class logits = W q'; masks = MLP(q') . mask_features

f is level i mod 4 of (audio grid, stride 32, stride 16, stride 8) plus a learned vector per level,
p its sine encoding, e the learned query positions. A query attends where its predicted mask,
resized to the level, is not negative, or everywhere if that leaves no pixel. Audio is never masked.

With a localizer, masks also have TRUST_SCALE (w . q' + b) times its logits, relative to the best
cell: it tells objects apart, so the masks only need to know their outlines. w and b start at 0.

With `prompt`, the tokens of an expression, projected and with a learned vector of their own, join
the audio tokens; "gated" first lets the sound enter them through fusion/gated.py.

Source: VCT (Huang et al., CVPR 2025), section 3.3, on Mask2Former's decoder (Cheng et al., CVPR
2022).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.decoders.ppqg import PPQG
from avs_jax.models.fusion.gated import GatedFusion
from avs_jax.models.layers import (
    MLP,
    Embedding,
    LayerNorm,
    Linear,
    MultiheadAttention,
    remat_in_loop,
    sine_position_encoding,
    xavier_uniform,
)
from avs_jax.ops.sampling import resize_bilinear

PROMPTS = ("none", "concat", "gated")
LOCATION_RANGE = 4.0  # logits below the best cell that tell cells apart
TRUST_SCALE = 8.0  # of the learned weight, which starts at 0 and must grow within hundreds of steps


def _relative(location: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Logits [N, h', w'] as [N, h, w, 1]: 2 at the best cell, -2 LOCATION_RANGE below it."""
    location = location.astype(jnp.float32)
    best = jax.lax.stop_gradient(location.max((1, 2), keepdims=True))
    below = jnp.maximum(location - best, -LOCATION_RANGE) + LOCATION_RANGE / 2
    return resize_bilinear(below[..., None], size)


class CrossAttentionLayer(nn.Module):
    """LN(q + MHA(q + e, f + p, f)) under an attention mask."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, query, query_position, source, source_position, masked):
        """query [N, Q, D], source [N, S, D], positions alike, masked bool [N, Q, S] or None."""
        attend = MultiheadAttention(self.num_heads, self.dtype, name="multihead_attn")
        out = attend(query + query_position, source + source_position, source, masked)
        return LayerNorm(name="norm")(query + out)


class SelfAttentionLayer(nn.Module):
    """LN(q + MHA(q + e, q + e, q))."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, query, query_position):
        attend = MultiheadAttention(self.num_heads, self.dtype, name="self_attn")
        placed = query + query_position
        return LayerNorm(name="norm")(query + attend(placed, placed, query))


class FFNLayer(nn.Module):
    """LN(q + W2 ReLU(W1 q))."""

    ffn_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, query):
        width = query.shape[-1]
        hidden = Linear(self.ffn_dim, True, xavier_uniform, dtype=self.dtype, name="linear1")
        out = Linear(width, True, xavier_uniform, dtype=self.dtype, name="linear2")
        return LayerNorm(name="norm")(query + out(nn.relu(hidden(query))))


def attention_mask(masks: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Where a query must not look: mask logits [N, h, w, Q] -> bool [N, Q, h' w'], size (h', w').

    True where the resized logit is negative. No gradient flows.
    """
    resized = resize_bilinear(jax.lax.stop_gradient(masks), size)
    blocked = resized < 0
    return jnp.moveaxis(blocked.reshape(masks.shape[0], -1, masks.shape[-1]), 1, 2)


def free_full_rows(masked: jax.Array) -> jax.Array:
    """Unmasks queries whose whole row is masked. bool [N, Q, S]."""
    return masked & ~masked.all(-1, keepdims=True)


class VCTDecoder(nn.Module):
    """Queries from PPQG, `num_layers` decoder layers, num_layers + 1 predictions.

    Attributes:
      num_classes: K; the class logits have one more, "no object".
      num_prototypes: K'; 0 disables prototypes and the embeddings for their loss.
      num_queries: Q.
      num_layers, ffn_dim, num_heads: of the decoder.
      lambda_init: see PPQG.
      prompt: how text enters, "none", "concat" or "gated".
      remat: recompute PPQG and each layer in the backward pass.
      dtype: compute dtype; class logits and masks are float32.
    """

    num_classes: int
    num_prototypes: int
    num_queries: int
    num_layers: int = 9
    ffn_dim: int = 2048
    num_heads: int = 8
    lambda_init: float = 1.0
    prompt: str = "none"
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        multi_scale: Sequence[jax.Array],
        mask_features: jax.Array,
        audio_features: jax.Array,
        motion_weight: jax.Array | None = None,
        gumbel_noise: jax.Array | None = None,
        text: tuple[jax.Array, jax.Array] | None = None,
        updates: Sequence[Callable[[jax.Array], jax.Array]] = (),
        location: jax.Array | None = None,
    ) -> tuple[dict, dict]:
        """Decodes frames.

        Args:
          multi_scale: [N, h, w, D] at strides 32, 16, 8.
          mask_features: [N, h, w, D] at stride 4.
          audio_features: [N, 6, 4, D], (time, band).
          motion_weight: [N, h, w] at stride 4, or None.
          gumbel_noise: [N, Q, h w], or None.
          text: tokens [N, L, Dt] and which exist, bool [N, L]; read with a `prompt`.
          updates: functions of the initial queries, [N, Q, D] -> [N, Q, D], applied in order.
          location: logits [N, h', w'] of a localizer (localizer.py), or None.

        Returns:
          {"predictions": list of {"pred_logits" [N, Q, K+1], "pred_masks" [N, h, w, Q]}, that of
          the initial queries first; with prototypes "audio_embed" [N, D] and "proto_embed"
          [K', D]}; and the intermediates by name.
        """
        levels = [audio_features, *multi_scale]
        sources, positions, sizes = self._sources(levels)
        hidden = None  # tokens beside the audio that no query may look at
        if self.prompt != "none" and text is not None:
            sources[0], positions[0], hidden = self._join_text(sources[0], positions[0], *text)
        predict = self._make_heads(mask_features, location)
        query, query_position, prototypes, ppqg = self._initial_queries(
            mask_features, motion_weight, gumbel_noise
        )
        for update in updates:
            query = update(query)
        predictions = [predict(query)]
        intermediates = {"init_output": query, "cross": [], "self": [], "ffn": [], "attn_mask": []}
        for i in range(self.num_layers):
            level = i % len(levels)
            masked = None
            if level > 0:
                masked = attention_mask(predictions[-1]["pred_masks"], sizes[level])
            elif hidden is not None:
                shape = (query.shape[0], query.shape[1], hidden.shape[1])
                masked = jnp.broadcast_to(hidden[:, None], shape)
            intermediates["attn_mask"].append(masked)
            cross, attend, feed_forward = self._layer(i)
            query = cross(
                query,
                query_position,
                sources[level],
                positions[level],
                None if masked is None else free_full_rows(masked),
            )
            intermediates["cross"].append(query)
            query = attend(query, query_position)
            intermediates["self"].append(query)
            query = feed_forward(query)
            intermediates["ffn"].append(query)
            predictions.append(predict(query))

        outputs = {"predictions": predictions}
        if self.num_prototypes:
            outputs |= self._embed(audio_features, prototypes)
        return outputs, {"ppqg": ppqg, "decoder": intermediates}

    def _make_heads(self, mask_features, location):
        """A function from queries to their prediction; all predictions share its modules."""
        if location is not None:
            location = _relative(location, mask_features.shape[1:3])
            zeros = nn.initializers.zeros
            trust = Linear(1, True, zeros, zeros, name="location_embed")
        width = mask_features.shape[-1]
        decoder_norm = LayerNorm(name="decoder_norm")
        class_embed = Linear(self.num_classes + 1, dtype=self.dtype, name="class_embed")
        mask_embed = MLP((width,) * 3, self.dtype, name="mask_embed")

        def predict(query):
            normed = decoder_norm(query)
            logits = class_embed(normed).astype(jnp.float32)
            embed = mask_embed(normed).astype(jnp.float32)
            masks = jnp.einsum("nqc,nhwc->nhwq", embed, mask_features.astype(jnp.float32))
            if location is not None:
                weight = TRUST_SCALE * trust(normed.astype(jnp.float32))[:, None, None, :, 0]
                masks += location * weight
            return {"pred_logits": logits, "pred_masks": masks}

        return predict

    def _initial_queries(self, mask_features, motion_weight, gumbel_noise):
        """Queries [N, Q, D], positions [1, Q, D], prototypes [K', D], and PPQG's intermediates."""

        def generate(self, *args):
            ppqg = PPQG(
                num_queries=self.num_queries,
                num_prototypes=self.num_prototypes,
                lambda_init=self.lambda_init,
                dtype=self.dtype,
                name="visual_query_block",
            )
            return ppqg(*args)

        if self.remat:
            generate = remat_in_loop(generate)
        generated, prototypes, intermediates = generate(
            self, mask_features, motion_weight, gumbel_noise
        )
        width = mask_features.shape[-1]
        query_feat = Embedding(self.num_queries, width, name="query_feat")()
        query_embed = Embedding(self.num_queries, width, name="query_embed")()
        query = generated + query_feat[None].astype(self.dtype)
        return query, query_embed[None].astype(self.dtype), prototypes, intermediates

    def _layer(self, i):
        """The three modules of decoder layer i."""
        cross, attend, feed_forward = (
            nn.remat(module) if self.remat else module
            for module in (CrossAttentionLayer, SelfAttentionLayer, FFNLayer)
        )
        return (
            cross(self.num_heads, self.dtype, name=f"transformer_cross_attention_layers_{i}"),
            attend(self.num_heads, self.dtype, name=f"transformer_self_attention_layers_{i}"),
            feed_forward(self.ffn_dim, self.dtype, name=f"transformer_ffn_layers_{i}"),
        )

    def _sources(self, levels):
        """Tokens [N, S, D], positions [1, S, D] and (h, w) of each level."""
        width = levels[0].shape[-1]
        table = Embedding(len(levels), width, name="level_embed")()
        sizes = [x.shape[1:3] for x in levels]
        sources = [
            (x.reshape(x.shape[0], -1, width) + row[None, None]).astype(self.dtype)
            for x, row in zip(levels, table, strict=True)
        ]
        positions = [
            jnp.asarray(sine_position_encoding(h, w, width).reshape(1, h * w, width), self.dtype)
            for h, w in sizes
        ]
        return sources, positions, sizes

    def _join_text(self, audio, position, text, text_mask):
        """Audio and text tokens [N, S, D], positions [1, S, D], and bool [N, S], True = padding."""
        width = audio.shape[-1]
        tokens = Linear(width, dtype=self.dtype, name="text_prompt")(text)
        if self.prompt == "gated":
            gated = GatedFusion(
                "custom", 1, self.num_heads, {"attn": "cross"}, self.dtype, name="text_gate"
            )
            tokens, _ = gated(tokens, audio, text_mask)
        tokens += Embedding(1, width, name="text_embed")()[None].astype(self.dtype)
        position = jnp.pad(position, ((0, 0), (0, tokens.shape[1]), (0, 0)))
        hidden = jnp.pad(~text_mask, ((0, 0), (audio.shape[1], 0)))
        return jnp.concatenate([audio, tokens.astype(audio.dtype)], axis=1), position, hidden

    def _embed(self, audio_features, prototypes):
        """Unit vectors for the prototype loss: audio [N, D], prototypes [K', D]."""
        width = audio_features.shape[-1]

        def unit(x, name):
            x = Linear(width, use_bias=False, dtype=self.dtype, name=name)(x).astype(jnp.float32)
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        return {
            "audio_embed": unit(audio_features.mean((1, 2)), "audio_proj"),
            "proto_embed": unit(prototypes, "proto_proj"),
        }

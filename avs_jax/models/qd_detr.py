"""QD-DETR: the windows of a video that a query means, and how salient each clip is to it.

  v, w      = clips and words, projected twice: LN, dropout, linear; ReLU after the first
  v         = fusion(v, sound)                    or the sound's channels beside the video's
  v         = TextLayer(v, w), twice              only clips attend to words
  [g ; v]   = EncoderLayer([g ; v]), twice        g a learned token that summarizes the video
  t, r      = MomentDecoder(v)                    decoders/moment_decoder.py
  class = class_embed(t),  span = sigmoid(span_embed(t) + logit r)
  saliency_l = <W1 v_l, W2 g> / sqrt(D)

Spans are (center, width) as shares of the video. Class 0 is the foreground.

Inputs (True = valid; the last three may be absent, and without sound any model but one trained with
"concat" runs on the video alone):

  video  float32 [B, L, Dv]   video_mask  bool [B, L]     features of L clips
  text   float32 [B, Lt, Dt]  text_mask   bool [B, Lt]    features of the words
  audio  float32 [B, La, Da]  audio_mask  bool [B, La]    features of the sound
  energy float32 [B, L]                                   log-RMS of the sound of each clip

Source: Moon et al., "Query-Dependent Video Representation for Moment Retrieval and Highlight
Detection" (CVPR 2023), wjun0830/QD-DETR, commit 56c63b2; its values are the defaults.
Departures: the original hands the mask (padded clip and padded word) of one row to heads of others,
so that a clip loses words where another row of the batch is shorter. `mask_order = "reference"`
reproduces that, for published weights as they were evaluated; "repaired" gives every row what it
gets alone. The pass with another row's text stops before the decoder and runs in training only.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from avs_jax.models.attention import hide_padding
from avs_jax.models.decoders.moment_decoder import Head, MomentDecoder, StackLayer, logit
from avs_jax.models.fusion.avigate import AvigateFusion
from avs_jax.models.fusion.gated import GatedFusion
from avs_jax.models.layers import LayerNorm, Linear, sine_code
from avs_jax.models.parts import make_part
from avs_jax.spec import InputError, check_shape

# "custom" is what a fork of QD-DETR calls its own fusion, "b0" an older version of it.
FUSIONS = {"concat": None, "avigate": AvigateFusion, "custom": GatedFusion, "b0": GatedFusion}
MASK_ORDERS = ("repaired", "reference")
REQUIRED = {"video": "B L V", "video_mask": "B L", "text": "B W T", "text_mask": "B W"}
OPTIONAL = {"audio": "B M A", "audio_mask": "B M", "energy": "B L"}


def position_code(valid: jax.Array, features: int) -> jax.Array:
    """bool [B, L] -> float32 [B, L, features]: sine codes of valid clips, spread over (0, 2 pi]."""
    count = jnp.cumsum(valid.astype(jnp.float32), axis=1)
    return sine_code(count / (count[:, -1:] + 1e-6) * (2 * np.pi), features)


class Projection(nn.Module):
    """Features of any width -> [B, L, D]."""

    features: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(2):
            x = LayerNorm(name=f"norm_{i}")(nn.relu(x) if i else x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = Linear(self.features, dtype=self.dtype, name=f"linear_{i}")(x)
        return x


class TextLayer(StackLayer):
    """Clips attend to words. The residual around the FFN starts before its norm."""

    @nn.compact
    def __call__(self, v, pos, text, masked, train):
        """v, pos [B, L, D], text [B, Lt, D], masked [B, 1 or G, 1 or L, Lt] -> v, weights."""
        attended, weights = self.self_attention()(v + pos, text, text, masked, train)
        x = v + self.drop(attended, train)
        x = x + self.feed_forward(LayerNorm(name="norm1")(x), train)
        return LayerNorm(name="norm2")(x), weights


class EncoderLayer(StackLayer):
    """Tokens attend to each other; post-norm."""

    @nn.compact
    def __call__(self, x, pos, masked, train):
        """x, pos [B, 1 + L, D], masked [B, 1, 1, 1 + L] -> x."""
        attended, _ = self.self_attention()(x + pos, x + pos, x, masked, train)
        x = LayerNorm(name="norm1")(x + self.drop(attended, train))
        return LayerNorm(name="norm2")(x + self.feed_forward(x, train))


class Encoder(nn.Module):
    """Both encoders and the saliency of the clips.

    Attributes:
      num_text_layers, num_layers: of the query-dependent encoder and the encoder.
      mask_order: "repaired" or "reference".
      layer: fields of StackLayer.
    """

    num_text_layers: int
    num_layers: int
    mask_order: str
    layer: FrozenDict[str, Any]

    @nn.compact
    def __call__(self, v, pos, valid, text, text_mask, train):
        """Encodes.

        Args:
          v, pos: [B, L, D], clips and their position codes; valid bool [B, L].
          text: [B, Lt, D], with text_mask bool [B, Lt].
          train: draw dropouts.

        Returns:
          Saliency, float32 [B, L]; memory [B, L, D], memory_global [B, D] and text_weights, per
          layer float32 [B, G, L, Lt].
        """
        width, seen = v.shape[-1], {"text_weights": []}
        masked = hide_padding(text_mask)
        if self.mask_order == "reference":
            both = ~valid[:, :, None] & ~text_mask[:, None]
            row = np.arange(len(v) * self.layer["num_heads"]).reshape(len(v), -1) % len(v)
            masked = masked | both[row]
        for i in range(self.num_text_layers):
            layer = TextLayer(**self.layer, name=f"text_layers_{i}")
            v, weights = layer(v, pos, text, masked, train)
            seen["text_weights"].append(weights)

        def prepend(name, x):
            token = self.param(name, nn.initializers.normal(1.0), (width,)).astype(x.dtype)
            return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, width)), x], axis=1)

        x, pos = prepend("global_token", v), prepend("global_pos", pos)
        masked = hide_padding(jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True))
        for i in range(self.num_layers):
            x = EncoderLayer(**self.layer, name=f"layers_{i}")(x, pos, masked, train)
        memory, g = x[:, 1:], x[:, :1]
        clip, video = (
            Linear(width, dtype=x.dtype, name=f"saliency_proj{i}")(y).astype(jnp.float32)
            for i, y in ((1, memory), (2, g))
        )
        saliency = (clip * video).sum(-1) * width**-0.5
        return saliency, seen | {"memory": memory, "memory_global": g[:, 0]}


class QDDETR(nn.Module):
    """The whole model. The fields are the keys of config.model.

    Attributes:
      hidden_dim, num_heads, ffn_dim: D, heads and hidden width of the three stacks.
      num_queries: Q.
      num_text_layers, num_encoder_layers, num_decoder_layers: of the three stacks.
      input_dropout, dropout: rates in the projections and in the stacks.
      mask_order: "repaired" | "reference".
      fusion: `name`, "concat" (video alone, or with the sound's channels) | "avigate" | "custom" |
        "b0", and the fields of AvigateFusion or GatedFusion (without family and dtype).
      dtype: of compute; parameters, norms, softmax, coordinates and outputs are float32.
    """

    hidden_dim: int = 256
    num_queries: int = 10
    num_heads: int = 8
    ffn_dim: int = 1024
    num_text_layers: int = 2
    num_encoder_layers: int = 2
    num_decoder_layers: int = 2
    input_dropout: float = 0.5
    dropout: float = 0.1
    mask_order: str = "repaired"
    fusion: Mapping[str, Any] = FrozenDict(name="concat")
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        train: bool = False,
        progress: jax.Array | float = 1.0,
    ) -> dict[str, Any]:
        """Grounds queries.

        Training draws from the rng stream `dropout`, where a rate is not 0.

        Args:
          inputs: see the module's docstring. Without audio_mask the sound is valid where the video
            is, if both are as long, else everywhere.
          train: draw dropouts, and make `saliency_neg`: that of row b with the text of row b + 1 of
            the batch (of the first, for the last row), under jit on a mesh of the global batch.
          progress: unused.

        Returns:
          float32 pred_logits [B, Q, 2], pred_spans [B, Q, 2], saliency_scores [B, L] (undefined in
          the padding); aux_outputs, {pred_logits, pred_spans} of each earlier decoder layer;
          saliency_neg [B, L] in training; gates, where the fusion has them, per layer gate_mha,
          gate_ffn[, gate_beta]; intermediates: fused, memory [B, L, D], memory_global [B, D] and,
          per layer, text_weights [B, G, L, Lt], span_weights [B, G, Q, L], anchors [B, Q, 2] and
          gates_raw.

        Raises:
          ValueError: a missing input or a wrong shape.
          InputError: a value that cannot be, lengths that do not align.
        """
        del progress
        self._check(inputs)
        valid, dtype = inputs["video_mask"], jnp.dtype(self.dtype)
        layer = FrozenDict(
            num_heads=self.num_heads, ffn_dim=self.ffn_dim, dropout=self.dropout, dtype=dtype
        )
        encoder = Encoder(
            self.num_text_layers, self.num_encoder_layers, self.mask_order, layer, name="encoder"
        )
        fuse = self._make_fusion(inputs, train)
        pos = position_code(valid, self.hidden_dim).astype(dtype)

        def encode(text, text_mask):
            v, gates = fuse(text, text_mask)
            saliency, seen = encoder(v, pos, valid, text, text_mask, train)
            return saliency, gates, {"fused": v} | seen

        text, text_mask = self._project("txt", inputs["text"], train), inputs["text_mask"]
        saliency, gates, seen = encode(text, text_mask)
        outputs = {"saliency_scores": saliency}
        if train:
            outputs["saliency_neg"], *_ = encode(*(jnp.roll(x, -1, 0) for x in (text, text_mask)))
        if gates:
            outputs["gates"] = [{k: x for k, x in gate.items() if k != "raw"} for gate in gates]
            seen["gates_raw"] = [gate["raw"] for gate in gates]

        decoder = MomentDecoder(self.num_decoder_layers, self.num_queries, layer, name="decoder")
        states, seen["anchors"], seen["span_weights"] = decoder(
            seen["memory"], pos, hide_padding(valid), train
        )
        span_embed = Head((self.hidden_dim, self.hidden_dim, 2), dtype=dtype, name="span_embed")
        class_embed = Linear(2, dtype=dtype, name="class_embed")
        predictions = [
            {
                "pred_logits": class_embed(t).astype(jnp.float32),
                "pred_spans": nn.sigmoid(span_embed(t).astype(jnp.float32) + logit(anchor)),
            }
            for t, anchor in zip(states, seen["anchors"], strict=True)
        ]
        outputs |= predictions[-1] | {"aux_outputs": predictions[:-1]}
        return outputs | {"intermediates": seen}

    def _check(self, inputs):
        missing = sorted(set(REQUIRED) - set(inputs))
        if missing:
            raise ValueError(f"the inputs have no {', '.join(missing)}; they have {sorted(inputs)}")
        sizes = {}
        for name, pattern in (REQUIRED | OPTIONAL).items():
            if name in inputs:
                sizes = check_shape(name, inputs[name], pattern, **sizes)
        for key, value, choices in (
            ("fusion.name", self.fusion["name"], FUSIONS),
            ("mask_order", self.mask_order, MASK_ORDERS),
        ):
            if value not in choices:
                raise InputError(f"model.{key} = {value!r}: choose one of {sorted(choices)}")

    def _project(self, name, x, train):
        dtype = jnp.dtype(self.dtype)
        module = Projection(self.hidden_dim, self.input_dropout, dtype, name=f"input_{name}_proj")
        return module(x, train)

    def _make_fusion(self, inputs, train):
        """(text, text_mask) -> clips [B, L, D] with their sound, gates by layer."""
        video, audio, valid = inputs["video"], inputs.get("audio"), inputs["video_mask"]
        name = self.fusion["name"]
        module = FUSIONS[name]
        if module is None and audio is not None:
            if audio.shape[1] != video.shape[1]:
                raise InputError(
                    f"fusion 'concat': audio has {audio.shape[1]} rows, video {video.shape[1]}"
                )
            video = jnp.concatenate([video, audio], axis=-1)
        v = self._project("vid", video, train)
        if module is None or audio is None:
            return lambda text, text_mask: (v, [])
        fixed = {"family": name} if module is GatedFusion else {}
        fixed |= {"dtype": jnp.dtype(self.dtype), "name": "fusion"}
        fusion = make_part("fusion", module, self.fusion, **fixed)
        a, a_mask = self._project("aud", audio, train), inputs.get("audio_mask")
        if a_mask is None and a.shape[1] == v.shape[1]:
            a_mask = valid
        energy = inputs.get("energy")

        def fuse(text, text_mask):
            return fusion(v, a, valid, a_mask, energy=energy, text=text, text_mask=text_mask)

        return fuse

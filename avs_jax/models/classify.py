"""What sounds in a clip: class scores from frames and sound, together and each by itself.

  frames [B, T, H, W, 3] -> backbone -> mean over the map, per second      v tokens
                         or TimeSformer -> its class token                 one v token
  log_mel [B, T, 96, 64] -> audio backbone -> mean over the map            a tokens
  relu(W v), relu(W a) -> fusion -> classifier                             logits
                       -> a classifier each                                frames_, audio_logits

The fusion "late_logit" has no classifier of its own: its logits are alpha frames_logits +
(1 - alpha) audio_logits with a learned alpha in 0..1, over what the clip has.

In training, modality_dropout hides the frames or the sound of a share of the clips that have both.

Source: the head (FusionClassifier) with early, late_feature and attention is a textbook example,
equal to it in eval mode. Departures: the classifiers of single modalities; what is missing is
masked.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.clip_encoders import encode_audio, encode_frames
from avs_jax.models.fusion.clip_fusion import TOKENS, VECTORS, ClipFusion, ClipTokens, shares
from avs_jax.models.fusion.gated import pool_tokens
from avs_jax.models.inputs import normalize_images
from avs_jax.models.layers import Linear
from avs_jax.models.rules import Rule, at_least, divides, one_of, within
from avs_jax.models.temporal.timesformer import TimeSformer
from avs_jax.ops.frames import unfold_frames
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, check_shape

FUSIONS = (*VECTORS, *TOKENS, "late_logit")
INPUTS = {
    "images": "B T H W 3",
    "log_mel": f"B T {MEL_FRAMES} {MEL_BANDS}",
    "valid": "B T",
    "present": "B 2",
}


class FusionClassifier(nn.Module):
    """Tokens of frames and sound to class scores.

    Attributes:
      num_classes: K.
      hidden_dim: D, of both modalities.
      fusion: one of FUSIONS.
      num_heads: of the fusions that attend.
      dropout: rate on the features, from the rng stream "dropout".
      dtype: of matrix products.
    """

    num_classes: int
    hidden_dim: int
    fusion: str
    num_heads: int = 4
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, clip: ClipTokens, train: bool = False) -> dict[str, jax.Array]:
        """Classifies clips from tokens of any width, [B, T, C] and [B, U, E].

        Returns:
          logits, frames_logits and audio_logits float32 [B, K]; modality_weights float32 [B, 2].
        """
        found, tokens = {}, {}
        given = {
            "frames": (clip.frames, clip.frames_mask),
            "audio": (clip.audio, clip.audio_mask),
        }
        for name, (x, mask) in given.items():
            x = nn.relu(Linear(self.hidden_dim, dtype=self.dtype, name=f"{name}_encoder")(x))
            tokens[name] = nn.Dropout(self.dropout, deterministic=not train)(x)
            pooled = pool_tokens(tokens[name], mask)[:, 0]
            found[f"{name}_logits"] = self._classify(pooled, f"{name}_classifier")
        if self.fusion == "late_logit":
            balance = nn.sigmoid(self.param("balance", nn.initializers.zeros, ()))
            share = shares(jnp.stack([balance, 1 - balance]), clip.present)
            both = jnp.stack([found["frames_logits"], found["audio_logits"]], axis=1)
            return found | {
                "logits": (share[..., None] * both).sum(1), "modality_weights": share
            }  # fmt: skip
        fusion = ClipFusion(self.fusion, self.num_heads, self.dtype, name="fusion")
        fused, share = fusion(clip._replace(**tokens))
        found |= {"logits": self._classify(fused, "classifier"), "modality_weights": share}
        return found

    def _classify(self, x: jax.Array, name: str) -> jax.Array:
        return Linear(self.num_classes, name=name)(x.astype(jnp.float32))


class Classify(nn.Module):
    """The model. Its fields are the keys of config.model.

    Attributes:
      num_classes: K.
      backbone, timesformer: sections of the tower of frames, one of them.
      audio_backbone: section of the tower of sound.
      av_fusion: one of FUSIONS.
      hidden_dim, num_heads, dropout: of the FusionClassifier.
      modality_dropout: see the module's docstring.
      audio_mean, audio_std: log-mels enter as (x - mean) / std.
      dtype: of compute; parameters, norms and logits are float32.
    """

    num_classes: int
    audio_backbone: Mapping[str, Any]
    backbone: Mapping[str, Any] | None = None
    timesformer: Mapping[str, Any] | None = None
    av_fusion: str = "early"
    hidden_dim: int = 512
    num_heads: int = 4
    dropout: float = 0.0
    modality_dropout: float = 0.0
    audio_mean: float = 0.0
    audio_std: float = 1.0
    dtype: str = "float32"

    HAS_PARTS = True
    RULES = (
        *at_least(2, "num_classes"),
        *at_least(1, "hidden_dim"),
        divides("num_heads", "hidden_dim"),
        one_of("av_fusion", FUSIONS),
        within("dropout", lambda x: 0 <= x < 1, "0 or more, below 1"),
        within("modality_dropout", lambda x: 0 <= x < 1, "0 or more, below 1"),
        within("audio_std", lambda x: x > 0, "above 0"),
        one_of("dtype", ("float32", "bfloat16")),
        Rule(
            "num_classes",
            lambda _, config: bool(config.get("backbone")) != bool(config.get("timesformer")),
            lambda _: "one tower of frames beside it: model.backbone or model.timesformer",
        ),
    )

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        train: bool = False,
        progress: jax.Array | float = 1.0,
    ) -> dict[str, jax.Array]:
        """Classifies clips.

        Training draws from the rng streams `drop_path`, `dropout` and `modality`.

        Args:
          batch: the fields of INPUTS; valid and present are optional.
          train: training behavior.
          progress: not used.

        Returns:
          see FusionClassifier.
        """
        del progress
        sizes: dict[str, int] = {}
        for field, pattern in INPUTS.items():
            if field in batch:
                sizes = check_shape(field, batch[field], pattern, **sizes)
        count, dtype = sizes["B"], jnp.dtype(self.dtype)
        valid = batch.get("valid", jnp.ones((count, sizes["T"]), bool))
        present = batch.get("present", jnp.ones((count, 2), bool))
        if train and self.modality_dropout:
            present = drop_modalities(self.make_rng("modality"), present, self.modality_dropout)
        frames = self._encode_frames(batch["images"], valid, train)
        head = FusionClassifier(
            self.num_classes, self.hidden_dim, self.av_fusion, self.num_heads, self.dropout, dtype,
            name="head",
        )  # fmt: skip
        frames_mask = valid if frames.shape[1] > 1 else None
        audio = unfold_frames(encode_audio(self, batch["log_mel"]), sizes["T"])
        return head(ClipTokens(frames, audio, present, frames_mask, valid), train)

    def _encode_frames(self, images: jax.Array, valid: jax.Array, train: bool) -> jax.Array:
        """[B, T, C], or [B, 1, C] from TimeSformer."""
        if self.timesformer:
            fields = {**self.timesformer, "num_classes": 0, "dtype": self.dtype}
            tower = TimeSformer(**fields, name="timesformer")
            return tower(normalize_images(images), valid)[:, None]
        found = encode_frames(self, images, train)
        found = found["res5"].mean((1, 2)) if isinstance(found, Mapping) else found
        return unfold_frames(found, images.shape[1])


def drop_modalities(key: jax.Array, present: jax.Array, rate: float) -> jax.Array:
    """`present`, bool [B, 2], without the frames or the sound of a share of the complete rows."""
    draw, choice = jax.random.split(key)
    is_hit = jax.random.bernoulli(draw, rate, present.shape[:1]) & present.all(1)
    which = jax.random.bernoulli(choice, 0.5, present.shape[:1])
    dropped = jnp.stack([is_hit & which, is_hit & ~which], axis=1)
    return present & ~dropped

"""Towers for frames, sound and text that end in one space, where what belongs together is close.

  frames [B, T, H, W, 3] -> backbone -> mean over the map -> W_v     one vector per second
  log_mel [B, T, 96, 64] -> audio backbone -> mean -> W_a            one vector per second
  text ids [B, P, L] -> encoder -> mean of the tokens -> W_t         one vector per prompt

A clip's vector is the mean over its seconds, a text's that over its prompts of unit length; all are
scaled to unit length. Backbones that give one vector per frame, example or text (CLIP, AST) are
read as they are. `logit_scale` is the log of the learned scale of similarities, `logit_bias` their
offset in the sigmoid loss.

With several `levels` of the backbone, each has a W_v, and a frame's vector is the sum.

With frames from a backbone that gives maps, and sound, `sound_map` says where in a frame its second
of sound is: the cosine of the sound's vector with each cell of the map through W_v. Several levels
are resized to the finest one and added.

Source: CLIP (Radford et al., ICML 2021); with the towers of CLIP this is CLIP.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.clip_encoders import encode_audio, encode_frames
from avs_jax.models.layers import Linear
from avs_jax.models.parts import find_part, make_part
from avs_jax.models.rules import Rule, at_least, one_of, within
from avs_jax.ops.frames import unfold_frames
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.ops.unit_length import normalize
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, check_shape

PAIRS = {  # config.model.pairs -> pairs of modalities whose embeddings are compared
    "av": (("audio", "frames"),),
    "at": (("audio", "text"),),
    "vt": (("frames", "text"),),
    "avt": (("audio", "frames"), ("audio", "text"), ("frames", "text")),
}
SECTIONS = {"frames": "backbone", "audio": "audio_backbone", "text": "text"}
INPUTS = {
    "frames": {"images": "B T H W 3", "valid": "B T"},
    "audio": {"log_mel": f"B T {MEL_FRAMES} {MEL_BANDS}", "valid": "B T"},
    "text": {"text_ids": "B P L", "text_mask": "B P L"},
}


def _are_levels(value: Sequence[str]) -> bool:
    return bool(value) and set(value) <= set(FEATURE_LEVELS) and len(set(value)) == len(value)


def modalities(pairs: str) -> list[str]:
    """The modalities that a key of PAIRS compares."""
    return list(dict.fromkeys(name for pair in PAIRS[pairs] for name in pair))


class Align(nn.Module):
    """The towers. Its fields are the keys of config.model; sections of unused towers are absent.

    Attributes:
      pairs: key of PAIRS.
      embed_dim: width of the common space.
      backbone, audio_backbone, text: sections of the towers.
      levels: maps of the backbone that are read; a backbone of vectors has none.
      audio_mean, audio_std: log-mels enter as (x - mean) / std.
      log_scale_init: first value of logit_scale.
      bias_init: first value of logit_bias; None: there is none.
      dtype: of compute; parameters, norms and embeddings are float32.
    """

    pairs: str
    embed_dim: int
    backbone: Mapping[str, Any] | None = None
    audio_backbone: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None
    levels: Sequence[str] = ("res5",)
    audio_mean: float = 0.0
    audio_std: float = 1.0
    log_scale_init: float = math.log(1 / 0.07)
    bias_init: float | None = None
    dtype: str = "float32"

    HAS_PARTS = True
    RULES = (
        one_of("pairs", list(PAIRS)),
        *at_least(1, "embed_dim"),
        within("audio_std", lambda x: x > 0, "above 0"),
        one_of("dtype", ("float32", "bfloat16")),
        within("levels", _are_levels, f"any of {list(FEATURE_LEVELS)}, each once"),
        Rule(
            "pairs",
            lambda pairs, config: all(config.get(SECTIONS[name]) for name in modalities(pairs)),
            lambda config: "pairs of towers that have a section",
        ),
    )

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        train: bool = False,
        progress: jax.Array | float = 1.0,
    ) -> dict[str, jax.Array]:
        """Embeds clips and texts.

        Training draws from the rng stream `drop_path`.

        Args:
          batch: the fields of INPUTS that the pairs need; valid is optional.
          train: training behavior.
          progress: not used.

        Returns:
          {modality}_embed float32 [B, D] and, for frames and audio, {modality}_seconds [B, T, D],
          of unit length; sound_map float32 [B, T, h, w], where there is one; logit_scale and, with
          bias_init, logit_bias, float32 [].

        Raises:
          ValueError: a missing field or a wrong shape.
        """
        del progress
        sizes: dict[str, int] = {}
        used, outputs, cells = modalities(self.pairs), {}, None
        for name in used:
            for field, pattern in INPUTS[name].items():
                if field in batch:
                    sizes = check_shape(field, batch[field], pattern, **sizes)
                elif field != "valid":
                    raise ValueError(f"the batch has no {field}, which pairs {self.pairs!r} read")
        for name in used:
            if name == "text":
                outputs["text_embed"] = self._embed_texts(batch)
                continue
            if name == "frames":
                found, cells = self._project_frames(batch, train)
            else:
                found = self._project_audio(batch)
            seconds = unfold_frames(found, sizes["T"])
            outputs[f"{name}_seconds"] = normalize(seconds)
            outputs[f"{name}_embed"] = normalize(_mean_of_valid(seconds, batch.get("valid")))
        if cells is not None and "audio" in used:
            cells = normalize(unfold_frames(cells, sizes["T"]))
            outputs["sound_map"] = jnp.einsum("bthwd,btd->bthw", cells, outputs["audio_seconds"])
        constant = nn.initializers.constant
        outputs["logit_scale"] = self.param("logit_scale", constant(self.log_scale_init), ())
        if self.bias_init is not None:
            outputs["logit_bias"] = self.param("logit_bias", constant(self.bias_init), ())
        return outputs

    def _project_frames(self, batch, train: bool) -> tuple[jax.Array, jax.Array | None]:
        """float32 [N, D] of all frames and, where there are maps, [N, h, w, D] of their cells."""
        found = encode_frames(self, batch["images"], train)
        if not isinstance(found, Mapping):
            project = self._projection("frames_projection", found.shape[-1])
            return project(found).astype(jnp.float32), None
        vectors, maps = [], []
        for level in self.levels:
            x, suffix = found[level], "" if level == "res5" else f"_{level}"
            project = self._projection(f"frames_projection{suffix}", x.shape[-1])
            vectors.append(project(x.mean((1, 2))).astype(jnp.float32))
            maps.append(project(x).astype(jnp.float32))
        finest = max(x.shape[1:3] for x in maps)
        return sum(vectors), sum(resize_bilinear(x, finest) for x in maps)

    def _project_audio(self, batch) -> jax.Array:
        """float32 [N, D] of all examples."""
        found = encode_audio(self, batch["log_mel"])
        project = self._projection("audio_projection", found.shape[-1])
        return project(found).astype(jnp.float32)

    def _embed_texts(self, batch) -> jax.Array:
        """[B, D]: every prompt to unit length, their mean, and to unit length again."""
        module = find_part("text", self.text)
        encoder = make_part("text", module, self.text, dtype=self.dtype, name="text")
        num_rows, num_prompts, _ = batch["text_ids"].shape
        ids, mask = (
            batch[name].reshape(num_rows * num_prompts, -1) for name in ("text_ids", "text_mask")
        )
        found = encoder(ids, mask)
        if found.ndim == 3:
            found = _mean_of_valid(found, mask)
        project = self._projection("text_projection", found.shape[-1])
        prompts = normalize(project(found).astype(jnp.float32))
        return normalize(prompts.reshape(num_rows, num_prompts, -1).mean(1))

    def _projection(self, name: str, width: int) -> Linear:
        """[..., width] to [..., D]."""
        init = nn.initializers.normal(width**-0.5)
        return Linear(self.embed_dim, False, init, dtype=jnp.dtype(self.dtype), name=name)


def _mean_of_valid(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    """[B, T, D] to [B, D], over the entries of valid, bool [B, T]; None for all, none gives 0."""
    if valid is None:
        return x.mean(1)
    kept = jnp.where(valid[..., None], x, 0).sum(1)
    return kept / jnp.maximum(valid.sum(1), 1)[:, None].astype(x.dtype)

"""Says which object a mask is: an expression of a few words from frames, mask and sound.

  F = res3, res4, res5 of the frames;  m = mask averaged over the cells of F
  o_t = sum m F / sum m        the object in frame t, with its center and its share of the frame
  g_t = mean of res5           the frame;  a_t = mean of the sound's map
  features = [W_o o_t + time code ; W_g g_t + time code ; W_a a_t + time code] -> decoder -> words
  with `cells`, also W_c [cell ; its m, y and x] + time code, for each cell of that level

Frames without the object give no o_t. Words come from decoders/words.py, one by one, by beam search
(ops/beam_search.py); in training, from the words before them.

Source: ours. The decoder "lstm" is a textbook captioner (decoders/words.py).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.clip_encoders import encode_audio, encode_frames
from avs_jax.models.decoders.words import DECODERS
from avs_jax.models.layers import Linear, sine_code
from avs_jax.models.parts import MAP_BACKBONES
from avs_jax.models.rules import Rule, at_least, one_of, within
from avs_jax.ops.beam_search import beam_search
from avs_jax.ops.frames import unfold_frames
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, InputError, check_shape, nearest

START, END = 0, 2  # of data/tokens.py
LEVELS = ("res3", "res4", "res5")
INPUTS = {
    "images": "B T H W 3",
    "mask": "B T H W",
    "log_mel": f"B T {MEL_FRAMES} {MEL_BANDS}",
    "valid": "B T",
    "text_ids": "B N",
}


class Describe(nn.Module):
    """The model. Its fields are the keys of config.model.

    Attributes:
      vocab_size: token ids are below it.
      max_words: of a description, with its end.
      backbone, audio_backbone: sections of the towers; the backbone gives maps.
      decoder: `name`, a key of DECODERS, and its fields.
      feature_dim: of the features that the decoder reads.
      cells: level whose cells say what else is there, of LEVELS, or "none".
      num_beams, length_power: see ops/beam_search.py.
      audio_mean, audio_std: log-mels enter as (x - mean) / std.
      dtype: of the backbones; the rest is float32.
    """

    vocab_size: int
    max_words: int
    backbone: Mapping[str, Any]
    audio_backbone: Mapping[str, Any]
    decoder: Mapping[str, Any]
    feature_dim: int = 256
    cells: str = "none"
    num_beams: int = 3
    length_power: float = 1.0
    audio_mean: float = 0.0
    audio_std: float = 1.0
    dtype: str = "float32"

    HAS_PARTS = True
    RULES = (
        *at_least(4, "vocab_size"),
        *at_least(1, "max_words", "feature_dim", "num_beams"),
        one_of("decoder.name", sorted(DECODERS)),
        one_of("backbone.name", sorted(MAP_BACKBONES)),
        within("audio_std", lambda x: x > 0, "above 0"),
        one_of("dtype", ("float32", "bfloat16")),
        one_of("cells", ("none", *LEVELS)),
        Rule(
            "cells",
            lambda cells, config: cells == "none" or config["decoder"]["name"] == "transformer",
            lambda config: (
                f"'none' with model.decoder.name = {config['decoder']['name']!r}, which reads the "
                "mean of all features"
            ),
        ),
        Rule(
            "num_beams",
            lambda beams, config: beams <= config["vocab_size"],
            lambda config: f"at most model.vocab_size = {config['vocab_size']}",
        ),
    )

    @nn.compact
    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        train: bool = False,
        progress: jax.Array | float = 1.0,
    ) -> dict[str, jax.Array]:
        """Describes objects.

        Training draws from the rng streams `drop_path` and `dropout`.

        Args:
          batch: the fields of INPUTS; valid is optional. With text_ids, which begin with the start,
            the decoder scores their continuations; without, it makes words of its own.
          train: training behavior.
          progress: not used.

        Returns:
          word_logits float32 [B, N, V], scores of the word after each; or words int32
          [B, max_words], -1 after the end, and word_score float32 [B].
        """
        del progress
        sizes: dict[str, int] = {}
        for field, pattern in INPUTS.items():
            if field in batch:
                sizes = check_shape(field, batch[field], pattern, **sizes)
        valid = batch.get("valid", jnp.ones((sizes["B"], sizes["T"]), bool))
        seen = self._features(batch, valid, train)
        decoder = self._decoder()
        if "text_ids" in batch:
            return {"word_logits": decoder(seen, batch["text_ids"], train)}
        decoder(seen, jnp.full((sizes["B"], 1), START, jnp.int32))  # has parameters now
        unbound, variables = decoder.unbind()
        beams = self.num_beams
        repeated = tuple(jnp.repeat(x, beams, 0) for x in seen)

        def logits(ids):
            flat = ids.reshape(-1, ids.shape[-1])
            return unbound.apply(variables, repeated, flat).reshape(*ids.shape, -1)

        found = beam_search(
            logits, sizes["B"], self.vocab_size, self.max_words, START, END, beams,
            self.length_power,
        )  # fmt: skip
        return {"words": found.ids[:, 0], "word_score": found.scores[:, 0]}

    def _decoder(self) -> nn.Module:
        fields = dict(self.decoder)
        module = DECODERS[fields.pop("name")]
        known = set(module.__dataclass_fields__) - {"parent", "name", "vocab_size"}
        for key in fields:
            if key not in known:
                near = nearest(key, sorted(known)) or sorted(known)
                raise InputError(
                    f"model.decoder.{key}: {module.__name__} has no such field; {near}"
                )
        return module(self.vocab_size, **fields, name="decoder")

    def _features(self, batch, valid: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Features float32 [B, M, D] of objects, frames, sounds and cells, and which exist."""
        num_frames = valid.shape[1]
        found = encode_frames(self, batch["images"], train, pad=True)
        maps = [unfold_frames(found[level], num_frames) for level in LEVELS]
        shares = [resize_mask(batch["mask"], x.shape[2:4]) for x in maps]
        objects = jnp.concatenate(
            [object_features(*pair) for pair in zip(maps, shares, strict=True)], axis=-1
        )
        heard = unfold_frames(encode_audio(self, batch["log_mel"]), num_frames)
        times = sine_code(jnp.arange(num_frames), self.feature_dim)[None]
        tokens = [
            Linear(self.feature_dim, name=f"{name}_projection")(x.astype(jnp.float32)) + times
            for name, x in (("object", objects), ("frame", maps[-1].mean((2, 3))), ("audio", heard))
        ]
        exists = [valid & batch["mask"].any((2, 3)), valid, valid]
        if self.cells != "none":
            level = LEVELS.index(self.cells)
            cells = cell_features(maps[level], shares[level])
            cells = Linear(self.feature_dim, name="cell_projection")(cells) + times[:, :, None]
            tokens.append(cells.reshape(cells.shape[0], -1, self.feature_dim))
            exists.append(jnp.repeat(valid, cells.shape[2], axis=1))
        return jnp.concatenate(tokens, axis=1), jnp.concatenate(exists, axis=1)


def object_features(maps: jax.Array, share: jax.Array) -> jax.Array:
    """The mean of maps under a mask, and where it is: float32 [B, T, C + 3].

    Args:
      maps: [B, T, h, w, C].
      share: float32 [B, T, h, w], of each cell that is in the mask.

    Returns:
      the mean, center (y, x) in 0..1 and share of the frame; zeros where the mask is empty.
    """
    height, width = share.shape[2:]
    total = share.sum((2, 3))
    weight = share / jnp.maximum(total, 1e-6)[..., None, None]
    mean = jnp.einsum("bthw,bthwc->btc", weight, maps.astype(jnp.float32))
    y = (weight.sum(3) * ((jnp.arange(height) + 0.5) / height)[None, None]).sum(-1)
    x = (weight.sum(2) * ((jnp.arange(width) + 0.5) / width)[None, None]).sum(-1)
    return jnp.concatenate([mean, jnp.stack([y, x, total / (height * width)], -1)], axis=-1)


def cell_features(maps: jax.Array, share: jax.Array) -> jax.Array:
    """Each cell of maps [B, T, h, w, C], its share of the mask and its place: [B, T, h * w, C + 3].

    The place (y, x) is in 0..1.
    """
    height, width = share.shape[2:]
    y = jnp.broadcast_to((jnp.arange(height) + 0.5)[:, None] / height, share.shape)
    x = jnp.broadcast_to((jnp.arange(width) + 0.5) / width, share.shape)
    place = jnp.stack([share, y, x], axis=-1)
    found = jnp.concatenate([maps.astype(jnp.float32), place], axis=-1)
    return found.reshape(*found.shape[:2], height * width, -1)


def resize_mask(mask: jax.Array, size: tuple[int, int]) -> jax.Array:
    """bool [B, T, H, W] -> float32 [B, T, h, w], the share of every cell; h divides H."""
    num_clips, num_frames, height, width = mask.shape
    (h, w) = size
    if height % h or width % w:
        raise ValueError(f"mask: {height}x{width} px do not divide into {h}x{w} cells")
    cells = mask.reshape(num_clips, num_frames, h, height // h, w, width // w)
    return cells.astype(jnp.float32).mean((3, 5))

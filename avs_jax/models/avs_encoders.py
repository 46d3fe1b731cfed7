"""The encoders of the AVS model: frames, sound and words to what its other parts read.

Functions of a model (models/avs.py), to call within its `__call__`: the modules they make are its
own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.decoders.pixel_decoder import PixelDecoder
from avs_jax.models.fusion.gated import pool_tokens
from avs_jax.models.fusion.gates import ChannelGate
from avs_jax.models.inputs import prepare_images
from avs_jax.models.layers import MLP
from avs_jax.models.parts import find_part, make_part
from avs_jax.ops.frames import fold_frames, unfold_frames
from avs_jax.spec import default_frame_index, frame_ids

Batch = Mapping[str, jax.Array]


class Encoded(NamedTuple):
    """What the encoders and the pixel decoder make of frames and sound; see StageInputs.

    Attributes:
      ids: of random draws, None in evaluation.
    """

    features: Mapping[str, jax.Array]
    levels: Sequence[jax.Array]
    mask_features: jax.Array
    audio: jax.Array
    ids: jax.Array | None


class ClipSound(NamedTuple):
    """Seconds of the sound of clips, of which a row may have no frames.

    Attributes:
      tokens: [B, F, 4, D], (second, band).
      exists: bool [B, F].
      seconds: int [B, F], places in the clip.
    """

    tokens: jax.Array
    exists: jax.Array
    seconds: jax.Array


def encode(
    model: nn.Module, batch: Batch, sizes: Mapping[str, int], train: bool
) -> tuple[Encoded, ClipSound | None, dict[str, Any]]:
    """Frames and sound; the clips' sound, for a localizer; what the steps in between have found."""
    ids = None
    if train:
        ids = frame_ids(batch.get("frame_index", default_frame_index(sizes["B"], sizes["T"])))
    features, intermediates = _encode_images(model, batch, train, ids)
    features = _mix_frames(model, features, batch, sizes["T"])
    audio, audio_map, clip_sound = _encode_audio(model, batch)
    pixel_decoder = make_part(
        "pixel_decoder",
        PixelDecoder,
        model.pixel_decoder,
        hidden_dim=model.hidden_dim,
        remat=model.remat == "all",
        name="pixel_decoder",
    )
    levels, mask_features, steps = pixel_decoder(features)
    intermediates |= {
        "audio_backbone": audio_map,
        "audio_features": audio,
        "pixel_decoder": steps | {"multi_scale": levels, "mask_features": mask_features},
    }
    return Encoded(features, levels, mask_features, audio, ids), clip_sound, intermediates


def encode_text(model: nn.Module, batch: Batch, num_frames: int) -> tuple[Any, jax.Array | None]:
    """Tokens [N, L, Dt] and which exist, once per frame; None without an encoder.

    Also the means of the expressions that a clip has in training, [N, P, Dt], or None.
    """
    module = find_part("text", model.text)
    if module is None:
        return None, None
    encoder = make_part("text", module, model.text, dtype=jnp.dtype(model.dtype), name="text")
    mask = batch["text_mask"]
    tokens = encoder(batch["text_ids"], mask)
    text = jnp.repeat(tokens, num_frames, axis=0), jnp.repeat(mask, num_frames, axis=0)
    if "phrase_ids" not in batch:
        return text, None
    num_clips, _, length = batch["phrase_ids"].shape
    ids, mask = (batch[name].reshape(-1, length) for name in ("phrase_ids", "phrase_mask"))
    phrases = pool_tokens(encoder(ids, mask), mask).reshape(num_clips, -1, tokens.shape[-1])
    return text, jnp.repeat(phrases, num_frames, axis=0)


def _encode_images(model, batch, train, ids):
    """Feature maps res2..res5 of all frames, with the gated pre-mask branch added."""
    module = find_part("backbone", model.backbone)

    def run(field, name):
        backbone = make_part(
            "backbone",
            module,
            model.backbone,
            remat=model.remat in ("backbone", "all"),
            dtype=model.dtype,
            name=name,
        )
        return backbone(prepare_images(batch[field]), train, ids)

    features = run("images", "backbone")
    intermediates = {"backbone": features}
    if model.pre_masks:
        second = run("pre_masks", "pre_sam_backbone")
        gates = [
            ChannelGate(name=f"scale_factor_module_{i}")(second[level])
            for i, level in enumerate(FEATURE_LEVELS)
        ]
        kept = _drop_pre_mask_branch(model, batch["images"].shape[:2], train)
        features = {
            level: features[level] + (gate * kept).astype(model.dtype) * second[level]
            for level, gate in zip(FEATURE_LEVELS, gates, strict=True)
        }
        intermediates |= {"pre_sam_backbone": second, "scale_factor": gates}
    return features, intermediates | {"fused": features}


def _drop_pre_mask_branch(model, shape, train):
    """Whether each frame keeps the pre-mask branch, decided per clip: bool [N, 1, 1, 1]."""
    num_clips, num_frames = shape
    kept = jnp.ones(num_clips, bool)
    if train and model.pre_mask_dropout > 0:
        key = model.make_rng("pre_mask_dropout")
        kept = jax.random.bernoulli(key, 1 - model.pre_mask_dropout, (num_clips,))
    return jnp.repeat(kept, num_frames)[:, None, None, None]


def _mix_frames(model, features, batch, num_frames):
    """The features with what the frames of a clip know of each other, where `temporal` is."""
    module = find_part("temporal", model.temporal)
    if module is None:
        return features
    dtype = jnp.dtype(model.dtype)
    mix = make_part("temporal", module, model.temporal, dtype=dtype, name="temporal")
    return mix(features, num_frames, batch.get("valid"))


def _encode_audio(model, batch):
    """Audio tokens [N, 6, 4, D], the backbone map [N, 6, 4, C] and the sound of the clips."""
    module = find_part("audio_backbone", model.audio_backbone)
    backbone = make_part(
        "audio_backbone", module, model.audio_backbone, dtype=model.dtype, name="audio_backbone"
    )
    widths = (model.audio_hidden_dim, model.audio_hidden_dim, model.hidden_dim)
    transform = MLP(
        widths, jnp.dtype(model.dtype), prefix="embeddings", stride=2, name="audio_transformation"
    )

    def run(log_mel):
        return backbone((fold_frames(log_mel) - model.audio_mean) / model.audio_std)

    encoded, clip_sound = run(batch["log_mel"]), None
    if model.localizer["name"] != "none":
        has_own = "clip_log_mel" in batch
        shape = batch["clip_log_mel" if has_own else "log_mel"].shape[:2]
        seconds = run(batch["clip_log_mel"]) if has_own else encoded
        order = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
        clip_sound = ClipSound(
            unfold_frames(transform(seconds.mean(1)), shape[1]),
            batch.get("clip_has_sound", batch.get("valid", jnp.ones(shape, bool))),
            batch.get("clip_seconds", order),
        )
    return transform(encoded), encoded, clip_sound

"""The encoders of models of whole clips: frames and sound to what a backbone makes of each second.

Functions of a model with the sections `backbone` and `audio_backbone`, audio_mean, audio_std and
dtype (align.py, classify.py, describe.py), to call within its `__call__`: the modules they make are
its own.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax

from avs_jax.models.inputs import normalize_images, pad_to_divisor
from avs_jax.models.parts import find_part, make_part
from avs_jax.ops.frames import fold_frames
from avs_jax.spec import default_frame_index, frame_ids


def encode_frames(
    model: nn.Module, images: jax.Array, train: bool, pad: bool = False
) -> jax.Array | Mapping[str, jax.Array]:
    """RGB 0..255 [B, T, H, W, 3] to vectors [N, C] of all frames, or maps [N, h, w, C] by level.

    With `pad`, images get zeros at the bottom and right, up to multiples of SIZE_DIVISOR.
    """
    module = find_part("backbone", model.backbone)
    frames = normalize_images(fold_frames(images), module)
    frames = pad_to_divisor(frames) if pad else frames
    backbone = make_part("backbone", module, model.backbone, dtype=model.dtype, name="backbone")
    ids = frame_ids(default_frame_index(*images.shape[:2])) if train else None
    return backbone(frames, train, ids)


def encode_audio(model: nn.Module, log_mel: jax.Array) -> jax.Array:
    """[B, T, 96, 64] to vectors [N, C] of all examples; maps of the backbone are averaged."""
    module = find_part("audio_backbone", model.audio_backbone)
    backbone = make_part(
        "audio_backbone", module, model.audio_backbone, dtype=model.dtype, name="audio_backbone"
    )
    found = backbone((fold_frames(log_mel) - model.audio_mean) / model.audio_std)
    return found.mean((1, 2)) if found.ndim == 4 else found

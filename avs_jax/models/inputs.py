"""The fields of a batch that models of frames and sound read, and how images enter a model.

    x = pad((RGB - mean) / std)          [B, T, H, W, 3] in 0..255 to [N, H', W', 3], N = B T

H' and W' are the next multiples of SIZE_DIVISOR.
"""

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.ops.frames import fold_frames
from avs_jax.spec import (
    MEL_BANDS,
    MEL_FRAMES,
    PIXEL_MEAN,
    PIXEL_STD,
    SIZE_DIVISOR,
    SOUND_BANDS,
    TRACK_CELLS,
)

INPUTS = {  # which of them the model reads depends on the configuration
    "images": "B T H W 3",
    "log_mel": f"B T {MEL_FRAMES} {MEL_BANDS}",
    "pre_masks": "B T H W 3",
    "motion": "B T H W C",
    "motion_track": f"B T U {TRACK_CELLS} {TRACK_CELLS} 2",
    "sound_track": f"B T U {2 * SOUND_BANDS}",
    "valid": "B T",
    "frame_index": "B T",
    "text_ids": "X N",  # X expressions, the same number for each clip
    "text_mask": "X N",
}
TEXT_FIELDS = ("text_ids", "text_mask")
ASKED_FIELDS = {"text_ids": "asked_ids", "text_mask": "asked_mask"}  # of training, B E N


def prepare_field(x: jax.Array) -> jax.Array:
    """A field as a stage reads it: frames folded, images padded."""
    return pad_to_divisor(fold_frames(x)) if x.ndim == 5 else fold_frames(x)


def pad_to_divisor(x: jax.Array) -> jax.Array:
    """Zero-pads [N, H, W, C] at the bottom and right to multiples of SIZE_DIVISOR."""
    bottom, right = (-x.shape[1]) % SIZE_DIVISOR, (-x.shape[2]) % SIZE_DIVISOR
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def normalize_images(images: jax.Array, module: type | None = None) -> jax.Array:
    """RGB 0..255 [..., 3] to float32, by the mean and std of a backbone, or spec.py's."""
    mean = getattr(module, "PIXEL_MEAN", PIXEL_MEAN)
    std = getattr(module, "PIXEL_STD", PIXEL_STD)
    shape = (1,) * (images.ndim - 1) + (3,)
    mean, std = (np.array(c, np.float32).reshape(shape) for c in (mean, std))
    return (images.astype(jnp.float32) - mean) / std


def prepare_images(images: jax.Array) -> jax.Array:
    """RGB 0..255 [B, T, H, W, 3] to normalized, zero-padded float32 [N, H', W', 3]."""
    return pad_to_divisor(normalize_images(fold_frames(images)))


def example_inputs(size: tuple[int, int], motion_channels: int = 1) -> dict[str, np.ndarray]:
    """One empty frame of (H, W) = size with every field a model may read, for initialization."""
    images = np.zeros((1, 1, *size, 3), np.uint8)
    return {
        "images": images,
        "pre_masks": images,
        "log_mel": np.zeros((1, 1, MEL_FRAMES, MEL_BANDS), np.float32),
        "motion": np.zeros((1, 1, *size, motion_channels), np.float32),
        "motion_track": np.zeros((1, 1, 2, TRACK_CELLS, TRACK_CELLS, 2), np.float16),
        "sound_track": np.zeros((1, 1, 2, 2 * SOUND_BANDS), np.float32),
        "valid": np.ones((1, 1), bool),
        "text_ids": np.zeros((1, 1), np.int32),
        "text_mask": np.ones((1, 1), bool),
    }

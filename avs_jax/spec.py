"""The vocabulary of the package: axis letters, field names, constants, one shape check.

Axis letters (upper case in shapes, the same letters lower case in einops):

  B clips   T frames of a clip   H W image   h w feature map   C channels   D model width
  Q queries   M padded targets   K classes (background is class 0)   L levels   P points
  N frames of all clips folded together, n = b * T + t (or tokens, where said)   G heads

Images are channel-last everywhere. Frames are an axis of their own outside the model; it folds
them into N at its entry and unfolds them at its exit.

Batch: what the pipeline yields and the model, the criterion and the evaluator read.

  images         uint8   [B, T, H, W, 3]   RGB 0..255, not normalised
  pre_masks      uint8   [B, T, H, W, 3]   class-agnostic colour masks, if config.data.pre_masks
  log_mel        float32 [B, T, 96, 64]    VGGish log-mel, raw (time, band)
  motion         float32 [B, T, H, W, C]   motion map in image geometry, if data.motion.source;
                                           C = 1, or 2 (u, v) with data.motion.map = "uv"
  valid          bool    [B, T]            the frame exists (False pads short clips, last batches)
  supervised     bool    [B, T]            the frame has ground truth that the loss may read
  frame_index    int32   [B, T]            which frame of its clip this is; random draws follow it
  target_masks   bool    [B, T, M, H, W]   a mask per class present, background included; pixels
                                           of the padding are in none
  target_labels  int32   [B, T, M]         class of each mask
  target_valid   bool    [B, T, M]         the target exists
  proto_target   float32 [B, T, K']        target of the prototype loss: one-hot category, or the
                                           classes present
  proto_valid    bool    [B, T]            the frames the prototype loss reads

  The training step adds `progress` float32 [], the share of the training that is done.

  Evaluation batches carry `labels` uint8 [B, T, S, S] (class of each pixel at the score size S,
  255 = unknown) instead of the target_* fields, and, for the host only, `clip_id` and `category`
  (lists of B strings). With config.evaluate.audio they say which pixels move: `moving` bool
  [B, T, S, S].

Outputs: what the model returns, a dict.

  pred_logits    [B, T, Q, K+1]       class logits of the last decoder layer, "no object" last
  pred_masks     [B, T, h, w, Q]      mask logits of the last decoder layer, stride 4
  aux_outputs    list of {pred_logits, pred_masks}: earlier predictions, the initial queries' first
  audio_embed    [B, T, D]            unit length, where the model has prototypes
  proto_embed    [K', D]              unit length, where the model has prototypes
  logit_scale    []                   learned log temperature of the prototype loss, likewise
  motion_weight  [B, T, g, g]         AMA's normalised map (g = 24), where AMA is on
  edge_logits    [B, T, h, w]         logits of the objects' edges, stride 4, where BRM is on
  boundary_ramp  []                   share of their gradient that reaches the features, likewise
  intermediates  dict of everything else worth looking at; XLA drops what nobody reads
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000  # Hz, of every waveform that reaches the log-mel
MEL_FRAMES = 96  # STFT frames of one log-mel example
MEL_BANDS = 64
FRAME_OFFSET_SECONDS = 15 / 16  # dataset frame k shows the moment k + 15/16 s

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of RGB 0..255
PIXEL_STD = (58.395, 57.12, 57.375)
SIZE_DIVISOR = 32  # images are padded to a multiple of the coarsest stride
IMAGE_PAD = 128  # grey value that training crops are padded with
IGNORE_LABEL = 255  # "no ground truth for this pixel"

TRAIN_FIELDS = (
    "images pre_masks log_mel motion valid supervised frame_index "
    "target_masks target_labels target_valid proto_target proto_valid"
).split()
INPUT_FIELDS = "images pre_masks log_mel motion valid frame_index".split()
HOST_FIELDS = ("clip_id", "category")  # never sent to a device
FRAMES_PER_CLIP = 1024  # above any frame_index, keeps the frame ids of different clips apart

REFERENCE = "true_audio"  # the condition that an evaluation's others are compared with
NEGATIVE_AUDIO = {  # types of false sound -> conditions of an evaluation
    "silence": ("silence_zeros", "silence_dither"),
    "noise": ("noise_white", "noise_pink"),
    "offscreen": ("offscreen",),
    "shift": ("shift",),
}

Array = Any  # numpy.ndarray or jax.Array


class InputError(ValueError):
    """What the user gave cannot be used: command line, configuration, checkpoint, data.

    Programs print it as one message. Other exceptions are faults of the program, and keep their
    traceback.
    """


def check_shape(name: str, array: Array, pattern: str, **sizes: int) -> dict[str, int]:
    """Checks an array against a pattern such as "B T H W 3" and returns the sizes of its letters.

    Args:
      name: what the array is called in the error message.
      array: anything with a shape.
      pattern: space-separated axes; a number must match exactly, a letter binds to a size.
      **sizes: letters that are already bound.

    Raises:
      ValueError: naming the array, its shape, the pattern and the first axis that disagrees.
    """
    axes, shape = pattern.split(), tuple(np.shape(array))
    if len(axes) != len(shape):
        raise ValueError(
            f"{name}: shape {shape} has {len(shape)} axes, expected [{', '.join(axes)}]"
        )
    bound = dict(sizes)
    for axis, size in zip(axes, shape, strict=True):
        want = int(axis) if axis.isdigit() else bound.setdefault(axis, size)
        if want != size:
            raise ValueError(
                f"{name}: axis {axis} of shape {shape} is {size}, expected {want} "
                f"in [{', '.join(axes)}]"
            )
    return bound


def frame_ids(frame_index: Array) -> Array:
    """int32 [B, T] places of frames in their clips to int32 [B * T] ids, unique in the batch.

    Every random draw of a frame follows from its id, so a step on some frames of the clips draws
    for them what a step on all frames does.
    """
    clip = np.arange(frame_index.shape[0], dtype=np.int32)[:, None]
    return (clip * FRAMES_PER_CLIP + frame_index.astype(np.int32)).reshape(-1)


def nearest(word: str, choices: Sequence[str], count: int = 3) -> list[str]:
    """The choices spelled most like `word`, for error messages."""
    import difflib

    return difflib.get_close_matches(word, list(choices), n=count, cutoff=0.4)

"""The vocabulary of the package: axis letters, fields, outputs, constants, one shape check.

Axis letters (upper case in shapes, the same letters lower case in einops):

  B clips   T frames of a clip   H W image   h w feature map   C channels   D model width
  Q queries   M padded targets   K classes (background is class 0)   L levels   P points
  N frames of all clips folded together, n = b * T + t (or tokens, where said)   G heads

Images are channel-last everywhere. Frames are an axis of their own outside the model; it folds
them into N at its entry and unfolds them at its exit.

A batch is a dict of fields. Each task's rows hold the table of theirs (for `segment` FIELDS of
avs_jax/data/clip.py): dtype, axes, meaning, and a role that says who reads it.

Outputs of the models of task `segment`, a dict:

  pred_logits    [B, T, Q, K+1]       class logits of the last decoder layer, "no object" last
  pred_masks     [B, T, h, w, Q]      mask logits of the last decoder layer, stride 4
  aux_outputs    list of {pred_logits, pred_masks}: earlier predictions, the initial queries' first
  audio_embed    [B, T, D]            unit length, where the model has prototypes
  proto_embed    [K', D]              unit length, where the model has prototypes
  logit_scale    []                   learned log temperature of the prototype loss, likewise
  motion_weight  [B, T, g, g]         AMA's normalized map (g = 24), where AMA is on
  edge_logits    [B, T, h, w]         logits of the objects' edges, stride 4, where BRM is on
  intermediates  dict of everything else worth looking at; XLA drops what nobody reads
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SAMPLE_RATE = 16_000  # Hz, of every waveform that reaches the log-mel
MEL_FRAMES = 96  # STFT frames of one log-mel example
MEL_BANDS = 64
FRAME_OFFSET_SECONDS = 15 / 16  # dataset frame k shows the moment k + 15/16 s

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of RGB 0..255
PIXEL_STD = (58.395, 57.12, 57.375)
SIZE_DIVISOR = 32  # images are padded to a multiple of the coarsest stride
IMAGE_PAD = 128  # gray value that training crops are padded with
IGNORE_LABEL = 255  # "no ground truth for this pixel"

FRAMES_PER_CLIP = 1024  # above any frame_index, keeps the frame ids of different clips apart

REFERENCE = "true_audio"  # the condition that an evaluation's others are compared with
NEGATIVE_AUDIO = {  # types of false sound -> conditions of an evaluation
    "silence": ("silence_zeros", "silence_dither"),
    "noise": ("noise_white", "noise_pink"),
    "offscreen": ("offscreen",),
    "shift": ("shift",),
}

Array = Any  # numpy.ndarray or jax.Array


class Field(NamedTuple):
    """One field of a batch.

    Attributes:
      dtype: numpy's name; "str" for host fields, which are lists.
      axes: such as "B T H W 3"; the first is the batch's.
      role: "input": the model reads it; "target": the loss or the evaluator does; "host": it never
        reaches a device.
      text: what it holds, for people.
      phase: "train", "evaluate" or "both": whose batches have it.
      fill: value of what does not exist (a frame that pads a short clip).
      given: of inputs in prediction from arrays: "required", "optional", or "never" where it
        follows from the others.
    """

    dtype: str
    axes: str
    role: str
    text: str
    phase: str = "both"
    fill: float = 0
    given: str = "required"


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

"""The vocabulary of the package: axis letters, fields, outputs, constants, one shape check.

Axis letters (upper case in shapes, the same letters lower case in einops):

  B clips   T frames of a clip   H W image   h w feature map   C channels   D model width
  Q queries   M padded targets   K classes (background is class 0)   L levels   P points
  N frames of all clips folded together, n = b * T + t (or tokens, where said)   G heads
  U samples of a motion track   X expressions of all clips   E width of an embedding
  S cells or tokens of a sequence; S S, the side of the square at which predictions are scored

In tasks on sequences, L is also a length (clips of a video, words of a text), W counts words,
windows or beams, A channels of the sound or annotators, V channels of the video or a vocabulary;
the docstring says which.

Images are channel-last everywhere. Frames are an axis of their own outside the model, which folds
them into N on entry and unfolds them on exit.

A batch is a dict of fields. Each task's rows hold a table of fields (for `segment`, FIELDS of
avs_jax/data/clip.py): dtype, axes, meaning, and the role that says who reads the field.

Outputs of the models of task `segment`, a dict:

  pred_logits    [B, T, Q, K+1]       class logits of the last decoder layer, "no object" last
  pred_masks     [B, T, h, w, Q]      mask logits of the last decoder layer, stride 4
  aux_outputs    list of {pred_logits, pred_masks}: earlier predictions, the initial queries' first
  audio_embed    [B, T, D]            unit length, where the model has prototypes
  proto_embed    [K', D]              unit length, where the model has prototypes
  logit_scale    []                   learned log temperature of the prototype loss, likewise
  motion_weight  [B, T, g, g]         AMA's normalized map (g = 24), where AMA is on
  motion_gate    [B, T]               gate of that map in 0..2, where AMA has one
  sync_evidence  [B, T, g, g]         gated evidence that the motion of a cell goes with the sound
  sync_gate      [B, T]               its gate, 0..1; sync_lag [B, T], samples by which it is late
  edge_logits    [B, T, h, w]         logits of the objects' edges, stride 4, where BRM is on
  presence_logits [B, T]             what the expression means is in the frame, where it has a head
  align_map      [B, T, h, w, E]     features at stride 8, align_text [B, E] those of the expression
  align_phrases  [B, P, E]           of the clip's expressions, in training with a localizer
  align_scale, align_ramp []         learned log temperature of their comparison, its ramp
  location_logits [B, T, P, h, w]    where what P expressions mean is, stride 8, with a localizer;
                                     P = 1 in evaluation
  intermediates  dict of everything else worth looking at; XLA drops what nobody reads
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SAMPLE_RATE = 16_000  # Hz, of every waveform that reaches the log-mel
MEL_FRAMES = 96  # STFT frames of one log-mel example
MEL_BANDS = 64
FRAME_OFFSET_SECONDS = 15 / 16  # dataset frame k shows the moment k + 15/16 s
TRACK_CELLS = 24  # cells per side of a motion track (data/motion_track.py)
SOUND_BANDS = 8  # mel bands whose energy and rise accompany it (data/synchrony.py)

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of RGB 0..255
PIXEL_STD = (58.395, 57.12, 57.375)
SIZE_DIVISOR = 32  # images are padded to a multiple of the coarsest stride
MASK_STRIDE = 4  # pixels of the padded image per cell of pred_masks
IMAGE_PAD = 128  # gray value that training crops are padded with
# SAM2's maps of the image encoder in a batch, at strides 4, 8 and 16, and the labels of its points.
TRUNK_MAPS = ("trunk_fine", "trunk_middle", "trunk_coarse")
ABSENT_POINT = -2  # only fills the array
NOT_A_POINT = -1  # a token without a position
OFF_OBJECT, ON_OBJECT, TOP_LEFT, BOTTOM_RIGHT = range(4)
IGNORE_LABEL = 255  # "no ground truth for this pixel"

EXPRESSION_KINDS = ("look", "sound", "time", "both")  # what answers a generated expression

FRAMES_PER_CLIP = 1024  # above any frame_index, keeps the frame ids of different clips apart

TRUE_AUDIO = "true_audio"  # the condition that all others of an evaluation are compared with
NEGATIVE_AUDIO = {  # types of false sound -> conditions of an evaluation
    "silence": ("silence_zeros", "silence_dither"),
    "noise": ("noise_white", "noise_pink"),
    "offscreen": ("offscreen",),
    "shift": ("shift",),
    "late": ("late",),
}

Array = Any  # numpy.ndarray or jax.Array


class Field(NamedTuple):
    """One field of a batch.

    Attributes:
      dtype: numpy's name; ignored for metadata, which are lists of any values.
      axes: such as "B T H W 3"; the first is the batch axis.
      role: "input" (the model reads it), "target" (the loss or the evaluator does) or "metadata"
        (names and facts of a record; they never reach a device).
      text: what it holds, for people.
      phase: which batches have it: "train", "evaluate" or "both".
      fill: padding value, for example of a frame that pads a short clip.
      given: whether prediction from arrays takes this input: "required", "optional", or "never"
        (it follows from the others).
    """

    dtype: str
    axes: str
    role: str
    text: str
    phase: str = "both"
    fill: float = 0
    given: str = "required"


class InputError(ValueError):
    """The user's input is invalid: command line, configuration, checkpoint or data.

    Programs print it as one message. Any other exception is a bug and keeps its traceback.
    """


class UsageError(InputError):
    """An invalid command line: no file could make it right."""


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


def default_frame_index(num_clips: int, num_frames: int) -> np.ndarray:
    """Positions 0 .. T-1 of the frames of every clip, int [B, T]."""
    return np.broadcast_to(np.arange(num_frames)[None], (num_clips, num_frames))


def frame_ids(frame_index: Array) -> Array:
    """int32 [B, T] positions of frames in their clips to int32 [B * T] ids, unique in the batch.

    A frame's random draws depend on its id alone, so training on a subset of a clip's frames draws
    the same numbers for them as training on all frames.
    """
    clip = np.arange(frame_index.shape[0], dtype=np.int32)[:, None]
    return (clip * FRAMES_PER_CLIP + frame_index.astype(np.int32)).reshape(-1)


def nearest(word: str, choices: Sequence[str], count: int = 3) -> list[str]:
    """The choices spelled most like `word`, for error messages."""
    import difflib

    return difflib.get_close_matches(word, list(choices), n=count, cutoff=0.4)


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, for error messages."""
    return [
        f"{key} {stored.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(stored.keys() | now.keys())
        if stored.get(key) != now.get(key)
    ]


def first_line(error: BaseException) -> str:
    """An exception's message as part of a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

"""Prompts: points, boxes, masks and language of objects on frames, and frames as SAM2 reads them.

Coordinates are (x, y) in px, pixel centers at whole numbers, as in SAM2. A frame is resized to a
square; coordinates and masks are scaled along.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from avs_jax.ops.resampling import antialiased_matrix
from avs_jax.spec import (
    ABSENT_POINT,
    BOTTOM_RIGHT,
    OFF_OBJECT,
    ON_OBJECT,
    PIXEL_MEAN,
    PIXEL_STD,
    TOP_LEFT,
    Field,
    InputError,
)
from avs_jax.task import Row, empty_row

MIN_POINTS = 4  # that an array has room for
MAX_POINTS = 1024  # of an object on a frame; the decoder's attention grows with their square
EDGE = 0.5  # px between a pixel's center and its edge
RESIZES = ("bilinear", "bicubic")  # see resize_frame


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What marks one object on one frame, in px of the frame.

    Attributes:
      points: [(x, y), ..].
      labels: 1 for a point on the object, 0 for one off it; None: all 1.
      box: (left, top, right, bottom).
      mask: bool [H, W], the object itself; excludes everything else.
      language: float [L, D], tokens that join those of points and box: of the decoder's width, or
        hidden states of model.language_dim numbers.
    """

    points: Sequence[tuple[float, float]] = ()
    labels: Sequence[int] | None = None
    box: Sequence[float] | None = None
    mask: np.ndarray | None = None
    language: np.ndarray | None = None

    def __post_init__(self):
        labels, count = self.point_labels(), len(self.points)
        if count > MAX_POINTS:
            raise InputError(f"{count:,} points: expected at most {MAX_POINTS:,}")
        if len(labels) != count or any(label not in (OFF_OBJECT, ON_OBJECT) for label in labels):
            raise InputError(f"labels {_short(list(labels))} of {count} points: expected 0 or 1")
        for point in self.points:
            _check_numbers("point", point, ("x", "y"))
        if self.box is not None:
            _check_box(self.box)
        has_more = bool(len(self.points)) or self.box is not None or self.language is not None
        if self.mask is None and not has_more:
            raise InputError("a prompt without points, box, mask or language")
        if self.mask is not None and has_more:
            raise InputError("a mask is the object itself; leave out points, box and language")
        if self.language is not None:
            _check_language(self.language)
        if self.mask is not None and np.ndim(self.mask) != 2:
            raise InputError(f"mask of shape {np.shape(self.mask)}: expected [H, W]")

    def point_labels(self) -> Sequence[int]:
        return [ON_OBJECT] * len(self.points) if self.labels is None else self.labels

    @property
    def num_points(self) -> int:
        """Points, the corners of the box included."""
        return len(self.points) + (0 if self.box is None else 2)

    def check_fits(self, frame_size: tuple[int, int]) -> None:
        """Raises InputError if it cannot be a prompt on a frame of (H, W) px."""
        height, width = frame_size
        if self.mask is not None and np.shape(self.mask) != (height, width):
            raise InputError(f"a mask of {np.shape(self.mask)} on a frame of {(height, width)} px")
        for point in self.points:
            if not _are_inside(np.asarray(point, np.float64), frame_size):
                raise InputError(
                    f"point {_short(point)} is outside the frame, {width} x {height} px"
                )
        if self.box is not None:
            left, top, right, bottom = self.box
            if right < -EDGE or bottom < -EDGE or left > width or top > height:
                box = _short(list(self.box))
                raise InputError(f"box {box} is outside the frame, {width} x {height} px")


def _short(value: Any) -> str:
    """A value as part of a line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_numbers(what: str, values: Any, names: Sequence[str]) -> None:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.shape != (len(names),):
        raise InputError(f"{what} {_short(values)}: expected numbers ({', '.join(names)})")
    if not np.isfinite(array).all():
        raise InputError(f"{what} {_short(values)}: a coordinate is NaN or infinite")


def _check_box(box: Sequence[float]) -> None:
    _check_numbers("box", box, ("left", "top", "right", "bottom"))
    left, top, right, bottom = box
    if left > right or top > bottom:
        raise InputError(f"box {_short(list(box))}: expected left <= right and top <= bottom")


def _are_inside(points: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    """Which (x, y) [..., 2] are on a frame of (H, W) px; its far edge counts: bool [...]."""
    height, width = frame_size
    return ((points >= -EDGE) & (points <= [width, height])).all(-1)


def _check_language(tokens: np.ndarray) -> None:
    if np.ndim(tokens) != 2 or not np.size(tokens) or np.asarray(tokens).dtype.kind != "f":
        raise InputError(f"language of shape {np.shape(tokens)}: expected floats [L, D]")
    if not np.isfinite(tokens).all():
        raise InputError("a number of the language is NaN or infinite")


def stack_prompts(
    prompts: Sequence[Prompt | None], frame_size: tuple[int, int], side: int
) -> dict[str, np.ndarray]:
    """Prompts of M objects on one frame, scaled to a square.

    Args:
      prompts: None for an object without a prompt.
      frame_size: (H, W) of the frame.
      side: of the square.

    Returns:
      points float32 [M, P, 2] and point_labels int32 [M, P], box corners first; masks bool
      [M, side, side] and mask_given bool [M].

    Raises:
      InputError: a prompt is outside the frame, or a mask has another size.
    """
    height, width = frame_size
    count = max([MIN_POINTS, *(p.num_points for p in prompts if p is not None)])
    count = 1 << (count - 1).bit_length()  # few sizes, few programs
    points = np.zeros((len(prompts), count, 2), np.float32)
    labels = np.full((len(prompts), count), ABSENT_POINT, np.int32)
    masks, given = np.zeros((len(prompts), side, side), bool), np.zeros(len(prompts), bool)
    for i, prompt in enumerate(prompts):
        if prompt is None:
            continue
        prompt.check_fits(frame_size)
        if prompt.mask is not None:
            masks[i], given[i] = resize_mask(np.asarray(prompt.mask), side), True
        corners = [] if prompt.box is None else np.reshape(prompt.box, (2, 2)).tolist()
        xy = np.asarray([*corners, *prompt.points], np.float32).reshape(-1, 2)
        points[i, : len(xy)] = xy / np.float32([width, height]) * np.float32(side)
        kinds = [TOP_LEFT, BOTTOM_RIGHT] if corners else []
        labels[i, : len(xy)] = [*kinds, *prompt.point_labels()]
    return {"points": points, "point_labels": labels, "masks": masks, "mask_given": given}


def stack_language(
    prompts: Sequence[Prompt | None], width: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The language of M objects: tokens float32 [M, L, width], which exist bool [M, L], or None.

    Args:
      width: that the model expects of a token.
    """
    tokens = [None if prompt is None else prompt.language for prompt in prompts]
    if all(x is None for x in tokens):
        return None
    for x in tokens:
        if x is not None and x.shape[1] != width:
            raise InputError(f"language of {x.shape[1]} numbers per token: the model reads {width}")
    count = max(len(x) for x in tokens if x is not None)
    count = 1 << (count - 1).bit_length()  # few sizes, few programs
    stacked = np.zeros((len(tokens), count, width), np.float32)
    exists = np.zeros((len(tokens), count), bool)
    for i, x in enumerate(tokens):
        if x is not None:
            stacked[i, : len(x)], exists[i, : len(x)] = x, True
    return stacked, exists


def resize_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """bool [H, W] -> bool [side, side]: bilinear with antialiasing, 1 from one half on."""
    if mask.shape == (side, side):
        return mask.astype(bool)
    rows, columns = (antialiased_matrix(n, side).astype(np.float32) for n in mask.shape)
    return rows @ (mask > 0).astype(np.float32) @ columns.T >= 0.5


def resize_frame(frame: np.ndarray, side: int, resize: str) -> np.ndarray:
    """uint8 RGB [H, W, 3] to normalized float32 [side, side, 3].

    Args:
      resize: "bicubic", on 8 bits (the original's video loader), or "bilinear", on floats (its
        image predictor); both with antialiasing.
    """
    if resize not in RESIZES:
        raise InputError(f"resize = {resize!r}: choose one of {RESIZES}")
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise InputError(f"a frame is {frame.dtype} {frame.shape}: expected uint8 [H, W, 3]")
    size = (side, side)
    if resize == "bicubic":
        resized = np.asarray(Image.fromarray(frame).resize(size, Resampling.BICUBIC), np.float32)
    else:
        channels = (Image.fromarray(frame[..., c].astype(np.float32)) for c in range(3))
        resized = np.stack([c.resize(size, Resampling.BILINEAR) for c in channels], axis=-1)
    return (resized - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)


def _field(dtype: str, axes: str, text: str, fill: int = 0) -> Field:
    return Field(dtype, axes, "input", text, fill=fill, given="optional")


LABELS = "1 on the object, 0 off it, 2 and 3 corners of a box, -2 none"
FIELDS = {
    "images": _field("uint8", "B T H W 3", "RGB 0..255; resized to a square"),
    "pixels": _field("float32", "B T H W 3", "normalized, multiples of 32 px; instead of images"),
    "points": _field("float32", "B T M P 2", "(x, y) in px, of M objects"),
    "point_labels": _field("int32", "B T M P", LABELS, ABSENT_POINT),
    "boxes": _field("float32", "B T M 4", "left, top, right, bottom; all 0: none"),
    "masks": _field("uint8", "B T M H W", "1 on the object; all 0: none, but for mask_given"),
    "mask_given": _field("bool", "B T M", "whether masks count, even empty ones"),
}


class PromptRows:
    """Rows of clips with prompts; there are no records of them.

    Attributes: those of avs_jax.task.Rows.
    """

    def __init__(self, image_size: int):
        self.fields = FIELDS
        self.sizes = {"T": 1, "H": image_size, "W": image_size, "M": 1, "P": 1}

    def empty(self, train: bool) -> Row:
        return empty_row(self.fields, self.sizes, train)

    def prepare(self, record: Mapping[str, Any], rng: np.random.Generator | None) -> Row:
        raise InputError("task 'track' has no records; it predicts only")


def complete_arrays(
    arrays: Mapping[str, np.ndarray], image_size: int, resize: str, num_slots: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The model's inputs from a user's arrays, checked against FIELDS.

    Images, and coordinates and masks with them, are resized to `image_size` by `resize`; `pixels`
    stay as they are.

    Returns:
      pixels, points, point_labels, masks and mask_given; and notes.

    Raises:
      InputError: neither or both of images and pixels, wrong sides, points without labels or
        outside the frame, a box whose sides are swapped, a mask with points, prompts of no object,
        or on more than `num_slots` frames.
    """
    if ("images" in arrays) == ("pixels" in arrays):
        raise InputError("give images or pixels, one of them")
    if ("points" in arrays) != ("point_labels" in arrays):
        raise InputError("points and point_labels belong together")
    frames = arrays.get("pixels", arrays.get("images"))
    prompts = [arrays[name] for name in ("points", "boxes", "masks") if name in arrays]
    if not prompts:
        raise InputError("no prompts: give points with point_labels, boxes or masks")
    shape = prompts[0].shape[:3]
    points = arrays.get("points", np.zeros((*shape, 1, 2), np.float32))
    labels = arrays.get("point_labels", np.full((*shape, 1), ABSENT_POINT, np.int32))
    if not np.isin(labels, (ABSENT_POINT, OFF_OBJECT, ON_OBJECT, TOP_LEFT, BOTTOM_RIGHT)).all():
        raise InputError(f"point_labels: expected {LABELS}")
    height, width = frames.shape[2:4]
    is_point = np.isin(labels, (OFF_OBJECT, ON_OBJECT))
    _refuse("a point is outside", is_point & ~_are_inside(points, (height, width)), frames)
    if "boxes" in arrays:
        is_swapped = arrays["boxes"][..., :2] > arrays["boxes"][..., 2:]
        _refuse("a box needs left <= right and top <= bottom", is_swapped, frames)
        corners = arrays["boxes"].reshape(*shape, 2, 2)
        has_box = arrays["boxes"].any(-1, keepdims=True)
        kinds = np.where(has_box, [TOP_LEFT, BOTTOM_RIGHT], ABSENT_POINT).astype(np.int32)
        points = np.concatenate([corners, points], axis=3)
        labels = np.concatenate([kinds, labels], axis=3)
    masks = arrays.get("masks")
    given = np.zeros(shape, bool) if masks is None else (masks > 0).any((-2, -1))
    given |= arrays.get("mask_given", False)
    _refuse("give a mask or points, not both", (labels != ABSENT_POINT).any(-1) & given, frames)
    prompted = ((labels != ABSENT_POINT).any(-1) | given).any(2).sum(1)
    if prompted.min() < 1 or prompted.max() > num_slots:
        raise InputError(
            f"prompts on {prompted.tolist()} frames of the clips: expected 1 to {num_slots} "
            "(config.model.prompt_slots)"
        )
    sides = (height, width)
    if "images" in arrays:
        flat = frames.reshape(-1, height, width, 3)
        resized = np.stack([resize_frame(frame, image_size, resize) for frame in flat])
        frames = resized.reshape(*frames.shape[:2], image_size, image_size, 3)
        points = points / np.float32([width, height]) * np.float32(image_size)
        sides = (image_size, image_size)
        if masks is not None:
            flat = masks.reshape(-1, height, width)
            masks = np.stack([resize_mask(mask, image_size) for mask in flat])
            masks = masks.reshape(*shape, *sides)
    elif height % 32 or width % 32:
        raise InputError(f"pixels of {height} x {width} px: expected multiples of 32")
    if masks is None:
        masks = np.zeros((*shape, *sides), np.uint8)
    return {
        "pixels": frames,
        "points": points.astype(np.float32),
        "point_labels": labels,
        "masks": masks.astype(np.uint8),
        "mask_given": given,
    }, []


def _refuse(message: str, is_wrong: np.ndarray, frames: np.ndarray) -> None:
    """Raises InputError with the first place where is_wrong, bool [B, T, M, ...]."""
    if is_wrong.any():
        clip, frame, number = np.argwhere(is_wrong)[0, :3].tolist()
        height, width = frames.shape[2:4]
        raise InputError(
            f"clip {clip}, frame {frame} of {width} x {height} px, object {number}: {message}"
        )

"""The joint augmentation of a clip: one geometry for image, pre-mask, ground truth and motion.

  resize the short side to a drawn size -> crop -> color jitter -> flip -> pad right and bottom

All random numbers are drawn first (`draw_augmentation`), for every frame of the clip, and applied
later, so a frame looks the same whether or not its neighbors are used.

Source: VCT's data mappers, which use detectron2's ResizeShortestEdge, RandomCrop, ColorAugSSD and
RandomFlip. As there, every frame has its own color jitter, and the pre-mask is jittered too,
independently, and blended by its bilinear resize. Departures: one numpy generator instead of two
global ones; saturation and hue share one HSV conversion. HSV has OpenCV's units (H 0..179, steps of
2 degrees) but exact rounding: OpenCV's arithmetic (5.0, all colors tried) is one level off for 2 %
of the hues, 1 % of the saturations and, on the way back, a third of the channels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

from avs_jax.spec import IGNORE_LABEL, IMAGE_PAD

BILINEAR = Image.Resampling.BILINEAR
NEAREST = Image.Resampling.NEAREST


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """One frame's photometric draw; the defaults change nothing."""

    brightness: float = 0.0  # added to RGB
    contrast: float = 1.0  # factor of RGB
    saturation: float = 1.0  # factor of S
    hue: int = 0  # added to H, in steps of 2 degrees
    contrast_first: bool = True  # otherwise after saturation and hue


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One clip's draw. Sizes in px, (height, width); the crop is taken from the resized frame."""

    resized: tuple[int, int]
    crop_origin: tuple[int, int]  # (top, left)
    crop_size: tuple[int, int]
    flip: bool
    output_size: int  # side of the padded square
    image_jitter: tuple[ColorJitter, ...]  # one per frame
    pre_mask_jitter: tuple[ColorJitter, ...]


def draw_augmentation(
    rng: np.random.Generator,
    frame_size: tuple[int, int],
    num_frames: int,
    output_size: int,
    min_sizes: Sequence[int],
    max_size: int,
    crop: bool = True,
    color: bool = True,
    flip: float = 0.5,
) -> Augmentation:
    """Draws one clip's augmentation, for all of its frames, used or not.

    The other arguments are those of config.data.augment. Without crop, the frame is resized to the
    output size, whatever its aspect ratio.
    """
    short_side = int(min_sizes[rng.integers(len(min_sizes))])
    corner = rng.random(2)
    is_flipped = bool(rng.random() < flip)
    jitter = [[_draw_jitter(rng) for _ in range(2)] for _ in range(num_frames)]
    if not color:
        jitter = [[ColorJitter()] * 2] * num_frames

    resized = shortest_edge_size(frame_size, short_side, max_size) if crop else (output_size,) * 2
    crop_size = tuple(min(output_size, side) for side in resized)
    slack = [side - cut + 1 for side, cut in zip(resized, crop_size, strict=True)]
    return Augmentation(
        resized=resized,
        crop_origin=tuple(int(c * s) for c, s in zip(corner, slack, strict=True)),
        crop_size=crop_size,
        flip=is_flipped,
        output_size=output_size,
        image_jitter=tuple(pair[0] for pair in jitter),
        pre_mask_jitter=tuple(pair[1] for pair in jitter),
    )


def _draw_jitter(rng: np.random.Generator) -> ColorJitter:
    """ColorAugSSD's draw: each operation with probability 1/2, always as many random numbers."""
    on = rng.random(5) < 0.5
    amount = rng.uniform(-1.0, 1.0, 3)
    hue = int(rng.integers(-18, 19))
    return ColorJitter(
        brightness=32.0 * amount[0] if on[0] else 0.0,
        contrast=1.0 + 0.5 * amount[1] if on[1] else 1.0,
        saturation=1.0 + 0.5 * amount[2] if on[2] else 1.0,
        hue=hue if on[3] else 0,
        contrast_first=bool(on[4]),
    )


def shortest_edge_size(
    frame_size: tuple[int, int], short_side: int, max_size: int
) -> tuple[int, int]:
    """(height, width) with this short side, or less where the long side would exceed max_size."""
    height, width = frame_size
    scale = short_side / min(height, width)
    if max(height, width) * scale > max_size:
        scale = max_size / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def resize_to_square(image: np.ndarray, resample: Image.Resampling) -> np.ndarray:
    """Resizes [H, W] or [H, W, 3] to a square of its short side, changing the aspect ratio.

    VCT does this to the frames of AVSBench-semantic before any augmentation.
    """
    return resize(image, (min(image.shape[:2]),) * 2, resample)


def augment_image(image: np.ndarray, augmentation: Augmentation, jitter: ColorJitter) -> np.ndarray:
    """An RGB image or pre-mask, uint8 [H, W, 3] -> uint8 [S, S, 3], padded with gray."""
    image = _crop(resize(image, augmentation.resized, BILINEAR), augmentation)
    return _flip_and_pad(jitter_color(image, jitter), augmentation, IMAGE_PAD)


def augment_labels(labels: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """Class indices, uint8 [H, W] -> uint8 [S, S], padded with 255."""
    labels = _crop(resize(labels, augmentation.resized, NEAREST), augmentation)
    return _flip_and_pad(labels, augmentation, IGNORE_LABEL)


def augment_motion(motion: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """Motion, float32 [H, W, C] -> float32 [S, S, C], padded with 0.

    C = 1 is a map of magnitudes. C = 2 are vectors (u, v) in px: they scale with the image, and a
    flip negates u.
    """
    motion = _crop(resize_motion(motion, augmentation.resized), augmentation)
    if motion.shape[-1] == 2 and augmentation.flip:
        motion = motion * np.array([-1, 1], motion.dtype)
    return _flip_and_pad(motion, augmentation, 0)


def _crop(array: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    (top, left), (height, width) = augmentation.crop_origin, augmentation.crop_size
    return array[top : top + height, left : left + width]


def _flip_and_pad(array: np.ndarray, augmentation: Augmentation, fill: int) -> np.ndarray:
    if augmentation.flip:
        array = array[:, ::-1]
    side = augmentation.output_size
    padded = np.full((side, side, *array.shape[2:]), fill, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def resize(array: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """PIL's resize of uint8 [H, W, 3], or uint8 or float32 [H, W].

    Bilinear enlarges by the rule of `ops.sampling.resize_bilinear`; unlike that, it antialiases
    when it shrinks.
    """
    height, width = size
    if array.shape[:2] == (height, width):
        return array
    image = Image.fromarray(np.ascontiguousarray(array))
    return np.asarray(image.resize((width, height), resample))


def resize_motion(motion: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of float32 [H, W, C]; two channels are (u, v) in px and scale too."""
    height, width = motion.shape[:2]
    channels = np.moveaxis(motion, -1, 0)
    resized = np.stack([resize(channel, size, BILINEAR) for channel in channels], axis=-1)
    if motion.shape[-1] == 2 and (height, width) != tuple(size):
        resized = resized * np.array([size[1] / width, size[0] / height], resized.dtype)
    return resized


def jitter_color(image: np.ndarray, jitter: ColorJitter) -> np.ndarray:
    """Applies one draw to uint8 RGB [H, W, 3]; each operation clips and truncates to uint8."""
    image = _affine(image, 1.0, jitter.brightness)
    if jitter.contrast_first:
        image = _affine(image, jitter.contrast, 0.0)
    if jitter.saturation != 1.0 or jitter.hue:
        hue, saturation, value = rgb_to_hsv(image)
        saturation = _affine(saturation, jitter.saturation, 0.0)
        hue = ((hue.astype(np.int16) + jitter.hue) % 180).astype(np.uint8)
        image = hsv_to_rgb(hue, saturation, value)
    if not jitter.contrast_first:
        image = _affine(image, jitter.contrast, 0.0)
    return image


def _affine(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """uint8 -> uint8: values * factor + offset, clipped, truncated."""
    if factor == 1.0 and offset == 0.0:
        return values
    table = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.take(np.clip(table, 0, 255).astype(np.uint8), values)


def rgb_to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 RGB [H, W, 3] -> uint8 [H, W] hue (0..179: 2 degrees each), saturation, value."""
    red, green, blue = (image[..., c].astype(np.int16) for c in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.maximum(chroma, 1).astype(np.float32)
    saturation = chroma * np.float32(255) / np.maximum(value, 1)
    is_red, is_green = value == red, value == green
    numerator = np.where(is_red, green - blue, np.where(is_green, blue - red, red - green))
    sector = np.where(is_red, np.float32(0), np.where(is_green, np.float32(60), np.float32(120)))
    hue = np.rint(numerator * np.float32(30) / divisor + sector).astype(np.int16)
    hue += (hue < 0) * np.int16(180)
    hue[hue >= 180] -= 180
    return hue.astype(np.uint8), np.rint(saturation).astype(np.uint8), value.astype(np.uint8)


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Inverse of rgb_to_hsv up to its quantization: three uint8 [H, W] -> uint8 RGB [H, W, 3]."""
    # Each channel is value - chroma * ramp(hue); the ramp has 180 entries, so it is a table.
    position = np.arange(180, dtype=np.float32)[:, None] / 30 + np.array([5, 3, 1], np.float32)
    position %= 6
    ramp = np.clip(np.minimum(position, 4 - position), 0, 1)
    chroma = value.astype(np.float32) * saturation * np.float32(1 / 255)
    image = np.empty((*hue.shape, 3), np.uint8)
    for channel in range(3):
        drop = chroma * np.take(ramp[:, channel], hue)
        image[..., channel] = np.rint(value - drop).astype(np.uint8)
    return image

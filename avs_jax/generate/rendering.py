"""Turns a plan into frames, masks and samples."""

import dataclasses

import numpy as np
from PIL import Image

from avs_jax import spec
from avs_jax.data import pre_masks
from avs_jax.generate import sounds
from avs_jax.generate.drawing import background, sprite
from avs_jax.generate.plans import Object, Plan, object_track

VIDEO_FPS = 8


@dataclasses.dataclass(frozen=True)
class RenderedClip:
    """A clip with N = seconds * fps video frames and T dataset frames, one per whole second."""

    frames: np.ndarray  # uint8 [N, H, W, 3]
    fps: int
    audio: np.ndarray  # int16 [n], mono
    sample_rate: int
    frame_index: np.ndarray  # int64 [T], the video frame that is dataset frame t
    labels: np.ndarray  # uint8 [T, H, W], 0 background, else 1 + index of the topmost object
    sounding: np.ndarray  # bool [T, objects], who sounds in each second
    mask: np.ndarray  # bool [T, H, W], the visible part of the objects that sound in that second
    pre_masks: np.ndarray  # uint8 [T, H, W], index into pre_masks.PALETTE


def render_clip(
    plan: Plan,
    size: int | tuple[int, int] = 128,
    fps: int = VIDEO_FPS,
    sample_rate: int = spec.SAMPLE_RATE,
) -> RenderedClip:
    """Draws a planned clip, of a side or (height, width) in pixels, and mixes its sound.

    Dataset frames are exact where fps is a multiple of 8.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(plan.seed)
    time = video_times(plan.seconds, fps)
    frame_index = np.minimum(
        np.floor((np.arange(int(plan.seconds)) + spec.FRAME_OFFSET_SECONDS) * fps), len(time) - 1
    ).astype(np.int64)
    frames, labels = draw_frames(plan, time, frame_index, (height, width), rng)
    audio = mix_sound(plan, sample_rate, rng)
    sounding = np.stack([o.active[: len(labels)] & o.audible for o in plan.objects], -1)
    mask = np.zeros(labels.shape, bool)
    for i in range(len(plan.objects)):
        mask |= (labels == i + 1) & sounding[:, i, None, None]
    return RenderedClip(
        frames=frames,
        fps=fps,
        audio=audio,
        sample_rate=sample_rate,
        frame_index=frame_index,
        labels=labels,
        sounding=sounding,
        mask=mask,
        pre_masks=_draw_pre_masks(labels, len(plan.objects), rng),
    )


def video_times(seconds: float, fps: int) -> np.ndarray:
    """The times [N], in seconds, that the frames of a video are drawn for."""
    return (np.arange(round(seconds * fps)) + 0.5) / fps


def draw_frames(
    plan: Plan,
    time: np.ndarray,
    labeled: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws frames [N, H, W, 3] at times [N] in seconds, and labels of some of them.

    uint8 [T, H, W], for the frames of the indices `labeled` [T]: 0 background, else 1 + index of
    the topmost object.
    """
    height, width = size
    short = min(size)
    margin = int(np.ceil(plan.shake * short)) + 1
    scene = background(height + 2 * margin, width + 2 * margin, rng)
    sprites = _draw_sprites(plan, rng)
    camera = _camera_offset(plan.shake * short, time, rng)
    light = 1 + plan.light * np.sin(2 * np.pi * (rng.uniform(0.1, 0.4) * time + rng.uniform()))
    tracks = [
        object_track(item, time) * short + np.array(item.center) * (width, height)
        for item in plan.objects
    ]
    frames = np.empty((len(time), height, width, 3), np.uint8)
    labels = np.zeros((len(labeled), height, width), np.uint8)
    label_of_frame = {int(n): labels[t] for t, n in enumerate(labeled)}
    for n in range(len(time)):
        dx, dy = (round(offset) for offset in camera[n])
        corner = (margin + dx, margin + dy)
        frame = scene.crop((*corner, corner[0] + width, corner[1] + height))
        for i, item in enumerate(plan.objects):
            if item.visible is not None and not item.visible[int(time[n])]:
                continue
            raster, left, top = _transform(sprites[i], item, tracks[i][n] - (dx, dy), short)
            frame.paste(raster, (left, top), raster)
            if n in label_of_frame:
                alpha = Image.new("L", (width, height))
                alpha.paste(raster.getchannel("A"), (left, top))
                label_of_frame[n][np.asarray(alpha) > 127] = i + 1
        frames[n] = np.clip(np.asarray(frame) * np.float32(light[n]), 0, 255)
    return frames, labels


def _draw_sprites(plan: Plan, rng: np.random.Generator) -> list[Image.Image]:
    """One sprite per object; objects of one category in a clip share it, pixel by pixel."""
    sprites = {}
    for item in plan.objects:
        if item.category not in sprites:
            sprites[item.category] = sprite(item.category, rng)
    return [sprites[item.category] for item in plan.objects]


def _camera_offset(amplitude: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Camera offset [N, 2] in pixels: two slow sines per axis, at most `amplitude`."""
    rates, phases = rng.uniform(0.3, 2.0, (2, 2)), rng.uniform(0, 2 * np.pi, (2, 2))
    waves = np.sin(2 * np.pi * rates * time[:, None, None] + phases)
    return amplitude * waves.mean(-1)


def _transform(
    image: Image.Image, item: Object, center: np.ndarray, short: int
) -> tuple[Image.Image, int, int]:
    """Scales and rotates a sprite with its center at a subpixel position: (raster, left, top)."""
    half = item.half_size * short
    reach = int(np.ceil(half * 1.42)) + 1
    left, top = np.floor(center).astype(int) - reach
    x, y = center - (left, top)
    scale = image.width / (2 * half)
    cos, sin = scale * np.cos(item.angle), scale * np.sin(item.angle)
    middle = image.width / 2
    raster = image.transform(
        (2 * reach + 1, 2 * reach + 1),
        Image.Transform.AFFINE,
        (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y),
        Image.Resampling.BILINEAR,
    )
    return raster, int(left), int(top)


def mix_sound(plan: Plan, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Mixes the audible objects, each under its loudness curve and gate, to int16 [n]."""
    num_samples = round(plan.seconds * sample_rate)
    time = np.arange(num_samples) / sample_rate - plan.lag
    mixture = np.zeros(num_samples)
    for item in plan.objects:
        if not (item.audible and item.active.any()):
            continue
        gate = sounds.gate_at(item.active, time)
        wave = sounds.synthesize(item.category.timbre, num_samples, sample_rate, rng)
        wave = wave * sounds.loudness_at(item.loudness, time) * gate
        wave *= 10 ** (plan.level / 20) / np.sqrt(np.mean(wave**2) / np.mean(gate**2))
        mixture += wave
    return sounds.to_int16(mixture, rng)


def _draw_pre_masks(labels: np.ndarray, num_objects: int, rng: np.random.Generator) -> np.ndarray:
    """What a class-agnostic segmenter might find: objects, half of one, parts of the background."""
    painted = np.empty_like(labels)
    height, width = labels.shape[1:]
    for t, frame in enumerate(labels):
        masks = [frame == i + 1 for i in range(num_objects)]
        part = int(rng.integers(num_objects))
        if rng.uniform() < 0.5 and masks[part].any():
            rows = np.flatnonzero(masks[part].any(1))
            half = masks[part].copy()
            half[int(rows.mean()) :] = False
            masks.append(half)
        coarse = Image.fromarray(rng.uniform(size=(3, 3)).astype(np.float32))
        field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        masks += [(frame == 0) & (field > 0.6), (frame == 0) & (field < 0.3)]
        painted[t] = pre_masks.paint_by_area(masks)
    return painted

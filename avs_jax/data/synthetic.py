"""Generated clips, made to be worth training on: planned, then drawn and sounded.

Each clip shows 2 to 4 objects of different categories on a textured background. Some sound, and the
speed of each follows its loudness, which is 0 while it is silent:

  phase'(t) = 2 pi f * loudness(t)^2
  position(t) = centre + amplitude * (cos phase, sin 1.7 phase)

`plan_clip` (for S4): exactly one sounds, all the time. At least one other is silent though as
large; in half of the clips a silent one moves in the same way after a loudness curve of its own
that nobody hears. `plan_mixture` (for MS3 and AVSS): one to three sound, each through an interval
of its own, so the set changes from second to second and is empty in some; at least one other never
sounds, and moves, or not, as if it did. Camera shake and light change come in some clips. So which
objects to segment follows from the sound alone, and motion helps only if it is tied to the sound.

Everything follows from (seed, split, index): a clip is the same whoever renders it and in whatever
order. synthetic_files.py writes clips in AVSBench's layouts.

Times: dataset frame k of a clip shows t = k + 15/16 s. Video frame n is shown during [n, n+1) / fps
and drawn for the middle of that interval, so at 8 fps video frame 8k + 7 is dataset frame k
exactly. Sounds start and stop at whole seconds.
"""

import dataclasses

import numpy as np
from PIL import Image

from avs_jax import spec
from avs_jax.data import pre_masks, synthetic_parts

NUM_FRAMES = 5
VIDEO_FPS = 8
SPLITS = ("train", "val", "test")
FADE = 0.03  # s, of a sound that starts or stops


@dataclasses.dataclass(frozen=True)
class Object:
    """One object of a clip. Lengths are in units of the short side of the picture."""

    category: synthetic_parts.Category
    half_size: float
    angle: float  # rad
    centre: tuple[float, float]  # x, y; 0..1 of width and height
    amplitude: float  # 0: stands still
    rate: float  # Hz at full loudness
    phase: float
    loudness: np.ndarray  # knots, two per second, in 0.4..1
    active: np.ndarray  # bool, per second: moves, and sounds if it is audible
    audible: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is decided about a clip before it is drawn; objects in painting order, top last."""

    name: str
    split: str
    objects: tuple[Object, ...]
    seconds: float
    shake: float  # amplitude of the camera, 0: none
    light: float  # depth of the light change, 0: none
    level: float  # dBFS of the sound
    seed: tuple[int, ...]  # of the rendering

    @property
    def sounding(self) -> int:
        """Index of the first object that is heard: in clips with one source, of that one."""
        return next(i for i, item in enumerate(self.objects) if item.audible)

    @property
    def heard(self) -> tuple[synthetic_parts.Category, ...]:
        """Categories that sound at some time, by name."""
        heard = [o.category for o in self.objects if o.audible and o.active.any()]
        return tuple(sorted(heard, key=lambda category: category.name))


@dataclasses.dataclass(frozen=True)
class Clip:
    """A rendered clip. N = seconds * fps video frames, T whole seconds."""

    name: str
    split: str
    category: str  # what sounds at some time, joined by "+"
    visible: tuple[str, ...]  # categories in the picture
    frames: np.ndarray  # uint8 [N, H, W, 3]
    fps: int
    audio: np.ndarray  # int16 [n], mono
    sample_rate: int
    frame_index: np.ndarray  # int64 [T], the video frame of each second
    labels: np.ndarray  # uint8 [T, H, W], 0 background, else 1 + index of the object on top
    sounding: np.ndarray  # bool [T, objects], who sounds in each second
    mask: np.ndarray  # bool [T, H, W], what can be seen of the objects that sound then
    colour_masks: np.ndarray  # uint8 [T, H, W], index into pre_masks.PALETTE


def plan_clip(
    seed: int, split: str, index: int, seconds: float = NUM_FRAMES, categories: int = 10
) -> Plan:
    """Decides everything about a clip but its pixels and samples.

    Args:
      seed: of the whole set.
      split: "train", "val" or "test"; clips of different splits share nothing.
      index: of the clip in its split; the sounding category is index modulo `categories`.
      seconds: length.
      categories: how many categories there are, 2 to 10.
    """
    _check_plan(split, categories)
    key = (seed, SPLITS.index(split), index)
    rng = np.random.default_rng((*key, 0))
    count = int(rng.integers(2, min(4, categories) + 1))
    sounding_row = index % categories
    others = rng.permutation([i for i in range(categories) if i != sounding_row])[: count - 1]
    largest = {2: 0.25, 3: 0.17, 4: 0.12}[count]
    areas = rng.uniform(0.08, largest, count)
    areas[1] = min(0.26, areas[0] * rng.uniform(0.95, 1.2))  # a silent one no smaller, by and large
    moves = np.zeros(count, bool)
    moves[0] = True
    if index // categories % 2 == 0:
        moves[rng.integers(1, count)] = True
    amplitudes = np.where(moves, rng.uniform(0.07, 0.13, count), 0.0)
    centres = _place(areas, amplitudes, rng)
    audible = np.arange(count) == 0
    active = np.ones((count, int(np.ceil(seconds))), bool)
    rows = [sounding_row, *others]
    objects = _objects(rows, areas, amplitudes, centres, audible, active, seconds, rng)
    return _finish_plan(key, split, index, objects, seconds, rng)


def plan_mixture(
    seed: int,
    split: str,
    index: int,
    seconds: int = NUM_FRAMES,
    categories: int = 10,
    max_sounding: int = 3,
    changes: bool = True,
) -> Plan:
    """Decides about a clip in which several objects may sound, each for a while.

    Args:
      seed: of the whole set, with split and index as in `plan_clip`; every category is as often
        the one that sounds for sure.
      seconds: length, whole.
      categories: how many categories there are, 4 to 12.
      max_sounding: objects that sound at some time at most, 1 to 3.
      changes: sounds start and stop; else they last.
    """
    _check_plan(split, categories, least=4)
    key = (seed, SPLITS.index(split), index, 2)  # apart from plan_clip's
    rng = np.random.default_rng((*key, 0))
    num_audible = int(rng.integers(1, max_sounding + 1))
    count = int(rng.integers(num_audible + 1, 5))
    first = (index + index // categories) % categories
    others = rng.permutation([i for i in range(categories) if i != first])[: count - 1]
    areas = rng.uniform(0.08, {2: 0.25, 3: 0.17, 4: 0.12}[count], count)
    audible = np.arange(count) < num_audible
    moves = audible | (rng.uniform(size=count) < 0.6)
    amplitudes = np.where(moves, rng.uniform(0.07, 0.13, count), 0.0)
    centres = _place(areas, amplitudes, rng)
    active = np.ones((count, seconds), bool)
    if changes:
        active = _activity(count, seconds, rng)
        if rng.uniform() < 0.25:  # nothing sounds for a while
            pause = rng.integers(seconds)
            active[audible, pause : pause + seconds // 4] = False
        if not active[audible].any():
            active[0] = True
    objects = _objects([first, *others], areas, amplitudes, centres, audible, active, seconds, rng)
    return _finish_plan(key, split, index, objects, seconds, rng)


def _activity(count: int, seconds: int, rng: np.random.Generator) -> np.ndarray:
    """bool [count, seconds]: half of them all the time, the others through one interval."""
    active = np.ones((count, seconds), bool)
    for row in active:
        start = rng.integers(seconds)
        stop = rng.integers(start + 1, seconds + 1)
        if rng.uniform() > 0.5:
            row[:start] = row[stop:] = False
    return active


def _check_plan(split: str, categories: int, least: int = 2) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {SPLITS}")
    if not least <= categories <= len(synthetic_parts.CATEGORIES):
        most = len(synthetic_parts.CATEGORIES)
        raise ValueError(f"categories={categories}, expected {least} to {most}")


def _objects(
    rows: list[int],
    areas: np.ndarray,
    amplitudes: np.ndarray,
    centres: np.ndarray,
    audible: np.ndarray,
    active: np.ndarray,
    seconds: float,
    rng: np.random.Generator,
) -> tuple[Object, ...]:
    """The objects of a clip, in a drawn painting order."""
    objects = []
    for i in rng.permutation(len(rows)):
        category = synthetic_parts.CATEGORIES[rows[i]]
        share = synthetic_parts.outline_share(category.outline)
        objects.append(
            Object(
                category=category,
                half_size=0.5 * float(np.sqrt(areas[i] / share)),
                angle=rng.uniform(-0.35, 0.35),
                centre=tuple(centres[i]),
                amplitude=float(amplitudes[i]),
                rate=rng.uniform(0.5, 1.0),
                phase=rng.uniform(0, 2 * np.pi),
                loudness=rng.uniform(0.4, 1.0, int(2 * seconds) + 2),
                active=active[i],
                audible=bool(audible[i]),
            )
        )
    return tuple(objects)


def _finish_plan(
    key: tuple[int, ...],
    split: str,
    index: int,
    objects: tuple[Object, ...],
    seconds: float,
    rng: np.random.Generator,
) -> Plan:
    return Plan(
        name=f"{split}_{key[0]}_{index:05d}",
        split=split,
        objects=objects,
        seconds=seconds,
        shake=rng.uniform(0.01, 0.03) if rng.uniform() < 0.4 else 0.0,
        light=rng.uniform(0.1, 0.3) if rng.uniform() < 0.4 else 0.0,
        level=rng.uniform(-24, -14),
        seed=(*key, 1),
    )


def _place(areas: np.ndarray, amplitudes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Centres [n, 2] in 0..1 inside the picture with little overlap: the best of 200 draws."""
    radius = np.sqrt(areas / np.pi)
    margin = np.minimum(radius + 0.7 * amplitudes, 0.45)[:, None]
    centres = margin + rng.uniform(size=(200, len(areas), 2)) * (1 - 2 * margin)
    left, right = np.triu_indices(len(areas), 1)
    distance = np.linalg.norm(centres[:, left] - centres[:, right], axis=-1)
    reach = radius[left] + radius[right] + 0.7 * np.maximum(amplitudes[left], amplitudes[right])
    gap = (distance / reach).min(axis=1)
    # Beyond 0.9 all are as good: a little overlap is wanted, so the first draw counts.
    return centres[np.argmax(np.minimum(gap, 0.9))]


def _loudness(knots: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Loudness curve at times in seconds: two knots per second, cosine in between."""
    place = np.clip(2 * time, 0, len(knots) - 1.001)
    left = place.astype(np.int64)
    ease = 0.5 - 0.5 * np.cos(np.pi * (place - left))
    return knots[left] * (1 - ease) + knots[left + 1] * ease


def _gate(active: np.ndarray, time: np.ndarray) -> np.ndarray:
    """1 in active seconds, 0 in others, with short ramps between; at times in seconds."""
    start = np.arange(len(active))
    knots = np.stack([start + FADE / 2, start + 1 - FADE / 2], -1).ravel()
    return np.interp(time, knots, np.repeat(active, 2).astype(np.float64))


def object_track(item: Object, time: np.ndarray) -> np.ndarray:
    """Offset from the centre [len(time), 2] in short sides; its speed follows loudness squared."""
    fine = np.arange(0, time[-1] + 0.02, 0.01)
    loudness = _loudness(item.loudness, fine) * _gate(item.active, fine)
    speed = 2 * np.pi * item.rate * loudness**2
    phase = item.phase + np.interp(time, fine, np.cumsum(speed) * 0.01)
    return item.amplitude * np.stack([np.cos(phase), np.sin(1.7 * phase)], -1)


def render_clip(
    plan: Plan,
    size: int | tuple[int, int] = 128,
    fps: int = VIDEO_FPS,
    sample_rate: int = spec.SAMPLE_RATE,
) -> Clip:
    """Draws a planned clip.

    Args:
      plan: from `plan_clip`.
      size: side in pixels, or (height, width).
      fps: of the video; dataset frames are exact where fps is a multiple of 8.
      sample_rate: of the sound, Hz.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(plan.seed)
    time = (np.arange(round(plan.seconds * fps)) + 0.5) / fps
    frame_index = np.minimum(
        np.floor((np.arange(int(plan.seconds)) + spec.FRAME_OFFSET_SECONDS) * fps), len(time) - 1
    ).astype(np.int64)
    frames, labels = _draw_frames(plan, time, frame_index, (height, width), rng)
    audio = _sound(plan, sample_rate, rng)
    sounding = np.stack([o.active[: len(labels)] & o.audible for o in plan.objects], -1)
    mask = np.zeros(labels.shape, bool)
    for i in range(len(plan.objects)):
        mask |= (labels == i + 1) & sounding[:, i, None, None]
    return Clip(
        name=plan.name,
        split=plan.split,
        category="+".join(category.name for category in plan.heard),
        visible=tuple(item.category.name for item in plan.objects),
        frames=frames,
        fps=fps,
        audio=audio,
        sample_rate=sample_rate,
        frame_index=frame_index,
        labels=labels,
        sounding=sounding,
        mask=mask,
        colour_masks=_colour_masks(labels, len(plan.objects), rng),
    )


def _draw_frames(
    plan: Plan,
    time: np.ndarray,
    frame_index: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The video, and which object is on top in its dataset frames.

    Args:
      plan: of the clip.
      time: [N], of the video's frames in seconds.
      frame_index: [T], which of them are dataset frames.
      size: (height, width) in pixels.
      rng: draws scene, sprites, camera and light.

    Returns:
      (uint8 [N, H, W, 3], uint8 [T, H, W]: 0 background, else 1 + index of the object).
    """
    height, width = size
    short = min(size)
    margin = int(np.ceil(plan.shake * short)) + 1
    scene = synthetic_parts.background(height + 2 * margin, width + 2 * margin, rng)
    sprites = [synthetic_parts.sprite(item.category, rng) for item in plan.objects]
    camera = _camera(plan.shake * short, time, rng)
    light = 1 + plan.light * np.sin(2 * np.pi * (rng.uniform(0.1, 0.4) * time + rng.uniform()))
    tracks = [
        object_track(item, time) * short + np.array(item.centre) * (width, height)
        for item in plan.objects
    ]
    frames = np.empty((len(time), height, width, 3), np.uint8)
    labels = np.zeros((len(frame_index), height, width), np.uint8)
    second_of = {int(n): k for k, n in enumerate(frame_index)}
    for n in range(len(time)):
        dx, dy = camera[n]
        corner = (margin + round(dx), margin + round(dy))
        picture = scene.crop((*corner, corner[0] + width, corner[1] + height))
        for i, item in enumerate(plan.objects):
            centre = tracks[i][n] - (round(dx), round(dy))
            raster, left, top = _transform(sprites[i], item, centre, short)
            picture.paste(raster, (left, top), raster)
            if n in second_of:
                alpha = Image.new("L", (width, height))
                alpha.paste(raster.getchannel("A"), (left, top))
                labels[second_of[n]][np.asarray(alpha) > 127] = i + 1
        frames[n] = np.clip(np.asarray(picture) * np.float32(light[n]), 0, 255)
    return frames, labels


def _camera(amplitude: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Camera offset [N, 2] in pixels: two slow sines per axis, at most `amplitude`."""
    rates, phases = rng.uniform(0.3, 2.0, (2, 2)), rng.uniform(0, 2 * np.pi, (2, 2))
    waves = np.sin(2 * np.pi * rates * time[:, None, None] + phases)
    return amplitude * waves.mean(-1)


def _transform(
    image: Image.Image, item: Object, centre: np.ndarray, short: int
) -> tuple[Image.Image, int, int]:
    """Scales, turns and moves a sprite by whole and part pixels; returns (raster, left, top)."""
    half = item.half_size * short
    reach = int(np.ceil(half * 1.42)) + 1
    left, top = np.floor(centre).astype(int) - reach
    x, y = centre - (left, top)
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


def _sound(plan: Plan, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """What sounds, each under its loudness curve, over a faint noise floor, int16 [n]."""
    num_samples = round(plan.seconds * sample_rate)
    time = np.arange(num_samples) / sample_rate
    mixture = np.zeros(num_samples)
    for item in plan.objects:
        if not (item.audible and item.active.any()):
            continue
        gate = _gate(item.active, time)
        wave = synthetic_parts.sound(item.category.timbre, num_samples, sample_rate, rng)
        wave = wave * _loudness(item.loudness, time) * gate
        wave *= 10 ** (plan.level / 20) / np.sqrt(np.mean(wave**2) / np.mean(gate**2))
        mixture += wave
    mixture += 10 ** (-62 / 20) * rng.standard_normal(num_samples)
    return np.round(32767 * 0.98 * np.tanh(mixture)).astype(np.int16)


def _colour_masks(labels: np.ndarray, num_objects: int, rng: np.random.Generator) -> np.ndarray:
    """What a class-agnostic segmenter would leave: objects, a half of one, background parts."""
    painted = np.empty_like(labels)
    height, width = labels.shape[1:]
    for k, frame in enumerate(labels):
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
        painted[k] = pre_masks.paint_by_area(masks)
    return painted

"""Generated clips in the layout of AVSBench's Single-source set, made to be worth training on.

Each clip shows 2 to 4 objects of different categories on a textured background. Exactly one sounds,
and its speed follows its loudness:

  phase'(t) = 2 pi f * loudness(t)^2
  position(t) = centre + amplitude * (cos phase, sin 1.7 phase)

At least one other is silent though as large; in half of the clips a silent one moves in the same
way after a loudness curve of its own that nobody hears. Camera shake and light change come in some.
So which object to segment follows from the sound alone, and motion helps only if it is tied to the
sound.

Everything follows from (seed, split, index): a clip is the same whoever renders it and in whatever
order.

Times: dataset frame k of a clip shows t = k + 15/16 s. Video frame n is shown during [n, n+1) / fps
and drawn for the middle of that interval, so at 8 fps video frame 8k + 7 is dataset frame k
exactly.

`write_clips` leaves, under `root`:

  s4_meta_data.csv         name,start,category,split; written last
  generated_objects.json   name -> categories in the picture
  generated_clips.json     the parameters
  s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
                           RGB
  s4_data/gt_masks/{split}/{category}/{name}/{name}_{1..5}.png
                           0 or 255; train has only _1
  s4_data/pre_SAM_mask/{split}/{category}/{name}/{name}_{1..5}_mask_color.png
                           palette PNG (colour_masks.py)
  s4_data/audio_wav/{split}/{category}/{name}.wav
                           int16, 16 kHz, mono
  s4_data/raw_videos/{split}/{category}/{name}.mp4
                           h264 and aac
"""

import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import wave
from collections.abc import Callable

import numpy as np
import tqdm
from PIL import Image

from avs_jax import spec
from avs_jax.data import colour_masks, synthetic_parts
from avs_jax.data.video_writer import write_video

NUM_FRAMES = 5
VIDEO_FPS = 8
SPLITS = ("train", "val", "test")
MANIFEST = "generated_clips.json"
OBJECTS = "generated_objects.json"
GENERATOR_VERSION = 1  # raise it whenever the same parameters would give other clips


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is decided about a clip before it is drawn; objects in painting order, top last."""

    name: str
    split: str
    objects: tuple[Object, ...]
    sounding: int  # index into objects
    seconds: float
    shake: float  # amplitude of the camera, 0: none
    light: float  # depth of the light change, 0: none
    level: float  # dBFS of the sound
    seed: tuple[int, ...]  # of the rendering


@dataclasses.dataclass(frozen=True)
class Clip:
    """A rendered clip. N = seconds * fps video frames, T whole seconds."""

    name: str
    split: str
    category: str
    visible: tuple[str, ...]  # categories in the picture
    frames: np.ndarray  # uint8 [N, H, W, 3]
    fps: int
    audio: np.ndarray  # int16 [n], mono
    sample_rate: int
    frame_index: np.ndarray  # int64 [T], the video frame of each second
    labels: np.ndarray  # uint8 [T, H, W], 0 background, else 1 + index of the object on top
    mask: np.ndarray  # bool [T, H, W], what can be seen of the sounding object
    colour_masks: np.ndarray  # uint8 [T, H, W], index into colour_masks.PALETTE


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
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {SPLITS}")
    if not 2 <= categories <= len(synthetic_parts.CATEGORIES):
        raise ValueError(
            f"categories={categories}, expected 2 to {len(synthetic_parts.CATEGORIES)}"
        )
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
    rows = [sounding_row, *others]
    order = rng.permutation(count)
    objects = []
    for i in order:
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
            )
        )
    return Plan(
        name=f"{split}_{seed}_{index:05d}",
        split=split,
        objects=tuple(objects),
        sounding=int(np.flatnonzero(order == 0)[0]),
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


def object_track(item: Object, time: np.ndarray) -> np.ndarray:
    """Offset from the centre [len(time), 2] in short sides; its speed follows loudness squared."""
    fine = np.arange(0, time[-1] + 0.02, 0.01)
    speed = 2 * np.pi * item.rate * _loudness(item.loudness, fine) ** 2
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
    short = min(height, width)
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
    whole = np.zeros((len(frame_index), len(plan.objects), height, width), bool)
    seconds_of = {int(n): k for k, n in enumerate(frame_index)}
    for n in range(len(time)):
        dx, dy = camera[n]
        corner = (margin + round(dx), margin + round(dy))
        picture = scene.crop((*corner, corner[0] + width, corner[1] + height))
        for i, item in enumerate(plan.objects):
            centre = tracks[i][n] - (round(dx), round(dy))
            raster, left, top = _transform(sprites[i], item, centre, short)
            picture.paste(raster, (left, top), raster)
            if n in seconds_of:
                k = seconds_of[n]
                alpha = Image.new("L", (width, height))
                alpha.paste(raster.getchannel("A"), (left, top))
                whole[k, i] = np.asarray(alpha) > 127
                labels[k][whole[k, i]] = i + 1
        frames[n] = np.clip(np.asarray(picture) * np.float32(light[n]), 0, 255)
    audio = _sound(plan, sample_rate, rng)
    return Clip(
        name=plan.name,
        split=plan.split,
        category=plan.objects[plan.sounding].category.name,
        visible=tuple(item.category.name for item in plan.objects),
        frames=frames,
        fps=fps,
        audio=audio,
        sample_rate=sample_rate,
        frame_index=frame_index,
        labels=labels,
        mask=labels == plan.sounding + 1,
        colour_masks=_colour_masks(labels, len(plan.objects), rng),
    )


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
    """The sounding object's sound under its loudness curve over a faint noise floor, int16 [n]."""
    item = plan.objects[plan.sounding]
    num_samples = round(plan.seconds * sample_rate)
    wave_ = synthetic_parts.sound(item.category.timbre, num_samples, sample_rate, rng)
    wave_ = wave_ * _loudness(item.loudness, np.arange(num_samples) / sample_rate)
    wave_ *= 10 ** (plan.level / 20) / np.sqrt(np.mean(wave_**2))
    wave_ += 10 ** (-62 / 20) * rng.standard_normal(num_samples)
    return np.round(32767 * 0.98 * np.tanh(wave_)).astype(np.int16)


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
        painted[k] = colour_masks.paint_by_area(masks)
    return painted


# ---- files ----


def clip_paths(root: pathlib.Path, split: str, category: str, name: str) -> dict[str, pathlib.Path]:
    """Every file of a clip; keys "frame/k", "mask/k", "colour/k" (k from 1), "wav", "video"."""
    data, inner = root / "s4_data", pathlib.Path(split) / category
    paths = {}
    for k in range(1, NUM_FRAMES + 1):
        paths[f"frame/{k}"] = data / "visual_frames" / inner / name / f"{name}_{k}.png"
        paths[f"colour/{k}"] = data / "pre_SAM_mask" / inner / name / f"{name}_{k}_mask_color.png"
        if split != "train" or k == 1:
            paths[f"mask/{k}"] = data / "gt_masks" / inner / name / f"{name}_{k}.png"
    paths["wav"] = data / "audio_wav" / inner / f"{name}.wav"
    paths["video"] = data / "raw_videos" / inner / f"{name}.mp4"
    return paths


def _write_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    os.replace(temporary, path)


def _write_clip(job: tuple) -> None:
    """Renders and writes one clip. job: (root, seed, split, index, size, categories)."""
    root, seed, split, index, size, categories = job
    clip = render_clip(plan_clip(seed, split, index, categories=categories), size)
    paths = clip_paths(pathlib.Path(root), split, clip.category, clip.name)

    def save_png(image: Image.Image) -> Callable[[pathlib.Path], None]:
        buffer = io.BytesIO()
        image.save(buffer, "png", compress_level=4)
        return lambda path: path.write_bytes(buffer.getvalue())

    def save_wav(path: pathlib.Path) -> None:
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(clip.sample_rate)
            file.writeframes(clip.audio.tobytes())

    for key, path in paths.items():
        kind, _, number = key.partition("/")
        k = int(number or 1) - 1
        if kind == "frame":
            write = save_png(Image.fromarray(clip.frames[clip.frame_index[k]]))
        elif kind == "mask":
            write = save_png(Image.fromarray(clip.mask[k].astype(np.uint8) * 255))
        elif kind == "colour":
            write = save_png(colour_masks.to_image(clip.colour_masks[k]))
        elif kind == "wav":
            write = save_wav
        else:

            def write(path: pathlib.Path) -> None:
                write_video(path, clip.frames, clip.fps, clip.audio, clip.sample_rate)

        _write_atomically(path, write)


def write_clips(
    root: str | os.PathLike,
    num_train: int = 1000,
    num_val: int = 60,
    num_test: int = 100,
    seed: int = 0,
    size: int = 128,
    categories: int = 10,
    workers: int = 2,
) -> int:
    """Writes a set of clips in the Single-source layout; whatever is already there is kept.

    Args:
      root: folder that becomes `Single-source`; new, or from a call with the same parameters.
      num_train: clips of each split, with num_val and num_test.
      seed: everything follows from it.
      size: side of the frames in pixels, even (h264 wants that).
      categories: how many of the ten, 2 to 10.
      workers: processes; 0 or 1 renders in this one.

    Returns:
      How many clips were rendered; 0 where everything was there.

    Raises:
      ValueError: a parameter is out of range, or `root` holds something else, or clips of other
        parameters.
    """
    root = pathlib.Path(root)
    if size % 2 or size < 32:
        raise ValueError(f"size={size}, expected an even number of pixels, 32 at least")
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    if min(counts.values()) < 0:
        raise ValueError(f"clips per split {counts}, expected none below 0")
    parameters = {
        "generator_version": GENERATOR_VERSION, "seed": seed, "size": size,
        "categories": categories, **{f"num_{split}": n for split, n in counts.items()},
    }  # fmt: skip
    _claim(root, parameters)
    rows, objects, jobs = [], {}, []
    for split, count in counts.items():
        for index in range(count):
            plan = plan_clip(seed, split, index, categories=categories)
            category = plan.objects[plan.sounding].category.name
            rows.append(f"{plan.name},0,{category},{split}")
            objects[plan.name] = sorted(item.category.name for item in plan.objects)
            if not all(p.exists() for p in clip_paths(root, split, category, plan.name).values()):
                jobs.append((str(root), seed, split, index, size, categories))
    _render_all(jobs, workers)
    texts = {
        OBJECTS: json.dumps(objects, indent=0) + "\n",
        "s4_meta_data.csv": "\n".join(["name,start,category,split", *rows]) + "\n",
    }
    for name, text in texts.items():
        _write_atomically(root / name, lambda path, text=text: path.write_text(text))
    return len(jobs)


def _render_all(jobs: list[tuple], workers: int) -> None:
    if not jobs:
        return
    progress = tqdm.tqdm(total=len(jobs), desc="Generating clips", unit="clip")
    with progress:
        if workers <= 1:
            for job in jobs:
                _write_clip(job)
                progress.update()
            return
        # Spawned, not forked: the caller may hold threads (jax does).
        with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            for _ in pool.imap_unordered(_write_clip, jobs, chunksize=4):
                progress.update()


def _claim(root: pathlib.Path, parameters: dict[str, int]) -> None:
    """Writes the manifest, or compares with the one that is there."""
    manifest = root / MANIFEST
    if manifest.exists():
        there = json.loads(manifest.read_text())
        differences = [
            f"  {key}: {there.get(key)} there, {parameters.get(key)} asked for"
            for key in sorted(there.keys() | parameters.keys())
            if there.get(key) != parameters.get(key)
        ]
        if differences:
            raise ValueError(
                f"{root} holds clips generated with other parameters:\n"
                + "\n".join(differences)
                + "\nDelete the folder, choose another, or ask for the same parameters."
            )
        return
    if root.exists() and any(p.name != f".{MANIFEST}.part" for p in root.iterdir()):
        raise ValueError(
            f"{root} is not empty and has no {MANIFEST}: it does not come from this generator. "
            "Choose a new or an empty folder."
        )
    text = json.dumps(parameters, indent=2) + "\n"
    _write_atomically(manifest, lambda path: path.write_text(text))

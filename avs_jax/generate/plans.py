"""What a generated clip will show and sound like, decided before anything is drawn.

A clip shows 2 to 4 objects on a textured background. Some make a sound. The speed of an object
follows its loudness, and is 0 while the object is inactive:

  phase'(t) = 2 pi f loudness(t)^2
  position(t) = center + amplitude (cos phase, sin 1.7 phase)

- `plan_clip` (S4): exactly one object sounds, all the time. At least one silent object is as large.
  In half of the clips a silent object moves the same way, after a loudness curve that nobody hears.
- `plan_mixture` (MS3, AVSS): one to three objects sound, each during an interval of its own. So the
  set of sounding objects changes from second to second and is empty in some. At least one other
  object never sounds, but may move as if it did.

Some clips add camera shake and a change of light. So only the sound tells which objects to segment,
and motion helps only a model that relates it to the sound.

A clip depends on (seed, split, index) alone, not on who renders it or in which order.

Times: dataset frame k shows t = k + 15/16 s. Video frame n is on screen during [n, n + 1) / fps and
is drawn for the middle of that interval, so at 8 fps video frame 8k + 7 is exactly dataset frame k.
Sounds start and stop at whole seconds.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from avs_jax.data.avsbench_folders import SPLITS
from avs_jax.generate.categories import CATEGORIES, Category
from avs_jax.generate.drawing import outline_share
from avs_jax.generate.sounds import gate_at, loudness_at
from avs_jax.spec import InputError

NUM_FRAMES = 5
LARGEST_AREA = {2: 0.25, 3: 0.17, 4: 0.12}  # of an object, by the number of objects in the clip


@dataclasses.dataclass(frozen=True)
class Object:
    """One object of a clip. The unit of length is the short side of the frame."""

    category: Category
    half_size: float
    angle: float  # rad
    center: tuple[float, float]  # x, y; 0..1 of width and height
    amplitude: float  # 0: does not move
    rate: float  # Hz at full loudness
    phase: float  # rad, at time 0
    loudness: np.ndarray  # knots, two per second, in 0.4..1
    active: np.ndarray  # bool, per second: moves, and sounds if it is audible
    audible: bool
    visible: np.ndarray | None = None  # bool, per second; None: always


@dataclasses.dataclass(frozen=True)
class Plan:
    """A clip that is not drawn yet. Objects are in painting order, the topmost last."""

    name: str
    split: str
    objects: tuple[Object, ...]
    seconds: float
    shake: float  # amplitude of the camera, 0: none
    light: float  # depth of the light change, 0: none
    level: float  # dBFS of each sound
    seed: tuple[int, ...]  # of the rendering
    subset: str = ""  # v1s, v1m or v2 in AVSBench-semantic
    lag: float = 0.0  # seconds by which sounds follow the motion

    @property
    def sounding(self) -> int:
        """Index of the first object that is heard: the source, in clips with one source."""
        return next(i for i, item in enumerate(self.objects) if item.audible)

    @property
    def heard(self) -> tuple[Category, ...]:
        """The categories that sound at some time, sorted by name."""
        heard = [o.category for o in self.objects if o.audible and o.active.any()]
        return tuple(sorted(heard, key=lambda category: category.name))


def plan_clip(
    seed: int, split: str, index: int, seconds: float = NUM_FRAMES, num_categories: int = 10
) -> Plan:
    """Plans a clip in which one object sounds: category number `index` modulo `num_categories`.

    `seed` is that of the whole dataset. Clips of different splits share nothing.
    """
    check_categories(num_categories)
    key = clip_key(seed, split, index)
    rng = np.random.default_rng((*key, 0))
    count = int(rng.integers(2, min(4, num_categories) + 1))
    sounding = index % num_categories
    others = rng.permutation([i for i in range(num_categories) if i != sounding])[: count - 1]
    areas = rng.uniform(0.08, LARGEST_AREA[count], count)
    areas[1] = min(0.26, areas[0] * rng.uniform(0.95, 1.2))  # a silent one, hardly ever smaller
    moves = np.zeros(count, bool)
    moves[0] = True
    if index // num_categories % 2 == 0:
        moves[rng.integers(1, count)] = True
    amplitudes = np.where(moves, rng.uniform(0.07, 0.13, count), 0.0)
    centers = place_centers(areas, amplitudes, rng)
    objects = make_objects(
        [CATEGORIES[i] for i in (sounding, *others)],
        areas,
        amplitudes,
        centers,
        audible=np.arange(count) == 0,
        active=np.ones((count, int(np.ceil(seconds))), bool),
        rng=rng,
        num_knots=int(2 * seconds) + 2,
    )
    return finish_plan(key, split, objects, seconds, rng)


def plan_mixture(
    seed: int,
    split: str,
    index: int,
    seconds: int = NUM_FRAMES,
    num_categories: int = 10,
    max_sounding: int = 3,
    changes: bool = True,
) -> Plan:
    """Plans a clip in which several objects may sound, each for a while.

    Across clips, every category is equally often the one that is certain to sound.

    Args:
      max_sounding: how many objects sound at some time at most, 1 to 3.
      changes: whether sounds start and stop; otherwise they last.
    """
    check_categories(num_categories, fewest=4)
    key = (*clip_key(seed, split, index), 2)  # other draws than plan_clip's
    rng = np.random.default_rng((*key, 0))
    num_audible = int(rng.integers(1, max_sounding + 1))
    count = int(rng.integers(num_audible + 1, 5))
    first = (index + index // num_categories) % num_categories
    others = rng.permutation([i for i in range(num_categories) if i != first])[: count - 1]
    areas = rng.uniform(0.08, LARGEST_AREA[count], count)
    audible = np.arange(count) < num_audible
    moves = audible | (rng.uniform(size=count) < 0.6)
    amplitudes = np.where(moves, rng.uniform(0.07, 0.13, count), 0.0)
    centers = place_centers(areas, amplitudes, rng)
    active = np.ones((count, seconds), bool)
    if changes:
        active = _draw_activity(count, seconds, rng)
        if rng.uniform() < 0.25:  # nothing sounds for a while
            pause = rng.integers(seconds)
            active[audible, pause : pause + seconds // 4] = False
        if not active[audible].any():
            active[0] = True
    objects = make_objects(
        [CATEGORIES[i] for i in (first, *others)],
        areas,
        amplitudes,
        centers,
        audible,
        active,
        rng,
        num_knots=2 * seconds + 2,
    )
    return finish_plan(key, split, objects, seconds, rng)


def clip_key(seed: int, split: str, index: int) -> tuple[int, int, int]:
    """What all random draws of a clip follow from."""
    if split not in SPLITS:
        raise InputError(f"split={split!r}, expected one of {', '.join(SPLITS)}")
    return (seed, SPLITS.index(split), index)


def check_categories(count: int, fewest: int = 2) -> None:
    """Raises InputError if there are not `count` categories, or if fewer are needed."""
    if not fewest <= count <= len(CATEGORIES):
        raise InputError(f"categories={count}, expected {fewest} to {len(CATEGORIES)}")


def _draw_activity(count: int, seconds: int, rng: np.random.Generator) -> np.ndarray:
    """bool [count, seconds]: half of the objects are always active, the others in one interval."""
    active = np.ones((count, seconds), bool)
    for row in active:
        start = rng.integers(seconds)
        stop = rng.integers(start + 1, seconds + 1)
        if rng.uniform() > 0.5:
            row[:start] = row[stop:] = False
    return active


def place_centers(
    areas: np.ndarray, amplitudes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Centers [n, 2] in 0..1 that keep objects inside the frame and mostly apart.

    The best of 200 candidates, for areas [n] in shares of the frame and amplitudes [n].
    """
    radius = np.sqrt(areas / np.pi)
    margin = np.minimum(radius + 0.7 * amplitudes, 0.45)[:, None]
    centers = margin + rng.uniform(size=(200, len(areas), 2)) * (1 - 2 * margin)
    left, right = np.triu_indices(len(areas), 1)
    distance = np.linalg.norm(centers[:, left] - centers[:, right], axis=-1)
    reach = radius[left] + radius[right] + 0.7 * np.maximum(amplitudes[left], amplitudes[right])
    gap = (distance / reach).min(axis=1)
    # Beyond 0.9 all candidates count as equal and the first wins: some overlap is wanted.
    return centers[np.argmax(np.minimum(gap, 0.9))]


def half_size(area: float, category: Category) -> float:
    """Half the side of the square around an outline that covers `area` of a square frame."""
    return 0.5 * float(np.sqrt(area / outline_share(category.outline)))


def make_objects(
    categories: Sequence[Category],
    areas: np.ndarray,
    amplitudes: np.ndarray,
    centers: np.ndarray,
    audible: np.ndarray,
    active: np.ndarray,
    rng: np.random.Generator,
    num_knots: int,
) -> tuple[Object, ...]:
    """The objects of a clip in a random painting order; angle, rate, phase, loudness are drawn."""
    objects = []
    for i in rng.permutation(len(categories)):
        objects.append(
            Object(
                category=categories[i],
                half_size=half_size(areas[i], categories[i]),
                angle=rng.uniform(-0.35, 0.35),
                center=tuple(centers[i]),
                amplitude=float(amplitudes[i]),
                rate=rng.uniform(0.5, 1.0),
                phase=rng.uniform(0, 2 * np.pi),
                loudness=rng.uniform(0.4, 1.0, num_knots),
                active=active[i],
                audible=bool(audible[i]),
            )
        )
    return tuple(objects)


def finish_plan(
    key: tuple[int, ...],
    split: str,
    objects: tuple[Object, ...],
    seconds: float,
    rng: np.random.Generator,
) -> Plan:
    """Draws camera, light and level, and names the clip by split, seed and index."""
    return Plan(
        name=f"{split}_{key[0]}_{key[2]:05d}",
        split=split,
        objects=objects,
        seconds=seconds,
        shake=rng.uniform(0.01, 0.03) if rng.uniform() < 0.4 else 0.0,
        light=rng.uniform(0.1, 0.3) if rng.uniform() < 0.4 else 0.0,
        level=rng.uniform(-24, -14),
        seed=(*key, 1),
    )


def object_track(item: Object, time: np.ndarray) -> np.ndarray:
    """Offset from the center [len(time), 2]; its speed follows the squared loudness."""
    fine = np.arange(0, time[-1] + 0.02, 0.01)
    loudness = loudness_at(item.loudness, fine) * gate_at(item.active, fine)
    speed = 2 * np.pi * item.rate * loudness**2
    phase = item.phase + np.interp(time, fine, np.cumsum(speed) * 0.01)
    return item.amplitude * np.stack([np.cos(phase), np.sin(1.7 * phase)], -1)

"""The setting twins: clips in S4's layout in which only motion tells who sounds.

Two objects of the same category share sprite, size and angle. One of them sounds, all the time, and
moves as every object here does: its speed follows its loudness (plans.py). The silent twin differs
by kind:

  still     it does not move
  moving    it moves with the same amplitude and rate, after a loudness curve of its own that nobody
            hears
  delayed   as moving, and the sound follows the motion by a lag of 0 to 40 ms

Nothing in a single frame may tell the twins apart, or a model without motion would beat chance:

- Both are placed by one rule, with margins for the same amplitude, even where one does not move.
- Both start at a phase drawn from the full period of the path. phase' moves that distribution onto
  itself, so a twin that has moved for a while and a still one lie in the same places.
- Painting order is random, and pre-masks treat both alike.

So an image-only model can at best segment both twins (IoU about 0.5) or pick one at random. Camera
shake and a change of light come as in S4. In some clips a third object of another category, as
large as the twins, stays still and silent.

Beside S4's files, every dataset frame has a mask of all objects, a palette PNG:

  s4_data/object_masks/{split}/{category}/{name}/{name}_{1..5}.png
      0 background, 1 the sounding twin, 2 the silent twin, 3 the third object

generated_details.json says, for every clip, its kind, its lag in seconds and, for each index of
these masks, category and whether it sounds and moves.

Videos have 24 frames per second instead of 8: synchrony between sound and motion is faster than a
dataset frame.
"""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from avs_jax.data.avsbench_folders import S4
from avs_jax.generate import avsbench
from avs_jax.generate.categories import CATEGORIES
from avs_jax.generate.plans import (
    NUM_FRAMES,
    Object,
    Plan,
    check_categories,
    clip_key,
    finish_plan,
    half_size,
    place_centers,
)
from avs_jax.generate.rendering import RenderedClip
from avs_jax.generate.setting import DETAILS, Options
from avs_jax.label_images import CLASS_PALETTE, indexed_image

KINDS = ("still", "moving", "delayed")
FPS = 24
MAX_LAG_SECONDS = 0.04
AREAS = {2: (0.07, 0.13), 3: (0.06, 0.09)}  # shares of the frame, by the number of objects
PHASE_PERIOD = 20 * np.pi  # of (cos phase, sin 1.7 phase)
ROLES = {1: "sounding twin", 2: "silent twin", 3: "third object"}  # index in an object mask


def plan_twins(options: Options, split: str, index: int) -> Plan:
    """Plans a clip; the twins are of category number `index` modulo the number of categories."""
    check_categories(options.num_categories)
    key = (*clip_key(options.seed, split, index), 3, KINDS.index(options.kind))
    rng = np.random.default_rng((*key, 0))
    twin = index % options.num_categories
    other = int(rng.choice([i for i in range(options.num_categories) if i != twin]))
    count = 3 if rng.uniform() < 0.4 else 2
    area = rng.uniform(*AREAS[count])
    amplitude, rate = rng.uniform(0.07, 0.13), rng.uniform(0.5, 1.0)
    angle = rng.uniform(-0.35, 0.35)
    centers = place_centers(
        np.full(count, area), np.array([amplitude, amplitude, 0.0][:count]), rng
    )
    moves = (True, options.kind != "still", False)
    objects = []
    for i in range(count):
        category = CATEGORIES[other if i == 2 else twin]
        objects.append(
            Object(
                category=category,
                half_size=half_size(area, category),
                angle=angle,
                center=tuple(centers[i]),
                amplitude=0.0 if i == 2 else amplitude,
                rate=rate,
                phase=rng.uniform(0, PHASE_PERIOD),
                loudness=rng.uniform(0.4, 1.0, 2 * NUM_FRAMES + 2),
                active=np.full(NUM_FRAMES, moves[i]),
                audible=i == 0,
            )
        )
    painted = tuple(objects[i] for i in rng.permutation(count))
    lag = rng.uniform(0, MAX_LAG_SECONDS) if options.kind == "delayed" else 0.0
    plan = finish_plan(key, split, painted, NUM_FRAMES, rng)
    return dataclasses.replace(plan, lag=lag)


def role(plan: Plan, item: Object) -> int:
    """The index of an object in the object masks, a key of ROLES."""
    if item.audible:
        return 1
    return 2 if item.category == plan.objects[plan.sounding].category else 3


def draw_object_mask(clip: RenderedClip, plan: Plan, t: int) -> Image.Image:
    """Which object is topmost in every pixel of dataset frame t, by role."""
    role_of_label = np.array([0, *(role(plan, item) for item in plan.objects)], np.uint8)
    return indexed_image(role_of_label[clip.labels[t]], CLASS_PALETTE)


def tables(plans: Sequence[Plan], options: Options) -> dict[str, str]:
    """S4's tables, and what each object is and does."""
    details = {}
    for plan in plans:
        objects = {
            role(plan, item): {
                "category": item.category.name,
                "role": ROLES[role(plan, item)],
                "sounds": item.audible,
                "moves": bool(item.active.any()),
            }
            for item in plan.objects
        }
        details[plan.name] = {
            "kind": options.kind,
            "lag_seconds": round(plan.lag, 6),
            "objects": dict(sorted(objects.items())),
        }
    text = json.dumps(details, indent=1) + "\n"
    return {DETAILS: text} | avsbench.tables(plans, LAYOUT)


LAYOUT = dataclasses.replace(
    avsbench.S4_LAYOUT,
    more_files={"object_mask": S4.object_masks},
    images=avsbench.IMAGES | {"object_mask": draw_object_mask},
    fps=FPS,
)
TWINS = avsbench.make_setting(
    LAYOUT,
    title="S4's layout with two objects that look alike: only motion tells which one sounds",
    example="--setting=twins --kind=moving --output=demo/clips_twins",
    plan=plan_twins,
    tables=tables,
    num_categories=10,
    kinds=KINDS,
)

"""The setting refer: clips and expressions in the layout of Ref-AVS.

Clips of 10 s show two to four moving objects, each with a shape, a color and a pattern. One to
three of them sound, low or high; in half of the clips all the time, in the others each for a while.
Expressions refer to one of them (expressions.py).

  metadata.csv                            vid,uid,split,fid,exp: one row per expression
  media/{DIR}/audio.wav                   16 kHz, mono
  media/{DIR}/frames/{0..9}.jpg           the first frame of each second
  gt_mask/{DIR}/fid_{fid}/0000{0..9}.png  0 or 255; objects that some expression refers to
  videos/{vid}.mp4                        test clips only; not part of Ref-AVS

uid is {DIR}_{class}_{n}, and fid the object's number. DIR is vid, except for null expressions:
their DIR is null_c-{vid} or null_m-{vid}, a folder with the same media (hard links where the file
system has them), their class is "null", and their masks are empty.

Splits are train, val, test_s (as many clips as --test says), test_u (half as many) and test_n, the
null expressions of test_s's clips. Clips of train and val have null expressions of one kind, too.
Expressions of test_u refer to classes that occur in no other split, and name no shape that does not
occur in train.

What ties sound to object: each class has a shape and a timbre (tone, noise or both; continuous or
pulsed at one of three rates; a place in each register, so that several are heard apart). Color,
pattern and register (low or high) are independent of class.
So without sound nothing tells a low object from a high one, or an audible object from a silent one:
all objects move alike while they are active, heard or not. In some clips an object disappears, and
its masks are empty from then on.

generated_details.json describes the objects of every clip, and the kind of every expression.
"""

import csv
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from avs_jax.data.audio import encode_wav
from avs_jax.data.avsbench_folders import OBJECTS
from avs_jax.files import atomic_path, write_atomically
from avs_jax.generate import sounds
from avs_jax.generate.categories import CATEGORIES, Category
from avs_jax.generate.encoding import encode_image
from avs_jax.generate.expressions import (
    NULL_KINDS,
    Expression,
    Thing,
    expressions,
    null_expressions,
)
from avs_jax.generate.plans import LARGEST_AREA, Plan, finish_plan, make_objects, place_centers
from avs_jax.generate.rendering import VIDEO_FPS, draw_frames, video_times
from avs_jax.generate.setting import DETAILS, Options, Setting
from avs_jax.generate.sounds import Sound, Timbre
from avs_jax.generate.video_writer import write_video
from avs_jax.spec import SAMPLE_RATE

SECONDS = 10
REFER_SPLITS = ("train", "val", "test_s", "test_u")
COLORS = {"red": 0.0, "yellow": 0.15, "green": 0.36, "blue": 0.61}  # hues
PATTERNS = {"plain": "plain", "stripes": "striped", "dots": "dotted"}
_STEADY, _SLOW, _MEDIUM, _FAST = (
    ((0, 0), 0.0),
    ((2.4, 3.0), 0.2),
    ((4, 5), 0.09),
    ((11, 13), 0.03),
)
SEEN = {  # class -> outline, word for it, share of the tone, pulses (rate in Hz, decay in s)
    "violin": ("ellipse", "oval", 1.0, _STEADY),
    "man": ("triangle", "triangle", 1.0, _SLOW),
    "dog": ("star", "star", 0.0, _SLOW),
    "keyboard": ("square", "square", 0.0, _MEDIUM),
    "helicopter": ("cross", "cross", 0.0, _FAST),
}
UNSEEN = {  # the same; these are among the classes that Ref-AVS keeps out of train
    "lion": ("crescent", "crescent", 0.5, _SLOW),
    "baby": ("disk", "disk", 0.5, _MEDIUM),
}
CLASSES = SEEN | UNSEEN
# In each register, the classes are a step apart, tones beside noise: lowest center in Hz, octaves
REGISTERS = {"low": (180.0, 0.38), "high": (1500.0, 0.31)}
BORDER = 1200.0  # Hz, between the registers
FROM_LOW_TO_HIGH = ("violin", "dog", "lion", "man", "keyboard", "baby", "helicopter")
MOST_OF_KIND = {"look": 2, "sound": 2, "time": 2, "both": 2}  # expressions per clip
MOST_IN_TRAIN = {"look": 8, "sound": 6, "time": 6, "both": 8}
MOST_NULL = {"train": 2}  # of each kind that a clip has; elsewhere one


@dataclasses.dataclass(frozen=True)
class ReferPlan:
    """A clip that is not drawn yet, and its expressions."""

    name: str  # vid
    split: str
    scene: Plan
    things: tuple[Thing, ...]
    expressions: tuple[Expression, ...]

    def folder(self, kind: str) -> str:
        """DIR of an expression of this kind."""
        return f"{kind}-{self.name}" if kind in NULL_KINDS else self.name

    def folders(self) -> list[str]:
        """Every DIR of the clip, the one without a prefix first."""
        kinds = [kind for kind in NULL_KINDS if any(e.kind == kind for e in self.expressions)]
        return [self.name, *(self.folder(kind) for kind in kinds)]

    def targets(self) -> list[int]:
        """The objects that expressions refer to."""
        return sorted({e.target.fid for e in self.expressions if e.target is not None})


def plan_refer(options: Options, split: str, index: int) -> ReferPlan:
    """Plans a clip; it is drawn again until there are expressions for it."""
    for attempt in range(100):
        key = (options.seed, REFER_SPLITS.index(split), index, 5, attempt)
        rng = np.random.default_rng((*key, 0))
        scene = _draw_scene(key, split, rng)
        things = tuple(_describe(scene, fid) for fid in range(len(scene.objects)))
        chosen = _choose_expressions(things, split, rng)
        if len(chosen) >= 2:
            return ReferPlan(f"{scene.name}_0_{1000 * SECONDS}", split, scene, things, chosen)
    raise AssertionError(f"no expressions for {split} {index}")


def _draw_scene(key: tuple[int, ...], split: str, rng: np.random.Generator) -> Plan:
    """Two to four objects; sometimes two share a class, often they share colors and patterns."""
    count = int(rng.integers(2, 5))
    names = [str(name) for name in rng.permutation(list(SEEN))[:count]]
    if count > 2 and rng.uniform() < 0.35:
        names[-1] = names[-2]
    if split == "test_u":
        names[0] = str(rng.choice(list(UNSEEN)))
    colors = rng.permutation(list(COLORS))[:3]
    patterns = rng.permutation(list(PATTERNS))[:2]
    audible = rng.permutation(np.arange(count) < rng.integers(1, min(count, 3) + 1))
    looks, categories = set(), []
    for name in names:
        while (look := (name, str(rng.choice(colors)), str(rng.choice(patterns)))) in looks:
            pass
        looks.add(look)
        categories.append(_make_category(*look, register=str(rng.choice(list(REGISTERS)))))
    areas = rng.uniform(0.09, min(0.2, LARGEST_AREA[count]), count)
    amplitudes = rng.uniform(0.05, 0.1, count)
    centers = place_centers(areas, amplitudes, rng)
    active = np.ones((count, SECONDS), bool)
    if rng.uniform() < 0.5:
        for row in active:
            start = rng.integers(0, 6)
            row[:start] = row[rng.integers(start + 4, SECONDS + 1) :] = False
    objects = list(
        make_objects(
            categories, areas, amplitudes, centers, audible, active, rng, num_knots=2 * SECONDS + 2
        )
    )
    if rng.uniform() < 0.2:
        leaving = rng.integers(count)
        visible = np.arange(SECONDS) < rng.integers(4, 9)
        objects[leaving] = dataclasses.replace(objects[leaving], visible=visible)
    return finish_plan(key, split, tuple(objects), SECONDS, rng)


def _make_category(name: str, color: str, pattern: str, register: str) -> Category:
    outline, _, tone, (pulse_rate, pulse_decay) = CLASSES[name]
    lowest, step = REGISTERS[register]
    center = lowest * 2 ** (step * FROM_LOW_TO_HIGH.index(name))
    band = (0.97 * center, 1.03 * center)
    return Category(
        name=next(c.name for c in CATEGORIES if c.semantic == name),
        semantic=name,
        outline=outline,
        pattern=pattern,
        hue=COLORS[color],
        timbre=Timbre(tone, band, band, 0.2, (0, 0), pulse_rate, pulse_decay),
    )


def _describe(scene: Plan, fid: int) -> Thing:
    """What can be said about an object."""
    item = scene.objects[fid]
    category = item.category
    ((start, stop),) = sounds.runs(item.active)
    return Thing(
        fid=fid,
        class_name=category.semantic,
        shape=CLASSES[category.semantic][1],
        color=next(word for word, hue in COLORS.items() if hue == category.hue),
        pattern=PATTERNS[category.pattern],
        register=_register(category.timbre) if item.audible else "",
        start=start,
        stop=stop,
    )


def _register(timbre: Timbre) -> str:
    return "low" if timbre.center[1] < BORDER else "high"


def _choose_expressions(
    things: tuple[Thing, ...], split: str, rng: np.random.Generator
) -> tuple[Expression, ...]:
    """Some of the expressions for a clip, and null ones."""
    unknown_shapes = {shape for _, shape, _, _ in UNSEEN.values()}
    found = [
        expression
        for expression in expressions(things)
        if not unknown_shapes & set(expression.text.split())
        and (split != "test_u" or expression.target.class_name in UNSEEN)
    ]
    chosen = []
    for kind, most in (MOST_IN_TRAIN if split == "train" else MOST_OF_KIND).items():
        of_kind = [expression for expression in found if expression.kind == kind]
        chosen += [of_kind[i] for i in rng.permutation(len(of_kind))[:most]]
    null_kinds = {"test_s": NULL_KINDS, "test_u": ()}.get(split, (str(rng.choice(NULL_KINDS)),))
    null = null_expressions(things, list(COLORS), [row[1] for row in SEEN.values()])
    for kind in null_kinds:
        of_kind = [expression for expression in null if expression.kind == kind]
        chosen += [of_kind[i] for i in rng.permutation(len(of_kind))[: MOST_NULL.get(split, 1)]]
    return tuple(chosen)


# ---- files ----


def paths(root: Path, plan: ReferPlan) -> list[Path]:
    """Every file of a clip."""
    found = []
    for folder in plan.folders():
        found.append(root / "media" / folder / "audio.wav")
        found += [root / "media" / folder / "frames" / f"{t}.jpg" for t in range(SECONDS)]
        targets = plan.targets() if folder == plan.name else [0]
        found += [_mask_path(root, folder, fid, t) for fid in targets for t in range(SECONDS)]
    return found + ([_video_path(root, plan)] if _has_video(plan) else [])


def _mask_path(root: Path, folder: str, fid: int, t: int) -> Path:
    return root / "gt_mask" / folder / f"fid_{fid}" / f"{t:05d}.png"


def _video_path(root: Path, plan: ReferPlan) -> Path:
    return root / "videos" / f"{plan.name}.mp4"


def _has_video(plan: ReferPlan) -> bool:
    return plan.split.startswith("test")


def write_refer(root: Path, plan: ReferPlan, options: Options) -> None:
    """Draws a clip and writes its files."""
    rng = np.random.default_rng(plan.scene.seed)
    time = video_times(SECONDS, VIDEO_FPS)
    first = np.arange(0, len(time), VIDEO_FPS)  # of each second
    if not _has_video(plan):  # these frames are enough, and the same
        time, first = time[first], np.arange(SECONDS)
    frames, labels = draw_frames(plan.scene, time, first, (options.size, options.size), rng)
    audible = [item for item in plan.scene.objects if item.audible]
    tracks = [Sound(item.category.timbre, item.loudness, item.active) for item in audible]
    audio = sounds.mix(tracks, plan.scene.level, SAMPLE_RATE, rng)
    media = root / "media" / plan.name
    write_atomically(media / "audio.wav", encode_wav(audio, SAMPLE_RATE))
    for t, n in enumerate(first):
        content = encode_image(Image.fromarray(frames[n]), ".jpg")
        write_atomically(media / "frames" / f"{t}.jpg", content)
        for fid in plan.targets():
            _write_mask(_mask_path(root, plan.name, fid, t), labels[t] == fid + 1)
    for folder in plan.folders()[1:]:
        _link(media / "audio.wav", root / "media" / folder / "audio.wav")
        for t in range(SECONDS):
            _link(media / "frames" / f"{t}.jpg", root / "media" / folder / "frames" / f"{t}.jpg")
            _write_mask(_mask_path(root, folder, 0, t), np.zeros(labels.shape[1:], bool))
    if _has_video(plan):
        with atomic_path(_video_path(root, plan)) as unfinished:
            write_video(unfinished, frames, VIDEO_FPS, audio, SAMPLE_RATE)


def _write_mask(path: Path, mask: np.ndarray) -> None:
    write_atomically(path, encode_image(Image.fromarray(mask.astype(np.uint8) * 255), ".png"))


def _link(source: Path, path: Path) -> None:
    """A hard link, or a copy where links do not exist."""
    with atomic_path(path) as unfinished:
        unfinished.unlink(missing_ok=True)
        try:
            os.link(source, unfinished)
        except OSError:
            shutil.copyfile(source, unfinished)


def tables(plans: Iterable[ReferPlan], options: Options) -> dict[str, str]:
    """Objects of the clips, what they are and what expressions refer to, and the csv."""
    objects, clips, kinds = {}, {}, {}
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["vid", "uid", "split", "fid", "exp"])
    for plan in plans:
        objects[plan.name] = sorted(thing.class_name for thing in plan.things)
        clips[plan.name] = [dataclasses.asdict(thing) for thing in plan.things]
        for number, expression in enumerate(plan.expressions, start=1):
            is_null = expression.target is None
            class_name = "null" if is_null else expression.target.class_name
            uid = f"{plan.folder(expression.kind)}_{class_name}_{number}"
            split = "test_n" if is_null and plan.split == "test_s" else plan.split
            fid = 0 if is_null else expression.target.fid
            writer.writerow([plan.name, uid, split, fid, expression.text])
            kinds[uid] = expression.kind
    details = {"clips": clips, "expressions": kinds}
    return {
        OBJECTS: json.dumps(objects, indent=0) + "\n",
        DETAILS: json.dumps(details, indent=0) + "\n",
        "metadata.csv": lines.getvalue(),
    }


def splits(counts: Mapping[str, int]) -> dict[str, int]:
    """Clips per split: test_s as many as test, test_u half as many."""
    return {
        "train": counts["train"],
        "val": counts["val"],
        "test_s": counts["test"],
        "test_u": (counts["test"] + 1) // 2,
    }


REFER = Setting(
    title="Ref-AVS: an expression says which of two to four objects is meant, or none",
    example="--setting=refer --output=demo/clips_refer",
    counts=(500, 40, 100),
    plan=plan_refer,
    paths=paths,
    write=write_refer,
    tables=tables,
    splits=splits,
    version=2,
)

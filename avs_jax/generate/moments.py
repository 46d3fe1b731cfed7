"""The setting moments: long videos in which things appear and sound for a while, with queries.

A query ("the violin", "a low siren") asks for the windows in which something happens. Annotations
have QVHighlights' format, and files the names that tfds_builders/own_moments reads:

  moments_{train,val,test}.jsonl   one query per line: qid, query, duration, vid, clip_seconds (2),
                                   relevant_windows [[s, e]] in seconds,
                                   relevant_clip_ids (of 2 s),
                                   saliency_scores [[a, b, c]] 0..4 per relevant clip,
                                   domain: what answers it, "sound", "look" or "both"
  videos/{vid}.mp4                 4 frames per second, 16 kHz mono; {vid} ends in _0.0_{duration},
                                   as in QVHighlights

Durations are 20 to 60 s. Windows consist of whole clips. Unlike the published one, the test split
has labels.

Kinds:

  mixed   Each video has one or two categories that are only heard, one that is only seen and two
          that are seen and heard at the same time: a single one could be guessed without a query.
          A category that is only heard is in view all the time or never, and its movement is
          unrelated to its sound: nothing visible tells its windows. The other windows are those in
          which the object is in view. Queries about low or high sounds come in pairs: the same
          category sounds low in one window, high in another.
  gates   Each query is "the <name>". In every other video it names a sound; what appears in the
          frames are other categories. In the remaining videos it names something that appears, and
          the sound is noise of equal energy: as many bursts, of the same lengths and levels, at
          times unrelated to the answer. Text, frames and energy do not tell the halves apart; only
          the sound itself does.

Saliency grows with the loudness of the clip (and with speed, which follows loudness); three
annotators differ by a bias and by noise.

generated_details.json has, for every qid, what answers the query ("sound", "look" or "both"), the
category, and whether the video's sound is "useful" or "noise".
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from avs_jax.data.avsbench_folders import OBJECTS, SPLITS
from avs_jax.files import atomic_path
from avs_jax.generate import sounds
from avs_jax.generate.categories import CATEGORIES, Category
from avs_jax.generate.plans import (
    Object,
    Plan,
    check_categories,
    clip_key,
    finish_plan,
    half_size,
    place_centers,
)
from avs_jax.generate.rendering import draw_frames, video_times
from avs_jax.generate.setting import DETAILS, Options, Setting
from avs_jax.generate.sounds import Sound, Timbre
from avs_jax.generate.video_writer import write_video
from avs_jax.spec import SAMPLE_RATE

KINDS = ("mixed", "gates")
FPS = 4
CLIP_SECONDS = 2
MIN_SECONDS, MAX_SECONDS = 20, 60
REGISTERS = {"low": -0.7, "high": 0.7}  # octaves from the category's own timbre
PITCHED = ("violin", "piano", "baby", "emergency-car")  # have a low and a high sound
NAMES = {"emergency-car": "ambulance", "mower": "lawn mower"}  # of what is seen; else `semantic`
SOUND_NAMES = {"emergency-car": "siren", "mower": "lawn mower"}  # of what is heard
PHRASES = {
    "sound": ("the sound of the {}", "the {} is heard", "you hear the {}"),
    "look": ("the {} in view", "the {} appears", "you see the {}"),
    "both": ("the {}",),
}
NOISE = Timbre(0.0, (100, 100), (700, 1400), 2.5, (0, 0), (0, 0))

Windows = tuple[tuple[int, int], ...]  # [start, stop) in clips


@dataclasses.dataclass(frozen=True)
class Query:
    """A question about a video and its answer."""

    qid: int
    text: str
    windows: Windows
    saliency: tuple[tuple[int, int, int], ...]  # of every clip in the windows
    answered_by: str  # "sound", "look" or "both"
    category: str


@dataclasses.dataclass(frozen=True)
class MomentPlan:
    """A video that is not drawn yet."""

    name: str
    split: str
    scene: Plan
    sounds: tuple[Sound, ...]
    queries: tuple[Query, ...]
    has_noise: bool  # the sound is noise


class _Draft:
    """Collects what happens in a video while it is planned."""

    def __init__(self, num_clips: int, first_qid: int, rng: np.random.Generator):
        self.num_clips, self.first_qid, self.rng = num_clips, first_qid, rng
        self.seen: list[tuple[Category, np.ndarray, np.ndarray]] = []  # windows as bool, loudness
        self.sounds: list[Sound] = []
        self.queries: list[Query] = []

    def see(self, category: Category, windows: Windows, loudness: np.ndarray) -> None:
        """Puts an object into the frames during the windows; its speed follows the loudness."""
        self.seen.append((category, self._seconds(windows), loudness))

    def hear(self, timbre: Timbre, windows: Windows, loudness: np.ndarray) -> None:
        """Adds a sound during the windows."""
        self.sounds.append(Sound(timbre, loudness, self._seconds(windows)))

    def ask(
        self,
        text: str,
        windows: Windows,
        loudness: np.ndarray,
        answered_by: str,
        category: Category,
    ) -> None:
        """Adds a query; clips are the more salient the louder they are."""
        clips = [clip for start, stop in windows for clip in range(start, stop)]
        per_clip = loudness[: 2 * CLIP_SECONDS * self.num_clips].reshape(self.num_clips, -1).mean(1)
        base = 1 + 3 * (per_clip[clips] - 0.4) / 0.6
        bias = self.rng.uniform(-0.5, 0.5, 3)
        scores = base[:, None] + bias + self.rng.normal(0, 0.4, (len(clips), 3))
        saliency = np.clip(np.round(scores), 0, 4).astype(int)
        self.queries.append(
            Query(
                qid=self.first_qid + len(self.queries),
                text=text,
                windows=windows,
                saliency=tuple(tuple(row) for row in saliency.tolist()),
                answered_by=answered_by,
                category=category.semantic,
            )
        )

    def always(self) -> Windows:
        """One window over the whole video."""
        return ((0, self.num_clips),)

    def draw_windows(self, count: int | None = None) -> Windows:
        """One or two windows, at least two clips apart, of 4 s up to a quarter of the video."""
        count = count or int(self.rng.integers(1, 3))
        longest = max(2, self.num_clips // (4 if count == 1 else 5))
        lengths = self.rng.integers(2, longest + 1, count)
        spare = self.num_clips - lengths.sum() - 2 * (count - 1)
        offsets = np.sort(self.rng.integers(0, spare + 1, count))
        starts = offsets + np.concatenate([[0], np.cumsum(lengths + 2)[:-1]])
        return tuple((int(s), int(s + n)) for s, n in zip(starts, lengths, strict=True))

    def draw_loudness(self) -> np.ndarray:
        """Knots, two per second, that vary slowly: each clip has a level of its own."""
        levels = self.rng.uniform(0.4, 1.0, self.num_clips + 1)
        knots = np.repeat(levels, 2 * CLIP_SECONDS) + self.rng.normal(
            0, 0.03, 2 * CLIP_SECONDS * (self.num_clips + 1)
        )
        return np.clip(knots, 0.4, 1.0)

    def _seconds(self, windows: Windows) -> np.ndarray:
        active = np.zeros(self.num_clips * CLIP_SECONDS, bool)
        for start, stop in windows:
            active[start * CLIP_SECONDS : stop * CLIP_SECONDS] = True
        return active


def plan_moments(options: Options, split: str, index: int) -> MomentPlan:
    """Plans a video and its queries."""
    check_categories(options.num_categories, fewest=7)
    key = (*clip_key(options.seed, split, index), 4, KINDS.index(options.kind))
    rng = np.random.default_rng((*key, 0))
    num_clips = int(rng.integers(MIN_SECONDS, MAX_SECONDS + 1)) // CLIP_SECONDS
    first_qid = (SPLITS.index(split) + 1) * 1_000_000 + 10 * index
    draft = _Draft(num_clips, first_qid, rng)
    order = rng.permutation(options.num_categories)
    categories = [CATEGORIES[i] for i in order]
    has_noise = options.kind == "gates" and index % 2 == 1
    if options.kind == "mixed":
        _fill_mixed(draft, categories)
    else:
        _fill_gates(draft, categories, has_noise)
    seconds = num_clips * CLIP_SECONDS
    scene = finish_plan(key, split, _place_objects(draft), seconds, rng)
    return MomentPlan(
        name=f"{scene.name}_0.0_{seconds:.1f}",
        split=split,
        scene=scene,
        sounds=tuple(draft.sounds),
        queries=tuple(draft.queries),
        has_noise=has_noise,
    )


def _fill_mixed(draft: _Draft, categories: Sequence[Category]) -> None:
    """Things that are only heard, only seen, and both; sometimes something still in view."""
    rng = draft.rng
    heard_only, seen_only, other = categories[:2], categories[2], categories[5]
    for category in heard_only[: int(rng.integers(1, 3))]:
        if rng.uniform() < 0.5:
            draft.see(category, draft.always(), draft.draw_loudness())
        name = SOUND_NAMES.get(category.semantic, category.semantic)
        loudness = draft.draw_loudness()
        if category.semantic in PITCHED and rng.uniform() < 0.6:
            windows = draft.draw_windows(count=2)
            for register, i in zip(REGISTERS, rng.permutation(2), strict=True):
                timbre = sounds.shift_timbre(category.timbre, REGISTERS[register])
                draft.hear(timbre, windows[i : i + 1], loudness)
                text = f"a {register} {name}"
                draft.ask(text, windows[i : i + 1], loudness, "sound", category)
        else:
            windows = draft.draw_windows()
            draft.hear(category.timbre, windows, loudness)
        text = _phrase("sound", name, rng)
        draft.ask(text, windows, loudness, "sound", category)
    kinds = ("look", "both", "both")
    for category, answered_by in zip((seen_only, *categories[3:5]), kinds, strict=True):
        windows, loudness = draft.draw_windows(), draft.draw_loudness()
        draft.see(category, windows, loudness)
        if answered_by == "both":
            draft.hear(category.timbre, windows, loudness)
        name = NAMES.get(category.semantic, category.semantic)
        draft.ask(_phrase(answered_by, name, rng), windows, loudness, answered_by, category)
    if rng.uniform() < 0.5:
        draft.see(other, draft.always(), draft.draw_loudness())


def _fill_gates(draft: _Draft, categories: Sequence[Category], has_noise: bool) -> None:
    """Three things appear, three others sound, one is always in view; two queries about either."""
    seen, heard, other = categories[:3], categories[3:6], categories[6]
    draft.see(other, draft.always(), draft.draw_loudness())
    for i in range(3):
        shown, shown_loudness = draft.draw_windows(), draft.draw_loudness()
        sounding, sound_loudness = draft.draw_windows(), draft.draw_loudness()
        draft.see(seen[i], shown, shown_loudness)
        draft.hear(NOISE if has_noise else heard[i].timbre, sounding, sound_loudness)
        if i == 2:
            continue
        category = seen[i] if has_noise else heard[i]
        text = f"the {NAMES.get(category.semantic, category.semantic)}"
        if has_noise:
            draft.ask(text, shown, shown_loudness, "look", category)
        else:
            draft.ask(text, sounding, sound_loudness, "sound", category)


def _phrase(answered_by: str, name: str, rng: np.random.Generator) -> str:
    phrases = PHRASES[answered_by]
    return phrases[rng.integers(len(phrases))].format(name)


def _place_objects(draft: _Draft) -> tuple[Object, ...]:
    """The objects of the scene in a random painting order."""
    rng, count = draft.rng, len(draft.seen)
    areas = rng.uniform(0.06, 0.11, count)
    amplitudes = rng.uniform(0.04, 0.08, count)
    centers = place_centers(areas, amplitudes, rng)
    objects = []
    for i in rng.permutation(count):
        category, visible, loudness = draft.seen[i]
        objects.append(
            Object(
                category=category,
                half_size=half_size(areas[i], category),
                angle=rng.uniform(-0.35, 0.35),
                center=tuple(centers[i]),
                amplitude=float(amplitudes[i]),
                rate=rng.uniform(0.5, 1.0),
                phase=rng.uniform(0, 2 * np.pi),
                loudness=loudness,
                active=visible,
                audible=False,  # sounds are listed apart
                visible=visible,
            )
        )
    return tuple(objects)


def video_path(root: Path, plan: MomentPlan) -> Path:
    """The only file of a video."""
    return root / "videos" / f"{plan.name}.mp4"


def write_moments(root: Path, plan: MomentPlan, options: Options) -> None:
    """Draws a video and writes it."""
    rng = np.random.default_rng(plan.scene.seed)
    time = video_times(plan.scene.seconds, FPS)
    unlabeled = np.zeros(0, np.int64)
    frames, _ = draw_frames(plan.scene, time, unlabeled, (options.size, options.size), rng)
    audio = sounds.mix(plan.sounds, plan.scene.level, SAMPLE_RATE, rng)
    with atomic_path(video_path(root, plan)) as unfinished:
        write_video(unfinished, frames, FPS, audio, SAMPLE_RATE)


def annotation(plan: MomentPlan, query: Query) -> dict[str, object]:
    """One line of the annotations."""
    seconds = [[start * CLIP_SECONDS, stop * CLIP_SECONDS] for start, stop in query.windows]
    return {
        "qid": query.qid,
        "query": query.text,
        "duration": plan.scene.seconds,
        "vid": plan.name,
        "clip_seconds": CLIP_SECONDS,
        "relevant_windows": seconds,
        "relevant_clip_ids": [c for start, stop in query.windows for c in range(start, stop)],
        "saliency_scores": [list(scores) for scores in query.saliency],
        "domain": query.answered_by,
    }


def tables(plans: Iterable[MomentPlan], options: Options) -> dict[str, str]:
    """Objects in the frames, what answers each query, and the annotations."""
    objects, details = {}, {}
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for plan in plans:
        objects[plan.name] = sorted(item.category.semantic for item in plan.scene.objects)
        for query in plan.queries:
            details[query.qid] = {
                "vid": plan.name,
                "answered_by": query.answered_by,
                "category": query.category,
                "sound": "noise" if plan.has_noise else "useful",
            }
            lines[plan.split].append(json.dumps(annotation(plan, query)))
    texts = {
        OBJECTS: json.dumps(objects, indent=0) + "\n",
        DETAILS: json.dumps(details, indent=0) + "\n",
    }
    for split in reversed(SPLITS):
        texts[f"moments_{split}.jsonl"] = "".join(f"{line}\n" for line in lines[split])
    return texts


MOMENTS = Setting(
    title="QVHighlights' format: videos of 20 to 60 s, queries about what appears and sounds",
    example="--setting=moments --output=demo/clips_moments",
    counts=(400, 60, 100),
    plan=plan_moments,
    paths=lambda root, plan: [video_path(root, plan)],
    write=write_moments,
    tables=tables,
    size=96,
    num_categories=12,
    kinds=KINDS,
    version=2,
)

"""The settings s4, ms3 and avss: clips in the layouts of AVSBench's three settings.

  s4     s4_meta_data.csv          name,start,category,split
         s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png         RGB
         s4_data/gt_masks/{split}/{category}/{name}/{name}_{1..5}.png              train: only _1
         s4_data/pre_SAM_mask/{split}/{category}/{name}/{name}_{1..5}_mask_color.png
         s4_data/audio_wav/{split}/{category}/{name}.wav                           16 kHz, mono
         s4_data/raw_videos/{split}/{category}/{name}.mp4                          h264, aac
  ms3    ms3_meta_data.csv         video_id,split,a_obj
         ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png
         ms3_data/gt_masks/{split}/{name}/{name}_{1..5}.png
         ms3_data/pre_SAM_mask/{name}/{name}.mp4_{1..5}_mask_color.png
         ms3_data/audio_wav/{split}/{name}.wav                                     16 kHz, mono
         ms3_data/raw_videos/{name}.mp4
  avss   metadata.csv              vid,uid,s_min,s_sec,a_obj,split,label; and label2idx.json
         {v1s,v1m,v2}/{name}/frames/{0..}.jpg                                      4:3; 5, 5, 10
         {v1s,v1m,v2}/{name}/labels_semantic/{0..}.png, labels_rgb/{0..}.png       v1s train: only 0
         {v1s,v1m,v2}/{name}/audio.wav                                             48 kHz, stereo
         pre_SAM_mask/AVSBench_semantic/{v1s,v1m,v2}/{name}/frames/{0..}_mask_color.png

Masks of s4 and ms3 are 0 or 255. Pre-masks are palette PNGs (data/pre_masks.py).
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avs_jax.data import pre_masks
from avs_jax.files import atomic_path, write_atomically
from avs_jax.generate.categories import SEMANTIC_CLASSES, Category
from avs_jax.generate.encoding import encode_image, encode_wav
from avs_jax.generate.plans import NUM_FRAMES, Plan, plan_clip, plan_mixture
from avs_jax.generate.rendering import VIDEO_FPS, RenderedClip, render_clip
from avs_jax.generate.setting import OBJECTS, Options, Setting
from avs_jax.generate.video_writer import write_video
from avs_jax.label_images import CLASS_PALETTE, indexed_image

SUBSETS = ("v1s", "v2", "v1m", "v2")  # of AVSBench-semantic, by index modulo 4: half are v2
GROUND_TRUTH = ("mask", "classes", "rgb")  # kinds of files


def class_map(clip: RenderedClip, plan: Plan, t: int) -> np.ndarray:
    """Class of every pixel of dataset frame t, uint8 [H, W]: 0 where nothing sounds."""
    classes = np.zeros(clip.labels.shape[1:], np.uint8)
    for i, item in enumerate(plan.objects):
        if clip.sounding[t, i]:
            classes[clip.labels[t] == i + 1] = SEMANTIC_CLASSES.index(item.category.semantic)
    return classes


def _draw_classes(clip: RenderedClip, plan: Plan, t: int) -> Image.Image:
    return indexed_image(class_map(clip, plan, t), CLASS_PALETTE)


DrawImage = Callable[[RenderedClip, Plan, int], Image.Image]
IMAGES: Mapping[str, DrawImage] = {  # kind of file -> its content for dataset frame t
    "frame": lambda clip, plan, t: Image.fromarray(clip.frames[clip.frame_index[t]]),
    "mask": lambda clip, plan, t: Image.fromarray(clip.mask[t].astype(np.uint8) * 255),
    "pre_mask": lambda clip, plan, t: pre_masks.to_image(clip.pre_masks[t]),
    "classes": _draw_classes,
    "rgb": lambda clip, plan, t: _draw_classes(clip, plan, t).convert("RGB"),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a setting.

    Attributes:
      category_name: what the setting calls a category.
      csv: name of the csv.
      columns: column -> template of its values.
      files: kind of file -> template of its path; {t} counts frames from 0, {number} from 1.
      has_one_mask: whether a clip has ground truth for its first frame only.
      images: kind of image file -> what it shows.
      aspect: width / height.
      fps: of the videos.
      sample_rate: Hz.
      stereo: whether the mono sound is written to two channels.
    """

    category_name: Callable[[Category], str]
    csv: str
    columns: Mapping[str, str]
    files: Mapping[str, str]
    has_one_mask: Callable[[Plan], bool]
    images: Mapping[str, DrawImage] = dataclasses.field(default_factory=lambda: IMAGES)
    aspect: float = 1.0
    fps: int = VIDEO_FPS
    sample_rate: int = 16_000
    stereo: bool = False


_S4, _S4_CLIP = "s4_data", "{split}/{category}/{name}"
_MS3 = "ms3_data"
_AVSS = "{subset}/{name}"
S4_LAYOUT = Layout(
    category_name=lambda category: category.name,
    csv="s4_meta_data.csv",
    columns={"name": "{name}", "start": "0", "category": "{category}", "split": "{split}"},
    files={
        "frame": f"{_S4}/visual_frames/{_S4_CLIP}/{{name}}_{{number}}.png",
        "mask": f"{_S4}/gt_masks/{_S4_CLIP}/{{name}}_{{number}}.png",
        "pre_mask": f"{_S4}/pre_SAM_mask/{_S4_CLIP}/{{name}}_{{number}}_mask_color.png",
        "wav": f"{_S4}/audio_wav/{_S4_CLIP}.wav",
        "video": f"{_S4}/raw_videos/{_S4_CLIP}.mp4",
    },
    has_one_mask=lambda plan: plan.split == "train",
)
MS3_LAYOUT = Layout(
    category_name=lambda category: category.name,
    csv="ms3_meta_data.csv",
    columns={"video_id": "{name}", "split": "{split}", "a_obj": "{category}"},
    files={
        "frame": f"{_MS3}/visual_frames/{{name}}/{{name}}.mp4_{{number}}.png",
        "mask": f"{_MS3}/gt_masks/{{split}}/{{name}}/{{name}}_{{number}}.png",
        "pre_mask": f"{_MS3}/pre_SAM_mask/{{name}}/{{name}}.mp4_{{number}}_mask_color.png",
        "wav": f"{_MS3}/audio_wav/{{split}}/{{name}}.wav",
        "video": f"{_MS3}/raw_videos/{{name}}.mp4",
    },
    has_one_mask=lambda plan: False,
)
AVSS_LAYOUT = Layout(
    category_name=lambda category: category.semantic,
    csv="metadata.csv",
    columns={
        "vid": "{name}", "uid": "{name}", "s_min": "0", "s_sec": "0",
        "a_obj": "{category}", "split": "{split}", "label": "{subset}",
    },
    files={
        "frame": f"{_AVSS}/frames/{{t}}.jpg",
        "classes": f"{_AVSS}/labels_semantic/{{t}}.png",
        "rgb": f"{_AVSS}/labels_rgb/{{t}}.png",
        "pre_mask": f"pre_SAM_mask/AVSBench_semantic/{_AVSS}/frames/{{t}}_mask_color.png",
        "wav": f"{_AVSS}/audio.wav",
    },
    has_one_mask=lambda plan: plan.split == "train" and plan.subset == "v1s",
    aspect=4 / 3,
    sample_rate=48_000,
    stereo=True,
)  # fmt: skip


def _plan_s4(options: Options, split: str, index: int) -> Plan:
    return plan_clip(options.seed, split, index, num_categories=options.num_categories)


def _plan_ms3(options: Options, split: str, index: int) -> Plan:
    return plan_mixture(options.seed, split, index, num_categories=options.num_categories)


def _plan_avss(options: Options, split: str, index: int) -> Plan:
    subset = SUBSETS[index % len(SUBSETS)]
    plan = plan_mixture(
        options.seed,
        split,
        index,
        seconds=2 * NUM_FRAMES if subset == "v2" else NUM_FRAMES,
        num_categories=options.num_categories,
        max_sounding=1 if subset == "v1s" else 3,
        changes=subset != "v1s",
    )
    return dataclasses.replace(plan, subset=subset)


def clip_paths(root: Path, plan: Plan, layout: Layout = S4_LAYOUT) -> dict[str, Path]:
    """Every file of a clip; keys are "frame/k", "mask/k", "pre_mask/k" ... (k from 1), "wav".

    Args:
      root: folder of the csv.
      plan: of the clip.
      layout: of the setting.
    """
    fields = _fields(plan, layout)
    first_only = layout.has_one_mask(plan)
    paths = {}
    for kind, template in layout.files.items():
        if kind in ("wav", "video"):
            paths[kind] = root / template.format(**fields)
            continue
        count = 1 if first_only and kind in GROUND_TRUTH else int(plan.seconds)
        for t in range(count):
            paths[f"{kind}/{t + 1}"] = root / template.format(t=t, number=t + 1, **fields)
    return paths


def _fields(plan: Plan, layout: Layout) -> dict[str, str]:
    """What fills in the templates of a layout."""
    names = sorted(layout.category_name(category) for category in plan.heard)
    return {
        "name": plan.name,
        "split": plan.split,
        "category": "+".join(names),
        "subset": plan.subset,
    }


def write_clip(root: Path, plan: Plan, options: Options, layout: Layout) -> None:
    """Draws a clip and writes its files."""
    width = 2 * round(options.size * layout.aspect / 2)
    clip = render_clip(plan, (options.size, width), layout.fps, layout.sample_rate)
    for key, path in clip_paths(root, plan, layout).items():
        kind, _, number = key.partition("/")
        if kind == "wav":
            write_atomically(path, encode_wav(clip.audio, clip.sample_rate, layout.stereo))
        elif kind == "video":
            with atomic_path(path) as unfinished:
                write_video(unfinished, clip.frames, clip.fps, clip.audio, clip.sample_rate)
        else:
            image = layout.images[kind](clip, plan, int(number) - 1)
            write_atomically(path, encode_image(image, path.suffix))


def tables(plans: Sequence[Plan], layout: Layout) -> dict[str, str]:
    """The objects of every clip, avss's class numbers, and the csv."""
    objects = {
        plan.name: sorted(layout.category_name(item.category) for item in plan.objects)
        for plan in plans
    }
    texts = {OBJECTS: json.dumps(objects, indent=0) + "\n"}
    if layout is AVSS_LAYOUT:
        numbers = {name: position + 1 for position, name in enumerate(SEMANTIC_CLASSES)}
        texts["label2idx.json"] = json.dumps(numbers, indent=2) + "\n"
    rows = [",".join(layout.columns)]
    for plan in plans:
        fields = _fields(plan, layout)
        rows.append(",".join(value.format(**fields) for value in layout.columns.values()))
    texts[layout.csv] = "\n".join(rows) + "\n"
    return texts


def make_setting(layout: Layout, **fields: Any) -> Setting:
    """A setting whose clips are laid out as `layout` says; `fields` override."""
    defaults = {
        "counts": (1000, 60, 100),
        "paths": lambda root, plan: clip_paths(root, plan, layout).values(),
        "write": functools.partial(write_clip, layout=layout),
        "tables": lambda plans, options: tables(plans, layout),
    }
    return Setting(**defaults | fields)


S4 = make_setting(
    S4_LAYOUT,
    title="AVSBench Single-source: one of several objects sounds",
    example="--output=demo/clips",
    plan=_plan_s4,
    num_categories=10,
)
MS3 = make_setting(
    MS3_LAYOUT,
    title="AVSBench Multi-sources: one to three objects sound, each for a while",
    example="--setting=ms3 --output=demo/clips_ms3",
    plan=_plan_ms3,
    num_categories=10,
)
AVSS = make_setting(
    AVSS_LAYOUT,
    title="AVSBench-semantic: as ms3, with the class of every pixel",
    example="--setting=avss --output=demo/clips_avss",
    plan=_plan_avss,
    num_categories=12,
)

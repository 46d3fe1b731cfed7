"""The settings s4, ms3 and avss: clips in AVSBench's layouts as released (avsbench_folders.py).

  s4    5 frames (png) and a video, 16 kHz mono; train has masks of the first frame only
  ms3   5 frames (png) and a video, 16 kHz mono
  avss  5 or 10 frames (jpg, 4:3), no video, 48 kHz stereo; v1s, v1m and v2 clips, v2 half of them;
        v1s in train has masks of the first frame only

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

from avs_jax.data import avsbench_folders, pre_masks
from avs_jax.data.audio import encode_wav
from avs_jax.data.avsbench_folders import CLASSES, OBJECTS
from avs_jax.files import atomic_path, write_atomically
from avs_jax.generate.categories import SEMANTIC_CLASSES, Category
from avs_jax.generate.encoding import encode_image
from avs_jax.generate.plans import Plan, plan_clip, plan_mixture
from avs_jax.generate.rendering import VIDEO_FPS, RenderedClip, render_clip
from avs_jax.generate.setting import Options, Setting
from avs_jax.generate.video_writer import write_video
from avs_jax.label_images import CLASS_PALETTE, indexed_image

SUBSETS = ("v1s", "v2", "v1m", "v2")  # of AVSBench-semantic, by index modulo 4


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
    "classes": _draw_classes,
    "rgb": lambda clip, plan, t: _draw_classes(clip, plan, t).convert("RGB"),
    "pre_mask": lambda clip, plan, t: pre_masks.to_image(clip.pre_masks[t]),
}
GROUND_TRUTH = ("mask", "classes", "rgb")  # kinds of files


@dataclasses.dataclass(frozen=True)
class Layout:
    """How clips become the files of a setting.

    Attributes:
      columns: column of the csv -> template of its values.
      more_files: kind of file -> template of its path, beside those of `folders`.
      images: kind of image file -> what it shows.
    """

    folders: avsbench_folders.Setting  # where its files lie
    category_name: Callable[[Category], str]  # what the setting calls a category
    columns: Mapping[str, str]
    more_files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Mapping[str, DrawImage] = dataclasses.field(default_factory=lambda: IMAGES)
    aspect: float = 1.0  # width / height
    fps: int = VIDEO_FPS
    sample_rate: int = 16_000  # Hz
    stereo: bool = False  # whether the mono sound is written to two channels

    def files(self, split: str) -> dict[str, str]:
        """Kind of file -> template of its path below the folder of the csv."""
        released = self.folders.layouts[0]
        has_classes = self.folders.num_classes > 2
        found = {
            "frame": released.frames[split],
            "classes" if has_classes else "mask": released.masks[split],
            "rgb": self.folders.colored_masks,
            "pre_mask": released.pre_masks[0][split],
            "wav": released.wav,
            "video": self.folders.video,
        }
        return {kind: path for kind, path in found.items() if path} | dict(self.more_files)


S4_LAYOUT = Layout(
    avsbench_folders.S4,
    category_name=lambda category: category.name,
    columns={"name": "{name}", "start": "0", "category": "{category}", "split": "{split}"},
)
MS3_LAYOUT = Layout(
    avsbench_folders.MS3,
    category_name=lambda category: category.name,
    columns={"video_id": "{name}", "split": "{split}", "a_obj": "{category}"},
)
AVSS_LAYOUT = Layout(
    avsbench_folders.AVSS,
    category_name=lambda category: category.semantic,
    columns={
        "vid": "{name}", "uid": "{name}", "s_min": "0", "s_sec": "0",
        "a_obj": "{category}", "split": "{split}", "label": "{subset}",
    },
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
        seconds=avsbench_folders.AVSS.num_frames[subset],
        num_categories=options.num_categories,
        max_sounding=1 if subset == "v1s" else 3,
        changes=subset != "v1s",
    )
    return dataclasses.replace(plan, subset=subset)


def clip_paths(root: Path, plan: Plan, layout: Layout = S4_LAYOUT) -> dict[str, Path]:
    """Every file of a clip below the csv's folder: "frame/k", "mask/k" ... (k from 1), "wav"."""
    fields = _fields(plan, layout)
    labeled = layout.folders.labeled_frames(plan.split, plan.subset)
    paths = {}
    for kind, template in layout.files(plan.split).items():
        if kind in ("wav", "video"):
            paths[kind] = root / template.format(**fields)
            continue
        for t in labeled if kind in GROUND_TRUTH else range(int(plan.seconds)):
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
    if layout.folders.num_classes > 2:
        numbers = {name: position + 1 for position, name in enumerate(SEMANTIC_CLASSES)}
        texts[CLASSES] = json.dumps(numbers, indent=2) + "\n"
    rows = [",".join(layout.columns)]
    for plan in plans:
        fields = _fields(plan, layout)
        rows.append(",".join(value.format(**fields) for value in layout.columns.values()))
    texts[layout.folders.csv] = "\n".join(rows) + "\n"
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

"""Generated clips (synthetic.py) written in the layouts of AVSBench's three settings.

`write_clips` leaves, under `root`, the setting's csv (written last), generated_objects.json
(name -> categories in the picture), generated_clips.json (the parameters) and

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

Masks of s4 and ms3 are 0 or 255. Colour masks are palette PNGs (pre_masks.py).
"""

import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import wave
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tqdm
from PIL import Image

from avs_jax.data import pre_masks
from avs_jax.data.synthetic import (
    NUM_FRAMES,
    SPLITS,
    Clip,
    Plan,
    plan_clip,
    plan_mixture,
    render_clip,
)
from avs_jax.data.synthetic_parts import SEMANTIC_CLASSES, Category
from avs_jax.data.video_writer import write_video
from avs_jax.label_images import CLASS_PALETTE, indexed_image

MANIFEST = "generated_clips.json"
OBJECTS = "generated_objects.json"
GENERATOR_VERSION = 1  # raise it whenever the same parameters would give other clips


@dataclasses.dataclass(frozen=True)
class Setting:
    """What distinguishes one of AVSBench's settings here.

    Attributes:
      plan: (seed, split, index, number of categories) -> Plan.
      category_name: what the setting calls a category.
      csv: name of the csv; columns: column -> value, a template.
      files: kind -> template of the path; {t} counts frames from 0, {number} from 1.
      categories: how many there are unless told otherwise.
      aspect: width / height.
      sample_rate: Hz; stereo: the mono sound on two channels.
    """

    plan: Callable[[int, str, int, int], Plan]
    category_name: Callable[[Category], str]
    csv: str
    columns: Mapping[str, str]
    files: Mapping[str, str]
    categories: int = 10
    aspect: float = 1.0
    sample_rate: int = 16_000
    stereo: bool = False


def subset(index: int) -> str:
    """v1s, v1m or v2 of AVSBench-semantic, by the clip's index: half are v2."""
    return ("v1s", "v2", "v1m", "v2")[index % 4]


def _plan_semantic(seed: int, split: str, index: int, categories: int) -> Plan:
    kind = subset(index)
    return plan_mixture(
        seed,
        split,
        index,
        seconds=2 * NUM_FRAMES if kind == "v2" else NUM_FRAMES,
        categories=categories,
        max_sounding=1 if kind == "v1s" else 3,
        changes=kind != "v1s",
    )


def _plan_multi(seed: int, split: str, index: int, categories: int) -> Plan:
    return plan_mixture(seed, split, index, categories=categories)


def _plan_single(seed: int, split: str, index: int, categories: int) -> Plan:
    return plan_clip(seed, split, index, categories=categories)


_S4, _S4_CLIP = "s4_data", "{split}/{category}/{name}"
_MS3 = "ms3_data"
_AVSS = "{subset}/{name}"
SETTINGS = {
    "s4": Setting(
        plan=_plan_single,
        category_name=lambda category: category.name,
        csv="s4_meta_data.csv",
        columns={"name": "{name}", "start": "0", "category": "{category}", "split": "{split}"},
        files={
            "frame": f"{_S4}/visual_frames/{_S4_CLIP}/{{name}}_{{number}}.png",
            "mask": f"{_S4}/gt_masks/{_S4_CLIP}/{{name}}_{{number}}.png",
            "colour": f"{_S4}/pre_SAM_mask/{_S4_CLIP}/{{name}}_{{number}}_mask_color.png",
            "wav": f"{_S4}/audio_wav/{_S4_CLIP}.wav",
            "video": f"{_S4}/raw_videos/{_S4_CLIP}.mp4",
        },
    ),
    "ms3": Setting(
        plan=_plan_multi,
        category_name=lambda category: category.name,
        csv="ms3_meta_data.csv",
        columns={"video_id": "{name}", "split": "{split}", "a_obj": "{category}"},
        files={
            "frame": f"{_MS3}/visual_frames/{{name}}/{{name}}.mp4_{{number}}.png",
            "mask": f"{_MS3}/gt_masks/{{split}}/{{name}}/{{name}}_{{number}}.png",
            "colour": f"{_MS3}/pre_SAM_mask/{{name}}/{{name}}.mp4_{{number}}_mask_color.png",
            "wav": f"{_MS3}/audio_wav/{{split}}/{{name}}.wav",
            "video": f"{_MS3}/raw_videos/{{name}}.mp4",
        },
    ),
    "avss": Setting(
        plan=_plan_semantic,
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
            "colour": f"pre_SAM_mask/AVSBench_semantic/{_AVSS}/frames/{{t}}_mask_color.png",
            "wav": f"{_AVSS}/audio.wav",
        },
        categories=12,
        aspect=4 / 3,
        sample_rate=48_000,
        stereo=True,
    ),
}  # fmt: skip
GROUND_TRUTH = ("mask", "classes", "rgb")  # kinds of files


def _fields(setting: str, plan: Plan, index: int) -> dict[str, str]:
    """What the templates of a setting are filled in with."""
    names = sorted(SETTINGS[setting].category_name(category) for category in plan.heard)
    return {
        "name": plan.name,
        "split": plan.split,
        "category": "+".join(names),
        "subset": subset(index) if setting == "avss" else "",
    }


def clip_paths(
    root: pathlib.Path, plan: Plan, setting: str = "s4", index: int = 0
) -> dict[str, pathlib.Path]:
    """Every file of a clip; keys "frame/k", "mask/k", "colour/k" and so on (k from 1), "wav".

    Args:
      root: folder of the csv.
      plan: of the clip.
      setting: "s4", "ms3" or "avss".
      index: of the clip in its split (only avss reads it: the subset follows from it).
    """
    fields = _fields(setting, plan, index)
    single = setting == "s4" or fields["subset"] == "v1s"
    paths = {}
    for kind, template in SETTINGS[setting].files.items():
        if kind in ("wav", "video"):
            paths[kind] = root / template.format(**fields)
            continue
        only_first = single and plan.split == "train" and kind in GROUND_TRUTH
        for t in range(1 if only_first else int(plan.seconds)):
            paths[f"{kind}/{t + 1}"] = root / template.format(t=t, number=t + 1, **fields)
    return paths


def class_map(clip: Clip, plan: Plan, t: int) -> np.ndarray:
    """Class of every pixel of dataset frame t, uint8 [H, W]: 0 where nothing sounds."""
    classes = np.zeros(clip.labels.shape[1:], np.uint8)
    for i, item in enumerate(plan.objects):
        if clip.sounding[t, i]:
            classes[clip.labels[t] == i + 1] = SEMANTIC_CLASSES.index(item.category.semantic)
    return classes


# ---- one clip ----


def _write_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    os.replace(temporary, path)


def _write_clip(job: tuple) -> None:
    """Renders and writes one clip. job: (root, setting, seed, split, index, size, categories)."""
    root, name, seed, split, index, size, categories = job
    setting = SETTINGS[name]
    plan = setting.plan(seed, split, index, categories)
    width = 2 * round(size * setting.aspect / 2)
    clip = render_clip(plan, (size, width), sample_rate=setting.sample_rate)
    for key, path in clip_paths(pathlib.Path(root), plan, name, index).items():
        kind, _, number = key.partition("/")
        if kind == "wav":
            content = _wav(clip, setting.stereo)
        elif kind == "video":

            def write(path: pathlib.Path) -> None:
                write_video(path, clip.frames, clip.fps, clip.audio, clip.sample_rate)

            _write_atomically(path, write)
            continue
        else:
            image = _image(kind, clip, plan, int(number) - 1)
            content = _encoded(image, "jpeg" if path.suffix == ".jpg" else "png")
        _write_atomically(path, lambda path, content=content: path.write_bytes(content))


def _image(kind: str, clip: Clip, plan: Plan, t: int) -> Image.Image:
    """What a file of dataset frame t shows."""
    if kind == "frame":
        return Image.fromarray(clip.frames[clip.frame_index[t]])
    if kind == "mask":
        return Image.fromarray(clip.mask[t].astype(np.uint8) * 255)
    if kind == "colour":
        return pre_masks.to_image(clip.colour_masks[t])
    classes = indexed_image(class_map(clip, plan, t), CLASS_PALETTE)
    return classes.convert("RGB") if kind == "rgb" else classes


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    options = {"quality": 92} if kind == "jpeg" else {"compress_level": 4}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _wav(clip: Clip, stereo: bool) -> bytes:
    buffer = io.BytesIO()
    samples = np.repeat(clip.audio[:, None], 2 if stereo else 1, axis=1)
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(clip.sample_rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


# ---- a set of clips ----


def write_clips(
    root: str | os.PathLike,
    num_train: int = 1000,
    num_val: int = 60,
    num_test: int = 100,
    seed: int = 0,
    size: int = 128,
    categories: int | None = None,
    workers: int = 2,
    setting: str = "s4",
) -> int:
    """Writes a set of clips in a setting's layout; whatever is already there is kept.

    Args:
      root: folder that the csv is in; new, or from a call with the same parameters.
      num_train: clips of each split, with num_val and num_test.
      seed: everything follows from it.
      size: height of the frames in pixels, even (h264 wants that).
      categories: how many of the twelve; None: ten, for avss all.
      workers: processes; 0 or 1 renders in this one.
      setting: "s4", "ms3" or "avss".

    Returns:
      How many clips were rendered; 0 where everything was there.

    Raises:
      ValueError: a parameter is out of range, or `root` holds something else, or clips of other
        parameters.
    """
    root = pathlib.Path(root)
    if setting not in SETTINGS:
        raise ValueError(f"setting={setting!r}, expected one of {', '.join(SETTINGS)}")
    if size % 2 or size < 32:
        raise ValueError(f"size={size}, expected an even number of pixels, 32 at least")
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    if min(counts.values()) < 0:
        raise ValueError(f"clips per split {counts}, expected none below 0")
    table = SETTINGS[setting]
    categories = table.categories if categories is None else categories
    table.plan(seed, SPLITS[0], 0, categories)  # raises if there are not so many categories
    parameters = {
        "generator_version": GENERATOR_VERSION, "setting": setting, "seed": seed, "size": size,
        "categories": categories, **{f"num_{split}": n for split, n in counts.items()},
    }  # fmt: skip
    _claim(root, parameters)
    rows, objects, jobs = [",".join(table.columns)], {}, []
    for split, count in counts.items():
        for index in range(count):
            plan = table.plan(seed, split, index, categories)
            fields = _fields(setting, plan, index)
            rows.append(",".join(value.format(**fields) for value in table.columns.values()))
            objects[plan.name] = sorted(table.category_name(o.category) for o in plan.objects)
            if not all(p.exists() for p in clip_paths(root, plan, setting, index).values()):
                jobs.append((str(root), setting, seed, split, index, size, categories))
    _render_all(jobs, workers)
    texts = {OBJECTS: json.dumps(objects, indent=0) + "\n"}
    if setting == "avss":
        numbers = {name: position + 1 for position, name in enumerate(SEMANTIC_CLASSES)}
        texts["label2idx.json"] = json.dumps(numbers, indent=2) + "\n"
    texts[table.csv] = "\n".join(rows) + "\n"
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


def _claim(root: pathlib.Path, parameters: dict[str, Any]) -> None:
    """Writes the manifest, or compares with the one that is there."""
    manifest = root / MANIFEST
    if manifest.exists():
        there = {"setting": "s4"} | json.loads(manifest.read_text())  # older ones do not say
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

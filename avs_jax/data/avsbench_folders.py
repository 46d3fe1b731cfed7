"""Where AVSBench keeps its files: the one table that builders, flow, predictions and tools read.

A setting is a folder with a csv of its clips. A layout is one way in which the clips' files lie
below it. Frames are counted from {number} = 1 or {t} = 0.

  s4    Single-source/s4_meta_data.csv            name,start,category,split
    object224  s4_data/visual_frames/{split}/{category}/{name}/{name}_{number}.png
               s4_data/gt_masks/{split}/{category}/{name}/{name}_{number}.png
               s4_data/pre_SAM_mask[_224]/{split}/{category}/{name}/{name}_{number}_mask_color.png
    vct384     s4_data_384/visual_frames_384/{split}/{category}/{name}/{name}_{number}.png
               s4_data_384/gt_masks_384/train/...     gt_masks_224/{val,test}/...
               s4_data_384/pre_SAM_mask_384/{split}/...
    both       s4_data/audio_wav/{split}/{category}/{name}.wav
               s4_data/raw_videos/{split}/{category}/{name}.mp4

  ms3   Multi-sources/ms3_meta_data.csv           (any name),split[,a_obj]
    object224  ms3_data/visual_frames/{name}/{name}.mp4_{number}.png                (no split)
               ms3_data/gt_masks/{split}/{name}/{name}_{number}.png
               ms3_data/pre_SAM_mask[_224]/{name}/{name}[.mp4]_{number}_mask_color.png
    vct384     ms3_data_384/visual_frames_384/{name}/{name}_{number}.png
               ms3_data_384/gt_masks_384/train/...    gt_masks_224/{val,test}/...
               ms3_data_384/pre_SAM_mask_384/{name}/...
    both       ms3_data/audio_wav/{split}/{name}.wav    ms3_data/raw_videos/{name}.mp4

  avss  AVSBench_semantic/metadata.csv            vid,uid,s_min,s_sec,a_obj,split,label
                                                  {name} is uid, {subset} is label: v1s, v1m, v2
        AVSBench_semantic/label2idx.json          names of the 71 classes, background first
    original   {subset}/{name}/frames/{t}.jpg                          any size
               {subset}/{name}/labels_semantic/{t}.png                 class indices
               {subset}/{name}/labels_rgb/{t}.png                      class colors
               pre_SAM_mask/AVSBench_semantic/{subset}/{name}/frames/{t}_mask_color.png
    vct384     train as above; val, test: processed_frames_384, processed_labels_semantic (224 px)
    both       {subset}/{name}/audio.wav

  clips of                 frames   ground truth
  s4, avss v1s             5        train: the first frame; val, test: all
  ms3, avss v1m            5        all
  avss v2                  10       all

Stored flow is FLOW_DIR/[s4/]{split}/{category}/{name}/flow_{t:04d}.npy (ms3, avss: no category).
Generated clips add generated_clips.json (their parameters) and generated_objects.json (clip ->
categories in the frame) beside the csv. Those of look-alikes also have
s4_data/object_masks/{split}/{category}/{name}/{name}_{number}.png for every frame.

Sources: AVSBench (repository OpenNLPLab/AVSBench) and VCT (repository spyflying/VCT_AVS,
generate_data_384). Departure from VCT: the clips are those of the csv, not those whose folders
happen to exist.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from avs_jax.spec import InputError

SPLITS = ("train", "val", "test")
MANIFEST = "generated_clips.json"
OBJECTS = "generated_objects.json"
CLASSES = "label2idx.json"


class DatasetLayoutError(InputError):
    """A folder that is absent or is not laid out as the dataset is."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which the files of a setting are laid out; templates are below the csv's folder.

    Attributes:
      description: for people.
      marker: glob of something that only this layout has.
      frames, masks: split -> template.
      pre_masks: alternatives of split -> template of the color masks; the first in use counts.
      wav: template.
      mask_sizes: (width, height) that a mask may have besides its frame's.
      ground_truth: where the masks come from; reports name it.
    """

    name: str
    description: str
    marker: str
    frames: Mapping[str, str]
    masks: Mapping[str, str]
    pre_masks: tuple[Mapping[str, str], ...]
    wav: str
    mask_sizes: tuple[tuple[int, int], ...]
    ground_truth: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """One of AVSBench's settings.

    Attributes:
      name: short, as on command lines. dataset: its TFDS name. title: for people.
      folders: names under which the download has the folder of the csv.
      csv: its name. columns: field of a row -> the csv's column; "" is the first one.
      required: fields that every row must have, because templates use them.
      num_frames: subset -> frames of a clip; a setting without subsets has "".
      first_only: the subsets whose training clips have ground truth on their first frame alone.
      layouts: the first one is the default.
      video: template of the raw video; "" where there is none.
      colored_masks: template of the masks in class colors; "" where there are none.
      flow: template of a clip's folder of stored flow. predictions: of a frame's file, no ending.
      object_masks: template of the masks that name single objects, in generated clips; "" where
        there are none.
      flow_side: px that frames are squashed to before flow is estimated; None keeps them.
      num_classes: of a pixel, background included.
      categories: that a clip may have, label 1 first; () where the csv may say anything.
      num_clips: split -> clips of the whole download.
      how_to_get: it, for error messages.
    """

    name: str
    dataset: str
    title: str
    folders: tuple[str, ...]
    csv: str
    columns: Mapping[str, str]
    required: tuple[str, ...]
    num_frames: Mapping[str, int]
    first_only: frozenset[str]
    layouts: tuple[Layout, ...]
    video: str
    colored_masks: str
    flow: str
    predictions: str
    flow_side: int | None
    num_classes: int
    categories: tuple[str, ...]
    num_clips: Mapping[str, int]
    how_to_get: str
    object_masks: str = ""

    def labeled_frames(self, split: str, subset: str = "") -> tuple[int, ...]:
        """The frames of a clip, from 0, that have ground truth."""
        only_first = split == "train" and subset in self.first_only
        return (0,) if only_first else tuple(range(self.num_frames[subset]))

    def layout(self, name: str) -> Layout:
        """The layout of that name."""
        return next(layout for layout in self.layouts if layout.name == name)

    def layouts_present(self, root: pathlib.Path) -> list[Layout]:
        """The layouts that the folder of the csv holds."""
        return [x for x in self.layouts if next(root.glob(x.marker), None) is not None]

    def find_root(self, folder: str | os.PathLike) -> pathlib.Path:
        """The folder that holds the csv: the one given, or its subfolder of the download's name."""
        folder = pathlib.Path(folder).expanduser().absolute()
        candidates = [folder, *(folder / name for name in self.folders)]
        for root in candidates:
            if (root / self.csv).is_file():
                return root
        looked = "\n".join(
            f"  {root}" + ("" if root.is_dir() else " (no such folder)") for root in candidates
        )
        raise DatasetLayoutError(f"{self.csv} not found; looked in\n{looked}\n{self.how_to_get}")


# ---- the table ----


def _every_split(template: str) -> dict[str, str]:
    return dict.fromkeys(SPLITS, template)


def _outside_train(train: str, others: str) -> dict[str, str]:
    return {split: train if split == "train" else others for split in SPLITS}


def _vct384(folder: str, frame: str, mask: str, wav: str) -> Layout:
    """What VCT's tools make of AVSBench-object, in {folder}_384: masks of 384 px in train alone."""
    data = f"{folder}_384"
    return Layout(
        name="vct384",
        description="VCT's 384 px frames, masks rebuilt from AVSBench-semantic",
        marker=f"{data}/visual_frames_384",
        frames=_every_split(f"{data}/visual_frames_384/{frame}.png"),
        masks=_outside_train(f"{data}/gt_masks_384/{mask}.png", f"{data}/gt_masks_224/{mask}.png"),
        pre_masks=(_every_split(f"{data}/pre_SAM_mask_384/{frame}_mask_color.png"),),
        wav=wav,
        mask_sizes=((224, 224),),
        ground_truth="AVSBench-semantic masks (non-black), as VCT rebuilds them",
    )


_FORM = (
    "AVSBench is obtained from its authors: fill in the form that "
    "https://github.com/OpenNLPLab/AVSBench links to, download"
)
_GENERATED = "Generated clips in the same layout need no download: avs-jax clips"
_OBJECT = (
    f"{_FORM} the AVSBench-object subset, unpack {{folder}} and pass its folder as manual_dir. The "
    "384 px variant is made from AVSBench-semantic by avs-jax data prepare. "
    f"{_GENERATED} {{flags}}"
)

S4_CATEGORIES = (  # label = position + 1, as VCT numbers them
    "helicopter", "mynah_bird_singing", "typing_on_computer_keyboard", "playing_violin",
    "playing_glockenspiel", "playing_piano", "lions_roaring", "baby_laughter", "male_speech",
    "lawn_mowing", "playing_ukulele", "playing_tabla", "driving_buses", "cap_gun_shooting",
    "chainsawing_trees", "playing_acoustic_guitar", "cat_meowing", "female_singing",
    "ambulance_siren", "dog_barking", "horse_clip-clop", "coyote_howling", "race_car",
)  # fmt: skip
_S4_CLIP = "{split}/{category}/{name}"
_S4_FRAME = f"{_S4_CLIP}/{{name}}_{{number}}"
_S4_WAV = f"s4_data/audio_wav/{_S4_CLIP}.wav"
S4 = Setting(
    name="s4",
    dataset="avsbench_s4",
    title="Single-source (S4)",
    folders=("Single-source",),
    csv="s4_meta_data.csv",
    columns={"name": "name", "split": "split", "category": "category"},
    required=("name", "category", "split"),
    num_frames={"": 5},
    first_only=frozenset({""}),
    layouts=(
        Layout(
            name="object224",
            description="AVSBench-object as released, 224 px frames and masks",
            marker="s4_data/visual_frames",
            frames=_every_split(f"s4_data/visual_frames/{_S4_FRAME}.png"),
            masks=_every_split(f"s4_data/gt_masks/{_S4_FRAME}.png"),
            pre_masks=tuple(
                _every_split(f"s4_data/{folder}/{_S4_FRAME}_mask_color.png")
                for folder in ("pre_SAM_mask", "pre_SAM_mask_224")
            ),
            wav=_S4_WAV,
            mask_sizes=(),
            ground_truth="AVSBench-object masks",
        ),
        _vct384("s4_data", frame=_S4_FRAME, mask=_S4_FRAME, wav=_S4_WAV),
    ),
    video=f"s4_data/raw_videos/{_S4_CLIP}.mp4",
    colored_masks="",
    flow=_S4_CLIP,
    predictions="{category}/{name}/{name}_{number}",
    flow_side=None,
    num_classes=2,
    categories=S4_CATEGORIES,
    num_clips={"train": 3452, "val": 740, "test": 740},
    how_to_get=_OBJECT.format(folder="Single-source", flags="--output=DIR"),
    object_masks=f"s4_data/object_masks/{_S4_FRAME}.png",
)

_MS3_FRAME = "{name}/{name}_{number}"
_MS3_WAV = "ms3_data/audio_wav/{split}/{name}.wav"
MS3 = Setting(
    name="ms3",
    dataset="avsbench_ms3",
    title="Multi-sources (MS3)",
    folders=("Multi-sources",),
    csv="ms3_meta_data.csv",
    columns={"name": "", "split": "split", "category": "a_obj"},
    required=("name", "split"),
    num_frames={"": 5},
    first_only=frozenset(),
    layouts=(
        Layout(
            name="object224",
            description="AVSBench-object as released, 224 px frames and masks",
            marker="ms3_data/visual_frames",
            frames=_every_split("ms3_data/visual_frames/{name}/{name}.mp4_{number}.png"),
            masks=_every_split(f"ms3_data/gt_masks/{{split}}/{_MS3_FRAME}.png"),
            pre_masks=tuple(
                _every_split(f"ms3_data/{folder}/{frame}_mask_color.png")
                for folder in ("pre_SAM_mask", "pre_SAM_mask_224")
                for frame in ("{name}/{name}.mp4_{number}", _MS3_FRAME)
            ),
            wav=_MS3_WAV,
            mask_sizes=(),
            ground_truth="AVSBench-object masks",
        ),
        _vct384("ms3_data", frame=_MS3_FRAME, mask=f"{{split}}/{_MS3_FRAME}", wav=_MS3_WAV),
    ),
    video="ms3_data/raw_videos/{name}.mp4",
    colored_masks="",
    flow="{split}/{name}",
    predictions=_MS3_FRAME,
    flow_side=None,
    num_classes=2,
    categories=(),
    num_clips={"train": 296, "val": 64, "test": 64},
    how_to_get=_OBJECT.format(folder="Multi-sources", flags="--setting=ms3 --output=DIR"),
)

_AVSS_CLIP = "{subset}/{name}"
_AVSS_FRAMES = f"{_AVSS_CLIP}/frames/{{t}}.jpg"
_AVSS_MASKS = f"{_AVSS_CLIP}/labels_semantic/{{t}}.png"
_AVSS_PRE_MASKS = f"pre_SAM_mask/AVSBench_semantic/{_AVSS_CLIP}/%s/{{t}}_mask_color.png"
AVSS = Setting(
    name="avss",
    dataset="avsbench_semantic",
    title="AVSBench-semantic (AVSS)",
    folders=("AVSBench_semantic", "AVSBench-semantic"),
    csv="metadata.csv",
    columns={"name": "uid", "split": "split", "subset": "label", "category": "a_obj"},
    required=("name", "split", "subset"),
    num_frames={"v1s": 5, "v1m": 5, "v2": 10},
    first_only=frozenset({"v1s"}),
    layouts=(
        Layout(
            name="original",
            description="As released: frames and masks at their own size",
            marker="v*/*/frames",
            frames=_every_split(_AVSS_FRAMES),
            masks=_every_split(_AVSS_MASKS),
            pre_masks=(_every_split(_AVSS_PRE_MASKS % "frames"),),
            wav=f"{_AVSS_CLIP}/audio.wav",
            mask_sizes=(),
            ground_truth="AVSBench-semantic masks",
        ),
        Layout(
            name="vct384",
            description=(
                "Training clips as released; 384 px frames and 224 px masks in val and test"
            ),
            marker="v*/*/processed_frames_384",
            frames=_outside_train(_AVSS_FRAMES, f"{_AVSS_CLIP}/processed_frames_384/{{t}}.jpg"),
            masks=_outside_train(_AVSS_MASKS, f"{_AVSS_CLIP}/processed_labels_semantic/{{t}}.png"),
            pre_masks=(
                _outside_train(
                    _AVSS_PRE_MASKS % "frames", _AVSS_PRE_MASKS % "processed_frames_384"
                ),
            ),
            wav=f"{_AVSS_CLIP}/audio.wav",
            mask_sizes=((224, 224),),
            ground_truth="AVSBench-semantic masks, resized to 224 px by VCT's tools",
        ),
    ),
    video="",
    colored_masks=f"{_AVSS_CLIP}/labels_rgb/{{t}}.png",
    flow="{split}/{name}",
    predictions="{name}/{t}",
    flow_side=384,
    num_classes=71,
    categories=(),
    num_clips={"train": 8498, "val": 1304, "test": 1554},
    how_to_get=(
        f"{_FORM} AVSBench-semantic, unpack it and pass the folder that holds metadata.csv as "
        f"manual_dir. {_GENERATED} --setting=avss --output=DIR"
    ),
)

SETTINGS = {setting.name: setting for setting in (S4, MS3, AVSS)}
BY_DATASET = {setting.dataset: setting for setting in (S4, MS3, AVSS)}

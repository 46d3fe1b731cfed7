"""AVSBench Single-source (S4): five-second clips with one sounding object, 23 categories.

Two layouts are read below the folder that holds s4_meta_data.csv (manual_dir itself, or its
subfolder Single-source):

  object224   s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
              s4_data/gt_masks/{split}/{category}/{name}/{name}_{1..5}.png          train: only _1
              s4_data/pre_SAM_mask/ or s4_data/pre_SAM_mask_224/, where there is one
  vct384      s4_data_384/visual_frames_384/...                                      as above
              s4_data_384/gt_masks_384/train/..., s4_data_384/gt_masks_224/{val,test}/...
              s4_data_384/pre_SAM_mask_384/, where there is one
  both        s4_data/audio_wav/{split}/{category}/{name}.wav

Colour masks are {name}_{k}_mask_color.png. Optional flow:
{flow_dir}/[s4/]{split}/{category}/{name}/flow_{t:04d}.npy.

Sources: AVSBench (repository OpenNLPLab/AVSBench) and VCT (repository spyflying/VCT_AVS,
generate_data_384). Departure from VCT: the clips of both layouts are those of the csv, not those
whose folders happen to exist.
"""

import collections
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
import tqdm

from tfds_builders import common

CATEGORIES = (  # label = position + 1, as VCT numbers them
    "helicopter", "mynah_bird_singing", "typing_on_computer_keyboard", "playing_violin",
    "playing_glockenspiel", "playing_piano", "lions_roaring", "baby_laughter", "male_speech",
    "lawn_mowing", "playing_ukulele", "playing_tabla", "driving_buses", "cap_gun_shooting",
    "chainsawing_trees", "playing_acoustic_guitar", "cat_meowing", "female_singing",
    "ambulance_siren", "dog_barking", "horse_clip-clop", "coyote_howling", "race_car",
)  # fmt: skip
SPLITS = ("train", "val", "test")
NUM_FRAMES = 5
CSV = "s4_meta_data.csv"
HOW_TO_GET = (
    "AVSBench is obtained from its authors: fill in the form that "
    "https://github.com/OpenNLPLab/AVSBench links to, download the AVSBench-object subset, unpack "
    "Single-source and pass its folder as manual_dir. The 384 px variant comes from VCT's "
    "generate_data_384 tools, run on AVSBench-semantic. Generated clips in the same layout need no "
    "download: python scripts/make_clips.py --output=DIR"
)


@dataclasses.dataclass
class BuilderConfig(tfds.core.BuilderConfig):
    """Where a layout keeps its images, below the folder of the csv.

    Attributes:
      frames: folder of the frames; masks: folder of each split's ground truth.
      pre_masks: folders that may hold the colour masks, the first that exists counts.
      mask_sizes: (width, height) that a mask may have besides its frame's.
      ground_truth: where the masks come from; reports name it.
    """

    frames: str = ""
    masks: dict[str, str] = dataclasses.field(default_factory=dict)
    pre_masks: tuple[str, ...] = ()
    mask_sizes: tuple[tuple[int, int], ...] = ()
    ground_truth: str = ""


OBJECT224 = BuilderConfig(
    name="object224",
    description="AVSBench-object as released, 224 px frames and masks",
    frames="s4_data/visual_frames",
    masks=dict.fromkeys(SPLITS, "s4_data/gt_masks"),
    pre_masks=("s4_data/pre_SAM_mask", "s4_data/pre_SAM_mask_224"),
    ground_truth="AVSBench-object masks",
)
VCT384 = BuilderConfig(
    name="vct384",
    description="VCT's 384 px frames, masks rebuilt from AVSBench-semantic",
    frames="s4_data_384/visual_frames_384",
    masks={
        "train": "s4_data_384/gt_masks_384",
        "val": "s4_data_384/gt_masks_224",
        "test": "s4_data_384/gt_masks_224",
    },
    pre_masks=("s4_data_384/pre_SAM_mask_384",),
    mask_sizes=((224, 224),),
    ground_truth="AVSBench-semantic masks (non-black), as VCT rebuilds them",
)


def find_root(manual_dir: str | os.PathLike) -> pathlib.Path:
    """The folder that holds the csv: manual_dir or its subfolder Single-source.

    Raises:
      common.DatasetLayoutError: naming the folders looked in and how AVSBench is obtained.
    """
    manual_dir = pathlib.Path(manual_dir).expanduser().absolute()
    candidates = [manual_dir, manual_dir / "Single-source"]
    for folder in candidates:
        if (folder / CSV).is_file():
            return folder
    looked = "\n".join(
        f"  {folder}" + ("" if folder.is_dir() else " (no such folder)") for folder in candidates
    )
    raise common.DatasetLayoutError(f"{CSV} not found; looked in\n{looked}\n{HOW_TO_GET}")


def layouts_present(root: pathlib.Path) -> list[str]:
    """Names of the builder configs whose frames are below `root`."""
    return [config.name for config in (OBJECT224, VCT384) if (root / config.frames).is_dir()]


class Builder(tfds.core.GeneratorBasedBuilder):
    """S4 as one raw record per clip (features: tfds_builders/common.py).

    Args:
      skip_bad: leave clips with missing or damaged files out, instead of failing.
      flow_dir: folder of stored flow, or None.
      **kwargs: of the base class (data_dir, config, version).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = HOW_TO_GET
    BUILDER_CONFIGS = [OBJECT224, VCT384]

    def __init__(
        self, *, skip_bad: bool = False, flow_dir: str | os.PathLike | None = None, **kwargs: Any
    ):
        self.skip_bad = skip_bad
        self.flow_dir = pathlib.Path(flow_dir).expanduser().absolute() if flow_dir else None
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return common.DatasetInfo(
            builder=self,
            description=f"AVSBench Single-source (S4). {self.builder_config.description}.",
            homepage="https://github.com/OpenNLPLab/AVSBench",
            features=common.record_features(),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # the order of the csv; readers shuffle by index
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        root = find_root(dl_manager.manual_dir)
        clips, row_problems = self._list_clips(root)
        everything = [clip for split in SPLITS for clip in clips[split]]
        checked = common.check_clips(everything)
        problems = row_problems + [line for lines in checked.bad.values() for line in lines]
        num_bad = len(row_problems) + len(checked.bad)
        if problems and not self.skip_bad:
            raise common.DatasetFilesError(problems, len(checked.good), num_bad)
        if not checked.good:
            raise common.DatasetFilesError(problems or [f"{root / CSV}: no clip"], 0, num_bad)
        is_generated = (root / "generated_clips.json").is_file()
        self.info.metadata.update(
            source=str(root),
            ground_truth="generated clips" if is_generated else self.builder_config.ground_truth,
            num_clips=len(checked.good),
            num_skipped=num_bad,
            skipped=problems,
            has_pre_masks=any(clip.pre_masks for clip in checked.good),
            flow_dir=str(self.flow_dir or ""),
            flow_kinds=checked.flow_kinds,
        )
        good = {clip.clip_id for clip in checked.good}
        kept = {split: [c for c in clips[split] if c.clip_id in good] for split in SPLITS}
        return {
            split: self._generate_examples(split, kept[split]) for split in SPLITS if kept[split]
        }

    def _generate_examples(
        self, split: str, clips: list[common.ClipFiles]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, clip in enumerate(tqdm.tqdm(clips, f"Writing {split}", unit="clip")):
            record, problems = common.read_clip(clip)
            if problems:  # the files changed since they were checked
                raise common.DatasetFilesError(problems, len(clips) - 1, 1)
            yield key, record

    def _list_clips(
        self, root: pathlib.Path
    ) -> tuple[dict[str, list[common.ClipFiles]], list[str]]:
        """Clips per split in the csv's order, and the rows that cannot be one."""
        config = self.builder_config
        if not (root / config.frames).is_dir():
            present = layouts_present(root)
            raise common.DatasetLayoutError(
                f"layout {config.name!r} needs {root / config.frames}, which is not there; "
                f"layouts found below {root}: {', '.join(present) or 'none'}\n{HOW_TO_GET}"
            )
        flow_root = self._flow_root()
        pre_masks = next((root / p for p in config.pre_masks if (root / p).is_dir()), None)
        visible = {}
        if (root / "generated_objects.json").is_file():
            visible = json.loads((root / "generated_objects.json").read_text())
        clips, problems, seen = collections.defaultdict(list), [], set()
        for line, row in _rows(root / CSV):
            problem = _row_problem(row, seen)
            if problem:
                problems.append(f"{root / CSV}, line {line}: {problem}")
                continue
            name, category, split = row["name"], row["category"], row["split"]
            seen.add(name)
            inner = pathlib.Path(split) / category / name
            numbers = range(1, NUM_FRAMES + 1)
            with_mask = (0,) if split == "train" else range(NUM_FRAMES)
            mask_dir = root / config.masks[split] / inner
            clips[split].append(
                common.ClipFiles(
                    clip_id=name,
                    category=category,
                    label=CATEGORIES.index(category) + 1,
                    frames=tuple(root / config.frames / inner / f"{name}_{k}.png" for k in numbers),
                    masks={t: mask_dir / f"{name}_{t + 1}.png" for t in with_mask},
                    pre_masks=tuple(
                        pre_masks / inner / f"{name}_{k}_mask_color.png" for k in numbers
                    )
                    if pre_masks
                    else (),
                    wav=root / "s4_data" / "audio_wav" / split / category / f"{name}.wav",
                    flow_dir=flow_root / inner if flow_root else None,
                    visible_labels=tuple(CATEGORIES.index(c) + 1 for c in visible.get(name, ())),
                    mask_sizes=config.mask_sizes,
                )
            )
        return clips, problems

    def _flow_root(self) -> pathlib.Path | None:
        """The folder that holds the splits' flow; an error where the one given holds none."""
        if self.flow_dir is None:
            return None
        for folder in (self.flow_dir / "s4", self.flow_dir):
            if any((folder / split).is_dir() for split in SPLITS):
                return folder
        raise common.DatasetLayoutError(
            f"no flow found: looked for {{{','.join(SPLITS)}}} in {self.flow_dir / 's4'} "
            f"and {self.flow_dir}"
        )


def _rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"name", "category", "split"} - set(reader.fieldnames or ())
        if missing:
            raise common.DatasetLayoutError(
                f"{path}: columns {reader.fieldnames}, expected name, start, category, split"
            )
        for row in reader:
            yield (
                reader.line_num,
                {key: (row[key] or "").strip() for key in ("name", "category", "split")},
            )


def _row_problem(row: dict[str, str], seen: set[str]) -> str:
    """What is wrong with a row of the csv; empty if nothing is."""
    if not common.safe_name(row["name"]):
        return f"name {row['name']!r} cannot be a file's"
    if row["name"] in seen:
        return f"{row['name']} is listed twice"
    if row["split"] not in SPLITS:
        return f"split {row['split']!r} of {row['name']} is none of {', '.join(SPLITS)}"
    if row["category"] not in CATEGORIES:
        return f"category {row['category']!r} of {row['name']} is none of the 23 of S4"
    return ""

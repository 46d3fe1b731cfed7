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

import pathlib
from collections.abc import Mapping

from tfds_builders import avsbench
from tfds_builders.avsbench import Layout, Row, every_split, vct384_layout

CATEGORIES = (  # label = position + 1, as VCT numbers them
    "helicopter", "mynah_bird_singing", "typing_on_computer_keyboard", "playing_violin",
    "playing_glockenspiel", "playing_piano", "lions_roaring", "baby_laughter", "male_speech",
    "lawn_mowing", "playing_ukulele", "playing_tabla", "driving_buses", "cap_gun_shooting",
    "chainsawing_trees", "playing_acoustic_guitar", "cat_meowing", "female_singing",
    "ambulance_siren", "dog_barking", "horse_clip-clop", "coyote_howling", "race_car",
)  # fmt: skip
NUM_FRAMES = 5
HOW_TO_GET = (
    "AVSBench is obtained from its authors: fill in the form that "
    "https://github.com/OpenNLPLab/AVSBench links to, download the AVSBench-object subset, unpack "
    "Single-source and pass its folder as manual_dir. The 384 px variant is made "
    "from AVSBench-semantic by scripts/prepare_avsbench.py prepare. Generated clips in the same "
    "layout need no download: python scripts/make_clips.py --output=DIR"
)
_CLIP = "{split}/{category}/{name}/{name}_{number}"
_WAV = "s4_data/audio_wav/{split}/{category}/{name}.wav"

OBJECT224 = Layout(
    name="object224",
    description="AVSBench-object as released, 224 px frames and masks",
    marker="s4_data/visual_frames",
    frames=every_split(f"s4_data/visual_frames/{_CLIP}.png"),
    masks=every_split(f"s4_data/gt_masks/{_CLIP}.png"),
    pre_masks=tuple(
        every_split(f"s4_data/{folder}/{_CLIP}_mask_color.png")
        for folder in ("pre_SAM_mask", "pre_SAM_mask_224")
    ),
    wav=_WAV,
    ground_truth="AVSBench-object masks",
)
VCT384 = vct384_layout("s4_data", frame=_CLIP, mask=_CLIP, wav=_WAV)


class Builder(avsbench.AVSBenchBuilder):
    """S4: every clip has one category; training clips have ground truth on their first frame."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HOW_TO_GET
    BUILDER_CONFIGS = [OBJECT224, VCT384]
    TITLE = "Single-source (S4)"
    CSV = "s4_meta_data.csv"
    COLUMNS = ("name", "category", "split")
    NAME = "name"
    FOLDERS = ("Single-source",)
    FLOW = ("s4", "{split}/{category}/{name}")
    EXPECTED = {"train": 3452, "val": 740, "test": 740}

    @classmethod
    def parse_row(cls, row: Mapping[str, str]) -> Row:
        """See the base class."""
        name, category, split = row["name"], row["category"], row["split"]
        if category not in CATEGORIES:
            raise ValueError(f"category {category!r} of {name} is none of the 23 of S4")
        return Row(
            name=name,
            split=split,
            num_frames=NUM_FRAMES,
            with_mask=(0,) if split == "train" else tuple(range(NUM_FRAMES)),
            category=category,
            label=CATEGORIES.index(category) + 1,
        )

    @classmethod
    def categories(cls, root: pathlib.Path) -> Mapping[str, int]:
        """See the base class."""
        return {name: number + 1 for number, name in enumerate(CATEGORIES)}

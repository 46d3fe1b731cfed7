"""AVSBench Multi-sources (MS3): five-second clips with several sounding objects, no categories.

Two layouts are read below the folder that holds ms3_meta_data.csv (manual_dir itself, or its
subfolder Multi-sources). Frames have no level for the split, and in AVSBench's own layout their
names hold ".mp4":

  object224   ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png
              ms3_data/gt_masks/{split}/{name}/{name}_{1..5}.png
              ms3_data/pre_SAM_mask/ or pre_SAM_mask_224/, where there is one:
              {name}/{name}.mp4_{k}_mask_color.png or {name}/{name}_{k}_mask_color.png
  vct384      ms3_data_384/visual_frames_384/{name}/{name}_{1..5}.png
              ms3_data_384/gt_masks_384/train/..., ms3_data_384/gt_masks_224/{val,test}/...
              ms3_data_384/pre_SAM_mask_384/{name}/..., where there is one
  both        ms3_data/audio_wav/{split}/{name}.wav

All five frames have ground truth, in every split. Optional flow:
{flow_dir}/[ms3/]{split}/{name}/flow_{t:04d}.npy.

The csv is read as AVSBench reads it: the clip by position (first column), the split by name. A
column a_obj, which generated clips have, becomes the category.

Sources: AVSBench (repository OpenNLPLab/AVSBench) and VCT (repository spyflying/VCT_AVS,
generate_data_384).
"""

import pathlib
from collections.abc import Mapping

from tfds_builders import avsbench
from tfds_builders.avsbench import Layout, Row, every_split, vct384_layout
from tfds_builders.avsbench_s4.avsbench_s4_dataset_builder import CATEGORIES

NUM_FRAMES = 5
HOW_TO_GET = (
    "AVSBench is obtained from its authors: fill in the form that "
    "https://github.com/OpenNLPLab/AVSBench links to, download the AVSBench-object subset, unpack "
    "Multi-sources and pass its folder as manual_dir. The 384 px variant is made from "
    "AVSBench-semantic by scripts/prepare_avsbench.py prepare. Generated clips in the same layout "
    "need no download: python scripts/make_clips.py --setting=ms3 --output=DIR"
)
_CLIP = "{name}/{name}_{number}"
_WAV = "ms3_data/audio_wav/{split}/{name}.wav"

OBJECT224 = Layout(
    name="object224",
    description="AVSBench-object as released, 224 px frames and masks",
    marker="ms3_data/visual_frames",
    frames=every_split("ms3_data/visual_frames/{name}/{name}.mp4_{number}.png"),
    masks=every_split(f"ms3_data/gt_masks/{{split}}/{_CLIP}.png"),
    pre_masks=tuple(
        every_split(f"ms3_data/{folder}/{clip}_mask_color.png")
        for folder in ("pre_SAM_mask", "pre_SAM_mask_224")
        for clip in ("{name}/{name}.mp4_{number}", _CLIP)
    ),
    wav=_WAV,
    ground_truth="AVSBench-object masks",
)
VCT384 = vct384_layout("ms3_data", frame=_CLIP, mask=f"{{split}}/{_CLIP}", wav=_WAV)


class Builder(avsbench.AVSBenchBuilder):
    """MS3: five frames, each with ground truth."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HOW_TO_GET
    BUILDER_CONFIGS = [OBJECT224, VCT384]
    TITLE = "Multi-sources (MS3)"
    CSV = "ms3_meta_data.csv"
    COLUMNS = ("split",)
    NAME = ""
    FOLDERS = ("Multi-sources",)
    FLOW = ("ms3", "{split}/{name}")
    EXPECTED = {"train": 296, "val": 64, "test": 64}

    @classmethod
    def parse_row(cls, row: Mapping[str, str]) -> Row:
        """See the base class."""
        every_frame = tuple(range(NUM_FRAMES))
        return Row(row["name"], row["split"], NUM_FRAMES, every_frame, row.get("a_obj", ""))

    @classmethod
    def categories(cls, root: pathlib.Path) -> Mapping[str, int]:
        """Those of S4, which generated clips use here too."""
        return {name: number + 1 for number, name in enumerate(CATEGORIES)}

"""AVSBench-semantic (AVSS): clips of 5 or 10 s, a class out of 71 for every pixel.

Read below the folder that holds metadata.csv and label2idx.json (manual_dir itself, or its
subfolder AVSBench_semantic or AVSBench-semantic); {subset} is the csv's column `label`:

  original    {subset}/{uid}/frames/{0..}.jpg                          of any size
              {subset}/{uid}/labels_semantic/{0..}.png                 class indices
              pre_SAM_mask/AVSBench_semantic/{subset}/{uid}/frames/{t}_mask_color.png
  vct384      train as above; val and test as VCT's tools leave them:
              {subset}/{uid}/processed_frames_384/{0..}.jpg
              {subset}/{uid}/processed_labels_semantic/{0..}.png       224 px
              pre_SAM_mask/AVSBench_semantic/{subset}/{uid}/processed_frames_384/...
  both        {subset}/{uid}/audio.wav

  subset   frames   ground truth
  v1s         5     train: frame 0; val, test: all      clips of S4
  v1m         5     all                                 clips of MS3
  v2         10     all                                 new clips

A record holds the frames that exist, 5 or 10, and the masks there are; readers pad. A class is the
position of its name in label2idx.json, background first (the values in that file are from 1 in some
copies). Optional flow: {flow_dir}/[avss/]{split}/{uid}/flow_{t:04d}.npy.

Sources: AVSBench (repository OpenNLPLab/AVSBench) and VCT (repository spyflying/VCT_AVS).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tfds_builders import avsbench, common
from tfds_builders.avsbench import SPLITS, Layout, Row, every_split

NUM_CLASSES = 71
NUM_FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}  # by subset
CLASSES = "label2idx.json"
HOW_TO_GET = (
    "AVSBench is obtained from its authors: fill in the form that "
    "https://github.com/OpenNLPLab/AVSBench links to, download AVSBench-semantic, unpack it and "
    "pass the folder that holds metadata.csv as manual_dir. Generated clips in the same layout "
    "need no download: python scripts/make_clips.py --setting=avss --output=DIR"
)
_CLIP = "{subset}/{name}"
_PRE_MASKS = f"pre_SAM_mask/AVSBench_semantic/{_CLIP}"
_FRAMES = f"{_CLIP}/frames/{{t}}.jpg"
COLOURED_MASKS = f"{_CLIP}/labels_rgb/{{t}}.png"
_MASKS = f"{_CLIP}/labels_semantic/{{t}}.png"


def _resized_outside_train(train: str, others: str) -> dict[str, str]:
    return {split: train if split == "train" else others for split in SPLITS}


ORIGINAL = Layout(
    name="original",
    description="As released: frames and masks at their own size",
    marker="v*/*/frames",
    frames=every_split(_FRAMES),
    masks=every_split(_MASKS),
    pre_masks=(every_split(f"{_PRE_MASKS}/frames/{{t}}_mask_color.png"),),
    wav=f"{_CLIP}/audio.wav",
    ground_truth="AVSBench-semantic masks",
)
VCT384 = Layout(
    name="vct384",
    description="Training clips as released; 384 px frames and 224 px masks in val and test",
    marker="v*/*/processed_frames_384",
    frames=_resized_outside_train(_FRAMES, f"{_CLIP}/processed_frames_384/{{t}}.jpg"),
    masks=_resized_outside_train(_MASKS, f"{_CLIP}/processed_labels_semantic/{{t}}.png"),
    pre_masks=(
        _resized_outside_train(
            f"{_PRE_MASKS}/frames/{{t}}_mask_color.png",
            f"{_PRE_MASKS}/processed_frames_384/{{t}}_mask_color.png",
        ),
    ),
    wav=f"{_CLIP}/audio.wav",
    mask_sizes=((224, 224),),
    ground_truth="AVSBench-semantic masks, resized to 224 px by VCT's tools",
)


class Builder(avsbench.AVSBenchBuilder):
    """AVSS: subset and split say how many frames there are and which have ground truth."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = HOW_TO_GET
    BUILDER_CONFIGS = [ORIGINAL, VCT384]
    TITLE = "AVSBench-semantic (AVSS)"
    CSV = "metadata.csv"
    COLUMNS = ("uid", "split", "label")
    NAME = "uid"
    FOLDERS = ("AVSBench_semantic", "AVSBench-semantic")
    FLOW = ("avss", "{split}/{name}")
    EXPECTED = {"train": 8498, "val": 1304, "test": 1554}
    NUM_CLASSES = NUM_CLASSES

    @classmethod
    def parse_row(cls, row: Mapping[str, str]) -> Row:
        """See the base class."""
        uid, subset, split = row["name"], row["label"], row["split"]
        if subset not in NUM_FRAMES:
            raise ValueError(f"label {subset!r} of {uid} is none of {', '.join(NUM_FRAMES)}")
        num_frames = NUM_FRAMES[subset]
        only_first = subset == "v1s" and split == "train"
        return Row(
            name=uid,
            split=split,
            num_frames=num_frames,
            with_mask=(0,) if only_first else tuple(range(num_frames)),
            category=row.get("a_obj", ""),
            subset=subset,
        )

    @classmethod
    def categories(cls, root: pathlib.Path) -> Mapping[str, int]:
        """Class of each name in label2idx.json: its position.

        Raises:
          common.DatasetLayoutError: the file is missing, or does not hold 71 names.
        """
        path = root / CLASSES
        try:
            names = list(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise common.DatasetLayoutError(f"{path}: {error}") from error
        if len(names) != NUM_CLASSES:
            raise common.DatasetLayoutError(f"{path}: {len(names)} classes, expected {NUM_CLASSES}")
        return {name: position for position, name in enumerate(names)}

    def _describe(self, root: pathlib.Path, *args: Any) -> None:
        super()._describe(root, *args)
        self.info.metadata["classes"] = list(self.categories(root))

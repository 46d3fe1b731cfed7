"""Queries on own videos, with own features: generated clips, windows derived from masks, anything.

manual_dir holds

  moments_{train,val,test}.jsonl   the format of QVHighlights (tfds_builders/moments.py)
  features/video/{vid}.npy         [n, d]; a row of features stands for `clip_seconds` (1 s where a
  features/text/{qid}.npy          [words, d]                                    line does not say)
  features/audio/{vid}.npy         [n, d]; the folder may be absent
  features/energy/{vid}.npy        [n, 1] log-RMS of the sound; likewise
  features/features.json           how they were made, if scripts/extract_features.py did it

scripts/derive_moments.py writes such annotations for clips of AVSBench. A line's `domain` names a
group of queries; an evaluation scores each group by itself, too.
"""

import pathlib
from typing import Any

from avs_jax.data.input_files import read_json
from tfds_builders.moments import Features, MomentBuilder, MomentLayout, MomentSetting
from tfds_builders.record_builder import make_configs

ANNOTATIONS = "moments_{split}.jsonl"
VIDEO, TEXT, AUDIO, ENERGY = (f"features/{kind}" for kind in ("video", "text", "audio", "energy"))
SETTINGS = "features/features.json"

FOLDER = MomentLayout(
    name="folder",
    description="A folder of annotations and features",
    annotations=(ANNOTATIONS,),
    video=(Features((VIDEO,), "{vid}.npy"),),
    text=Features((TEXT,), "{qid}.npy"),
    audio=Features((AUDIO,), "{vid}.npy"),
    energy=Features((ENERGY,), "{vid}.npy"),
    clip_seconds=1.0,
)


OWN_MOMENTS = MomentSetting(
    dataset="own_moments",
    title="Queries on own videos",
    layouts=(FOLDER,),
    how_to_get=(
        "Write moments_train.jsonl and the features of its queries and videos, or derive "
        "annotations from clips of AVSBench: python scripts/derive_moments.py --help"
    ),
)


class Builder(MomentBuilder):
    """Queries on own videos."""

    SETTING = OWN_MOMENTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = OWN_MOMENTS.how_to_get
    BUILDER_CONFIGS = make_configs(OWN_MOMENTS)

    def describe(self, root: pathlib.Path, *args: Any) -> dict[str, Any]:
        """Adds how the features were made, where it is known."""
        made = root / SETTINGS
        features = {"features": read_json(made)} if made.is_file() else {}
        return super().describe(root, *args) | features

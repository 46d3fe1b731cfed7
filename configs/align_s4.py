"""Frames, sound and text of AVSBench S4 in one space, from pretrained backbones.

Data:    avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/align_s4.py --workdir=DIR \
             --config.init.backbone=RESNET50 --config.init.audio_backbone=VGGISH
Weights: avs-jax convert --source=resnet50 and --source=vggish.
Not trained here; there is no published number for this split.
"""

from ml_collections import ConfigDict

from configs.align import align_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    return shrink(align_config(), variant)

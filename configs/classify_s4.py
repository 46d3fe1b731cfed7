"""The category of what sounds in a clip of AVSBench S4, from pretrained backbones.

Data:    avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/classify_s4.py --workdir=DIR \
             --config.init.backbone=RESNET50 --config.init.audio_backbone=VGGISH
Weights: avs-jax convert --source=resnet50 and --source=vggish, or a run of task align.
Not trained here; there is no published number for this split.
"""

from ml_collections import ConfigDict

from configs.classify import classify_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    return shrink(classify_config(), variant)

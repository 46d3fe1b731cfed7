"""Expressions for the objects of Ref-AVS, with a two-layer transformer; `:lstm` is the LSTM.

Data:    avs-jax data build --dataset=refavs --manual_dir=REFAVS \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/describe_refavs.py --workdir=DIR \
             --config.init.backbone=RESNET50 --config.init.audio_backbone=VGGISH
Not trained here; there is no published number for this task.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.base import check_variant
from configs.describe import describe_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "lstm", "demo", "tiny")
    config = describe_config()
    if variant == "lstm":
        config.name += "_lstm"
        config.model.decoder = parts.word_lstm()
        return config
    return shrink(config, variant)

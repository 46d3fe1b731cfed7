"""The category of what sounds in a clip of AVSBench S4, with TimeSformer for the frames.

Data:    avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/classify_timesformer.py --workdir=DIR \
             --config.init.audio_backbone=VGGISH
Not trained here. TimeSformer starts from random weights.
"""

from ml_collections import ConfigDict

from configs.classify import classify_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = classify_config()
    config.name = "classify_timesformer"
    del config.model["backbone"]
    del config.init["backbone"]
    config.model.timesformer = ConfigDict(
        {
            "num_frames": 8,  # that the positions in time are made for
            "image_size": 224,
            "patch_size": 16,
            "hidden_dim": 768,
            "num_layers": 12,
            "num_heads": 12,
            "ffn_dim": 3072,
        }
    )
    return shrink(config, variant)

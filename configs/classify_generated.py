"""The category of what sounds in generated clips: several objects are in the frame, one sounds.

Data:    avs-jax clips --setting=twins --kind=still --output=demo/clips_twins \
             --train=240 --val=60 --test=60 --size=96
         avs-jax data build --dataset=avsbench_s4 --manual_dir=demo/clips_twins \
             --data_dir=demo/tfds_twins
Command: avs-jax train --config=configs/classify_generated.py:demo --workdir=DIR
"""

from ml_collections import ConfigDict

from configs.classify import classify_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = classify_config()
    config.name = "classify_generated"
    shrink(config, variant)
    config.data.data_dir = "demo/tfds_twins"
    return config

"""Frames and sound of generated clips: what each object looks like and what it sounds like.

Data:    avs-jax clips --setting=twins --kind=still --output=demo/clips_twins \
             --train=240 --val=60 --test=60 --size=96
         avs-jax data build --dataset=avsbench_s4 --manual_dir=demo/clips_twins \
             --data_dir=demo/tfds_twins
Command: avs-jax train --config=configs/align_generated.py:demo --workdir=DIR
Nothing in a generated clip tells it from another one of its category, so a query should find its
category, and clips of one category are positives of each other.
"""

from ml_collections import ConfigDict

from configs.align import align_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = align_config()
    config.name = "align_generated"
    config.model.pairs = "av"
    config.loss.same_class = "positive"
    config.evaluate.relevant = "class"
    for section in (config.model, config.data, config.init):
        del section["text"]
    shrink(config, variant)
    config.data.data_dir = "demo/tfds_twins"
    return config

"""Expressions for the objects of generated clips: by look, by sound, by time.

Data:    python scripts/make_clips.py --setting=refer --output=demo/clips_refer
         python scripts/build_dataset.py --dataset=refavs --manual_dir=demo/clips_refer \
             --data_dir=demo/tfds
Command: python -m avs_jax.main --config=configs/describe_generated.py:demo --workdir=DIR
"""

from ml_collections import ConfigDict

from configs.describe import describe_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = describe_config()
    config.name = "describe_generated"
    return shrink(config, variant)

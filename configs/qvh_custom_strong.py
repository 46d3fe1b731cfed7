"""qvh_custom.py with gates that start at 0.77 instead of 0.66 (bias 1.8).

Data:    avs-jax data build --dataset=qvhighlights --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/qvh_custom_strong.py --workdir=DIR
Target: no published number: the fork's script for gates that collapse. Not trained here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.ground_config()
    config.name = "qvh_custom_strong"
    ground.add_sound(config, 2048)  # PANNs
    config.model.fusion = ground.custom("elementwise", bias=1.8)
    config.seed = 2018
    return ground.shrink(config, variant)

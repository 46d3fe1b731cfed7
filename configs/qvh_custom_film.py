"""qvh_custom.py with FiLM: the feed-forward branch is scaled and shifted.

Data:    avs-jax data build --dataset=qvhighlights --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/qvh_custom_film.py --workdir=DIR
Target: no published number; without gates it is another baseline than qvh_custom.py. Not trained
here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.ground_config()
    config.name = "qvh_custom_film"
    ground.add_sound(config, 2048)  # PANNs
    config.model.fusion = ground.custom("elementwise", film=True)
    config.seed = 2018
    return ground.shrink(config, variant)

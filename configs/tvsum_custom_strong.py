"""tvsum_custom.py with gates that start at 0.77 instead of 0.66 (bias 1.8).

Data:    avs-jax data build --dataset=tvsum/BK --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/tvsum_custom_strong.py --workdir=DIR \
             --config.data.dataset=tvsum/BT    # one run per domain
Target: no published number. Not trained here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.tvsum_config()
    config.name = "tvsum_custom_strong"
    ground.add_sound(config, 2048)  # PANNs
    config.model.fusion = ground.custom("elementwise", bias=1.8)
    return ground.shrink(config, variant)

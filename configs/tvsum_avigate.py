"""tvsum_qd_detr.py with AVIGATE's gated fusion of the sound.

Data:    avs-jax data build --dataset=tvsum/BK --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/tvsum_avigate.py --workdir=DIR \
             --config.data.dataset=tvsum/BT    # one run per domain
Target: no published number. Not trained here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.tvsum_config()
    config.name = "tvsum_avigate"
    ground.add_sound(config, 2048)  # PANNs
    config.model.fusion = ground.avigate()
    config.model.fusion.max_length = config.data.max_clips
    return ground.shrink(config, variant)

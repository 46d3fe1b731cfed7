"""QD-DETR on TVSum, video only: saliency alone.

Data:    avs-jax data build --dataset=tvsum/BK --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/tvsum_qd_detr.py --workdir=DIR \
             --config.data.dataset=tvsum/BT    # one run per domain
Target: top-5 mAP 85.0, mean over domains (reported; 86.6 with sound,
--config.data.audio_dim=2048). The reference takes the best epoch on the one validation video of a
domain, which is optimistic: report the last too. It runs seeds 0, 1, 2, 3 and 2017. Not trained
here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.tvsum_config()
    config.name = "tvsum_qd_detr"
    return ground.shrink(config, variant)

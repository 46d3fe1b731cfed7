"""QD-DETR on QVHighlights, video only (CVPR 2023).

Data:    avs-jax data build --dataset=qvhighlights --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/qvh_qd_detr.py --workdir=DIR
Target: val R1@0.5 62.90, R1@0.7 46.77, mAP 41.24 (the repository's own evaluation of its
published weights). With sound, --config.data.audio_dim=2048: 63.74, 47.74, 41.72; highlights
VeryGood mAP 39.34, HIT@1 65.03. Not trained here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.ground_config()
    config.name = "qvh_qd_detr"
    return ground.shrink(config, variant)

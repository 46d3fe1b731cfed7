"""QD-DETR on QVHighlights with AVIGATE's gated fusion of the sound.

Data:    avs-jax data build --dataset=qvhighlights --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/qvh_avigate.py --workdir=DIR
Target: no published number; AVIGATE (CVPR 2025) reports retrieval. The control is qvh_qd_detr.py
with --config.data.audio_dim=2048. Not trained here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.ground_config()
    config.name = "qvh_avigate"
    ground.add_sound(config, 2048)  # PANNs
    config.model.fusion = ground.avigate()
    return ground.shrink(config, variant)

"""QD-DETR on QVHighlights with the gates of its fork, one gate per channel and clip.

The fork calls them "custom" (commit dd81d7c; models/fusion/gated.py).

Data:    avs-jax data build --dataset=qvhighlights --manual_dir=DIR \
             --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/qvh_custom.py --workdir=DIR
Target: no published number. The recorded run is elementwise, input dropout 0.5, seed 2018, four
layers of four heads. Not trained here.
`:tiny` is the same recipe, as small as it can be, for tests.
"""

from ml_collections import ConfigDict

from configs import ground


def get_config(variant: str = "") -> ConfigDict:
    config = ground.ground_config()
    config.name = "qvh_custom"
    ground.add_sound(config, 2048)  # PANNs
    config.model.fusion = ground.custom("elementwise")
    config.seed = 2018
    return ground.shrink(config, variant)

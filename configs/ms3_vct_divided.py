"""VCT on AVSBench MS3 whose frames see each other: divided space-time attention on the last level.

Data:    as for ms3_vct.py.
Command: avs-jax train --config=configs/ms3_vct_divided.py --workdir=DIR \
             --config.train.init_from=S4_RUN
At first the encoder adds nothing, so the run starts from the masks of the checkpoint. Variants are
those of ms3_vct.py. Not trained on AVSBench; there is no published number.
"""

from ml_collections import ConfigDict

from configs import ms3_vct, parts


def recipe() -> ConfigDict:
    config = ms3_vct.recipe()
    config.name = "ms3_vct_divided"
    config.data.train_frames = "all"
    config.model.temporal = parts.divided()
    config.train.init_fresh = (r"temporal/.*",)  # an S4 run has no such encoder
    return config


def get_config(variant: str = "") -> ConfigDict:
    return ms3_vct.vary(recipe(), variant)

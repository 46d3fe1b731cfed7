"""VCT + AMA on AVSBench MS3, trained to mark nothing under a false sound; else ms3_ama.py.

Command: avs-jax train --config=configs/ms3_ama_robust.py --workdir=DIR \
             --config.train.init_from=S4_AMA_ROBUST_RUN --config.train.batch_size=4
MS3's table names no categories, so its clips have no off-screen partners: silence and noise alone.
Generated clips name theirs; add --config.data.false_sounds.types=silence,noise,offscreen for them.
Target: ours, as s4_ama_robust.py. Not trained on AVSBench yet.
`:demo` is a small version for generated clips, made as described in ms3_vct.py.
"""

from ml_collections import ConfigDict

from configs import ms3_vct
from configs.s4_ama import add_ama
from configs.s4_ama_robust import add_false_sounds


def get_config(variant: str = "") -> ConfigDict:
    config = add_false_sounds(add_ama(ms3_vct.recipe()))
    config.data.false_sounds.types = "silence,noise"
    return ms3_vct.vary(config, variant)

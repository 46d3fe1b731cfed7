"""VCT + AMA on AVSBench-semantic, trained to mark nothing under a false sound; else avss_ama.py.

Command: avs-jax train --config=configs/avss_ama_robust.py --workdir=DIR
Of the training clips, 30 % get silence, noise or an off-screen sound; their frames are all
background (avs_jax/controls/training_sounds.py). Who sounds in a clip is read from its masks, once,
before the first step.
Target: ours, as s4_ama_robust.py. Not trained on AVSBench yet.
`:demo` is a small version for generated clips, made as described in avss_vct.py.
"""

from ml_collections import ConfigDict

from configs import avss_vct
from configs.s4_ama import add_ama
from configs.s4_ama_robust import add_false_sounds
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_false_sounds(add_ama(avss_vct.recipe())), variant, avss_vct.DEMO)

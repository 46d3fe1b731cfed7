"""VCT + AMA on AVSBench S4, trained to mark nothing under a false sound; else s4_ama.py.

Command: avs-jax train --config=configs/s4_ama_robust.py --workdir=DIR
Of the training clips, 30 % get silence, noise or the sound of something that is not in the frame,
with an empty ground truth (avs_jax/controls/training_sounds.py).
Target: ours: with --audio=silence,noise,offscreen, at most 1 % of the pixels marked under each, and
a stream mIoU within 1 point of s4_ama.py's. Not trained on AVSBench yet.
`:demo` is a small version for generated clips (CONFIG=s4_ama_robust scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs import s4_vct
from configs.s4_ama import add_ama
from configs.segment import shrink


def add_false_sounds(config: ConfigDict) -> ConfigDict:
    """A recipe with false sounds in training."""
    config.name += "_robust"
    config.data.false_sounds.share = 0.3
    config.evaluate.audio = "silence,noise,offscreen"
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_false_sounds(add_ama(s4_vct.recipe())), variant)

"""VCT + AMA on AVSBench S4: s4_vct.py with motion, otherwise unchanged.

Command: avs-jax train --config=configs/s4_ama.py --workdir=DIR
Target: 85.18 mIoU, 92.75 F_beta on the test split (the authors' notes: RAFT flow, batch 4; with
frame difference 84.26 and 92.40).
`:demo` is a small version for generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs import parts, s4_vct
from configs.segment import shrink


def add_ama(config: ConfigDict) -> ConfigDict:
    """A VCT recipe with motion."""
    config.name = config.name.replace("vct", "ama")
    config.data.motion.source = "auto"
    config.model.fusion = parts.ama()
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(add_ama(s4_vct.recipe()), variant)

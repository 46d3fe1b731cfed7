"""VCT + AMA on AVSBench S4: s4_vct.py with motion, otherwise unchanged.

Weights: as s4_vct.py.
Command: avs-jax train --config=configs/s4_ama.py --workdir=DIR \
             --config.init.backbone=checkpoints/swin_b \
             --config.init.audio_backbone=checkpoints/vggish
Hardware: on one 80 GB GPU, batch 4 fits in float32 (the AMA authors' notes). On one H200, a step of
8 clips takes 0.125 s and 12.75 GiB in float32 (docs/versions.md).
Target: 85.18 mIoU, 92.75 F_beta on the test split (the AMA authors' notes: RAFT flow, batch 4; with
frame difference 84.26 and 92.40). The default batch here is 2: add --config.train.batch_size=4.
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

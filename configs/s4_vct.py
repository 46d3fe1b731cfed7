"""VCT on AVSBench S4, without motion: the baseline of s4_ama.py.

Weights: avs-jax convert --source=swin --input=swin_base_patch4_window12_384_22k.pth \
             --config=configs/s4_vct.py --output=checkpoints/swin_b
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/s4_vct.py --output=checkpoints/vggish
Command: avs-jax train --config=configs/s4_vct.py --workdir=DIR \
             --config.init.backbone=checkpoints/swin_b \
             --config.init.audio_backbone=checkpoints/vggish
Target: 86.2 mIoU, 93.4 F_beta on the test split (VCT's README; avsbench(batch=1), masks rebuilt
from AVSBench-semantic).
`:demo` is a small version for generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs.segment import segment_config, shrink


def recipe() -> ConfigDict:
    """The published recipe."""
    return segment_config()


def get_config(variant: str = "") -> ConfigDict:
    return shrink(recipe(), variant)

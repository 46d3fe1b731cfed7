"""VCT on AVSBench S4 with PVT-v2-b5, the other backbone of AVSBench's papers, instead of Swin-B.

Weights: avs-jax convert --source=pvt_v2 --input=pvt_v2_b5.pth \
             --config=configs/s4_vct_pvt_v2.py --output=checkpoints/pvt_v2_b5
Command: avs-jax train --config=configs/s4_vct_pvt_v2.py --workdir=DIR \
             --config.init.backbone=checkpoints/pvt_v2_b5
Hardware: 211 M parameters, 163 M of them in the two backbones (Swin-B: 174 M). Not timed here.
Target: none. VCT's published checkpoints use Swin-B, and this was not trained here.
`:demo` is a small version for generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs import parts, s4_vct
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    config = s4_vct.recipe()
    config.name = "s4_vct_pvt_v2"
    config.model.backbone = parts.pvt_v2()
    return shrink(config, variant)

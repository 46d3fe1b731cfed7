"""VCT on AVSBench S4 with SAM2's image encoder, Hiera and its feature pyramid, instead of Swin-B.

Weights: avs-jax convert --source=hiera_fpn --input=sam2.1_hiera_base_plus.pt \
             --config=configs/s4_vct_hiera.py --output=checkpoints/hiera_base_plus
Command: avs-jax train --config=configs/s4_vct_hiera.py --workdir=DIR \
             --config.init.backbone=checkpoints/hiera_base_plus
Hardware: 186 M parameters, 138 M of them in the two backbones (Swin-B: 174 M). Not timed here.
Target: none. VCT's published checkpoints use Swin-B, and this was not trained here.
`:demo` is a small version for generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs import parts, s4_vct
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    config = s4_vct.recipe()
    config.name = "s4_vct_hiera"
    config.model.backbone = parts.hiera_fpn("base_plus")
    return shrink(config, variant)

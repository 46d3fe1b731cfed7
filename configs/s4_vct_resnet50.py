"""VCT on AVSBench S4 with ResNet-50, the smaller backbone of AVSBench's papers.

Weights: avs-jax convert --source=resnet50 --input=resnet50-19c8e357.pth \
             --config=configs/s4_vct_resnet50.py --output=checkpoints/resnet50
Command: avs-jax train --config=configs/s4_vct_resnet50.py --workdir=DIR \
             --config.init.backbone=checkpoints/resnet50
Hardware: 96 M parameters, 47 M of them in the two backbones (Swin-B: 174 M). Not timed here.
Target: none. VCT's published checkpoints use Swin-B, and this was not trained here.
This recipe needs `init.backbone`: without pretrained statistics, the frozen norms are the identity.
`:demo` is a small version for generated clips (scripts/demo.sh), which trains the norms' scale and
bias.
"""

from ml_collections import ConfigDict

from configs import parts, s4_vct
from configs.segment import shrink


def get_config(variant: str = "") -> ConfigDict:
    config = s4_vct.recipe()
    config.name = "s4_vct_resnet50"
    config.model.backbone = parts.resnet50()
    # All of the norms is frozen, as in detectron2's FrozenBatchNorm2d.
    config.optim.frozen += (r"(pre_sam_)?backbone/(.*/)?(bn\d|downsample_1)/(scale|bias)",)
    return shrink(config, variant)

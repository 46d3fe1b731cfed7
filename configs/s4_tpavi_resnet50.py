"""TPAVI on AVSBench S4 with ResNet-50: the baseline of AVSBench.

Weights: avs-jax convert --source=resnet50 --input=resnet50-19c8e357.pth \
             --config=configs/s4_tpavi_resnet50.py --output=checkpoints/resnet50
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/s4_tpavi_resnet50.py --output=checkpoints/vggish_embedding
Command: avs-jax train --config=configs/s4_tpavi_resnet50.py --workdir=DIR \
             --config.init.backbone=checkpoints/resnet50 \
             --config.init.audio_backbone=checkpoints/vggish_embedding
Hardware: 68 M parameters and VGGish's 72 M, which are frozen. Not timed here.
Target: 72.79 mIoU, .848 F_beta on the test split (ECCV 2022 paper; quoted from memory,
not checked against it).
`:demo` is the same recipe, small, on generated clips (scripts/demo.sh); some sounds are false.
"""

from ml_collections import ConfigDict

from configs.tpavi import DEMO_OF_S4, shrink, tpavi_config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(tpavi_config("s4_tpavi_resnet50"), variant, DEMO_OF_S4)

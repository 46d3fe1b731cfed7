"""TPAVI on AVSBench S4 with PVT-v2-b5: the baseline of AVSBench.

Weights: avs-jax convert --source=pvt_v2 --input=pvt_v2_b5.pth \
             --config=configs/s4_tpavi_pvt_v2.py --output=checkpoints/pvt_v2
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/s4_tpavi_pvt_v2.py --output=checkpoints/vggish_embedding
Command: avs-jax train --config=configs/s4_tpavi_pvt_v2.py --workdir=DIR \
             --config.init.backbone=checkpoints/pvt_v2 \
             --config.init.audio_backbone=checkpoints/vggish_embedding
Hardware: 100 M parameters and VGGish's 72 M, which are frozen. Not timed here.
Target: 78.74 mIoU, .879 F_beta on the test split (ECCV 2022 paper; quoted from memory,
not checked against it).
`:demo` is the same recipe, small, on generated clips (scripts/demo.sh); some sounds are false.
"""

from ml_collections import ConfigDict

from configs.tpavi import DEMO_OF_S4, pvt_v2, shrink, tpavi_config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(pvt_v2(tpavi_config("s4_tpavi_pvt_v2")), variant, DEMO_OF_S4)

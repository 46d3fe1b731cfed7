"""TPAVI on AVSBench MS3 with PVT-v2-b5: the baseline of AVSBench.

Data:    avs-jax data build --dataset=avsbench_ms3 --manual_dir=Multi-sources \
             --data_dir=~/tensorflow_datasets
Weights: avs-jax convert --source=pvt_v2 --input=pvt_v2_b5.pth \
             --config=configs/ms3_tpavi_pvt_v2.py --output=checkpoints/pvt_v2
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/ms3_tpavi_pvt_v2.py --output=checkpoints/vggish_embedding
Command: avs-jax train --config=configs/ms3_tpavi_pvt_v2.py --workdir=DIR \
             --config.init.backbone=checkpoints/pvt_v2 \
             --config.init.audio_backbone=checkpoints/vggish_embedding
         --config.train.init_from=S4_RUN starts from S4, as the paper's second row does.
Hardware: 100 M parameters and VGGish's 72 M, which are frozen. Not timed here.
Target: 54.00 mIoU, .645 F_beta on the test split (ECCV 2022 paper; quoted from memory,
not checked against it).
loss_av is a sum over frames (reduction "sum"): a larger batch gives it more weight.
`:demo` is the same recipe, small, on generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs import ms3_tpavi_resnet50
from configs.tpavi import pvt_v2, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = pvt_v2(ms3_tpavi_resnet50.recipe("ms3_tpavi_pvt_v2"))
    return shrink(config, variant, ms3_tpavi_resnet50.DEMO)

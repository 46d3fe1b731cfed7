"""TPAVI on AVSBench-semantic (AVSS) with PVT-v2-b5: the baseline of AVSBench.

Data:    avs-jax data build --dataset=avsbench_semantic \
             --manual_dir=AVSBench_semantic --data_dir=~/tensorflow_datasets
Weights: avs-jax convert --source=pvt_v2 --input=pvt_v2_b5.pth \
             --config=configs/avss_tpavi_pvt_v2.py --output=checkpoints/pvt_v2
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/avss_tpavi_pvt_v2.py --output=checkpoints/vggish_embedding
Command: avs-jax train --config=configs/avss_tpavi_pvt_v2.py --workdir=DIR \
             --config.init.backbone=checkpoints/pvt_v2 \
             --config.init.audio_backbone=checkpoints/vggish_embedding
Hardware: 100 M parameters and VGGish's 72 M, which are frozen. Not timed here.
Target: 29.77 mIoU, .352 F_beta on the test split (as CAVP's README quotes the
IJCV 2024 paper).
Padded frames count in the batch statistics of the training, as in the original;
--config.model.padded_in_statistics=False leaves them out.
`:demo` is the same recipe, small, on generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs import avss_tpavi_resnet50
from configs.tpavi import pvt_v2, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = pvt_v2(avss_tpavi_resnet50.recipe("avss_tpavi_pvt_v2"))
    return shrink(config, variant, avss_tpavi_resnet50.DEMO)

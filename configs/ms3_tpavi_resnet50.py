"""TPAVI on AVSBench MS3 with ResNet-50: the baseline of AVSBench.

Data:    avs-jax data build --dataset=avsbench_ms3 --manual_dir=Multi-sources \
             --data_dir=~/tensorflow_datasets
Weights: avs-jax convert --source=resnet50 --input=resnet50-19c8e357.pth \
             --config=configs/ms3_tpavi_resnet50.py --output=checkpoints/resnet50
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/ms3_tpavi_resnet50.py --output=checkpoints/vggish_embedding
Command: avs-jax train --config=configs/ms3_tpavi_resnet50.py --workdir=DIR \
             --config.init.backbone=checkpoints/resnet50 \
             --config.init.audio_backbone=checkpoints/vggish_embedding
         --config.train.init_from=S4_RUN starts from S4, as the paper's second row does.
Hardware: 68 M parameters and VGGish's 72 M, which are frozen. Not timed here.
Target: 47.88 mIoU, .578 F_beta on the test split (ECCV 2022 paper; quoted from memory,
not checked against it).
loss_av is a sum over frames (reduction "sum"): a larger batch gives it more weight.
`:demo` is the same recipe, small, on generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs.tpavi import set_epochs, shrink, tpavi_config

DEMO = {"train.batch_size": 4, "train.steps": 1500, "train.eval_every": 500}


def recipe(name: str) -> ConfigDict:
    """The published recipe, ResNet-50."""
    config = tpavi_config(name)
    config.data.dataset = "avsbench_ms3"
    config.data.num_supervised = 5
    config.loss.av.kind = "masked"
    config.loss.av.reduction = "sum"
    set_epochs(config, clips=296, epochs=30)
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(recipe("ms3_tpavi_resnet50"), variant, DEMO)

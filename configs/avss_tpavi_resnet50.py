"""TPAVI on AVSBench-semantic (AVSS) with ResNet-50: the baseline of AVSBench.

Data:    avs-jax data build --dataset=avsbench_semantic \
             --manual_dir=AVSBench_semantic --data_dir=~/tensorflow_datasets
Weights: avs-jax convert --source=resnet50 --input=resnet50-19c8e357.pth \
             --config=configs/avss_tpavi_resnet50.py --output=checkpoints/resnet50
         avs-jax convert --source=vggish --input=vggish-10086976.pth \
             --config=configs/avss_tpavi_resnet50.py --output=checkpoints/vggish_embedding
Command: avs-jax train --config=configs/avss_tpavi_resnet50.py --workdir=DIR \
             --config.init.backbone=checkpoints/resnet50 \
             --config.init.audio_backbone=checkpoints/vggish_embedding
Hardware: 68 M parameters and VGGish's 72 M, which are frozen. Not timed here.
Target: 20.18 mIoU, .252 F_beta on the test split (as CAVP's README quotes the
IJCV 2024 paper).
Padded frames count in the batch statistics of the training, as in the original;
--config.model.padded_in_statistics=False leaves them out.
`:demo` is the same recipe, small, on generated clips (scripts/demo.sh).
"""

from ml_collections import ConfigDict

from configs.tpavi import set_epochs, shrink, tpavi_config

DEMO = {
    "data.max_targets": 5,  # four objects and the background
    "train.batch_size": 4,
    "train.steps": 4000,
    "train.eval_every": 1000,
    # it starts from the S4 demo, which has other classes and this bias
    "train.init_fresh": (r"output_conv_4/.*",),
    "train.init_dropped": (r"tpavi_b\d/align_channel/bias",),
    "evaluate.batch_size": 4,
}


def recipe(name: str) -> ConfigDict:
    """The published recipe, ResNet-50."""
    config = tpavi_config(name)
    config.data.dataset = "avsbench_semantic"
    config.data.num_frames = 10
    config.data.num_supervised = 10
    config.data.num_classes = 71
    config.data.max_targets = 8  # `avs-jax data check` says how many a download needs
    config.data.short_audio = "zeros"
    config.model.tpavi_audio_bias = False
    config.model.padded_in_statistics = True
    config.loss.av.kind = "masked"
    set_epochs(config, clips=8498, epochs=60, eval_epochs=2)
    return config


def get_config(variant: str = "") -> ConfigDict:
    return shrink(recipe("avss_tpavi_resnet50"), variant, DEMO)

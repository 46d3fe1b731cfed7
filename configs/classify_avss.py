"""The classes of what sounds in a clip of AVSBench-semantic, any number of 70.

Data:    avs-jax data build --dataset=avsbench_semantic \
             --manual_dir=AVSBench_semantic --data_dir=~/tensorflow_datasets
Command: avs-jax train --config=configs/classify_avss.py --workdir=DIR \
             --config.init.backbone=RESNET50 --config.init.audio_backbone=VGGISH
The classes of a clip are those of its masks. Not trained here.
"""

from ml_collections import ConfigDict

from configs.classify import classify_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = classify_config()
    config.name = "classify_avss"
    config.data.update(dataset="avsbench_semantic", num_frames=10, short_audio="zeros")
    config.data.update(labels="masks", num_classes=71, class_names=())
    config.loss.smoothing = 0.0
    return shrink(config, variant)

"""Frames and sound of MS3 in one space, with the towers of ms3_vct.py, which they can start.

Data:    as for ms3_vct.py; masks are not read
Command: avs-jax train --config=configs/align_ms3.py --workdir=DIR \
             --config.init.backbone=SWIN --config.init.audio_backbone=VGGISH
Then:    avs-jax train --config=configs/ms3_vct.py --workdir=RUN \
             --config.init.backbone=DIR --config.init.audio_backbone=DIR
`:demo` is for generated clips; scripts/study_alignment.py compares what it is good for.
Not trained on MS3 here. Several objects sound in a clip and each falls silent for a while, so a
clip's vector is that of all its seconds.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.align import align_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = align_config()
    config.name = "align_ms3"
    config.data.dataset = "avsbench_ms3"
    config.model.pairs = "av"
    config.model.backbone = parts.swin()
    config.model.levels = ("res4", "res5")
    config.train.batch_size = 16
    for section in (config.model, config.data, config.init):
        del section["text"]
    shrink(config, variant)
    config.data.train_frames = 5
    if variant == "demo":
        config.data.image_size = 96
        config.data.augment.update(min_sizes=(80, 96, 112, 128), max_size=192)
        config.train.update(steps=600, batch_size=16, eval_every=200)
    return config

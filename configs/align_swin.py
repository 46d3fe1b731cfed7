"""Frames and sound of S4 in one space, with the towers of s4_vct.py and ms3_vct.py.

A run of either can start from these towers.

Data:    as for s4_vct.py; masks are not read
Command: avs-jax train --config=configs/align_swin.py --workdir=DIR \
             --config.init.backbone=SWIN --config.init.audio_backbone=VGGISH
Then:    avs-jax train --config=configs/ms3_vct.py --workdir=RUN \
             --config.init.backbone=DIR --config.init.audio_backbone=DIR
`:demo` is for generated clips, as that of align_generated.py; scripts/study_alignment.py compares
what it is good for. Not trained on S4 here.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.align import align_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = align_config()
    config.name = "align_swin"
    config.model.pairs = "av"
    config.model.backbone = parts.swin()
    config.model.levels = ("res4", "res5")
    for section in (config.model, config.data, config.init):
        del section["text"]
    shrink(config, variant)
    if variant == "demo":
        config.loss.same_class = "positive"
        config.evaluate.relevant = "class"
        config.data.image_size = 96
        config.data.augment.update(min_sizes=(80, 96, 112, 128), max_size=192)
        config.train.eval_every = 100
    return config

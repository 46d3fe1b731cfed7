"""Expressions for the objects of generated clips: by look, by sound, by time.

Data:    python scripts/make_clips.py --setting=refer --output=demo/clips_refer
         python scripts/build_dataset.py --dataset=refavs --manual_dir=demo/clips_refer \
             --data_dir=demo/tfds
Command: python -m avs_jax.main --config=configs/describe_generated.py:demo --workdir=DIR \
             --config.init.backbone=RUN --config.init.audio_backbone=RUN
RUN is a run of refer_cma.py:demo, whose backbones tell shapes and sounds apart; they are frozen.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.describe import describe_config, shrink


def get_config(variant: str = "") -> ConfigDict:
    config = describe_config()
    config.name = "describe_generated"
    config = shrink(config, variant)
    if variant == "demo":
        config.model.backbone = parts.swin()
        config.model.backbone.update(parts.demo_backbone(config.model.backbone))
        config.data.image_size = 96  # as in the backbone's run
        config.data.augment.min_sizes = (96,)
        config.optim.frozen = (r"(backbone|audio_backbone)/.*",)
        config.train.batch_size = 8
        config.train.steps = 1000  # after 600, half of the descriptions fit another object, too
        config.train.eval_every = 1000
        config.model.cells = "res4"  # what else is there: a color is no description of one of two
        # Means prefer long expressions, such as "the red one that makes no sound".
        config.model.length_power = 0.0
    return config

"""What the tasks on the frames and the sound of a whole clip share: align, classify, describe.

Their files start from `clip_config()` and add the keys of their model and loss.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.base import base_config, shrink_run_to_tiny


def clip_config(name: str, task: str) -> ConfigDict:
    """A run on AVSBench S4 with a ResNet-50 for frames and VGGish for sound, without a loss."""
    config = base_config()
    config.name = name
    config.task = task

    # ---- data: clips to rows ----
    data = config.data
    data.dataset = "avsbench_s4"
    data.image_size = 224  # px per side; of `describe`, a multiple of 32
    data.num_frames = 5  # T of a whole clip
    data.short_audio = "repeat"  # missing log-mels: "repeat" the last | "zeros"
    data.augment = ConfigDict()  # of the frames (and masks) of a clip alike; data/transforms.py
    data.augment.min_sizes = (224, 240, 256, 288, 320)
    data.augment.max_size = 640
    data.augment.crop = True
    data.augment.color = True
    data.augment.flip = 0.5

    # ---- towers ----
    model = config.model = ConfigDict()
    model.backbone = parts.resnet50()
    model.audio_backbone = parts.vggish()  # or, of `align`, parts.ast()
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std
    model.audio_std = 1.0
    model.dtype = "float32"

    # ---- optimizer ----
    optim = config.optim
    optim.learning_rate = 1e-4
    optim.weight_decay = 0.05
    optim.clip_norm = 1.0
    optim.warmup_steps = 200
    optim.groups = ((r".*/(scale|bias)", 1.0, 0.0), (r".*", 1.0, 1.0))

    # ---- pretrained towers: folders of converted weights, or runs with the same tower ----
    config.init.backbone = ""
    config.init.audio_backbone = ""

    # ---- training and evaluation ----
    config.train.batch_size = 32
    config.train.num_pictures = 0
    config.evaluate.batch_size = 16
    config.evaluate.num_pictures = 0
    return config


def shrink_for_demo(config: ConfigDict) -> None:
    """`:demo`: small towers from scratch, for two cores and generated clips."""
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.image_size = 64
    config.data.augment.update(min_sizes=(64, 72, 80), max_size=160, color=False)
    model = config.model
    if "backbone" in model:
        model.backbone.update(parts.demo_backbone(model.backbone))
    if "audio_backbone" in model:
        model.audio_backbone.width = 16
        model.update(audio_mean=-1.4, audio_std=1.85)  # of the generated clips
    config.optim.update(learning_rate=1e-3, warmup_steps=50)


def shrink_to_tiny(config: ConfigDict) -> None:
    """`:tiny`: the smallest towers, quick to compile; they learn nothing useful."""
    shrink_run_to_tiny(config)
    config.data.image_size = 32
    config.data.augment.min_sizes = (32, 40)
    model = config.model
    if "backbone" in model:
        model.backbone.update(parts.tiny_backbone(model.backbone))
    if "audio_backbone" in model:
        model.audio_backbone.width = 2
    config.evaluate.batch_size = 8

"""Host "tpavi" of task `segment`: the keys that differ from configs/segment.py, and its variants.

The values are the published S4 recipe of AVSBench with ResNet-50 (OpenNLPLab/AVSBench, avs_s4:
train.py and train.sh). Departure: AVSS trains on frames resized to a square, as it is evaluated;
the original resizes the short side and crops the center.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import parts
from configs.base import check_variant, shrink_run_to_tiny
from configs.segment import segment_config


def tpavi_config(name: str) -> ConfigDict:
    """S4, ResNet-50."""
    config = segment_config()
    config.name = name
    config.host = "tpavi"
    config.seed = 123  # the original's

    data = config.data
    data.image_size = 224
    data.train_frames = "all"  # frames meet; which of them have ground truth decides the loss
    data.prototype_target = "none"
    data.num_prototypes = 0
    data.pre_masks = False
    data.square_first = True
    data.augment.min_sizes = (224,)  # no augmentation
    data.augment.crop = False
    data.augment.color = False
    data.augment.flip = 0.0

    config.model = _model(data)
    config.loss = _loss()
    config.optim.update(
        learning_rate=1e-4,
        weight_decay=0.0,
        clip_norm=0.0,
        power=0.0,  # constant
        groups=((r".*", 1.0, 1.0),),
        frozen=(r"audio_backbone/.*",),
    )
    config.init = ConfigDict()
    config.init.backbone = ""  # folder of --source=resnet50 or pvt_v2; "": stays as it is
    config.init.audio_backbone = ""  # folder of --source=vggish
    set_epochs(config, clips=3452, epochs=15)
    config.evaluate.batch_size = 4
    return config


def _model(data: ConfigDict) -> ConfigDict:
    """Keys are the fields of avs_jax.models.tpavi.TPAVI."""
    model = ConfigDict()
    model.num_classes = data.get_ref("num_classes")
    model.hidden_dim = 256  # channels after the backbone
    model.backbone = parts.resnet50()  # or pvt_v2, swin
    model.backbone.trained_norms = True  # with the statistics of the batch
    model.audio_backbone = parts.vggish()
    model.audio_backbone.embedding = (4096, 4096, 128)  # widths of its linear layers
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std; 0 and 1 are the original's
    model.audio_std = 1.0
    model.tpavi_stages = (0, 1, 2, 3)  # with a TPAVI block, strides 4 to 32; (): none
    model.tpavi_mode = "dot"  # "dot" | "embedded" | "gaussian" | "concatenate"
    model.tpavi_va = True  # pixels attend to the sounds
    model.tpavi_vv = False  # pixels attend to pixels; with both, the mean
    model.tpavi_audio_bias = True  # of the audio projection; AVSS has none
    model.attention_frames = 5  # frames that attend to each other; AVSS has two groups of 5
    # training: padded frames count in attention and batch statistics, as in the original
    model.padded_in_statistics = False
    # what the backward pass recomputes instead of keeping: "none" | "backbone", its blocks | "all",
    # the convolutions after it too
    model.remat = "none"
    model.dtype = "float32"  # of compute; parameters are float32
    return model


def _loss() -> ConfigDict:
    """Keys of avs_jax/losses/tpavi.py."""
    loss = ConfigDict()
    loss.av = ConfigDict()  # audio against masked vision
    # "none" | "cosine" | "masked" | "neighbor": what is compared with what, see the file
    loss.av.kind = "none"
    loss.av.weight = 0.5
    loss.av.stages = (0, 1, 2, 3)
    loss.av.distance = "kl"  # of "masked" and "neighbor": "kl" | "euclidean"
    loss.av.mask_pooling = "avg"  # of the mask to the size of a stage: "avg" | "max"
    loss.av.normalize = False  # both to unit length first
    loss.av.threshold = False  # "masked": pixels above 0.5 only
    loss.av.reduction = "mean"  # of "kl" over frames: "mean" (AVSS) | "sum" (MS3)
    loss.av.frames = "supervised"  # that are compared: "supervised" | "valid"
    return loss


# In a demo of S4 the audio is trained from scratch, and a block lets it in slowly: the norm of what
# it adds starts at scale 0. Clips whose sound is false, and whose truth is empty, open it.
DEMO_OF_S4 = {"data.false_sounds.share": 0.4}


def pvt_v2(config: ConfigDict) -> ConfigDict:
    """The same with PVT-v2-b5."""
    config.model.backbone = parts.pvt_v2()
    return config


def set_epochs(config: ConfigDict, clips: int, epochs: int, eval_epochs: int = 1) -> None:
    """Batch 4, for a number of epochs of a training split, evaluated every `eval_epochs`."""
    config.train.batch_size = 4
    epoch = clips // config.train.batch_size
    config.train.steps = epochs * epoch
    config.train.eval_every = eval_epochs * epoch
    config.train.checkpoint_every = eval_epochs * epoch


def shrink(config: ConfigDict, variant: str, demo: Mapping[str, Any] | None = None) -> ConfigDict:
    """The recipe itself, or its variant `:demo` or `:tiny`.

    Args:
      demo: key -> value that the demo of this recipe has in place of `_shrink_for_demo`'s.
    """
    check_variant(variant, "demo", "tiny")
    if variant in ("demo", "tiny"):
        _shrink_for_demo(config)
        config.update_from_flattened_dict(demo or {})
    if variant == "tiny":
        _shrink_to_tiny(config)
    return config


def _shrink_for_demo(config: ConfigDict) -> None:
    """Small enough for two cores and generated clips; from scratch, audio included."""
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.image_size = 64
    config.data.augment.min_sizes = (56, 64, 72, 80)
    config.data.augment.crop = True
    config.data.augment.color = True
    config.data.augment.flip = 0.5
    config.model.hidden_dim = 32
    config.model.backbone.update(parts.demo_backbone(config.model.backbone))
    config.model.audio_backbone.width = 8
    config.model.audio_backbone.embedding = (128,)
    config.model.audio_mean = -1.4  # of the generated clips
    config.model.audio_std = 1.85
    config.optim.learning_rate = 8e-4
    config.optim.clip_norm = 0.1
    config.optim.warmup_steps = 50
    config.optim.power = 0.9
    config.optim.groups = ((r"tpavi_b\d/W_z_1/scale", 10.0, 1.0), (r".*", 1.0, 1.0))
    config.optim.frozen = ()
    config.train.steps = 1500
    config.train.batch_size = 8
    config.train.eval_every = 500
    config.train.checkpoint_every = 300
    config.evaluate.batch_size = 8


def _shrink_to_tiny(config: ConfigDict) -> None:
    """One layer of everything at 64 px, quick to compile, for tests; it learns nothing."""
    shrink_run_to_tiny(config)
    config.data.image_size = 64
    config.data.augment.min_sizes = (64,)
    config.model.hidden_dim = 8
    config.model.backbone.update(parts.tiny_backbone(config.model.backbone))
    config.model.audio_backbone.width = 2
    config.model.audio_backbone.embedding = (16, 128)
    config.train.num_pictures = 1
    config.evaluate.score_size = 32

"""Task `classify`: its keys, once, with their meaning. The values are for AVSBench S4.

Recipes start from `classify_config()` and change what differs.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.base import base_config, shrink_run_to_tiny, vary

CATEGORIES = (  # of AVSBench S4, by label
    "helicopter", "mynah_bird_singing", "typing_on_computer_keyboard", "playing_violin",
    "playing_glockenspiel", "playing_piano", "lions_roaring", "baby_laughter", "male_speech",
    "lawn_mowing", "playing_ukulele", "playing_tabla", "driving_buses", "cap_gun_shooting",
    "chainsawing_trees", "playing_acoustic_guitar", "cat_meowing", "female_singing",
    "ambulance_siren", "dog_barking", "horse_clip-clop", "coyote_howling", "race_car",
)  # fmt: skip


def classify_config() -> ConfigDict:
    """The 23 categories of S4: ResNet-50 and VGGish, a gated fusion."""
    config = base_config()
    config.name = "classify_s4"
    config.task = "classify"

    # ---- data: clips to rows; see avs_jax/data/labeled_clips.py ----
    data = config.data
    data.dataset = "avsbench_s4"
    data.image_size = 224  # px per side
    data.num_frames = 5  # T of a whole clip
    data.train_frames = 5  # seconds of a clip in a training step, drawn every epoch
    data.short_audio = "repeat"  # missing log-mels: "repeat" the last | "zeros"
    # classes of a clip: its "category", one | those of its "masks", any number
    data.labels = "category"
    data.num_classes = len(CATEGORIES)  # K
    data.class_names = CATEGORIES  # (): those that the records name
    data.augment = ConfigDict()  # of the frames of a clip alike; data/transforms.py
    data.augment.min_sizes = (224, 240, 256, 288, 320)
    data.augment.max_size = 640
    data.augment.crop = True
    data.augment.color = True
    data.augment.flip = 0.5

    # ---- model: keys are the fields of avs_jax.models.classify.Classify ----
    model = config.model = ConfigDict()
    model.num_classes = data.get_ref("num_classes")
    model.backbone = parts.resnet50()  # or model.timesformer
    model.audio_backbone = parts.vggish()
    # "early" | "late_feature" | "late_logit" | "attention" | "gated" | "film" | "cross"
    model.av_fusion = "gated"
    model.hidden_dim = 512  # of the features that are fused
    model.num_heads = 4  # of "gated" and "cross"
    model.dropout = 0.5  # of these features
    model.modality_dropout = 0.1  # training: share of clips without their frames or their sound
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std
    model.audio_std = 1.0
    model.dtype = "float32"

    # ---- loss: avs_jax/losses/classification.py ----
    loss = config.loss = ConfigDict()
    loss.smoothing = 0.1  # of labels; 0.0 with several classes
    loss.single_weight = 0.5  # of the classifiers of frames alone and of sound alone

    # ---- optimizer ----
    optim = config.optim
    optim.learning_rate = 1e-4
    optim.weight_decay = 0.05
    optim.clip_norm = 1.0
    optim.warmup_steps = 200
    optim.groups = (
        (r"head/balance", 1.0, 0.0),
        (r".*/(scale|bias)", 1.0, 0.0),
        (r".*", 1.0, 1.0),
    )

    # ---- pretrained components: folders of converted weights, or runs of task align ----
    config.init.backbone = ""
    config.init.audio_backbone = ""

    # ---- training ----
    config.train.steps = 6000
    config.train.batch_size = 32
    config.train.num_pictures = 0

    # ---- evaluation ----
    evaluate = config.evaluate
    evaluate.batch_size = 16
    evaluate.num_pictures = 0
    evaluate.missing_modalities = True  # also score clips without their sound, and without frames
    return config


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`."""
    return vary(config, variant, _shrink_for_demo, _shrink_to_tiny)


def _shrink_for_demo(config: ConfigDict) -> None:
    """`:demo`: small towers from scratch, for two cores and generated clips."""
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.update(image_size=64)
    config.data.augment.min_sizes = (64, 72, 80)
    config.data.augment.max_size = 160
    config.data.augment.color = False
    config.model.update(hidden_dim=64, dropout=0.1)
    if "backbone" in config.model:
        config.data.train_frames = 2
        config.model.backbone.update(parts.demo_backbone(config.model.backbone))
    else:
        config.model.timesformer.update(
            image_size=64, patch_size=8, hidden_dim=64, num_layers=2, num_heads=4, ffn_dim=128
        )
    config.model.audio_backbone.width = 16
    config.model.audio_mean = -1.4  # of the generated clips
    config.model.audio_std = 1.85
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 50
    config.train.steps = 400
    config.train.batch_size = 32
    config.train.eval_every = 200
    config.train.checkpoint_every = 200


def _shrink_to_tiny(config: ConfigDict) -> None:
    """`:tiny`: the smallest, quick to compile; it learns nothing useful."""
    shrink_run_to_tiny(config)
    config.data.image_size = 32
    config.data.augment.min_sizes = (32, 40)
    config.model.update(hidden_dim=8, num_heads=2)
    if "backbone" in config.model:
        config.model.backbone.update(parts.tiny_backbone(config.model.backbone))
    else:
        config.model.timesformer.update(
            image_size=32, patch_size=16, hidden_dim=8, num_layers=1, num_heads=2, ffn_dim=8
        )
    config.model.audio_backbone.width = 2
    config.evaluate.batch_size = 8

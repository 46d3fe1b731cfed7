"""Task `align`: its keys, once, with their meaning. The values are for AVSBench S4.

Recipes start from `align_config()` and change what differs.
"""

import math

from ml_collections import ConfigDict

from configs import parts
from configs.base import base_config, shrink_run_to_tiny, vary

CATEGORIES = (  # of AVSBench S4
    "ambulance_siren", "baby_laughter", "cap_gun_shooting", "cat_meowing", "chainsawing_trees",
    "coyote_howling", "dog_barking", "driving_buses", "female_singing", "helicopter",
    "horse_clip-clop", "lawn_mowing", "lions_roaring", "male_speech", "mynah_bird_singing",
    "playing_acoustic_guitar", "playing_glockenspiel", "playing_piano", "playing_tabla",
    "playing_ukulele", "playing_violin", "race_car", "typing_on_computer_keyboard",
)  # fmt: skip
TEMPLATES = ("a photo of a {}", "the sound of a {}")


def align_config() -> ConfigDict:
    """Frames, sound and text of S4: ResNet-50, VGGish and a small text encoder."""
    config = base_config()
    config.name = "align_s4"
    config.task = "align"

    # ---- data: clips to rows; see avs_jax/data/pairs.py ----
    data = config.data
    data.dataset = "avsbench_s4"
    data.image_size = 224  # px per side
    data.num_frames = 5  # T of a whole clip
    data.train_frames = 2  # seconds of a clip in a training step, drawn every epoch
    data.short_audio = "repeat"  # missing log-mels: "repeat" the last | "zeros"
    data.text = ConfigDict()
    data.text.source = "tiny"  # | "roberta"
    # vocabulary.json or the checkpoint's tokenizer; "": tiny's words are those of the categories
    data.text.path = ""
    data.text.max_words = 4096
    data.text.categories = CATEGORIES
    data.text.templates = TEMPLATES  # training draws one, evaluation averages all
    data.text.max_tokens = 16  # L
    data.augment = ConfigDict()  # of the frames of a clip alike; data/transforms.py
    data.augment.min_sizes = (224, 240, 256, 288, 320)
    data.augment.max_size = 640
    data.augment.crop = True
    data.augment.color = True
    data.augment.flip = 0.5

    # ---- model: keys are the fields of avs_jax.models.align.Align ----
    model = config.model = ConfigDict()
    model.pairs = "avt"  # what is compared: "av" | "at" | "vt" | "avt", the mean of all three
    model.embed_dim = 256  # D
    model.backbone = parts.resnet50()
    model.audio_backbone = parts.vggish()  # or ast
    model.text = parts.tiny_text()
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std
    model.audio_std = 1.0
    model.log_scale_init = math.log(1 / 0.07)
    model.dtype = "float32"

    # ---- loss: avs_jax/losses/alignment.py ----
    loss = config.loss = ConfigDict()
    loss.name = "infonce"  # | "sigmoid", with config.model.bias_init | "triplet"
    # of sound and frames: "clip" | "second", whose neighbors within 1 s are no negatives
    loss.unit = "clip"
    loss.same_class = "ignored"  # clips of one category are "negative", "ignored" or "positive"
    loss.margin = 0.2  # of triplet
    loss.mining = "all"  # negatives of triplet: "all" | "hardest" | "semihard"
    loss.beta = 0.0  # of infonce's adaptive margin; 0: none
    loss.delta = 0.1  # its maximum

    # ---- optimizer ----
    optim = config.optim
    optim.learning_rate = 1e-4
    optim.weight_decay = 0.05
    optim.clip_norm = 1.0
    optim.warmup_steps = 200
    optim.groups = (
        (r"logit_(scale|bias)", 1.0, 0.0),
        (r".*/(scale|bias)", 1.0, 0.0),
        (r".*", 1.0, 1.0),
    )

    # ---- pretrained components: folders of converted weights ----
    config.init.backbone = ""
    config.init.audio_backbone = ""
    config.init.text = ""

    # ---- training ----
    config.train.steps = 10_000
    config.train.batch_size = 64
    config.train.num_pictures = 0

    # ---- evaluation ----
    evaluate = config.evaluate
    evaluate.batch_size = 16
    evaluate.num_pictures = 0
    # what a query of sound or frames should find: its own "clip" | a clip of its "class"
    evaluate.relevant = "clip"
    evaluate.shuffled_pairs = True  # also score each clip with the sound of a random one: chance
    return config


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`."""
    return vary(config, variant, _shrink_for_demo, _shrink_to_tiny)


def _shrink_for_demo(config: ConfigDict) -> None:
    """`:demo`: small towers from scratch, for two cores and generated clips."""
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.update(image_size=64, train_frames=1)
    config.data.augment.min_sizes = (64, 72, 80)
    config.data.augment.max_size = 160
    config.data.augment.color = False
    config.model.embed_dim = 64
    if "backbone" in config.model:
        config.model.backbone.update(parts.demo_backbone(config.model.backbone))
    if "audio_backbone" in config.model:
        config.model.audio_backbone.width = 16
        config.model.audio_mean = -1.4  # of the generated clips
        config.model.audio_std = 1.85
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 50
    config.train.steps = 300
    config.train.batch_size = 32
    config.train.eval_every = 150
    config.train.checkpoint_every = 150


def _shrink_to_tiny(config: ConfigDict) -> None:
    """`:tiny`: the smallest, quick to compile; it learns nothing useful."""
    shrink_run_to_tiny(config)
    config.data.image_size = 32
    config.data.augment.min_sizes = (32, 40)
    config.model.embed_dim = 8
    if "backbone" in config.model:
        config.model.backbone.update(parts.tiny_backbone(config.model.backbone))
    if "audio_backbone" in config.model:
        config.model.audio_backbone.width = 2
    if "text" in config.model:
        config.model.text.update(parts.smallest_text(config.model.text))
    config.evaluate.batch_size = 8

"""Task `describe`: its keys, once, with their meaning. The values are for Ref-AVS.

Recipes start from `describe_config()` and change what differs.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.base import base_config, shrink_run_to_tiny, vary


def describe_config() -> ConfigDict:
    """Ref-AVS: ResNet-50, VGGish and a two-layer transformer."""
    config = base_config()
    config.name = "describe_refavs"
    config.task = "describe"

    # ---- data: expressions to rows; see avs_jax/data/descriptions.py ----
    data = config.data
    data.dataset = "refavs"
    data.image_size = 224  # px per side, a multiple of 32
    data.num_frames = 10  # T of a whole clip
    data.short_audio = "repeat"  # missing log-mels: "repeat" the last | "zeros"
    data.text = ConfigDict()
    data.text.source = "tiny"  # whole words
    data.text.tokenizer = ""  # a vocabulary.json; "": the one beside the records
    data.text.words = ()  # training takes them from there, and stores them in its checkpoints
    data.text.max_tokens = 21  # with <s> and </s>; the end of a longer expression is cut
    data.augment = ConfigDict()  # of frames and masks of a clip alike; data/transforms.py
    data.augment.min_sizes = (224, 240, 256)
    data.augment.max_size = 640
    data.augment.crop = False  # a crop may cut the object off
    data.augment.color = False  # expressions name colors
    data.augment.flip = 0.0  # and sides

    # ---- model: keys are the fields of avs_jax.models.describe.Describe ----
    model = config.model = ConfigDict()
    model.vocab_size = 4096
    model.max_words = 20  # of a description, with its end
    model.backbone = parts.resnet50()
    model.audio_backbone = parts.vggish()
    model.feature_dim = 256  # of what the decoder reads
    model.decoder = parts.word_transformer()  # or word_lstm
    model.num_beams = 3  # 1: greedy
    model.length_power = 1.0  # 0.0: beams compare sums of log probabilities; 1.0: means
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std
    model.audio_std = 1.0
    model.dtype = "float32"

    # ---- loss: avs_jax/losses/description.py ----
    config.loss = ConfigDict({"smoothing": 0.1})  # of labels

    # ---- optimizer ----
    optim = config.optim
    optim.learning_rate = 1e-4
    optim.weight_decay = 0.05
    optim.clip_norm = 1.0
    optim.warmup_steps = 200
    optim.groups = (
        (r".*embedding", 1.0, 0.0),
        (r".*/(scale|bias|input_bias|state_bias)", 1.0, 0.0),
        (r".*", 1.0, 1.0),
    )

    # ---- pretrained components: folders of converted weights, or runs with these parts ----
    config.init.backbone = ""
    config.init.audio_backbone = ""

    # ---- training ----
    config.train.steps = 10_000
    config.train.batch_size = 32
    config.train.num_pictures = 0
    config.train.final_splits = ("val", "test_s", "test_u")

    # ---- evaluation ----
    config.evaluate.batch_size = 16
    config.evaluate.split = "test_s"
    config.evaluate.num_pictures = 0
    return config


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`."""
    return vary(config, variant, _shrink_for_demo, _shrink_to_tiny)


def _shrink_for_demo(config: ConfigDict) -> None:
    """`:demo`: small towers from scratch, for two cores and generated clips."""
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.update(image_size=64)
    config.data.augment.update(min_sizes=(64,), max_size=160)
    config.data.text.max_tokens = 16
    config.model.update(vocab_size=128, max_words=15, feature_dim=64)
    config.model.backbone.update(parts.demo_backbone(config.model.backbone))
    config.model.audio_backbone.width = 16
    config.model.audio_mean = -1.4  # of the generated clips
    config.model.audio_std = 1.85
    config.model.decoder.update(parts.small_decoder(config.model.decoder))
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 50
    config.loss.smoothing = 0.0
    config.train.steps = 1000
    config.train.batch_size = 16
    config.train.eval_every = 500
    config.train.checkpoint_every = 250


def _shrink_to_tiny(config: ConfigDict) -> None:
    """`:tiny`: the smallest, quick to compile; it learns nothing useful."""
    shrink_run_to_tiny(config)
    config.data.image_size = 32
    config.data.augment.update(min_sizes=(32,))
    config.data.text.max_tokens = 8
    config.model.update(max_words=7, feature_dim=8, num_beams=2)
    config.model.backbone.update(parts.tiny_backbone(config.model.backbone))
    config.model.audio_backbone.width = 2
    config.model.decoder.update(parts.smallest_decoder(config.model.decoder))
    config.evaluate.batch_size = 8

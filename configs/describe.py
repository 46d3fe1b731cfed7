"""Task `describe`: the keys that it adds to configs/clips.py, with their meaning.

The values are for Ref-AVS. Recipes start from `describe_config()` and
change what differs.
"""

from ml_collections import ConfigDict

from configs import clips, parts
from configs.base import vary


def describe_config() -> ConfigDict:
    """Ref-AVS: ResNet-50, VGGish and a two-layer transformer."""
    config = clips.clip_config("describe_refavs", task="describe")

    # ---- data: expressions to rows; see avs_jax/data/descriptions.py ----
    data = config.data
    data.dataset = "refavs"
    data.num_frames = 10
    data.frame_offset = 0.0  # of own videos: Ref-AVS's frames are the first of each second
    data.text = ConfigDict()
    data.text.source = "tiny"  # whole words
    data.text.tokenizer = ""  # a vocabulary.json; "": the one beside the records
    data.text.words = ()  # training takes them from there, and stores them in its checkpoints
    data.text.max_tokens = 21  # with <s> and </s>; the end of a longer expression is cut
    data.augment.min_sizes = (224, 240, 256)
    data.augment.crop = False  # a crop may cut the object off
    data.augment.color = False  # expressions name colors
    data.augment.flip = 0.0  # and sides

    # ---- model: keys are the fields of avs_jax.models.describe.Describe ----
    model = config.model
    model.vocab_size = 4096
    model.max_words = 20  # of a description, with its end
    model.feature_dim = 256  # of what the decoder reads
    # level of the backbone whose cells it reads beside the means: "none" | "res3" | "res4" | "res5"
    model.cells = "none"
    model.decoder = parts.word_transformer()  # or word_lstm
    model.num_beams = 3  # 1: greedy
    model.length_power = 1.0  # 0.0: beams compare sums of log probabilities; 1.0: means

    # ---- loss: avs_jax/losses/description.py ----
    config.loss = ConfigDict({"smoothing": 0.1})  # of labels

    # ---- optimizer ----
    config.optim.groups = (
        (r".*embedding", 1.0, 0.0),
        (r".*/(scale|bias|input_bias|state_bias)", 1.0, 0.0),
        (r".*", 1.0, 1.0),
    )

    # ---- training ----
    config.train.steps = 10_000
    config.train.final_splits = ("val", "test_s", "test_u")

    # ---- evaluation ----
    config.evaluate.split = "test_s"
    return config


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`."""
    return vary(config, variant, _shrink_for_demo, _shrink_to_tiny)


def _shrink_for_demo(config: ConfigDict) -> None:
    clips.shrink_for_demo(config)
    config.data.augment.min_sizes = (64,)
    config.data.text.max_tokens = 16
    config.model.update(vocab_size=128, max_words=15, feature_dim=64)
    config.model.decoder.update(parts.small_decoder(config.model.decoder))
    config.loss.smoothing = 0.0
    config.train.steps = 1000
    config.train.batch_size = 16
    config.train.eval_every = 500
    config.train.checkpoint_every = 250


def _shrink_to_tiny(config: ConfigDict) -> None:
    clips.shrink_to_tiny(config)
    config.data.augment.min_sizes = (32,)
    config.data.text.max_tokens = 8
    config.model.update(max_words=7, feature_dim=8, num_beams=2)
    config.model.decoder.update(parts.smallest_decoder(config.model.decoder))

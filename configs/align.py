"""Task `align`: the keys that it adds to configs/clips.py, with their meaning.

The values are for AVSBench S4. Recipes start from `align_config()` and
change what differs.
"""

import math

from ml_collections import ConfigDict, config_dict

from configs import clips, parts
from configs.base import vary

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
    config = clips.clip_config("align_s4", task="align")

    # ---- data: clips to rows; see avs_jax/data/pairs.py ----
    data = config.data
    data.train_frames = 2  # seconds of a clip in a training step, drawn every epoch
    data.text = ConfigDict()
    data.text.source = "tiny"  # | "roberta"
    # vocabulary.json or the checkpoint's tokenizer; "": tiny's words are those of the categories
    data.text.path = ""
    data.text.max_words = 4096
    data.text.categories = CATEGORIES
    data.text.templates = TEMPLATES  # training draws one, evaluation averages all
    data.text.max_tokens = 16  # L

    # ---- model: keys are the fields of avs_jax.models.align.Align ----
    model = config.model
    model.pairs = "avt"  # what is compared: "av" | "at" | "vt" | "avt", the mean of all three
    model.embed_dim = 256  # D
    model.text = parts.tiny_text()
    # maps of the backbone that are read, resized to the finest; backbones of vectors have none
    model.levels = ("res5",)
    model.log_scale_init = math.log(1 / 0.07)
    model.bias_init = config_dict.placeholder(float)  # of the bias, with loss.name "sigmoid": -10.0

    # ---- loss: avs_jax/losses/alignment.py ----
    loss = config.loss = ConfigDict()
    loss.name = "infonce"  # | "sigmoid", with model.bias_init | "triplet"
    # of sound and frames: "clip" | "second", whose neighbors within 1 s are no negatives
    loss.unit = "clip"
    loss.same_class = "ignored"  # clips of one category are "negative", "ignored" or "positive"
    loss.margin = 0.2  # of triplet
    loss.mining = "all"  # negatives of triplet: "all" | "hardest" | "semihard"
    loss.beta = 0.0  # of infonce's adaptive margin; 0: none
    loss.delta = 0.1  # its maximum

    config.optim.groups = ((r"logit_(scale|bias)", 1.0, 0.0), *config.optim.groups)

    config.init.text = ""
    config.train.update(steps=10_000, batch_size=64)

    # ---- evaluation ----
    evaluate = config.evaluate
    # what a query of sound or frames should find: its own "clip" | a clip of its "class"
    evaluate.relevant = "clip"
    evaluate.shuffled_pairs = True  # also score each clip with the sound of a random one: chance
    return config


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`."""
    return vary(config, variant, _shrink_for_demo, _shrink_to_tiny)


def _shrink_for_demo(config: ConfigDict) -> None:
    clips.shrink_for_demo(config)
    config.data.train_frames = 1
    config.model.embed_dim = 64
    config.train.steps = 300
    config.train.batch_size = 32
    config.train.eval_every = 150
    config.train.checkpoint_every = 150


def _shrink_to_tiny(config: ConfigDict) -> None:
    clips.shrink_to_tiny(config)
    config.model.embed_dim = 8
    if "text" in config.model:
        config.model.text.update(parts.smallest_text(config.model.text))

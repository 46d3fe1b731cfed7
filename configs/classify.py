"""Task `classify`: the keys that it adds to configs/clips.py, with their meaning.

The values are for AVSBench S4. Recipes start from `classify_config()` and
change what differs.
"""

from ml_collections import ConfigDict

from configs import clips
from configs.base import vary

CATEGORIES = (  # of AVSBench S4, by label
    "helicopter", "mynah_bird_singing", "typing_on_computer_keyboard", "playing_violin",
    "playing_glockenspiel", "playing_piano", "lions_roaring", "baby_laughter", "male_speech",
    "lawn_mowing", "playing_ukulele", "playing_tabla", "driving_buses", "cap_gun_shooting",
    "chainsawing_trees", "playing_acoustic_guitar", "cat_meowing", "female_singing",
    "ambulance_siren", "dog_barking", "horse_clip-clop", "coyote_howling", "race_car",
)  # fmt: skip


def classify_config() -> ConfigDict:
    """The 23 categories of S4: ResNet-50 and VGGish, a gated fusion."""
    config = clips.clip_config("classify_s4", task="classify")

    # ---- data: clips to rows; see avs_jax/data/labeled_clips.py ----
    data = config.data
    data.train_frames = 5  # seconds of a clip in a training step, drawn every epoch
    # classes of a clip: its "category", one | those of its "masks", any number
    data.labels = "category"
    data.num_classes = len(CATEGORIES)  # K
    data.class_names = CATEGORIES  # (): those that the records name

    # ---- model: keys are the fields of avs_jax.models.classify.Classify ----
    # `timesformer` can take the place of `backbone` (configs/classify_timesformer.py)
    model = config.model
    model.num_classes = data.get_ref("num_classes")
    # "early" | "late_feature" | "late_logit" | "attention" | "gated" | "film" | "cross"
    model.av_fusion = "gated"
    model.hidden_dim = 512  # of the features that are fused
    model.num_heads = 4  # of "gated" and "cross"
    model.dropout = 0.5  # of these features
    model.modality_dropout = 0.1  # training: share of clips without their frames or their sound

    # ---- loss: avs_jax/losses/classification.py ----
    loss = config.loss = ConfigDict()
    loss.smoothing = 0.1  # of labels; 0.0 with several classes
    loss.single_weight = 0.5  # of the classifiers of frames alone and of sound alone

    config.optim.groups = ((r"head/balance", 1.0, 0.0), *config.optim.groups)
    config.train.steps = 6000
    # also score clips without their sound, and without their frames
    config.evaluate.missing_modalities = True
    return config


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`."""
    return vary(config, variant, _shrink_for_demo, _shrink_to_tiny)


def _shrink_for_demo(config: ConfigDict) -> None:
    clips.shrink_for_demo(config)
    config.model.update(hidden_dim=64, dropout=0.1)
    if "backbone" in config.model:
        config.data.train_frames = 2
    else:
        config.model.timesformer.update(
            image_size=64, patch_size=8, hidden_dim=64, num_layers=2, num_heads=4, ffn_dim=128
        )
    config.train.steps = 400
    config.train.batch_size = 32
    config.train.eval_every = 200
    config.train.checkpoint_every = 200


def _shrink_to_tiny(config: ConfigDict) -> None:
    clips.shrink_to_tiny(config)
    config.model.update(hidden_dim=8, num_heads=2)
    if "timesformer" in config.model:
        config.model.timesformer.update(
            image_size=32, patch_size=16, hidden_dim=8, num_layers=1, num_heads=2, ffn_dim=8
        )

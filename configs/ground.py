"""Task `ground`: its keys, once, with their meaning. The values are QD-DETR's on QVHighlights.

Recipes start from `ground_config()` and change what differs.
"""

from ml_collections import ConfigDict

from configs.base import base_config, check_variant


def ground_config() -> ConfigDict:
    """QVHighlights, video only: SlowFast and CLIP features, 2 s a clip."""
    config = base_config()
    config.name = "qvh_qd_detr"
    config.task = "ground"

    # ---- data: how a query becomes a row; fields of avs_jax.data.moments.MomentRows ----
    data = config.data
    data.dataset = "qvhighlights"
    data.max_clips = 75  # L; a longer video is an error
    data.max_words = 32
    data.max_windows = 5  # of more, training draws these many
    data.video_dims = (2304, 512)  # widths of the kinds of video features
    data.text_dim = 512
    data.audio_dim = 0  # 0: no sound
    data.energy = False  # log-RMS of each clip's sound
    data.clip_seconds = 2.0
    data.normalize = "each"  # kind of video features by itself | "joined" | "none"
    data.normalize_text = True
    data.endpoints = True  # append where a clip starts and ends
    data.saliency = "annotated"  # "windows": clips inside a window count 1
    data.num_pairs = 2  # to rank: a hard and an easy one
    data.num_annotators = 3

    # ---- model: keys are the fields of avs_jax.models.qd_detr.QDDETR ----
    model = config.model = ConfigDict()
    model.hidden_dim = 256
    model.num_queries = 10
    model.num_heads = 8
    model.ffn_dim = 1024
    model.num_text_layers = 2
    model.num_encoder_layers = 2
    model.num_decoder_layers = 2
    model.input_dropout = 0.5
    model.dropout = 0.1
    model.mask_order = "repaired"  # "reference": the original's, for parity with published weights
    model.fusion = concat()
    model.dtype = "float32"

    # ---- loss: weights of avs_jax/losses/moments.py ----
    loss = config.loss = ConfigDict()
    loss.span = 10.0
    loss.giou = 1.0
    loss.label = 4.0
    loss.eos = 0.1  # class weight of the background
    loss.saliency = 1.0
    loss.margin = 0.2
    loss.saliency_only = False  # TVSum: no windows
    loss.same_text_negatives = False  # True: the original's

    # ---- optimizer ----
    optim = config.optim
    optim.learning_rate = 1e-4
    optim.weight_decay = 1e-4
    optim.clip_norm = 0.1
    optim.power = 0.0  # constant: the original's step comes after its last epoch

    # ---- training: 200 epochs of 7218 queries ----
    config.train.steps = 45_200
    config.train.batch_size = 32
    config.train.eval_every = 1130  # five epochs
    config.train.checkpoint_every = 1130
    config.train.final_splits = ("val",)  # test has no annotations
    config.train.num_pictures = 0

    # ---- evaluation ----
    evaluate = config.evaluate
    evaluate.batch_size = 32
    evaluate.split = "val"
    evaluate.num_pictures = 0
    evaluate.protocol = "qvhighlights"  # | "tvsum"
    evaluate.gates = 0  # samples whose gates are logged; -1: all
    evaluate.every_channel = False  # log gates per channel whole, not their statistics
    post = evaluate.post_process = ConfigDict()  # results/windows.py
    post.max_seconds = 150.0
    post.round_seconds = 2.0
    post.half_saliency = True
    return config


def tvsum_config() -> ConfigDict:
    """TVSum, video only: saliency alone, on RGB and flow features, 1 s a clip."""
    config = ground_config()
    config.name = "tvsum_qd_detr"
    config.data.dataset = "tvsum/BK"
    config.data.update(max_clips=1000, video_dims=(1024, 1024), clip_seconds=1.0)
    config.data.update(normalize="joined", normalize_text=False)
    config.data.max_words = 77  # CLIP's limit: titles are not cut
    config.data.update(num_pairs=1, num_annotators=20)
    config.loss.saliency_only = True
    config.optim.learning_rate = 1e-3
    config.train.update(steps=2000, batch_size=4, eval_every=50, checkpoint_every=50)
    config.evaluate.update(batch_size=1, protocol="tvsum")
    return config


def concat() -> ConfigDict:
    """Video alone, or with the channels of the sound."""
    return ConfigDict({"name": "concat"})


def avigate() -> ConfigDict:
    """AVIGATE's gated fusion: a gate per sample and layer, 12 learned audio queries."""
    section = {"name": "avigate", "num_layers": 4, "num_heads": 8, "max_length": 77}
    return ConfigDict(section | {"gate": {"pooling": "masked"}})


def custom(granularity: str, film: bool = False, bias: float = 1.0) -> ConfigDict:
    """The gated fusion of QD-DETR's fork, which calls it "custom" (commit dd81d7c).

    Args:
      granularity: "global", "clipwise" or "elementwise" gates.
    """
    gate = {"granularity": granularity, "film": film, "bias_init": bias, "pooling": "masked"}
    return ConfigDict({"name": "custom", "num_layers": 4, "num_heads": 4, "gate": gate})


def add_sound(config: ConfigDict, audio_dim: int) -> ConfigDict:
    """The recipe with features of the sound, such as PANNs' of 2048."""
    config.data.audio_dim = audio_dim
    return config


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe itself, or `:tiny`: quick to compile, for tests and checks."""
    check_variant(variant, "tiny")
    if variant == "tiny":
        config.name += "_tiny"
        config.data.update(max_words=4, video_dims=(6, 4), text_dim=5, num_workers=0)
        if config.data.audio_dim:
            config.data.audio_dim = 3
        config.model.update(hidden_dim=16, num_heads=2, ffn_dim=16, num_queries=5)
        config.model.update(num_text_layers=1, num_encoder_layers=1)
        if config.model.fusion.name != "concat":
            config.model.fusion.update(num_layers=1, num_heads=2)
        config.train.update(steps=4, batch_size=8, log_every=1, eval_every=4, checkpoint_every=2)
        config.train.compilation_cache = False
        config.evaluate.batch_size = 8
    return config

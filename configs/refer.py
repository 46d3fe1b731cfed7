"""The keys of task `refer`, with their meaning: those of `segment`, and what an expression adds.

Recipes start from `refer_config()` and change what differs.
"""

from ml_collections import ConfigDict

from configs import parts
from configs.base import check_variant
from configs.segment import keep_norms, segment_config, shrink_for_demo, shrink_to_tiny


def refer_config() -> ConfigDict:
    """Ref-AVS, Swin-B at 384 px, frozen distilroberta-base, text in the decoder's prompts."""
    config = segment_config()
    config.name = "refer_vct"
    config.task = "refer"
    del config.host  # the model is VCT's

    data = config.data
    data.dataset = "refavs"
    data.num_frames = 10
    data.frame_offset = 0.0  # of own videos: Ref-AVS's frames are the first of each second
    data.num_supervised = 5  # frames of a clip per step, drawn every epoch
    data.supervised_choice = "random"
    data.prototype_target = "none"
    data.num_prototypes = 0
    data.pre_masks = False
    keep_colors_and_sides(config)
    del data.false_sounds  # null expressions already train empty masks
    data.text = ConfigDict()
    data.text.source = "roberta"  # of tokens: "roberta" | "tiny"; model.text.name must be the same
    # tokenizer.json or the folder of vocab.json and merges.txt; for "tiny" a vocabulary.json
    data.text.tokenizer = ""
    # of "tiny": training takes them from beside the records, and stores them in its checkpoints
    data.text.words = ()
    data.text.max_tokens = 25  # with <s> and </s>; the end of a longer expression is cut

    # phrases: expressions of a clip that a localizer reads in training, the row's and others, drawn
    data.text.num_phrases = 0
    # asked: the first of the phrases, whose masks are trained; the clip's images are encoded once
    # for all of them. 1: the row's expression alone
    data.text.num_asked = 1
    # seconds of a clip whose sound a localizer hears in training, drawn every epoch; 0: all
    data.text.num_seconds = 0

    model = config.model
    model.localizer = parts.absent()
    model.text = parts.distilroberta()
    model.head = ConfigDict({"name": "referral"})
    model.head.hidden_dim = 256  # of the presence MLP
    model.head.embed_dim = 128  # of the alignment
    model.head.align_warmup = 0.2  # fraction of the training over which its weight rises
    # how tokens join the audio tokens of the decoder: "none" | "concat" | "gated"
    model.decoder.prompt = "concat"

    # False: masks and presence are not trained, so a step skips the decoder. A first stage for a
    # model with a localizer: what words mean is learned from more rows in the same time.
    config.loss.masks = True
    config.loss.presence_weight = 0.5
    config.loss.localization_weight = 5.0
    config.loss.align_weight = 0.1  # 0: no alignment, and train.accumulate may be above 1

    keep_norms(config)
    config.init.text = ""  # folder of --source=roberta
    config.optim.frozen = (r"audio_backbone/.*", r"text/.*")
    config.train.final_splits = ("val", "test_s", "test_u", "test_n")
    # from a checkpoint of task segment: what it lacks, and what this model lacks. An AVSS run has
    # other classes: see configs/refer_vct.py
    config.train.init_fresh = (r"(text|cma|head|localizer)/.*", r"predictor/(text|location)_.*")
    config.train.init_dropped = (
        r"logit_scale",
        r"predictor/visual_query_block/lambda",  # of AMA
        r"(pre_sam_backbone|scale_factor_module_\d|brm|ama|sync|query_fusion|temporal)/.*",
        r"predictor/(audio_proj|proto_proj|visual_query_block/(prototype|pre_attn))/.*",
    )

    evaluate = config.evaluate
    # the controls of this task are always scored (avs_jax/controls/expression_controls.py)
    for key in ("swapped_audio", "audio", "manifest", "motion", "moving_threshold"):
        del evaluate[key]
    evaluate.split = "test_s"
    evaluate.batch_size = 32  # expressions of a clip are scored together where a batch holds them
    evaluate.score_size = 256
    # what replaces an empty mask where the head says that something is meant:
    # "none" | "zeros" | "prev_frame" | "top_query"
    evaluate.fallback = "none"
    # a frame has a mask where the head's presence is above; see docs/refer.md for what it trades
    evaluate.presence_threshold = 0.5
    return config


def keep_colors_and_sides(config: ConfigDict) -> None:
    """Augmentation changes neither: expressions name them."""
    config.data.augment.color = False
    config.data.augment.flip = 0.0


def shrink(config: ConfigDict, variant: str) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`, with the text encoder trained in place."""
    check_variant(variant, "demo", "tiny")
    if not variant:
        return config
    config.data.text.source = "tiny"
    config.data.text.max_tokens = 12
    config.model.text = parts.tiny_text()
    config.model.text.vocab_size = 256
    config.model.head.embed_dim = 64
    shrink_for_demo(config)
    config.data.augment.update(min_sizes=(96,), crop=False)  # clips are drawn, as many as it takes
    config.data.num_supervised = 1
    config.evaluate.batch_size = 32
    config.evaluate.score_size = 128  # of the generated masks, which therefore do not grow
    if config.model.fusion.name == "cma":
        config.model.fusion.num_heads = 4
    if config.model.localizer.name != "none":
        config.model.localizer.update(embed_dim=64, num_heads=4)
        config.data.text.num_phrases = 12
        # From random values: with less, the trunk follows the masks' gradients alone.
        config.loss.update(localization_weight=200.0, align_weight=200.0)
        config.optim.clip_norm = 1.0
    config.train.steps = 1300  # from the checkpoint of demo s4_ama
    if variant == "tiny":
        shrink_to_tiny(config)
        config.model.text.update(hidden_dim=16, num_layers=1, num_heads=2, ffn_dim=16)
        config.model.head.update(hidden_dim=16, embed_dim=8)
        config.model.decoder.num_layers = 2
        config.data.num_supervised = 1
        if config.model.fusion.name == "cma":
            config.model.fusion.num_heads = 2
        if config.model.localizer.name != "none":
            config.model.localizer.update(embed_dim=8, num_heads=2)
    return config

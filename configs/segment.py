"""The keys of task `segment`, with their meaning. The values are VCT's published S4 recipe.

Recipes start from `segment_config()` and change what differs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import parts
from configs.base import base_config, check_variant, shrink_run_to_tiny


def segment_config() -> ConfigDict:
    """S4, VCT without motion, Swin-B at 384 px, the published recipe."""
    config = base_config()
    config.name = "s4_vct"
    config.task = "segment"
    config.host = "vct"  # model family: a row of HOSTS in avs_jax/tasks/segment.py

    # ---- data: clips to rows ----
    data = config.data
    data.dataset = "avsbench_s4"
    data.image_size = 384  # px per side of training crops and evaluation images
    data.num_frames = 5  # T of a whole clip
    # which frames enter the step: "supervised", those with ground truth | "all"
    data.train_frames = "supervised"
    data.num_supervised = 1  # maximum number of frames with ground truth per clip (S4: 1)
    # which ones if a clip has more: "first" | "random", drawn every epoch
    data.supervised_choice = "first"
    data.num_classes = 2  # K, including background
    data.max_targets = 2  # M, maximum number of masks per frame
    # "category": one-hot category of the clip, on frame 0 | "classes": classes of the ground truth,
    # including background, on every frame with ground truth | "none"
    data.prototype_target = "category"
    data.num_prototypes = 23  # K', the number of categories with a prototype
    data.short_audio = "repeat"  # missing log-mels: "repeat" the last (S4, MS3) | "zeros" (AVSS)
    data.square_first = False  # training: resize frames to a square before augmentation (AVSS)
    # training: a share of the clips gets a false sound and an empty ground truth
    data.false_sounds = ConfigDict()
    data.false_sounds.share = 0.0
    # any of "silence,noise,offscreen", equally likely
    data.false_sounds.types = "silence,noise,offscreen"
    data.pre_masks = True  # read the class-agnostic color masks
    data.motion = ConfigDict()
    # "none" | "auto" (stored flow, else frame difference) | "difference"
    data.motion.source = "none"
    # "next": frame 0 takes the flow to frame 1 | "zeros", as in the original
    data.motion.first_frame = "next"
    # "magnitude_max": divided by the frame's maximum | "magnitude_absolute": in units of `scale` |
    # "uv": both components in units of `scale`, two channels. The last two need stored flow (u, v).
    data.motion.map = "magnitude_max"
    data.motion.scale = 20.0  # px per frame of the augmented image
    data.motion.compensate_camera = False  # subtract a robust affine motion; needs flow (u, v)
    # for own videos (predict --video): "difference" | "raft_large" | "raft_small"
    data.motion.model = "difference"
    data.motion.pairs = "frames"  # "frames": 1 s apart | "video": adjacent frames of the video
    # motion at the video's own rate, for synchrony: data/motion_track.py, data/synchrony.py
    data.track = ConfigDict()
    data.track.source = "none"  # "none" | "stored": the records' tracks
    data.track.rate = 25.0  # samples per second that the model gets
    data.track.window_seconds = 2.0  # around the second of a frame
    # for own videos: "difference" | "lucas_kanade" | "raft_large" | "raft_small"
    data.track.model = "lucas_kanade"
    data.augment = ConfigDict()  # joint over image, pre-mask, ground truth and motion
    data.augment.min_sizes = (  # short side after resizing, drawn per clip
        192, 230, 268, 307, 345, 384, 422, 460, 499, 537, 576, 614, 652, 691, 729, 768,
    )  # fmt: skip
    data.augment.max_size = 896  # maximum long side
    data.augment.crop = True  # random crop to image_size; False: only pad or resize
    data.augment.color = True  # photometric jitter, separate for each frame and pre-mask
    data.augment.flip = 0.5  # probability of a horizontal flip

    config.model = _vct_model(data)
    config.loss = _query_loss()

    # ---- optimizer ----
    optim = config.optim
    # (path regex, learning-rate factor, weight-decay factor); the first match counts
    optim.groups = (
        (r".*relative_position_bias_table", 0.1, 0.0),
        (r"(pre_sam_)?backbone/(.*/)?norm\d?/(scale|bias)", 0.1, 0.0),
        (r"(pre_sam_|audio_)?backbone/.*", 0.1, 1.0),
        (r".*/(scale|embedding)", 1.0, 0.0),
        (r".*/(decoder_)?norm\d?/bias", 1.0, 0.0),
        (r"pixel_decoder/input_proj_\d_1/bias", 1.0, 0.0),  # its GroupNorm
        (r"ama/(audio_proj_1|flow_encoder_[14])/bias", 1.0, 0.0),  # its LayerNorm and BatchNorms
        (r".*", 1.0, 1.0),
    )
    optim.frozen = (r"audio_backbone/.*",)  # path regexes of parameters that are not trained

    # ---- pretrained components ----
    init = config.init
    init.backbone = ""  # folder of --source=swin, pvt_v2 or resnet50; "": not replaced
    init.pre_sam_backbone = "same"  # "same" as `backbone`, another folder, or ""
    init.audio_backbone = ""  # folder of --source=vggish

    # ---- evaluation ----
    evaluate = config.evaluate
    evaluate.score_size = 224  # px, at which predictions are compared with ground truth
    evaluate.swapped_audio = True  # also score each clip with another category's sound
    # also score false sounds, any of "silence,noise,offscreen,shift,late"; "": none
    evaluate.audio = ""
    evaluate.manifest = ""  # file that assigns false sounds to clips; "": derived from the ids
    # with evaluate.audio, false motion for models that read motion: any of
    # "zero,shuffled,scrambled"
    evaluate.motion = "zero,shuffled"
    # a pixel moves where the motion map exceeds this fraction of the frame's maximum or, for the
    # absolute maps, of data.motion.scale
    evaluate.moving_threshold = 0.2
    return config


def _vct_model(data: ConfigDict) -> ConfigDict:
    """Host "vct": the fields of avs_jax.models.avs.AVS."""
    model = ConfigDict()
    model.num_classes = data.get_ref("num_classes")
    model.num_prototypes = data.get_ref("num_prototypes")  # 0: PPQG without prototypes (MS3)
    model.num_queries = 100
    model.hidden_dim = 256  # D
    model.backbone = parts.swin()  # or pvt_v2, resnet50
    # the pre-mask branch: a second backbone, on the pre-masks, with channel gates
    model.pre_masks = data.get_ref("pre_masks")
    model.pre_mask_dropout = 0.0  # training: share of clips without the pre-mask branch
    model.audio_backbone = parts.vggish()
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std; the original has 0 and 1
    model.audio_std = 1.0
    model.audio_hidden_dim = 4096  # width of the audio MLP
    model.pixel_decoder = ConfigDict()
    model.pixel_decoder.num_layers = 6
    model.pixel_decoder.ffn_dim = 1024
    model.pixel_decoder.num_heads = 8
    model.pixel_decoder.num_points = 4
    model.decoder = ConfigDict()
    model.decoder.num_layers = 9
    model.decoder.ffn_dim = 2048
    model.decoder.num_heads = 8
    # initial strength of the fusion's map; 0 preserves a loaded VCT checkpoint's masks
    model.decoder.lambda_init = 1.0
    model.fusion = parts.absent()  # or ama, sync, query_fusion, or several (parts.join_fusions)
    model.refiner = parts.absent()  # boundary refinement (BRM): or auxiliary, refine
    # what the backward pass recomputes: "none" | "backbone", its blocks | "all", also the layers of
    # pixel decoder and decoder
    model.remat = "none"
    model.dtype = "float32"  # compute dtype; parameters are float32
    return model


def _query_loss() -> ConfigDict:
    """The terms of avs_jax/losses/criterion.py."""
    loss = ConfigDict()
    loss.class_weight = 2.0
    loss.mask_weight = 5.0
    loss.dice_weight = 5.0
    loss.proto_weight = 1.0
    loss.no_object_weight = 0.1
    loss.boundary = ConfigDict()  # of the refiner's edges
    # "weighted": BCE with positive_weight | "balanced": BCE balanced by prevalence, + Dice
    loss.boundary.kind = "weighted"
    loss.boundary.weight = 0.2
    loss.boundary.max_share = 0.0  # limit relative to loss_mask + loss_dice; 0: no limit
    loss.boundary.positive_weight = 5.0  # of "weighted"
    loss.consistency = ConfigDict()  # of AMA with model.fusion.consistency
    # "contrast": what moves against what is heard, in the whole batch | "map": the attention inside
    # the ground truth | "both", added
    loss.consistency.kind = "contrast"
    loss.consistency.weight = 0.1
    loss.consistency.tau = 0.07  # temperature of "contrast"
    # of "map": mean squared motion inside the ground truth from which a frame counts fully; 0.04 is
    # the square of evaluate.moving_threshold
    loss.consistency.tau_motion = 0.04
    loss.synchrony = ConfigDict()  # of model.fusion "sync", see losses/synchrony.py
    loss.synchrony.weight = 0.2  # of the lag's term
    loss.synchrony.rank_weight = 0.2
    loss.synchrony.margin = 0.2
    loss.num_points = 12544
    loss.oversample_ratio = 3.0
    loss.importance_sample_ratio = 0.75
    return loss


def keep_norms(config: ConfigDict) -> None:
    """Takes norms that no group of the recipe names, as text_norm, from the weight decay."""
    *groups, rest = config.optim.groups
    config.optim.groups = (*groups, (r".*/(\w+_)?norm(_\w+|\d)?/bias", 1.0, 0.0), rest)


def shrink(
    config: ConfigDict,
    variant: str,
    demo: Mapping[str, Any] | None = None,
    variants: Sequence[str] = ("demo", "tiny"),
) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`.

    Args:
      demo: key -> value, overrides of `shrink_for_demo` for this recipe.
      variants: all variants of the recipe.
    """
    check_variant(variant, *variants)
    if variant in ("demo", "tiny"):
        shrink_for_demo(config)
        config.update_from_flattened_dict(demo or {})
    if variant == "tiny":
        shrink_to_tiny(config)
    return config


def shrink_for_demo(config: ConfigDict) -> ConfigDict:
    """`:demo` of any recipe: the same components, small enough for two cores and generated clips.

    A 32-wide Swin with one block per stage, from scratch: one learning rate for everything, and the
    audio backbone is trained too.
    """
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.image_size = 96
    config.data.augment.min_sizes = (80, 96, 112, 128)
    config.data.augment.max_size = 192
    config.model.num_queries = 20
    config.model.hidden_dim = 128
    config.model.backbone.update(parts.demo_backbone(config.model.backbone))
    config.model.audio_backbone.width = 16
    config.model.audio_mean = -1.4  # of the generated clips
    config.model.audio_std = 1.85
    config.model.audio_hidden_dim = 512
    config.model.pixel_decoder.num_layers = 2
    config.model.pixel_decoder.ffn_dim = 256
    config.model.decoder.num_layers = 5
    config.model.decoder.ffn_dim = 256
    parts.shrink_fusion(config.model.fusion, parts.DEMO_FUSIONS)
    if config.data.track.source != "none":
        config.data.track.rate = 12.0
    if "temporal" in config.model:
        config.model.temporal.update(num_layers=1, hidden_dim=128, num_heads=4, ffn_dim=256)
    config.loss.num_points = 1024
    config.optim.learning_rate = 8e-4
    config.optim.clip_norm = 0.1
    config.optim.warmup_steps = 50
    config.optim.groups = tuple((pattern, 1.0, decay) for pattern, _, decay in config.optim.groups)
    config.optim.frozen = ()
    config.train.steps = 1800
    config.train.batch_size = 8
    config.train.eval_every = 600
    config.train.checkpoint_every = 300
    config.evaluate.batch_size = 8
    return config


def shrink_to_tiny(config: ConfigDict) -> ConfigDict:
    """`:tiny` of any recipe: `:demo` with one layer of everything at 64 px, quick to compile.

    For tests, checks and scripts; it learns nothing useful.
    """
    shrink_run_to_tiny(config)
    config.data.image_size = 64
    config.data.augment.min_sizes = (64, 72)
    config.model.num_queries = 6
    config.model.hidden_dim = 32
    config.model.backbone.update(parts.tiny_backbone(config.model.backbone))
    config.model.audio_backbone.width = 2
    config.model.audio_hidden_dim = 16
    config.model.pixel_decoder.update(num_layers=1, ffn_dim=16, num_heads=2, num_points=2)
    config.model.decoder.update(num_layers=3, ffn_dim=16, num_heads=2)
    parts.shrink_fusion(config.model.fusion, parts.TINY_FUSIONS)
    if "temporal" in config.model:
        config.model.temporal.update(hidden_dim=16, num_heads=2, ffn_dim=16)
    config.loss.num_points = 16
    config.train.num_pictures = 1
    config.evaluate.score_size = 32
    return config

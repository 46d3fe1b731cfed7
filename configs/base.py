"""Every configuration key, once, with its meaning. The values are the published S4 recipe of VCT.

Other files of this folder start from `base_config()` and change what differs. On the command line:
`--config=configs/s4_ama.py --config.train.batch_size=4`; an unknown key is an error.
"""

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
    """S4, VCT without motion, Swin-B at 384 px, the published recipe."""
    config = ConfigDict()
    config.name = "s4_vct"
    config.seed = 8434882  # the original's
    config.profile_steps = 0  # steps to trace after the warm-up, for TensorBoard; 0: none

    # ---- data: where the records are and how a clip becomes a batch row ----
    data = config.data = ConfigDict()
    data.dataset = "avsbench_s4"  # TFDS builder
    data.data_dir = "~/tensorflow_datasets"  # where build_dataset.py put the records
    data.image_size = (
        384  # px; training crops are this square, evaluation images are squashed to it
    )
    data.num_frames = 5  # T of a whole clip
    data.train_frames = (
        "supervised"  # "supervised": only frames with ground truth enter the step; "all"
    )
    data.num_supervised = 1  # frames with ground truth of a training clip at most (S4: 1)
    # which of them where a clip has more: "first" | "random", drawn anew each epoch
    data.supervised_choice = "first"
    data.num_classes = 2  # K, background included
    data.max_targets = 2  # M, masks per frame at most
    # "category": one-hot of the clip's, on frame 0; "classes": those in the ground truth,
    # background included, on every frame that has it; "none"
    data.prototype_target = "category"
    data.num_prototypes = 23  # K', the categories that have a prototype
    data.short_audio = "repeat"  # missing log-mels: "repeat" the last (S4, MS3) | "zeros" (AVSS)
    data.square_first = False  # training: squash frames to a square before augmentation (AVSS)
    data.pre_masks = True  # read the class-agnostic colour masks
    data.motion = ConfigDict()
    data.motion.source = (
        "none"  # "none" | "auto" (stored flow, else frame difference) | "difference"
    )
    data.motion.first_frame = (
        "next"  # "next": frame 0 takes the flow to frame 1; "zeros": the original's
    )
    # "magnitude_max": divided by the frame's maximum; "magnitude_absolute": in units of `scale`;
    # "uv": both components in units of `scale`, two channels. The last two need stored flow (u, v).
    data.motion.map = "magnitude_max"
    data.motion.scale = 20.0  # px per frame of the augmented image
    data.motion.compensate_camera = False  # take a robust affine motion off; needs flow (u, v)
    # of own videos (predict --video): "difference" | "raft_large" | "raft_small"
    data.motion.model = "difference"
    data.motion.pairs = "frames"  # "frames": 1 s apart; "video": neighbours in the video
    data.augment = ConfigDict()  # joint over image, pre-mask, ground truth and motion
    data.augment.min_sizes = (  # short side after the resize, drawn per clip
        192, 230, 268, 307, 345, 384, 422, 460, 499, 537, 576, 614, 652, 691, 729, 768,
    )  # fmt: skip
    data.augment.max_size = 896  # long side at most
    data.augment.crop = True  # random crop to image_size, else pad or squash only
    data.augment.color = True  # photometric jitter, drawn per frame and separately for the pre-mask
    data.augment.flip = 0.5  # probability of a horizontal flip
    data.num_workers = 2  # loader processes; 0 = in the training process
    data.prefetch = 4  # batches each worker keeps ready

    # ---- model: keys are the fields of avs_jax.models.avs.AVS ----
    model = config.model = ConfigDict()
    model.num_classes = data.get_ref("num_classes")
    model.num_prototypes = data.get_ref("num_prototypes")  # 0: PPQG without prototypes (MS3)
    model.num_queries = 100
    model.hidden_dim = 256  # D
    model.backbone = ConfigDict()  # "pvt_v2" and "resnet50" have other keys: s4_vct_pvt_v2.py
    model.backbone.name = "swin"
    model.backbone.embed_dim = 128
    model.backbone.depths = (2, 2, 18, 2)
    model.backbone.num_heads = (4, 8, 16, 32)
    model.backbone.window_size = 12
    model.backbone.drop_path_rate = 0.3
    model.pre_masks = data.get_ref(
        "pre_masks"
    )  # second backbone on the colour masks, with channel gates
    model.pre_mask_dropout = 0.0  # training: share of clips that go without the second branch
    model.audio_backbone = ConfigDict()
    model.audio_backbone.name = "vggish"
    model.audio_backbone.width = 64  # channels of the first convolution
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std; 0 and 1 are the original's
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
    model.fusion = ConfigDict()
    model.fusion.name = "none"  # "none" | "ama"
    model.fusion.num_heads = 4
    model.fusion.embed_dim = 256
    model.fusion.grid = 24  # cells per side of the attention map
    model.fusion.temperature_mode = "mul"  # "mul": scores * tau; "div": scores / tau
    model.fusion.normalize = "minmax"  # "minmax" | "softmax_hw"
    model.fusion.grad_through_extrema = True  # False: min and max count as constants
    model.fusion.attention_dropout = 0.0  # training: share of attention entries without evidence
    model.fusion.projection_dropout = 0.0  # training: share of channels of the projected query
    model.fusion.map_dropout = 0.0  # training: share of clips that go without the map
    model.fusion.lambda_init = 1.0  # 0 leaves a loaded VCT checkpoint's masks as they are
    model.refiner = ConfigDict()  # boundary refinement (BRM)
    # "none" | "auxiliary": edges only shape features | "refine": they refine the mask features
    model.refiner.name = "none"
    # shares of the training between which the gradient of the refiner's edges and corrections into
    # the features grows from 0 to 1; (0, 0): whole from the start
    model.refiner.ramp = (0.0, 0.0)
    # what the backward pass recomputes instead of keeping: "none" | "backbone", its blocks | "all",
    # the layers of pixel decoder and decoder too
    model.remat = "none"
    model.dtype = "float32"  # of compute; parameters are float32

    # ---- loss ----
    loss = config.loss = ConfigDict()
    loss.class_weight = 2.0
    loss.mask_weight = 5.0
    loss.dice_weight = 5.0
    loss.proto_weight = 1.0
    loss.no_object_weight = 0.1
    loss.boundary = ConfigDict()  # of the refiner's edges
    # "weighted": BCE with positive_weight | "balanced": BCE balanced by prevalence, + Dice
    loss.boundary.kind = "weighted"
    loss.boundary.weight = 0.2
    loss.boundary.max_share = 0.0  # of loss_mask + loss_dice that the term may reach; 0: no limit
    loss.boundary.positive_weight = 5.0  # of "weighted"
    loss.num_points = 12544
    loss.oversample_ratio = 3.0
    loss.importance_sample_ratio = 0.75

    # ---- optimiser ----
    optim = config.optim = ConfigDict()
    optim.learning_rate = 0.0  # 0: 1e-4 * sqrt(batch_size / 2)
    optim.weight_decay = 0.05
    optim.clip_norm = 0.01  # of the whole gradient
    optim.warmup_steps = 0
    optim.power = 0.9  # of the polynomial decay to 0
    # of Adam's first moment as it is kept: "float32" | "bfloat16" (half its bytes; optim.py)
    optim.moment_dtype = "float32"
    # (path regex, learning-rate factor, weight-decay factor); the first that matches counts
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
    optim.frozen = (r"audio_backbone/.*",)  # path regexes that take no gradient

    # ---- training ----
    train = config.train = ConfigDict()
    train.steps = 45_000
    train.batch_size = 2  # clips, over all devices
    train.accumulate = 1  # micro-batches per step
    # of an average of the parameters, evaluated beside them and preferred (runtime/ema.py); 0: none
    train.ema_decay = 0.0
    train.mesh = ConfigDict()
    train.mesh.data = -1  # devices along the batch axis; -1: all that are left
    train.mesh.fsdp = 1  # devices that share parameters and optimiser state
    train.log_every = 20
    train.eval_every = 1000
    train.checkpoint_every = 500
    train.keep_latest = 2
    train.patience = 0  # evaluations in a row without a better score that end training; 0: never
    train.final_splits = ("val", "test")  # that the best checkpoint is evaluated on at the end
    train.num_pictures = 4  # validation clips drawn at every evaluation
    train.compilation_cache = True  # in the workdir
    train.init_from = ""  # checkpoint or converted weights to start from; "": random
    train.init_fresh = ()  # path regexes that keep their random start under init_from
    train.init_dropped = ()  # path regexes of init_from's tensors that this model does not have

    # ---- pretrained parts, from scripts/convert_weights.py; they come after train.init_from ----
    init = config.init = ConfigDict()
    init.backbone = ""  # folder of --source=swin, pvt_v2 or resnet50; "": stays as it is
    init.pre_sam_backbone = "same"  # "same" as `backbone`, a folder of its own, or ""
    init.audio_backbone = ""  # folder of --source=vggish

    # ---- evaluation ----
    evaluate = config.evaluate = ConfigDict()
    evaluate.batch_size = 2  # clips read at once; a device computes one at a time
    evaluate.score_size = 224  # px; masks and ground truth meet here
    evaluate.split = "test"  # of --mode=eval
    # "raw": the parameters; "ema": their average; "auto": of a checkpoint with both, prediction
    # takes the average and evaluation scores either
    evaluate.weights = "auto"
    evaluate.swapped_audio = True  # --mode=eval also scores each clip with another category's sound
    # --mode=eval also scores false sounds, any of "silence,noise,offscreen,shift"; "": none
    evaluate.audio = ""
    evaluate.manifest = ""  # file that says which clip gets which false sound; "": made anew
    # with false sounds, a model that reads motion also gets false motion: any of "zero,shuffled"
    evaluate.motion = "zero,shuffled"
    # a pixel moves where the motion map exceeds this: a share of the frame's maximum, or, for the
    # absolute maps, in units of data.motion.scale
    evaluate.moving_threshold = 0.2
    evaluate.num_pictures = 8  # clips drawn per kind of sound
    return config


def shrink_for_demo(config: ConfigDict) -> ConfigDict:
    """`:demo` of any recipe: the same parts, small enough for two cores and generated clips.

    Swin 32 wide with one block per stage, from scratch: one learning rate for everything, the audio
    branch trained too.
    """
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.image_size = 96
    config.data.augment.min_sizes = (80, 96, 112, 128)
    config.data.augment.max_size = 192
    config.model.num_queries = 20
    config.model.hidden_dim = 128
    config.model.backbone.embed_dim = 32
    config.model.backbone.depths = (1, 1, 1, 1)
    config.model.backbone.num_heads = (1, 2, 4, 8)
    config.model.backbone.window_size = 6
    config.model.backbone.drop_path_rate = 0.0
    config.model.audio_backbone.width = 16
    config.model.audio_mean = -1.4  # of the generated clips
    config.model.audio_std = 1.85
    config.model.audio_hidden_dim = 512
    config.model.pixel_decoder.num_layers = 2
    config.model.pixel_decoder.ffn_dim = 256
    config.model.decoder.num_layers = 5
    config.model.decoder.ffn_dim = 256
    config.model.fusion.embed_dim = 128
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

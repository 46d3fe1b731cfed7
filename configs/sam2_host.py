"""Host "sam2" of task `segment`: the keys that differ from configs/segment.py, and its variants."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import parts
from configs.base import check_variant, shrink_run_to_tiny
from configs.segment import segment_config

# Parameters of SAM2 that no host uses or changes: those of prompts by points, boxes, masks and
# hidden states, and mask 0, of unambiguous prompts.
PROMPTS = (
    r"sam2/(prompt_encoder|mask_downsample|mask_decoder/output_hypernetworks_mlps_0)/.*",
    r"sam2/(no_mem_pos_enc|text_hidden_fcs/.*)",
)
MEMORY = (  # not used without memory
    r"sam2/(memory_encoder|memory_attention|obj_ptr_proj|obj_ptr_tpos_proj)/.*",
    r"sam2/(maskmem_tpos_enc|no_obj_ptr|no_obj_embed_spatial)",
)
UNUSED = (*PROMPTS, *MEMORY)


def sam2_host_config(name: str, size: str = "base_plus") -> ConfigDict:
    """S4: a frozen image encoder at 1024 px, a trained mask decoder, one frame at a time."""
    config = segment_config()
    config.name = name
    config.host = "sam2"

    data = config.data
    data.image_size = 1024
    data.prototype_target = "none"
    data.num_prototypes = 0
    data.pre_masks = False
    data.square_first = True
    data.augment.min_sizes = (1024,)  # no augmentation but flips
    data.augment.max_size = 1024
    data.augment.crop = False
    data.augment.color = False
    # the only examples of silence that S4 has: the object score learns from them
    data.false_sounds.share = 0.2

    # folder of cached maps of the frozen image encoder (scripts/cache_features.py); "": none
    data.trunk_features = ""
    data.trunk_key = ""  # of their weights; set by training

    config.model = host_model(data, size)
    config.loss = host_loss()
    config.optim.update(
        learning_rate=1e-4,
        weight_decay=0.05,
        clip_norm=0.1,
        groups=(
            (r"sam2/.*/(scale|bias)", 0.1, 0.0),
            (r"sam2/.*", 0.1, 1.0),
            (r".*/(scale|bias)", 1.0, 0.0),
            (r".*", 1.0, 1.0),
        ),
        frozen=(r"audio_backbone/.*", r"sam2/(trunk|neck|conv_s\d)/.*", *UNUSED),
    )
    config.init = ConfigDict()
    config.init.sam2 = ""  # folder of --source=sam2; "": random
    config.init.audio_backbone = ""  # folder of --source=vggish
    config.train.batch_size = 4
    config.train.steps = 25_000
    return config


def host_model(data: ConfigDict, size: str) -> ConfigDict:
    """Keys are the fields of avs_jax.models.sam2.host.SAM2Host."""
    model = ConfigDict()
    model.num_classes = data.get_ref("num_classes")
    model.sam2 = parts.sam2(size)
    model.audio_backbone = parts.vggish()
    model.audio_mean = 0.0  # log-mels enter as (x - mean) / std
    model.audio_std = 1.0
    model.num_audio_tokens = 4  # of a frame's prompt; 0: the sound changes nothing
    model.audio_heads = 8  # of the attention that makes them
    # frames see the ones before: with data.train_frames="all", and optim.frozen without `MEMORY`
    model.memory = False
    return model


def host_loss() -> ConfigDict:
    """The terms of avs_jax/losses/prompted.py; the first three weights are SAM2's."""
    loss = ConfigDict()
    loss.candidates = "best"  # that learns the object, of the decoder's three masks; or "all"
    loss.focal_weight = 20.0
    loss.dice_weight = 1.0
    loss.iou_weight = 1.0
    loss.presence_weight = 1.0
    loss.class_weight = 1.0  # more than two classes
    return loss


def shrink(config: ConfigDict, variant: str, demo: Mapping[str, Any] | None = None) -> ConfigDict:
    """The recipe, or its variant `:demo` or `:tiny`.

    Args:
      demo: key -> value that the demo of this recipe has in place of `shrink_for_demo`'s.
    """
    check_variant(variant, "demo", "tiny")
    if variant:
        shrink_for_demo(config)
        config.update_from_flattened_dict(demo or {})
    if variant == "tiny":
        shrink_to_tiny(config)
    return config


def shrink_for_demo(config: ConfigDict) -> None:
    """Small enough for two cores and generated clips; from scratch, trunk and audio included."""
    config.name += "_demo"
    config.data.data_dir = "demo/tfds"
    config.data.image_size = 128
    config.data.square_first = False
    config.data.augment.min_sizes = (112, 128, 144)
    config.data.augment.max_size = 256
    config.data.augment.crop = True
    config.data.augment.color = True
    model = config.model
    model.sam2.backbone.update(parts.demo_hiera())
    model.sam2.update(width=128, memory_dim=32, num_memory_layers=2, ffn_dim=256)
    model.audio_backbone.width = 16
    model.audio_mean = -1.4  # of the generated clips
    model.audio_std = 1.85
    config.loss.dice_weight = 5.0
    # A model that has to get only one of three masks right can split a clip's two to four objects
    # among them and needs no sound. If all three learn, only the sound tells which object it is.
    config.loss.candidates = "all"
    # At 8e-4, the rate of the other demos, masks hardly improve: after 250 steps without false
    # sounds, loss_dice is 3.32; at this rate it is 2.45 (means of 50 steps, one seed).
    config.optim.learning_rate = 2e-4
    config.optim.warmup_steps = 150
    # At first, the learned queries dominate the tokens of a sound, and what is heard hardly reaches
    # the masks. A higher rate lets it in before the decoder settles on masks that ignore it.
    groups = ((pattern, 1.0, decay) for pattern, _, decay in config.optim.groups)
    config.optim.groups = (
        (r"audio_prompts/.*/(scale|bias)", 3.0, 0.0),
        (r"audio_prompts/.*", 3.0, 1.0),
        *groups,
    )
    config.optim.frozen = PROMPTS if model.memory else UNUSED
    config.train.steps = 1500
    config.train.batch_size = 8
    config.train.eval_every = 500
    config.train.checkpoint_every = 500
    config.evaluate.batch_size = 8


def shrink_to_tiny(config: ConfigDict) -> None:
    """One layer of everything at 64 px, quick to compile, for tests; it learns nothing."""
    shrink_run_to_tiny(config)
    config.data.image_size = 64
    config.data.augment.min_sizes = (64, 72)
    model = config.model
    model.sam2.backbone.update(parts.tiny_hiera())
    model.sam2.update(width=32, memory_dim=16, num_memory_layers=1, ffn_dim=16)
    model.audio_backbone.width = 2
    model.update(num_audio_tokens=2, audio_heads=2)
    config.train.num_pictures = 1
    config.evaluate.score_size = 32

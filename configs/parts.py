"""Configuration sections of the parts of a model: a part's keys exist only if it is chosen.

Keys are the fields of the part's module; a missing key takes the module's default.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict


def absent() -> ConfigDict:
    return ConfigDict({"name": "none"})


# ---- image backbones ----


def swin() -> ConfigDict:
    """Swin-B with windows of 12, pretrained at 384 px on ImageNet-22k."""
    return ConfigDict(
        {
            "name": "swin",
            "embed_dim": 128,
            "depths": (2, 2, 18, 2),
            "num_heads": (4, 8, 16, 32),
            "window_size": 12,
            "drop_path_rate": 0.3,
        }
    )


def pvt_v2() -> ConfigDict:
    """PVT v2-b5; the drop path rate is AVSBench's."""
    return ConfigDict(
        {
            "name": "pvt_v2",
            "embed_dims": (64, 128, 320, 512),
            "depths": (3, 6, 40, 3),
            "num_heads": (1, 2, 5, 8),
            "mlp_ratios": (4, 4, 4, 4),
            "sr_ratios": (8, 4, 2, 1),
            "drop_path_rate": 0.1,
        }
    )


def resnet50() -> ConfigDict:
    return ConfigDict({"name": "resnet50", "depths": (3, 4, 6, 3), "width": 64})


def clip_vit(patch_size: int = 32) -> ConfigDict:
    """CLIP's ViT-B."""
    return ConfigDict(
        {
            "name": "clip_vit",
            "patch_size": patch_size,
            "image_size": 224,
            "hidden_dim": 768,
            "num_layers": 12,
            "num_heads": 12,
            "ffn_dim": 3072,
            "activation": "quick_gelu",
        }
    )


def hiera(size: str) -> ConfigDict:
    """Hiera as in SAM2: "tiny", "small", "base_plus" or "large"."""
    section = {
        "tiny": {"embed_dim": 96, "depths": (1, 2, 7, 2), "global_blocks": (5, 7, 9)},
        "small": {"embed_dim": 96, "depths": (1, 2, 11, 2), "global_blocks": (7, 10, 13)},
        "base_plus": {"embed_dim": 112, "depths": (2, 3, 16, 3), "global_blocks": (12, 16, 20)},
        "large": {"embed_dim": 144, "depths": (2, 6, 36, 4), "global_blocks": (23, 33, 43)},
    }[size]
    section["num_heads"] = 1 if size in ("tiny", "small") else 2
    section["windows"] = (8, 4, 16, 8) if size == "large" else (8, 4, 14, 7)
    section["pos_grid"] = 14 if size == "base_plus" else 7
    return ConfigDict({"name": "hiera", **section})


def hiera_fpn(size: str) -> ConfigDict:
    """Hiera with SAM2's feature pyramid."""
    return ConfigDict({**hiera(size).to_dict(), "name": "hiera_fpn", "width": 256})


def sam2(size: str) -> ConfigDict:
    """SAM2.1 of one size; keys are the fields of avs_jax.models.sam2.model.SAM2."""
    model = ConfigDict()
    model.backbone = hiera(size)
    model.width = 256  # channels of the maps that are decoded
    model.memory_dim = 64
    model.num_memory_layers = 4
    model.ffn_dim = 2048  # of the memory attention
    model.num_maps = 7  # in memory: prompted frames (as one) and the frames before
    model.num_pointers = 16  # likewise
    model.map_stride = 1  # frames between remembered maps, the frame before aside
    model.max_prompted = 0  # prompted frames that are attended to, the closest; 0: all
    model.codes_occlusion = True  # 2.1: an embedding for memories without the object
    model.codes_pointer_times = True  # 2.1: pointers know their distance in time
    model.stability_threshold = 0.98  # of mask 0, else the best of three; 0: always mask 0
    model.hard_prompts = True  # prompted frames are remembered by their outline
    model.prompt_slots = 4  # predict --arrays: the most frames with prompts
    model.memory_dtype = "bfloat16"  # of the maps in memory
    model.dtype = "float32"
    model.language_dim = 0  # of hidden states that --language holds; 0: it holds tokens [L, width]
    model.hides_absent = True  # where the object score says "not visible", the mask is empty
    return model


def demo_hiera() -> dict:
    """A Hiera small enough to train on two cores."""
    return {"embed_dim": 32, "depths": (1, 1, 2, 1), "global_blocks": (3,), "num_heads": 1} | {
        "windows": (8, 4, 8, 4)
    }


def tiny_hiera() -> dict:
    """The smallest possible Hiera."""
    return {"embed_dim": 8, "depths": (1, 1, 1, 1), "global_blocks": (2,), "num_heads": 1} | {
        "windows": (4, 2, 2, 2),
        "pos_grid": 7,
    }


def demo_backbone(section: ConfigDict) -> dict:
    """An image backbone small enough to train on two cores."""
    one_block = {"depths": (1, 1, 1, 1)}
    heads = {"num_heads": (1, 2, 4, 8), "drop_path_rate": 0.0}
    return {
        "swin": {"embed_dim": 32, "window_size": 6} | one_block | heads,
        "pvt_v2": {"embed_dims": (32, 64, 128, 256)} | one_block | heads,
        "resnet50": {"width": 16} | one_block,
        "hiera_fpn": demo_hiera() | {"width": 64},
        "clip_vit": {"patch_size": 8, "image_size": 64, "hidden_dim": 64, "num_layers": 2}
        | {"num_heads": 4, "ffn_dim": 128},
    }[section.name]


def tiny_backbone(section: ConfigDict) -> dict:
    """The smallest possible image backbone."""
    return {
        "swin": {"embed_dim": 8, "num_heads": (1, 1, 2, 2), "window_size": 2},
        "pvt_v2": {"embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)},
        "resnet50": {"width": 4},
        "hiera_fpn": tiny_hiera() | {"width": 16},
        "clip_vit": {"image_size": 32, "hidden_dim": 8, "num_layers": 1, "num_heads": 2},
    }[section.name]


# ---- audio backbones ----


def vggish() -> ConfigDict:
    """VGGish up to its convolution map."""
    return ConfigDict({"name": "vggish", "width": 64})  # channels of the first convolution


def ast() -> ConfigDict:
    """AST of the published size, for task `align`: a vector per second, no map."""
    return ConfigDict(
        {
            "name": "ast",
            "hidden_dim": 768,
            "num_layers": 12,
            "num_heads": 12,
            "ffn_dim": 3072,
            "stride": 10,
        }
    )


# ---- text encoders ----


def tiny_text() -> ConfigDict:
    """A two-layer transformer on words, trained in place; the other keys have its sizes."""
    return ConfigDict({"name": "tiny", "vocab_size": 4096, "hidden_dim": 128})


def distilroberta() -> ConfigDict:
    """distilroberta-base; roberta-base has 12 layers."""
    return ConfigDict(
        {
            "name": "roberta",
            "vocab_size": 50265,
            "hidden_dim": 768,
            "num_layers": 6,
            "num_heads": 12,
            "ffn_dim": 3072,
            "max_positions": 514,
        }
    )


def clip_text() -> ConfigDict:
    """The text tower of CLIP ViT-B/32 and ViT-B/16."""
    return ConfigDict(
        {
            "name": "clip",
            "vocab_size": 49408,
            "max_positions": 77,
            "hidden_dim": 512,
            "num_layers": 12,
            "num_heads": 8,
            "ffn_dim": 2048,
            "activation": "quick_gelu",
            "pooling": "eos",
            "eos_id": 49407,
        }
    )


def smallest_text(section: ConfigDict) -> dict:
    """The smallest possible text encoder."""
    small = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "ffn_dim": 8}
    return small | ({"vocab_size": 64} if section.name == "tiny" else {})


# ---- fusions ----


def ama() -> ConfigDict:
    """Audio-motion alignment with the reference's values."""
    fusion = ConfigDict({"name": "ama"})
    fusion.num_heads = 4
    fusion.embed_dim = 256
    fusion.grid = 24  # cells per side of the attention map
    fusion.temperature_mode = "mul"  # "mul": scores * tau; "div": scores / tau
    fusion.normalize = "minmax"  # "minmax" | "softmax_hw"
    # where the map acts: "queries", as in the reference | "features", the mask features | "both"
    fusion.at = "queries"
    fusion.gate = False  # a gate per frame on the map (models/fusion/evidence_gate.py)
    fusion.gate_temperature = 1.0
    fusion.levels = ()  # coarser grids that attend too: cells per side, divisors of `grid`
    # motion of the clip's other seconds (models/fusion/motion_memory.py): "none" | "attention" |
    # "gru"; it needs data.train_frames = "all"
    fusion.temporal = "none"
    fusion.causal = False  # `temporal` reads earlier frames only
    # compare what moves with what is heard, or with the ground truth: losses/consistency.py,
    # chosen and weighted by loss.consistency
    fusion.consistency = False
    fusion.consistency_warmup = 0.2  # fraction of the training in which its weight ramps up
    fusion.grad_through_extrema = True  # False: min and max count as constants
    fusion.attention_dropout = 0.0  # training: share of attention entries without evidence
    fusion.projection_dropout = 0.0  # training: share of channels of the projected query
    fusion.map_dropout = 0.0  # training: share of clips without the map
    return fusion


def sync() -> ConfigDict:
    """Synchrony between the sound and the motion of each cell; reads data.track."""
    fusion = ConfigDict({"name": "sync"})
    fusion.width = 64  # channels of its sequences
    fusion.max_lag = 25  # samples of data.track.rate per second
    fusion.near = 2  # samples around the learned offset that count as in time
    fusion.reach = 3  # cells on each side over which speeds are averaged, too; 0: none
    fusion.at = "both"  # where the evidence acts: "queries" | "features" | "both"
    return fusion


def query_fusion() -> ConfigDict:
    """The frame's sound into the queries, by the fusions of task classify."""
    fusion = ConfigDict({"name": "query_fusion"})
    # "early" | "late_feature" | "attention" | "gated" | "film" | "cross"
    fusion.kind = "gated"
    fusion.num_heads = 8  # of "gated" and "cross"
    return fusion


def join_fusions(*fusions: ConfigDict) -> ConfigDict:
    """Several fusions that all act: the name "ama+sync", and a subsection for the keys of each."""
    fusion = ConfigDict({"name": "+".join(row.name for row in fusions)})
    for row in fusions:
        fusion[row.name] = ConfigDict({k: v for k, v in row.items() if k != "name"})
    return fusion


# Name -> values of the variants `:demo` and `:tiny`.
DEMO_FUSIONS = {"ama": {"embed_dim": 128}, "sync": {"width": 16, "max_lag": 12}}
TINY_FUSIONS = {
    "ama": {"embed_dim": 32, "num_heads": 2},
    "query_fusion": {"num_heads": 2},
    "sync": {"width": 4, "max_lag": 2, "near": 0, "reach": 1},
}


def shrink_fusion(fusion: ConfigDict, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Gives each listed fusion the values of its name, if there are any."""
    names = fusion.name.split("+")
    for name in names:
        row = fusion[name] if len(names) > 1 else fusion
        row.update(sizes.get(name, {}))


def cma() -> ConfigDict:
    """Cross-modal attention between the cells of feature maps and the words of an expression."""
    fusion = ConfigDict({"name": "cma"})
    # res2 are the mask features, from which the queries are generated
    fusion.levels = ("res5", "res4", "res3", "res2")
    fusion.hidden_dim = 0  # of the attention; 0: the width of the first level
    fusion.num_heads = 8
    fusion.num_layers = 1
    fusion.share_layers = True  # the layers, if several, have the same weights
    # keys: "tokens" | "mean" | "cls" | "attn" (one learned query) | "topk" (by a learned score)
    fusion.text_pool = "tokens"
    fusion.top_k = 3  # of "topk"
    fusion.null_key = True  # a learned key to attend to instead: "none of these words"
    # "prior": only where the initial queries see something; "located": where the localizer says
    fusion.mask_gate = "none"
    fusion.tau = 1.0  # temperature of the gate
    fusion.warmup = 0.1  # fraction of the training over which the strength rises to 1
    # tokens enter without projection and norm, as published; hidden_dim must be their width
    fusion.raw_text = False
    return fusion


def text_to_pixel() -> ConfigDict:
    """Which cells each expression of a clip means, from words and sound."""
    return ConfigDict({"name": "text_to_pixel", "embed_dim": 128, "num_heads": 8})


# ---- frames that see each other ----


def divided() -> ConfigDict:
    """Divided space-time attention between the backbone and the pixel decoder."""
    temporal = ConfigDict({"name": "divided"})
    temporal.level = "res5"  # of the backbone: "res2" .. "res5"
    temporal.num_layers = 2
    temporal.hidden_dim = 256
    temporal.num_heads = 8
    temporal.ffn_dim = 1024
    return temporal


# ---- refiners ----


def refiner(name: str) -> ConfigDict:
    """Boundary refinement: "auxiliary" edges only shape features; "refine" also refines them.

    The gradient into the features ramps from 0 to 1 between the two fractions of the training in
    `ramp`; (0, 0) is the full gradient from the start.
    """
    return ConfigDict({"name": name, "ramp": (0.0, 0.0)})


# ---- decoders of words ----


def word_transformer() -> ConfigDict:
    return ConfigDict(
        {
            "name": "transformer",
            "hidden_dim": 256,
            "num_layers": 2,
            "num_heads": 8,
            "ffn_dim": 1024,
            "dropout": 0.1,
        }
    )


def word_lstm() -> ConfigDict:
    """One layer, fed with the word and the image at every step."""
    return ConfigDict({"name": "lstm", "embed_dim": 256, "hidden_dim": 512, "dropout": 0.5})


def small_decoder(section: ConfigDict) -> dict:
    """A decoder small enough to train on two cores."""
    return {
        "transformer": {"hidden_dim": 64, "num_heads": 4, "ffn_dim": 128, "dropout": 0.0},
        "lstm": {"embed_dim": 32, "hidden_dim": 64, "dropout": 0.0},
    }[section.name]


def smallest_decoder(section: ConfigDict) -> dict:
    """The smallest possible decoder."""
    return {
        "transformer": {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "ffn_dim": 8},
        "lstm": {"embed_dim": 4, "hidden_dim": 8},
    }[section.name]

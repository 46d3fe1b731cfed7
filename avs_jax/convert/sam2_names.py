"""SAM2's state dict: its table of rules, its names in their own order, and HF's names for them.

Sources: the state dicts of facebookresearch/sam2 (2b90b9f), all sizes and both versions, and of
Sam2VideoModel in huggingface/transformers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from avs_jax.convert.rules import Rule

BOTH = ("weight", "bias")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
ENCODER, DECODER, PROMPTS = "image_encoder", "sam_mask_decoder", "sam_prompt_encoder"


def sam2_rules(model_config: Mapping[str, Any] | None = None) -> list[Rule]:
    """The whole state dict -> models.sam2.model.SAM2, any size and version."""
    del model_config
    embeds = "no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial|maskmem_tpos_enc"
    return [
        Rule(f"({embeds})", r"\1"),
        *_encoder_rules(),
        *_prompt_rules(),
        *_decoder_rules(),
        *_memory_rules(),
        *_layer(r"obj_ptr_proj\.layers\.(\d)\.", r"obj_ptr_proj/layers_\1/"),
        *_layer(r"obj_ptr_tpos_proj\.", "obj_ptr_tpos_proj/"),
        *_layer(r"mask_downsample\.", "mask_downsample/", "conv"),
    ]


def _encoder_rules() -> list[Rule]:
    """Hiera and the neck."""
    trunk = rf"{ENCODER}\.trunk\."
    block, ours = rf"{trunk}blocks\.(\d+)\.", r"trunk/blocks_\1/"
    return [
        Rule(rf"{trunk}(pos_embed|pos_embed_window)", r"trunk/\1", "map"),
        *_layer(rf"{trunk}patch_embed\.proj\.", "trunk/patch_embed/", "conv"),
        *_layer(rf"{block}attn\.(qkv|proj)\.", rf"{ours}attn/\2/"),
        *_layer(rf"{block}mlp\.layers\.(\d)\.", rf"{ours}mlp_\2/"),
        *_layer(rf"{block}proj\.", f"{ours}proj/"),
        *_norm(rf"{block}(norm\d)\.", rf"{ours}\2/"),
        *_layer(rf"{ENCODER}\.neck\.convs\.(\d)\.conv\.", r"neck/convs_\1/", "conv1x1"),
    ]


def _prompt_rules() -> list[Rule]:
    source, ours = rf"{PROMPTS}\.", "prompt_encoder/"
    shrink, our_shrink = rf"{source}mask_downscaling\.", f"{ours}mask_downscaling/"
    return [
        Rule(rf"{source}pe_layer\.positional_encoding_gaussian_matrix", f"{ours}gaussian"),
        Rule(rf"{source}point_embeddings\.(\d)\.weight", rf"{ours}point_embeddings_\1"),
        Rule(rf"{source}(not_a_point_embed|no_mask_embed)\.weight", rf"{ours}\1"),
        *_layer(rf"{shrink}([03])\.", rf"{our_shrink}\1/", "conv"),
        *_layer(rf"{shrink}(6)\.", rf"{our_shrink}\1/", "conv1x1"),
        *_norm(rf"{shrink}([14])\.", rf"{our_shrink}\1/"),
    ]


def _decoder_rules() -> list[Rule]:
    """The mask decoder, and the two convolutions of its finer maps."""
    source, ours = rf"{DECODER}\.", "mask_decoder/"
    two_way, our_two_way = rf"{source}transformer\.", f"{ours}transformer/"
    block, our_block = rf"{two_way}layers\.(\d)\.", rf"{our_two_way}layers_\1/"
    grow, our_grow = rf"{source}output_upscaling\.", f"{ours}output_upscaling/"
    hyper, our_hyper = "output_hypernetworks_mlps", rf"{ours}output_hypernetworks_mlps_\1/"
    return [
        Rule(rf"{source}(iou_token|mask_tokens|obj_score_token)\.weight", rf"{ours}\1"),
        *_layer(rf"{source}(conv_s[01])\.", r"\1/", "conv1x1"),
        *_layer(rf"{two_way}(final_attn\w+)\.(\w+)\.", rf"{our_two_way}\1/\2/"),
        *_norm(rf"{two_way}norm_final_attn\.", f"{our_two_way}norm_final_attn/"),
        *_layer(rf"{block}mlp\.layers\.(\d)\.", rf"{our_block}mlp/layers_\2/"),
        *_layer(rf"{block}((?:self|cross)_attn\w*)\.(\w+)\.", rf"{our_block}\2/\3/"),
        *_norm(rf"{block}(norm\d)\.", rf"{our_block}\2/"),
        *_layer(rf"{grow}([03])\.", rf"{our_grow}\1/", "up"),
        *_norm(rf"{grow}1\.", f"{our_grow}1/"),
        *_layer(rf"{source}{hyper}\.(\d)\.layers\.(\d)\.", rf"{our_hyper}layers_\2/"),
        *_layer(rf"{source}(\w+_head)\.layers\.(\d)\.", rf"{ours}\1/layers_\2/"),
    ]


def _memory_rules() -> list[Rule]:
    """The memory attention and the memory encoder."""
    layer, our_layer = r"memory_attention\.layers\.(\d)\.", r"memory_attention/layers_\1/"
    source, ours = r"memory_encoder\.", "memory_encoder/"
    fuser, our_fuser = rf"{source}fuser\.layers\.(\d)\.", rf"{ours}fuser_\1/"
    down, our_down = rf"{source}mask_downsampler\.encoder\.", f"{ours}mask_downsampler/encoder_"
    return [
        *_layer(rf"{layer}(self_attn|cross_attn_image)\.(\w+)\.", rf"{our_layer}\2/\3/"),
        *_layer(rf"{layer}(linear\d)\.", rf"{our_layer}\2/"),
        *_norm(rf"{layer}(norm\d)\.", rf"{our_layer}\2/"),
        *_norm(r"memory_attention\.norm\.", "memory_attention/norm/"),
        *_layer(rf"{down}([0369])\.", rf"{our_down}\1/", "conv"),
        *_layer(rf"{down}(12)\.", rf"{our_down}\1/", "conv1x1"),
        *_norm(rf"{down}(1|4|7|10)\.", rf"{our_down}\1/"),
        *_layer(rf"{source}(pix_feat_proj|out_proj)\.", rf"{ours}\1/", "conv1x1"),
        *_layer(rf"{fuser}dwconv\.", f"{our_fuser}dwconv/", "conv"),
        *_layer(rf"{fuser}(pwconv\d)\.", rf"{our_fuser}\2/"),
        *_norm(rf"{fuser}norm\.", f"{our_fuser}norm/"),
        Rule(rf"{fuser}gamma", f"{our_fuser}gamma"),
    ]


def _layer(source: str, target: str, transform: str = "linear") -> list[Rule]:
    return [
        Rule(f"{source}weight", f"{target}kernel", transform),
        Rule(f"{source}bias", f"{target}bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}weight", f"{target}scale"), Rule(f"{source}bias", f"{target}bias")]


def encoder_rules() -> list[Rule]:
    """The image encoder of a whole state dict -> models.backbones.hiera_fpn.HieraFPN.

    Ignored: everything else.
    """
    return [*_encoder_rules(), Rule(rf"(?!{ENCODER}\.).*", None)]


def sam2_names(model_config: Mapping[str, Any]) -> list[str]:
    """Every name of the state dict of a configuration's model, in the original's order."""
    backbone = model_config["backbone"]
    names = ["maskmem_tpos_enc", "no_mem_embed", "no_mem_pos_enc", "no_obj_ptr"]
    names += ["no_obj_embed_spatial"] if model_config["codes_occlusion"] else []
    names += [f"{ENCODER}.trunk.{name}" for name in _trunk_names(backbone["depths"])]
    names += _both(*(f"{ENCODER}.neck.convs.{i}.conv" for i in range(4)), "mask_downsample")
    for i in range(model_config["num_memory_layers"]):
        attentions = _attentions("self_attn", "cross_attn_image")
        parts = [*attentions, "linear1", "linear2", "norm1", "norm2", "norm3"]
        names += _both(*(f"memory_attention.layers.{i}.{part}" for part in parts))
    names += _both("memory_attention.norm")
    layers = (0, 1, 3, 4, 6, 7, 9, 10, 12)
    parts = [*(f"mask_downsampler.encoder.{i}" for i in layers), "pix_feat_proj"]
    names += _both(*(f"memory_encoder.{part}" for part in parts))
    for i in range(2):
        here = f"memory_encoder.fuser.layers.{i}."
        parts = ("dwconv", "norm", "pwconv1", "pwconv2")
        names += [f"{here}gamma", *_both(*(here + part for part in parts))]
    names += _both("memory_encoder.out_proj")
    names += [f"{PROMPTS}.{name}" for name in _prompt_names()]
    names += [f"{DECODER}.{name}" for name in _decoder_names()]
    names += _both(*_mlp("obj_ptr_proj"))
    return names + (_both("obj_ptr_tpos_proj") if model_config["codes_pointer_times"] else [])


def _trunk_names(depths: Sequence[int]) -> Iterator[str]:
    yield from ("pos_embed", "pos_embed_window")
    yield from _both("patch_embed.proj")
    first = {sum(depths[:stage]) for stage in (1, 2, 3)}
    for block in range(sum(depths)):
        parts = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.layers.0", "mlp.layers.1"]
        parts += ["proj"] if block in first else []
        yield from _both(*(f"blocks.{block}.{part}" for part in parts))


def _prompt_names() -> list[str]:
    names = ["pe_layer.positional_encoding_gaussian_matrix"]
    names += [f"point_embeddings.{i}.weight" for i in range(4)]
    names += ["not_a_point_embed.weight"]
    names += _both(*(f"mask_downscaling.{i}" for i in (0, 1, 3, 4, 6)))
    return [*names, "no_mask_embed.weight"]


def _decoder_names() -> list[str]:
    parts = []
    for i in range(2):
        block = [*_attentions("self_attn"), "norm1", *_attentions("cross_attn_token_to_image")]
        block += ["norm2", "mlp.layers.0", "mlp.layers.1", "norm3", "norm4"]
        block += _attentions("cross_attn_image_to_token")
        parts += [f"transformer.layers.{i}.{part}" for part in block]
    parts += _attentions("transformer.final_attn_token_to_image")
    names = _both(*parts, "transformer.norm_final_attn")
    names += [f"{token}.weight" for token in ("iou_token", "mask_tokens", "obj_score_token")]
    parts = [f"output_upscaling.{i}" for i in (0, 1, 3)] + ["conv_s0", "conv_s1"]
    heads = [f"output_hypernetworks_mlps.{i}" for i in range(4)]
    return names + _both(*parts, *_mlp(*heads, "iou_prediction_head", "pred_obj_score_head"))


def _both(*modules: str) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in BOTH]


def _attentions(*modules: str) -> list[str]:
    return [f"{module}.{name}" for module in modules for name in PROJECTIONS]


def _mlp(*modules: str) -> list[str]:
    return [f"{module}.layers.{i}" for module in modules for i in range(3)]


# Parts of HF's names -> the original's, applied in order to a name without its last part.
_HF_RENAMES = (
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (
        r"^(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        f"{PROMPTS}.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^vision_encoder\.backbone\.patch_embed\.projection\.", f"{ENCODER}.trunk.patch_embed.proj."),
    (r"^vision_encoder\.backbone\.", f"{ENCODER}.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", rf"{ENCODER}.neck.convs.\1.conv."),
    (
        r"^memory_encoder\.mask_downsampler\.final_conv\.",
        "memory_encoder.mask_downsampler.encoder.12.",
    ),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (
        r"^memory_encoder\.memory_fuser\.layers\.(\d)\.scale$",
        r"memory_encoder.fuser.layers.\1.gamma",
    ),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", f"{PROMPTS}.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", f"{PROMPTS}.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", f"{PROMPTS}.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", f"{PROMPTS}.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", f"{PROMPTS}.mask_downscaling.6."),
    (r"^prompt_encoder\.", f"{PROMPTS}."),
    (r"^mask_decoder\.upscale_conv1\.", f"{DECODER}.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", f"{DECODER}.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", f"{DECODER}.output_upscaling.3."),
    (r"^mask_decoder\.", f"{DECODER}."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm", ".norm"),
)
_TWO_LAYERS = re.compile(r"(.*\.mlp)\.(proj_in|proj_out)\.")  # blocks of trunk and decoder
_THREE_LAYERS = re.compile(r"(.*(?:_mlps\.\d|_head|obj_ptr_proj))\.(proj_in|layers\.0|proj_out)\.")
_DOWNSAMPLER = re.compile(r"(.*mask_downsampler)\.layers\.(\d)\.(conv|norm)\.")
_HF_POINTS = "prompt_encoder.point_embed.weight"  # [4, D], one array


def is_huggingface(names: Mapping[str, Any] | Sequence[str]) -> bool:
    return any(name.startswith("vision_encoder.") for name in names)


def original_layout(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict of HF's with the original's names; others as they are.

    The matrix of the position code, which HF's files have twice, must be the same both times;
    otherwise both stay, and the rules refuse the second.
    """
    if not is_huggingface(state_dict):
        return dict(state_dict)
    result: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        if name == _HF_POINTS and array.ndim == 2:
            for i, row in enumerate(array):
                result[f"{PROMPTS}.point_embeddings.{i}.weight"] = row[None]
            continue
        new = original_name(name)
        if new in result and not np.array_equal(result[new], array):
            new = name
        result[new] = array
    return result


def original_name(name: str) -> str:
    """The original's name for one of HF's."""
    for pattern, new in _HF_RENAMES:
        name = re.sub(pattern, new, name)
    if match := _TWO_LAYERS.match(name):
        layer = ("proj_in", "proj_out").index(match[2])
        return f"{match[1]}.layers.{layer}.{name[match.end() :]}"
    if match := _THREE_LAYERS.match(name):
        layer = ("proj_in", "layers.0", "proj_out").index(match[2])
        return f"{match[1]}.layers.{layer}.{name[match.end() :]}"
    if match := _DOWNSAMPLER.match(name):
        layer = 3 * int(match[2]) + ("conv", "norm").index(match[3])
        return f"{match[1]}.encoder.{layer}.{name[match.end() :]}"
    return name

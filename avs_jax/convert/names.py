"""Names of VCT's state dict in the original order, for any configuration.

Export reads the rule table (tables.py) backward with them. Source: the state dicts of
spyflying/VCT_AVS, whose order is that in which modules register their tensors. AMA's names are
appended.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from avs_jax.convert.rules import ConversionError

NORM = LINEAR = ("weight", "bias")
NUM_LEVELS = 3  # of the pixel decoder's deformable part: strides 32, 16, 8
ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
VGGISH_FEATURES = (0, 3, 6, 8, 11, 13)
VGGISH_EMBEDDINGS = (0, 2, 4)
# The original renames tensors of these modules when it loads version 1. PyTorch reads the version
# from the `_metadata` of a state dict; without it, the original renames what needs no renaming.
SECOND_VERSION = ("sem_seg_head", "sem_seg_head.predictor")


def vct_names(model_config: Mapping[str, Any]) -> list[str]:
    """Every name in the state dict of the model that config.model describes.

    Raises:
      ConversionError: VCT has no such model.
    """
    backbone = model_config["backbone"]["name"]
    if backbone != "swin":
        raise ConversionError(
            f"VCT has no names for config.model.backbone.name={backbone!r}, only for 'swin'; "
            "--format=orbax and --format=stablehlo take any model"
        )
    depths = model_config["backbone"]["depths"]
    has_prototypes = model_config["num_prototypes"] > 0
    has_ama = "ama" in model_config["fusion"]["name"].split("+")
    names = list(_swin("backbone.", depths))
    if model_config["pre_masks"]:
        names += _swin("pre_sam_backbone.", depths)
        for level in range(len(depths)):
            names += _under(f"scale_factor_module.{level}.", _each(("fc1", "fc2"), LINEAR))
    names += _under("audio_backbone.features.", _each(VGGISH_FEATURES, LINEAR))
    names += _under("audio_backbone.embeddings.", _each(VGGISH_EMBEDDINGS, LINEAR))
    num_layers = model_config["pixel_decoder"]["num_layers"]
    names += _under("sem_seg_head.pixel_decoder.", _pixel_decoder(num_layers))
    names += _under("sem_seg_head.audio_transformation.embeddings.", _each((0, 2, 4), LINEAR))
    num_layers = model_config["decoder"]["num_layers"]
    names += _under("sem_seg_head.predictor.", _predictor(num_layers, has_prototypes, has_ama))
    if has_prototypes:
        names.append("criterion.logit_scale")
    names.append("criterion.empty_weight")
    return names + list(_under("ama_module.", _ama())) if has_ama else names


def module_versions(names: Sequence[str]) -> dict[str, int]:
    """Module -> version, PyTorch's `_metadata` of a state dict; "" is the whole model."""
    modules = {""} | {
        name.rsplit(".", count)[0] for name in names for count in range(1, name.count(".") + 1)
    }
    # Batch normalization counts batches since its version 2.
    counting = {name.rsplit(".", 1)[0] for name in names if name.endswith(".running_mean")}
    second = counting | set(SECOND_VERSION)
    return {module: 2 if module in second else 1 for module in sorted(modules)}


def _swin(prefix: str, depths: Sequence[int]) -> Iterator[str]:
    yield from _under(f"{prefix}patch_embed.", _each(("proj", "norm"), LINEAR))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            here = f"{prefix}layers.{stage}.blocks.{block}."
            yield from _under(f"{here}norm1.", NORM)
            tables = ("relative_position_bias_table", "relative_position_index")
            yield from _under(f"{here}attn.", [*tables, *_each(("qkv", "proj"), LINEAR)])
            yield from _under(here, _each(("norm2", "mlp.fc1", "mlp.fc2"), LINEAR))
        if stage < len(depths) - 1:
            here = f"{prefix}layers.{stage}.downsample."
            yield from _under(here, ("reduction.weight", "norm.weight", "norm.bias"))
    yield from _under(prefix, _each([f"norm{stage}" for stage in range(len(depths))], NORM))


def _pixel_decoder(num_layers: int) -> Iterator[str]:
    for level in range(NUM_LEVELS):
        yield from _under(f"input_proj.{level}.", _each((0, 1), LINEAR))
    yield "transformer.level_embed"
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    parts = [f"self_attn.{name}" for name in attention] + ["norm1", "linear1", "linear2", "norm2"]
    for layer in range(num_layers):
        yield from _under(f"transformer.encoder.layers.{layer}.", _each(parts, LINEAR))
    yield from _under("mask_features.", LINEAR)
    for name in ("adapter_1", "layer_1"):
        yield from _under(f"{name}.", ("weight", "norm.weight", "norm.bias"))


def _predictor(num_layers: int, has_prototypes: bool, has_ama: bool) -> Iterator[str]:
    for kind, attention in (("self", "self_attn"), ("cross", "multihead_attn")):
        parts = [f"{attention}.{name}" for name in ATTENTION] + ["norm.weight", "norm.bias"]
        for layer in range(num_layers):
            yield from _under(f"transformer_{kind}_attention_layers.{layer}.", parts)
    for layer in range(num_layers):
        parts = _each(("linear1", "linear2", "norm"), LINEAR)
        yield from _under(f"transformer_ffn_layers.{layer}.", parts)
    yield from _under("decoder_norm.", NORM)
    yield from ("query_feat.weight", "query_embed.weight", "level_embed.weight")
    yield from _each(("class_embed", *(f"mask_embed.layers.{i}" for i in range(3))), LINEAR)
    block = "visual_query_block."
    if has_ama:
        yield f"{block}lambda"
    if has_prototypes:
        yield f"{block}prototype.weight"
    parts = [f"pre_proj.{i}" for i in (0, 2, 4)] + [f"query_mixer.layers.{i}" for i in range(3)]
    yield from _under(block, _each(parts, LINEAR))
    if has_prototypes:
        parts = [f"multihead_attn.{name}" for name in ATTENTION] + ["norm.weight", "norm.bias"]
        yield from _under(f"{block}pre_attn.", parts)
    parts = ("q_proj", "k_proj", "v_proj", "proj")
    yield from _under(f"{block}assign_attn.", _each(parts, LINEAR))
    if has_prototypes:
        yield from ("audio_proj.weight", "proto_proj.weight")


def _ama() -> Iterator[str]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    yield "temperature"
    for convolution in (0, 3):
        yield from _under(f"flow_encoder.{convolution}.", LINEAR)
        yield from _under(f"flow_encoder.{convolution + 1}.", (*NORM, *statistics))
    yield from _under("audio_proj.", _each((0, 1), LINEAR))
    yield from (f"{name}_proj.weight" for name in "qkv")


def _each(parts: Sequence[str | int], names: Sequence[str]) -> list[str]:
    return [f"{part}.{name}" for part in parts for name in names]


def _under(prefix: str, names: Sequence[str] | Iterator[str]) -> Iterator[str]:
    return (prefix + name for name in names)

"""The state dict of AVSBench's baselines: its table of rules, and its names in their own order.

The published checkpoints hold the model without VGGish, which AVSBench loads from its own file.
Source: the state dicts of OpenNLPLab/AVSBench, avs_{s4,ms3,avss}, ResNet-50 and PVT-v2-b5 (class
Pred_endecoder).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from avs_jax.convert.rules import ConversionError, Rule
from avs_jax.convert.tables import pvt_v2_rules, resnet_rules, vggish_rules

# Tensors that no parameter uses and nothing can recompute; the converter keeps them for export:
# modules that the original allocates and never runs, and counters of batches.
UNUSED_SOURCE_TENSORS = (
    r"path4\.resConfUnit1\..*"
    r"|resnet\.layer[34]_2\..*"
    r"|(resnet|tpavi_b\d)\..*num_batches_tracked"
)
LINEAR = NORM = ("weight", "bias")
BATCH_NORM = (*NORM, "running_mean", "running_var", "num_batches_tracked")


def tpavi_rules(model_config: Mapping[str, Any]) -> list[Rule]:
    """The whole state dict -> models.tpavi.TPAVI, all variants and modes.

    Files may also hold VGGish, under `audio_backbone.`.

    Args:
      model_config: config.model; reads the backbone.
    """
    block, ours = r"(tpavi_b\d)\.", r"\1/"
    rules = [
        Rule(UNUSED_SOURCE_TENSORS, None),
        *_backbone_rules(model_config["backbone"]),
        *vggish_rules("audio_backbone", "audio_backbone", has_embedding=True),
        Rule(rf"{block}align_channel\.weight", f"{ours}align_channel/kernel", "linear"),
        Rule(rf"{block}align_channel\.bias", f"{ours}align_channel/bias"),
        *_norm_rules(rf"{block}norm_layer\.", f"{ours}norm_layer/"),
        *_norm_rules(rf"{block}W_z\.1\.", f"{ours}W_z_1/"),
        Rule(rf"{block}W_z\.1\.running_(mean|var)", rf"batch_stats/{ours}W_z_1/\2"),
    ]
    for source, target, transform in (
        (r"(conv\d)\.conv2d_list\.(\d)\.", r"\1/conv2d_list_\2/", "conv"),
        (r"(path\d)\.(resConfUnit\d)\.(conv\d)\.", r"\1/\2/\3/", "conv"),
        (r"output_conv\.([02])\.", r"output_conv_\1/", "conv"),
        (r"output_conv\.4\.", "output_conv_4/", "conv1x1"),
        (rf"{block}(g|theta|phi)\.", rf"{ours}\2/", "conv1x1x1"),
        (rf"{block}W_z\.0\.", f"{ours}W_z_0/", "conv1x1x1"),
        (rf"{block}W_f\.0\.", f"{ours}W_f_0/", "conv1x1"),
    ):
        rules += _linear_rules(source, target, transform)
    return rules


def tpavi_names(model_config: Mapping[str, Any]) -> list[str]:
    """Every name of the state dict of a configuration's model, in the original's order.

    Args:
      model_config: config.model; reads backbone, tpavi_stages, tpavi_mode and tpavi_audio_bias.

    Raises:
      ConversionError: AVSBench has no such model.
    """
    names = list(_backbone_names(model_config["backbone"]))
    for stage in (4, 3, 2, 1):
        for branch in range(4):
            names += _under(f"conv{stage}.conv2d_list.{branch}.", LINEAR)
    for stage in (4, 3, 2, 1):
        units = (f"resConfUnit{unit}.conv{conv}." for unit in (1, 2) for conv in (1, 2))
        names += [name for unit in units for name in _under(f"path{stage}.{unit}", LINEAR)]
    for stage in model_config["tpavi_stages"]:
        names += _under(f"tpavi_b{stage + 1}.", _block_names(model_config))
    for layer in (0, 2, 4):
        names += _under(f"output_conv.{layer}.", LINEAR)
    return names


def _backbone_rules(backbone: Mapping[str, Any]) -> list[Rule]:
    if backbone["name"] == "resnet50":
        return resnet_rules("resnet", "backbone")
    if backbone["name"] == "pvt_v2":
        return pvt_v2_rules("encoder_backbone", "backbone", backbone["depths"])
    raise ConversionError(
        f"AVSBench has no names for config.model.backbone.name={backbone['name']!r}, only for "
        "'resnet50' and 'pvt_v2'"
    )


def _backbone_names(backbone: Mapping[str, Any]) -> Iterator[str]:
    if backbone["name"] == "resnet50":
        return _resnet_names(backbone["depths"])
    if backbone["name"] == "pvt_v2":
        return _pvt_names(backbone["depths"], backbone["sr_ratios"])
    return iter(_backbone_rules(backbone))  # raises


def _resnet_names(depths: Sequence[int]) -> Iterator[str]:
    yield "resnet.conv1.weight"
    yield from _under("resnet.bn1.", BATCH_NORM)
    branches = ((1, ""), (2, ""), (3, "_1"), (4, "_1"), (3, "_2"), (4, "_2"))
    for stage, branch in branches:
        for block in range(depths[stage - 1]):
            here = f"resnet.layer{stage}{branch}.{block}."
            for layer in (1, 2, 3):
                yield f"{here}conv{layer}.weight"
                yield from _under(f"{here}bn{layer}.", BATCH_NORM)
            if block == 0:
                yield f"{here}downsample.0.weight"
                yield from _under(f"{here}downsample.1.", BATCH_NORM)


def _pvt_names(depths: Sequence[int], sr_ratios: Sequence[int]) -> Iterator[str]:
    before, reduction = ("norm1", "attn.q", "attn.kv", "attn.proj"), ("attn.sr", "attn.norm")
    after = ("norm2", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2")
    for stage, (depth, ratio) in enumerate(zip(depths, sr_ratios, strict=True), start=1):
        parts = [f"patch_embed{stage}.proj", f"patch_embed{stage}.norm"]
        for block in range(depth):
            inside = (*before, *(reduction if ratio > 1 else ()), *after)
            parts += [f"block{stage}.{block}.{part}" for part in inside]
        for part in [*parts, f"norm{stage}"]:
            yield from _under(f"encoder_backbone.{part}.", LINEAR)


def _block_names(model_config: Mapping[str, Any]) -> list[str]:
    names = ["align_channel.weight"]
    names += ["align_channel.bias"] if model_config["tpavi_audio_bias"] else []
    names += [f"{part}.{name}" for part in ("norm_layer", "g", "W_z.0") for name in LINEAR]
    names += _under("W_z.1.", BATCH_NORM)
    mode = model_config["tpavi_mode"]
    parts = () if mode == "gaussian" else ("theta", "phi")
    parts += ("W_f.0",) if mode == "concatenate" else ()
    return names + [f"{part}.{name}" for part in parts for name in LINEAR]


def _linear_rules(source: str, target: str, transform: str) -> list[Rule]:
    return [
        Rule(f"{source}weight", f"{target}kernel", transform),
        Rule(f"{source}bias", f"{target}bias"),
    ]


def _norm_rules(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}weight", f"{target}scale"), Rule(f"{source}bias", f"{target}bias")]


def _under(prefix: str, names: Sequence[str]) -> list[str]:
    return [prefix + name for name in names]

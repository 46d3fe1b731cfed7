"""Tables of rules: where each tensor of a PyTorch state dict goes in the parameter tree.

One function per part of the model; prefixes are given without the separator, "" for none. Numbers
of the source that are positions in a list become suffixes of ours: layers.0 -> layers_0.
"""

import re
from collections.abc import Sequence

from avs_jax.convert.rules import Rule


def swin_rules(source_prefix: str, target_prefix: str, depths: Sequence[int]) -> list[Rule]:
    """Swin with an output norm per stage (VCT's swinb.py) -> models.backbones.swin.Swin.

    Args:
      source_prefix: of the names in the state dict, "backbone".
      target_prefix: of the paths in the tree, "backbone".
      depths: blocks per stage; two by two they are entries of a stack, an odd one stands alone.

    Returns:
      The rules. `relative_position_index` is known and not taken: it follows from the window size.
    """
    source, target = _source(source_prefix), _target(target_prefix)
    rules = [
        Rule(rf"{source}patch_embed\.proj\.weight", f"{target}patch_embed/proj/kernel", "conv"),
        Rule(rf"{source}patch_embed\.proj\.bias", f"{target}patch_embed/proj/bias"),
        Rule(
            rf"{source}layers\.(\d+)\.downsample\.reduction\.weight",
            rf"{target}layers_\1/downsample/reduction/kernel",
            "linear",
        ),
        Rule(rf"{source}layers\.\d+\.blocks\.\d+\.attn\.relative_position_index", None),
    ]
    for theirs, ours in (("weight", "scale"), ("bias", "bias")):
        rules += [
            Rule(rf"{source}patch_embed\.norm\.{theirs}", f"{target}patch_embed/norm/{ours}"),
            Rule(rf"{source}(norm\d)\.{theirs}", rf"{target}\1/{ours}"),
            Rule(
                rf"{source}layers\.(\d+)\.downsample\.norm\.{theirs}",
                rf"{target}layers_\1/downsample/norm/{ours}",
            ),
        ]
    for stage, depth in enumerate(depths):
        for block in range(depth):
            alone = depth % 2 == 1 and block == depth - 1
            place = "last" if alone else f"pairs/block_{block % 2}"
            rules += _swin_block_rules(
                rf"{source}layers\.{stage}\.blocks\.{block}\.",
                f"{target}layers_{stage}/{place}/",
                None if alone else block // 2,
            )
    return rules


def _swin_block_rules(source: str, target: str, index: int | None) -> list[Rule]:
    table = "attn/relative_position_bias_table"
    linear = r"(attn|mlp)\.(qkv|proj|fc1|fc2)"
    return [
        Rule(rf"{source}(norm[12])\.weight", rf"{target}\1/scale", index=index),
        Rule(rf"{source}(norm[12])\.bias", rf"{target}\1/bias", index=index),
        Rule(rf"{source}{linear}\.weight", rf"{target}\1/\2/kernel", "linear", index),
        Rule(rf"{source}{linear}\.bias", rf"{target}\1/\2/bias", index=index),
        Rule(source + re.escape(table.replace("/", ".")), target + table, index=index),
    ]


def gate_rules(source_prefix: str, target_prefix: str) -> list[Rule]:
    """The channel gates, "scale_factor_module" on both sides -> scale_factor_module_{0..3}."""
    source, target = re.escape(source_prefix), target_prefix
    return [
        Rule(rf"{source}\.(\d)\.(fc[12])\.weight", rf"{target}_\1/\2/kernel", "linear"),
        Rule(rf"{source}\.(\d)\.(fc[12])\.bias", rf"{target}_\1/\2/bias"),
    ]


def vggish_rules(source_prefix: str, target_prefix: str) -> list[Rule]:
    """VGGish -> models.backbones.vggish.VGGish, without the MLP that makes its 128-d embedding."""
    source, target = _source(source_prefix), _target(target_prefix)
    return [
        Rule(rf"{source}features\.(\d+)\.weight", rf"{target}features_\1/kernel", "conv"),
        Rule(rf"{source}features\.(\d+)\.bias", rf"{target}features_\1/bias"),
        Rule(rf"{source}embeddings\.\d+\.(weight|bias)", None),
    ]


def _source(prefix: str) -> str:
    return re.escape(prefix + ".") if prefix else ""


def _target(prefix: str) -> str:
    return prefix + "/" if prefix else ""

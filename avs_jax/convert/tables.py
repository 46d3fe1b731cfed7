"""Rule tables: where each tensor of a PyTorch state dict goes in the parameter tree.

One function per component of the model. `source_prefix` is that of the names in the state dict,
`target_prefix` that of the paths in the tree, both without the separator, "" for none. An index
into a list of modules becomes a suffix: layers.0 -> layers_0. Blocks of a stage and layers of an
encoder that the model scans are entries of one stack.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from avs_jax.convert.rules import Rule

# Tensors of a VCT state dict that no parameter uses and nothing can recompute. The converter stores
# them with the parameters, so that export can return them.
UNUSED_SOURCE_TENSORS = (
    r"audio_backbone\.embeddings\.\d+\.(weight|bias)"
    r"|criterion\.empty_weight"
    r"|ama_module\.(v_proj\.weight|.*num_batches_tracked)"
)


def vct_rules(model_config: Mapping[str, Any]) -> list[Rule]:
    """The whole state dict of VCT (repository spyflying/VCT_AVS), all three variants, with AMA.

    Ignored: the indices of relative positions, which follow from the window size; the class weights
    of the loss, which are configuration; VGGish's embedding MLP, which never runs.
    A load without PyTorch's metadata renames `sem_seg_head.pixel_decoder.*`; such names match
    nothing.
    """
    backbone = model_config["backbone"]
    return [
        *backbone_rules(backbone, "backbone", "backbone"),
        *backbone_rules(backbone, "pre_sam_backbone", "pre_sam_backbone"),
        *gate_rules("scale_factor_module", "scale_factor_module"),
        *vggish_rules("audio_backbone", "audio_backbone"),
        *head_rules("sem_seg_head", model_config["pixel_decoder"]["num_layers"]),
        Rule(r"criterion\.logit_scale", "logit_scale"),
        Rule(r"criterion\.empty_weight", None),
        *ama_rules("ama_module"),
    ]


def backbone_rules(
    backbone_config: Mapping[str, Any], source_prefix: str, target_prefix: str
) -> list[Rule]:
    """The table for config.model.backbone within a VCT state dict."""
    if backbone_config["name"] == "resnet50":
        return resnet_rules(source_prefix, target_prefix)
    table = {"swin": swin_rules, "pvt_v2": pvt_v2_rules}[backbone_config["name"]]
    return table(source_prefix, target_prefix, backbone_config["depths"])


def swin_rules(
    source_prefix: str, target_prefix: str, depths: Sequence[int], merges_first: bool = False
) -> list[Rule]:
    """Swin with an output norm per stage (VCT's swinb.py) -> models.backbones.swin.Swin.

    Ignored: `relative_position_index`, which follows from the window size. Pairs of blocks form a
    stack; the last one of an odd number does not. With `merges_first`, the source counts the
    merging of patches as part of the next stage, as timm does.
    """
    source, target = _source(source_prefix), _target(target_prefix)
    rules = [
        *_linear_rules(rf"{source}patch_embed\.proj\.", f"{target}patch_embed/proj/", "conv"),
        *_norm_rules(rf"{source}patch_embed\.norm\.", f"{target}patch_embed/norm/"),
        *_norm_rules(rf"{source}(norm\d)\.", rf"{target}\1/"),
        Rule(rf"{source}layers\.\d+\.blocks\.\d+\.attn\.relative_position_index", None),
    ]
    for stage in range(len(depths) - 1):
        theirs = rf"{source}layers\.{stage + merges_first}\.downsample\."
        ours = f"{target}layers_{stage}/downsample/"
        rules.append(Rule(rf"{theirs}reduction\.weight", f"{ours}reduction/kernel", "linear"))
        rules += _norm_rules(rf"{theirs}norm\.", f"{ours}norm/")
    for stage, depth in enumerate(depths):
        for block in range(depth):
            is_alone = depth % 2 == 1 and block == depth - 1
            place = "last" if is_alone else f"pairs/block_{block % 2}"
            rules += _swin_block_rules(
                rf"{source}layers\.{stage}\.blocks\.{block}\.",
                f"{target}layers_{stage}/{place}/",
                None if is_alone else block // 2,
            )
    return rules


def _swin_block_rules(source: str, target: str, index: int | None) -> list[Rule]:
    table = "attn/relative_position_bias_table"
    linear = rf"{source}(attn|mlp)\.(qkv|proj|fc1|fc2)\."
    return [
        *_norm_rules(rf"{source}(norm[12])\.", rf"{target}\1/", index),
        *_linear_rules(linear, rf"{target}\1/\2/", index=index),
        Rule(source + re.escape(table.replace("/", ".")), target + table, index=index),
    ]


def swin_file_rules(depths: Sequence[int], names: Collection[str]) -> list[Rule]:
    """Files of a Swin alone, Microsoft's, timm's or VCT's backbone -> models.backbones.swin.Swin.

    Ignored: the classifier, the norm before it, and the masks of shifted windows.
    """
    is_timm = any(name.startswith(f"layers.{len(depths) - 1}.downsample.") for name in names)
    return [
        *swin_rules("", "", depths, is_timm),
        Rule(r"layers\.\d+\.blocks\.\d+\.attn_mask", None),
        Rule(r"(norm|head|head\.fc)\.(weight|bias)", None),
    ]


def pvt_v2_rules(source_prefix: str, target_prefix: str, depths: Sequence[int]) -> list[Rule]:
    """PVT v2 -> models.backbones.pvt_v2.PVTv2: the official names, AVSBench's too, or timm's.

    Ignored: the classifier.
    """
    source, target = _source(source_prefix), _target(target_prefix)
    rules = [Rule(rf"{source}head\.(weight|bias)", None)]
    for stage, depth in enumerate(depths):
        ours = f"{target}patch_embed{stage + 1}/"
        timm = r"patch_embed\." if stage == 0 else rf"stages\.{stage}\.downsample\."
        embed = rf"{source}(?:patch_embed{stage + 1}\.|{timm})"
        rules += _linear_rules(rf"{embed}proj\.", f"{ours}proj/", "conv")
        rules += _norm_rules(rf"{embed}norm\.", f"{ours}norm/")
        norm = rf"{source}(?:norm{stage + 1}|stages\.{stage}\.norm)\."
        rules += _norm_rules(norm, f"{target}norm{stage + 1}/")
        for block in range(depth):
            theirs = rf"{source}(?:block{stage + 1}|stages\.{stage}\.blocks)\.{block}\."
            ours = f"{target}block{stage + 1}/"
            rules += [
                *_norm_rules(rf"{theirs}(norm[12])\.", rf"{ours}\1/", block),
                *_linear_rules(rf"{theirs}attn\.(q|kv|proj)\.", rf"{ours}attn/\1/", index=block),
                *_linear_rules(rf"{theirs}attn\.sr\.", f"{ours}attn/sr/", "conv", block),
                *_norm_rules(rf"{theirs}attn\.norm\.", f"{ours}attn/norm/", block),
                *_linear_rules(rf"{theirs}mlp\.(fc[12])\.", rf"{ours}mlp/\1/", index=block),
                *_linear_rules(
                    rf"{theirs}mlp\.dwconv\.(?:dwconv\.)?", f"{ours}mlp/dwconv/", "conv", block
                ),
            ]
    return rules


def resnet_rules(source_prefix: str, target_prefix: str) -> list[Rule]:
    """ResNet -> models.backbones.resnet.ResNet, its running statistics -> `batch_stats`.

    Reads torchvision's names and those of AVSBench's two-branch network.
    Ignored: the second branch, which never runs, the classifier, and the batch counters.
    """
    source, target = _source(source_prefix), _target(target_prefix)
    block, ours = rf"{source}(layer\d)(?:_1)?\.(\d+)\.", rf"{target}\1_\2/"
    rules = [
        Rule(rf"{source}layer[34]_2\..*", None),
        Rule(rf"{source}.*\.num_batches_tracked", None),
        Rule(rf"{source}fc\.(weight|bias)", None),
        Rule(rf"{source}conv1\.weight", f"{target}conv1/kernel", "conv"),
        Rule(rf"{block}(conv\d)\.weight", rf"{ours}\3/kernel", "conv"),
        Rule(rf"{block}downsample\.0\.weight", rf"{ours}downsample_0/kernel", "conv"),
    ]
    for norm, place in (
        (rf"{source}bn1\.", f"{target}bn1/"),
        (rf"{block}(bn\d)\.", rf"{ours}\3/"),
        (rf"{block}downsample\.1\.", f"{ours}downsample_1/"),
    ):
        rules += _batch_norm_rules(norm, place)
    return rules


def gate_rules(source_prefix: str, target_prefix: str) -> list[Rule]:
    """The channel gates -> {target_prefix}_{0..3}."""
    return _linear_rules(rf"{_source(source_prefix)}(\d)\.(fc[12])\.", rf"{target_prefix}_\1/\2/")


def vggish_rules(source_prefix: str, target_prefix: str, has_embedding: bool = False) -> list[Rule]:
    """VGGish -> models.backbones.vggish.VGGish.

    Ignored: the MLP of its 128-d embedding, unless the model `has_embedding`, and the principal
    components of that embedding.
    """
    source, target = _source(source_prefix), _target(target_prefix)
    embedding = [Rule(rf"{source}embeddings\.\d+\.(weight|bias)", None)]
    if has_embedding:
        embedding = _linear_rules(rf"{source}embeddings\.(\d+)\.", rf"{target}embeddings_\1/")
    return [
        *_linear_rules(rf"{source}features\.(\d+)\.", rf"{target}features_\1/", "conv"),
        *embedding,
        Rule(rf"{source}(pproc\.)?pca_(eigen_vectors|means)", None),
    ]


def head_rules(source_prefix: str, encoder_layers: int) -> list[Rule]:
    """VCT's head, "sem_seg_head" -> pixel_decoder, audio_transformation and predictor."""
    source = _source(source_prefix)
    pixel_decoder = rf"{source}pixel_decoder\."
    rules = [
        *_linear_rules(
            rf"{pixel_decoder}input_proj\.(\d+)\.0\.", r"pixel_decoder/input_proj_\1_0/", "conv1x1"
        ),
        *_norm_rules(rf"{pixel_decoder}input_proj\.(\d+)\.1\.", r"pixel_decoder/input_proj_\1_1/"),
        Rule(rf"{pixel_decoder}transformer\.level_embed", "pixel_decoder/transformer/level_embed"),
        Rule(rf"{pixel_decoder}(adapter|layer)_1\.weight", r"pixel_decoder/\1_1/kernel", "conv"),
        *_norm_rules(rf"{pixel_decoder}(adapter|layer)_1\.norm\.", r"pixel_decoder/\1_1/norm/"),
        *_linear_rules(
            rf"{pixel_decoder}mask_features\.", "pixel_decoder/mask_features/", "conv1x1"
        ),
        *_linear_rules(
            rf"{source}audio_transformation\.embeddings\.(\d+)\.",
            r"audio_transformation/embeddings_\1/",
        ),
    ]
    for index in range(encoder_layers):
        layer = rf"{pixel_decoder}transformer\.encoder\.layers\.{index}\."
        target = "pixel_decoder/transformer/encoder/layers/"
        rules += [
            *_linear_rules(rf"{layer}self_attn\.(\w+)\.", rf"{target}self_attn/\1/", index=index),
            *_linear_rules(rf"{layer}(linear[12])\.", rf"{target}\1/", index=index),
            *_norm_rules(rf"{layer}(norm[12])\.", rf"{target}\1/", index=index),
        ]
    return rules + _predictor_rules(rf"{source}predictor\.", "predictor/")


def _predictor_rules(source: str, target: str) -> list[Rule]:
    block, ours = rf"{source}visual_query_block\.", f"{target}visual_query_block/"
    layer = r"(transformer_\w+_layers)\.(\d+)\."
    return [
        *_attention_rules(rf"{source}{layer}(self_attn|multihead_attn)\.", rf"{target}\1_\2/\3/"),
        *_linear_rules(rf"{source}{layer}(linear[12])\.", rf"{target}\1_\2/\3/"),
        *_norm_rules(rf"{source}{layer}norm\.", rf"{target}\1_\2/norm/"),
        *_norm_rules(rf"{source}decoder_norm\.", f"{target}decoder_norm/"),
        Rule(rf"{source}(query_feat|query_embed|level_embed)\.weight", rf"{target}\1/embedding"),
        *_linear_rules(rf"{source}(class_embed|audio_proj|proto_proj)\.", rf"{target}\1/"),
        *_linear_rules(rf"{source}mask_embed\.layers\.(\d+)\.", rf"{target}mask_embed/layers_\1/"),
        Rule(rf"{block}prototype\.weight", f"{ours}prototype/embedding"),
        Rule(rf"{block}lambda", f"{ours}lambda"),  # of AMA
        *_linear_rules(rf"{block}pre_proj\.([04])\.", rf"{ours}pre_proj_\1/", "conv1x1"),
        *_linear_rules(rf"{block}pre_proj\.2\.", f"{ours}pre_proj_2/", "conv"),
        *_linear_rules(rf"{block}query_mixer\.layers\.(\d+)\.", rf"{ours}query_mixer/layers_\1/"),
        *_attention_rules(rf"{block}pre_attn\.multihead_attn\.", f"{ours}pre_attn/multihead_attn/"),
        *_norm_rules(rf"{block}pre_attn\.norm\.", f"{ours}pre_attn/norm/"),
        *_linear_rules(rf"{block}assign_attn\.(\w+)\.", rf"{ours}assign_attn/\1/"),
    ]


def ama_rules(source_prefix: str) -> list[Rule]:
    """AMA, "ama_module" -> `ama`, its running statistics -> `batch_stats/ama`.

    Ignored: the value projection, which the original never reads, and the batch counters. The
    strength of the reweighting, `predictor/visual_query_block/lambda`, is in `head_rules`: it is
    not part of the original's module.
    """
    source = _source(source_prefix)
    encoder = rf"{source}flow_encoder\."
    return [
        Rule(rf"{source}temperature", "ama/temperature"),
        *_linear_rules(rf"{encoder}0\.", "ama/flow_encoder_0/", "conv"),
        *_linear_rules(rf"{encoder}3\.", "ama/flow_encoder_3/", "conv1x1"),
        *_batch_norm_rules(rf"{encoder}([14])\.", r"ama/flow_encoder_\1/"),
        Rule(rf"{encoder}[14]\.num_batches_tracked", None),
        *_linear_rules(rf"{source}audio_proj\.0\.", "ama/audio_proj_0/"),
        *_norm_rules(rf"{source}audio_proj\.1\.", "ama/audio_proj_1/"),
        Rule(rf"{source}([qk]_proj)\.weight", r"ama/\1/kernel", "linear"),
        Rule(rf"{source}v_proj\.weight", None),
    ]


def raft_rules() -> list[Rule]:
    """RAFT -> models.flow.raft.RAFT: torchvision's names or princeton-vl's, large and small.

    Ignored: the batch counters, and the norm of a shortcut where princeton-vl's code registers it a
    second time. (The reader removes the `module.` prefix of princeton-vl's files.)
    """
    rules = []
    for theirs, ours in (
        ("(?:feature_encoder|fnet)", "feature_encoder/"),
        ("(?:context_encoder|cnet)", "context_encoder/"),
    ):
        rules += _raft_encoder_rules(rf"{theirs}\.", ours)
    block, ours = r"update_block\.", "update_block/"
    mask = "mask_predictor/"
    for source, target in (
        (r"motion_encoder\.(conv\w*)\.0\.", r"motion_encoder/\1_0/"),
        (r"recurrent_block\.(convgru\d)\.(conv[zrq])\.", r"recurrent_block/\1/\2/"),
        (r"flow_head\.(conv\d)\.", r"flow_head/\1/"),
        (r"encoder\.convc(\d)\.", r"motion_encoder/convcorr\1_0/"),
        (r"encoder\.convf(\d)\.", r"motion_encoder/convflow\1_0/"),
        (r"encoder\.conv\.", "motion_encoder/conv_0/"),
        (r"gru\.(conv[zrq])([12])\.", r"recurrent_block/convgru\2/\1/"),
        (r"gru\.(conv[zrq])\.", r"recurrent_block/convgru1/\1/"),
    ):
        rules += _linear_rules(block + source, ours + target, "conv")
    for source, target in (
        (r"mask_predictor\.convrelu\.0\.", "convrelu_0/"),
        (r"mask_predictor\.conv\.", "conv/"),
        (block + r"mask\.0\.", "convrelu_0/"),
        (block + r"mask\.2\.", "conv/"),
    ):
        rules += _linear_rules(source, mask + target, "conv")
    return rules


def _raft_encoder_rules(source: str, target: str) -> list[Rule]:
    layer, ours = rf"{source}(layer\d)\.(\d)\.", rf"{target}\1_\2/"
    rules = [
        Rule(rf"{source}.*num_batches_tracked", None),
        Rule(rf"{layer}norm[34]\..*", None),
    ]
    for convolution, place in (
        (rf"{source}convnormrelu\.0\.", f"{target}convnormrelu_0/"),
        (rf"{source}conv1\.", f"{target}convnormrelu_0/"),
        (rf"{source}conv(?:2)?\.", f"{target}conv/"),
        (rf"{layer}(convnormrelu\d|downsample)\.0\.", rf"{ours}\3_0/"),
        (rf"{layer}conv(\d)\.", rf"{ours}convnormrelu\3_0/"),
    ):
        rules += _linear_rules(convolution, place, "conv")
    for norm, place in (
        (rf"{source}(?:convnormrelu\.1|norm1)\.", f"{target}convnormrelu_1/"),
        (rf"{layer}(convnormrelu\d|downsample)\.1\.", rf"{ours}\3_1/"),
        (rf"{layer}norm([12])\.", rf"{ours}convnormrelu\3_1/"),
    ):
        rules += _batch_norm_rules(norm, place)
    return rules


def _linear_rules(
    source: str, target: str, transform: str = "linear", index: int | None = None
) -> list[Rule]:
    """Weight and bias of a linear layer or a convolution."""
    return [
        Rule(f"{source}weight", f"{target}kernel", transform, index),
        Rule(f"{source}bias", f"{target}bias", index=index),
    ]


def _norm_rules(source: str, target: str, index: int | None = None) -> list[Rule]:
    return [
        Rule(f"{source}weight", f"{target}scale", index=index),
        Rule(f"{source}bias", f"{target}bias", index=index),
    ]


def _batch_norm_rules(source: str, target: str) -> list[Rule]:
    """Scale and bias, and the running statistics under `batch_stats`."""
    group = len(re.findall(r"\\\d", target)) + 1  # the pattern's next one
    return [
        *_norm_rules(source, target),
        Rule(rf"{source}running_(mean|var)", rf"batch_stats/{target}\{group}"),
    ]


def _attention_rules(source: str, target: str) -> list[Rule]:
    """torch.nn.MultiheadAttention."""
    return [
        Rule(f"{source}in_proj_weight", f"{target}in_proj/kernel", "linear"),
        Rule(f"{source}in_proj_bias", f"{target}in_proj/bias"),
        *_linear_rules(rf"{source}out_proj\.", f"{target}out_proj/"),
    ]


def _source(prefix: str) -> str:
    return re.escape(prefix + ".") if prefix else ""


def _target(prefix: str) -> str:
    return prefix + "/" if prefix else ""

"""Names of QD-DETR's state dicts, and where each tensor goes in the parameter tree.

The rules (rules.py) map a state dict both ways. Export writes the names in the order of the state
dict. Sources: wjun0830/QD-DETR (commit 56c63b2) and its fork with gated fusion (dd81d7c; the older
gate 73b09d9).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from avs_jax.convert.rules import Rule

# Position embeddings of words, which the published models have and never read.
UNUSED_SOURCE_TENSORS = r"txt_position_embed\..*"

ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
HEAD_DEPTHS = {"query_scale": 2, "ref_point_head": 2, "bbox_embed": 3, "ref_anchor_head": 2}


def qd_detr_rules() -> list[Rule]:
    """QD-DETR and its fork, any variant -> models.qd_detr.QDDETR."""
    rules = [
        Rule(UNUSED_SOURCE_TENSORS, None),
        Rule(r"global_rep_(token|pos)", r"encoder/global_\1"),
        Rule(r"query_embed\.weight", "decoder/query_embed/embedding"),
        *_norm(r"transformer\.decoder\.norm\.", "decoder/norm/"),
        *_linear(r"transformer\.decoder\.(\w+)\.layers\.(\d)\.", r"decoder/\1/layers_\2/"),
        *_linear(r"span_embed\.layers\.(\d)\.", r"span_embed/layers_\1/"),
        *_linear(r"class_embed\.", "class_embed/"),
        *_linear(r"(saliency_proj[12])\.", r"encoder/\1/"),
        *_norm(r"input_(txt|vid|aud)_proj\.(\d)\.LayerNorm\.", r"input_\1_proj/norm_\2/"),
        *_linear(r"input_(txt|vid|aud)_proj\.(\d)\.net\.1\.", r"input_\1_proj/linear_\2/"),
        *_custom_rules(),
    ]
    for theirs, ours in (
        ("t2v_encoder", "encoder/text_layers"),
        ("encoder", "encoder/layers"),
        ("decoder", "decoder/layers"),
    ):
        source, target = rf"transformer\.{theirs}\.layers\.(\d+)\.", rf"{ours}_\1/"
        rules += _linear(rf"{source}(linear[12]|[sc]a_\w+_proj)\.", rf"{target}\2/")
        rules += _norm(rf"{source}(norm\d)\.", rf"{target}\2/")
        rules.append(Rule(rf"{source}activation\.weight", f"{target}slope"))
        if theirs == "decoder":
            rules += _linear(rf"{source}self_attn\.out_proj\.", f"{target}sa_out_proj/")
            rules += _linear(rf"{source}cross_attn\.out_proj\.", f"{target}ca_out_proj/")
        else:
            rules += _attention(rf"{source}self_attn\.", f"{target}self_attn/")
    return rules


def _custom_rules() -> list[Rule]:
    """The fork's gated layers -> models.fusion.gated.GatedFusion."""
    source, target = r"fusion\.fusion_layers\.(\d+)\.", r"fusion/layers_\1/"
    gates = rf"{source}gating_function\."
    return [
        Rule(rf"{gates}(mha_bias|mha_scale|ffn_alpha|ffn_beta)", rf"{target}gates/\2"),
        *_linear(rf"{gates}(mlp_mha|mlp_ffn)\.([02])\.", rf"{target}gates/\2/layers_\3/"),
        *_linear(rf"{gates}mlp_ffn_beta\.([02])\.", rf"{target}gates/mlp_beta/layers_\2/"),
        *_linear(rf"{source}(a_proj|out_proj)\.", rf"{target}\2/"),
        *_linear(rf"{source}(ffn[12])\.([02])\.", rf"{target}\2/layers_\3/"),
        *_norm(rf"{source}(norm\d|delta_norm_mha|delta_norm_ffn)\.", rf"{target}\2/"),
        *_attention(rf"{source}self_attention\.", f"{target}self_attn/"),
    ]


def qd_detr_names(model_config: Mapping[str, Any]) -> list[str]:
    """Every name of the state dict of a configuration's model, in its order.

    Args:
      model_config: config.model, the fields of QDDETR. Its fusion is one that the original or the
        fork has: "concat", "custom" or "b0".
    """
    fusion = model_config["fusion"]
    is_gated = fusion["name"] != "concat"
    names = ["global_rep_token", "global_rep_pos"]
    layer = [f"self_attn.{name}" for name in ATTENTION]
    layer += _both("linear1", "linear2", "norm1", "norm2") + ["activation.weight"]
    for stack, count in (("t2v_encoder", "num_text_layers"), ("encoder", "num_encoder_layers")):
        for i in range(model_config[count]):
            names += [f"transformer.{stack}.layers.{i}.{name}" for name in layer]
    names += [f"transformer.decoder.{name}" for name in _decoder(model_config)]
    names.append("txt_position_embed.position_embeddings.weight")
    names += _both("txt_position_embed.LayerNorm")
    names += _both(*(f"span_embed.layers.{i}" for i in range(3)), "class_embed")
    names += ["query_embed.weight", *_projection("txt")]
    for i in range(fusion["num_layers"] if is_gated else 0):
        names += [f"fusion.fusion_layers.{i}.{name}" for name in _custom(fusion)]
    names += _projection("vid") + (_projection("aud") if is_gated else [])
    return names + _both("saliency_proj1", "saliency_proj2")


def _projection(kind: str) -> list[str]:
    source = f"input_{kind}_proj"
    return _both(*(f"{source}.{i}.{part}" for i in range(2) for part in ("LayerNorm", "net.1")))


def _decoder(model_config: Mapping[str, Any]) -> Iterator[str]:
    own = [f"sa_{name}_proj" for name in ("qcontent", "qpos", "kcontent", "kpos", "v")]
    cross = [f"ca_{name}_proj" for name in ("qcontent", "kcontent", "kpos", "v", "qpos_sine")]
    for i in range(model_config["num_decoder_layers"]):
        first = ["ca_qpos_proj"] if i == 0 else []
        parts = [*own, "self_attn.out_proj", "norm1", cross[0], *first, *cross[1:]]
        parts += ["cross_attn.out_proj", "linear1", "linear2", "norm2", "norm3"]
        for name in [*_both(*parts), "activation.weight"]:
            yield f"layers.{i}.{name}"
    yield from _both("norm")
    for name, depth in HEAD_DEPTHS.items():
        yield from _both(*(f"{name}.layers.{i}" for i in range(depth)))


def _custom(fusion: Mapping[str, Any]) -> Iterator[str]:
    """Names of one gated layer of the fork."""
    is_film, is_current = fusion.get("gate", {}).get("film", False), fusion["name"] == "custom"
    if is_current:
        scalars = ("mha_bias", "mha_scale", "ffn_alpha", "ffn_beta")[: 3 + is_film]
        yield from (f"gating_function.{name}" for name in scalars)
    gates = ("mlp_mha", "mlp_ffn", "mlp_ffn_beta")[: 2 + is_film]
    yield from _both(*(f"gating_function.{gate}.{i}" for gate in gates for i in (0, 2)))
    yield from _both("a_proj", "out_proj", "ffn1.0", "ffn1.2")
    if is_current:
        yield from _both("delta_norm_mha", "delta_norm_ffn")
    yield from (f"self_attention.{name}" for name in ATTENTION)
    yield from _both("ffn2.0", "ffn2.2", "norm1", "norm2", "norm3", "norm4")


def _both(*modules: str) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


def _linear(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}weight", f"{target}kernel", "linear"),
        Rule(f"{source}bias", f"{target}bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}weight", f"{target}scale"), Rule(f"{source}bias", f"{target}bias")]


def _attention(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}in_proj_weight", f"{target}in_proj/kernel", "linear"),
        Rule(f"{source}in_proj_bias", f"{target}in_proj/bias"),
        *_linear(rf"{source}out_proj\.", f"{target}out_proj/"),
    ]

"""CLIP's state dicts: Hugging Face's names and the original ones, and where each tensor goes.

Both name the same tensors. The original stacks the projections of queries, keys and values and
stores its two output projections transposed; `hf_from_original` undoes that. The rules and the
exported names are Hugging Face's.

Sources: transformers' CLIPModel ("pre_layrnorm" is spelled so there); openai/CLIP, model.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from avs_jax.convert.rules import ConversionError, Rule

QKV = ("q_proj", "k_proj", "v_proj")
TOWERS = {"visual.": "vision_model.", "": "text_model."}  # prefix of the original -> of HF
TRANSPOSED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
RENAMED = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    **{f"visual.ln_pre.{x}": f"vision_model.pre_layrnorm.{x}" for x in ("weight", "bias")},
    **{f"visual.ln_post.{x}": f"vision_model.post_layernorm.{x}" for x in ("weight", "bias")},
    **{f"ln_final.{x}": f"text_model.final_layer_norm.{x}" for x in ("weight", "bias")},
}
OF_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_2": "layer_norm2",
}
# Facts of the architecture that old files hold as tensors.
CONSTANTS = r"input_resolution|context_length|vocab_size"
POSITION_IDS = r"(text|vision)_model\.embeddings\.position_ids"


def clip_rules() -> list[Rule]:
    """The table of Hugging Face's names -> models.align.Align with CLIP's towers.

    Ignored: the indices of positions that old files hold as buffers.
    """
    rules = [
        Rule(POSITION_IDS, None),
        Rule(r"logit_scale", "logit_scale"),
        Rule(r"visual_projection\.weight", "frames_projection/kernel", "linear"),
        Rule(r"text_projection\.weight", "text_projection/kernel", "linear"),
        Rule(r"vision_model\.embeddings\.class_embedding", "backbone/class_embedding"),
        Rule(
            r"vision_model\.embeddings\.patch_embedding\.weight", "backbone/patch_embedding", "conv"
        ),
        Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/word_embedding"),
        *_norm(r"vision_model\.pre_layrnorm\.", "backbone/pre_norm/"),
        *_norm(r"vision_model\.post_layernorm\.", "backbone/post_norm/"),
        *_norm(r"text_model\.final_layer_norm\.", "text/norm/"),
    ]
    for source, target in (("vision", "backbone"), ("text", "text")):
        rules.append(
            Rule(
                rf"{source}_model\.embeddings\.position_embedding\.weight",
                f"{target}/position_embedding",
            )
        )
        layer, place = rf"{source}_model\.encoder\.layers\.(\d+)\.", rf"{target}/layers_\1/"
        for name, ours in zip((*QKV, "out_proj"), ("query", "key", "value", "out"), strict=True):
            rules += _linear(rf"{layer}self_attn\.{name}\.", f"{place}attention/{ours}/")
        for name in ("fc1", "fc2"):
            rules += _linear(rf"{layer}mlp\.{name}\.", f"{place}mlp/{name}/")
        for number in "12":
            rules += _norm(rf"{layer}layer_norm{number}\.", f"{place}norm{number}/")
    return rules


def clip_names(model_config: Mapping[str, Any]) -> list[str]:
    """Hugging Face's names of a configuration's model, in its order.

    Raises:
      ConversionError: the model has other towers than CLIP's two.
    """
    towers = {name: model_config.get(name) for name in ("backbone", "audio_backbone", "text")}
    found = {name: section and section["name"] for name, section in towers.items()}
    if found != {"backbone": "clip_vit", "audio_backbone": None, "text": "clip"}:
        raise ConversionError(
            f"CLIP has no names for towers {found}, only for 'clip_vit' and 'clip' without sound; "
            "--format=orbax takes any model"
        )
    layers = [towers[name].get("num_layers", 12) for name in ("text", "backbone")]
    text, vision = "text_model.embeddings.", "vision_model.embeddings."
    return [
        "logit_scale",
        *(f"{text}{name}_embedding.weight" for name in ("token", "position")),
        *_layer_names("text_model.", layers[0]),
        *(f"text_model.final_layer_norm.{x}" for x in ("weight", "bias")),
        f"{vision}class_embedding",
        *(f"{vision}{name}_embedding.weight" for name in ("patch", "position")),
        *(f"vision_model.pre_layrnorm.{x}" for x in ("weight", "bias")),
        *_layer_names("vision_model.", layers[1]),
        *(f"vision_model.post_layernorm.{x}" for x in ("weight", "bias")),
        "visual_projection.weight",
        "text_projection.weight",
    ]


def hf_from_original(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict in Hugging Face's names; one that has them already is returned as it is.

    Names that the original does not have stay as they are, for the rules to report.
    """
    if not any(name.startswith(("visual.", "transformer.")) for name in state_dict):
        return dict(state_dict)
    result = {}
    for name, value in state_dict.items():
        block = re.fullmatch(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+)", name)
        if re.fullmatch(CONSTANTS, name):
            continue
        if name in TRANSPOSED:
            result[TRANSPOSED[name]] = np.ascontiguousarray(np.transpose(value))
        elif block is None:
            result[RENAMED.get(name, name)] = value
        else:
            here = f"{TOWERS[block[1]]}encoder.layers.{block[2]}."
            result |= _split_block(here, name, block[3], value)
    return result


def _split_block(here: str, name: str, part: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of one of a block's, by Hugging Face's names."""
    stacked = re.fullmatch(r"attn\.in_proj_(weight|bias)", part)
    if stacked:
        if not value.ndim or len(value) % 3:
            raise ConversionError(f"{name}: shape {value.shape} is not that of three projections")
        thirds = np.split(value, 3)
        return {
            f"{here}self_attn.{projection}.{stacked[1]}": third
            for projection, third in zip(QKV, thirds, strict=True)
        }
    stem, _, kind = part.rpartition(".")
    return {f"{here}{OF_BLOCK[stem]}.{kind}" if stem in OF_BLOCK else name: value}


def _layer_names(tower: str, num_layers: int) -> list[str]:
    parts = [f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")]
    parts += ["layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2"]
    return [
        f"{tower}encoder.layers.{layer}.{part}.{kind}"
        for layer in range(num_layers)
        for part in parts
        for kind in ("weight", "bias")
    ]


def _linear(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}weight", f"{target}kernel", "linear"),
        Rule(f"{source}bias", f"{target}bias"),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}weight", f"{target}scale"), Rule(f"{source}bias", f"{target}bias")]

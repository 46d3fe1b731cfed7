"""CLIP's files as OpenAI's code writes them, made from Hugging Face's names."""

import re
from collections.abc import Mapping

import numpy as np

from avs_jax.convert.clip_names import OF_BLOCK, QKV, RENAMED, TOWERS, TRANSPOSED


def original_from_hf(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A whole state dict in the original's names."""
    back = {theirs: name for name, theirs in RENAMED.items()}
    transposed = {theirs: name for name, theirs in TRANSPOSED.items()}
    of_block = {theirs: name for name, theirs in OF_BLOCK.items()}
    prefixes = {theirs: prefix for prefix, theirs in TOWERS.items()}
    result = {}
    for name, value in state_dict.items():
        block = re.fullmatch(r"((?:text|vision)_model\.)encoder\.layers\.(\d+)\.(.+)", name)
        if name in transposed:
            result[transposed[name]] = np.ascontiguousarray(value.T)
        elif block is None:
            result[back[name]] = value
        else:
            here = f"{prefixes[block[1]]}transformer.resblocks.{block[2]}."
            part, kind = block[3].rsplit(".", 1)
            if part in of_block:
                result[f"{here}{of_block[part]}.{kind}"] = value
            elif part == "self_attn.q_proj":
                stem = name.removesuffix(f"q_proj.{kind}")
                parts = [state_dict[f"{stem}{projection}.{kind}"] for projection in QKV]
                result[f"{here}attn.in_proj_{kind}"] = np.concatenate(parts)
    return result

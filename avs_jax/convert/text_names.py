"""Names of RoBERTa's state dict, and where each tensor goes in models.text.encoder.TextEncoder.

Source: Hugging Face's RobertaModel (no prefix) and RobertaForMaskedLM ("roberta."), as published
for roberta-base and distilroberta-base.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from avs_jax.convert.rules import ConversionError, Rule

HEAD_WIDTH = 64  # of every published RoBERTa
PARTS_OF_LAYER = {
    r"attention\.self\.(query|key|value)": r"\2",
    r"attention\.output\.dense": "attention_out",
    r"intermediate\.dense": "ffn_0",
    r"output\.dense": "ffn_1",
}
NORMS_OF_LAYER = {
    r"attention\.output\.LayerNorm": "attention_norm",
    r"output\.LayerNorm": "ffn_norm",
}


def roberta_rules() -> list[Rule]:
    """The table for any number of layers.

    Ignored: the pooler and the head of the masked language model, which read the tokens and change
    nothing in them, and the tables of positions and types that old files hold as buffers.
    """
    prefix = r"(?:roberta\.)?"
    layer, target = rf"{prefix}encoder\.layer\.(\d+)\.", r"layers_\1/"
    rules = [
        Rule(rf"{prefix}embeddings\.(?:position|token_type)_ids", None),
        Rule(rf"{prefix}pooler\.dense\.(?:weight|bias)", None),
        Rule(r"lm_head\..*", None),
        *(
            Rule(rf"{prefix}embeddings\.{name}_embeddings\.weight", f"{name}_embeddings/embedding")
            for name in ("word", "position", "token_type")
        ),
        *_norm(rf"{prefix}embeddings\.LayerNorm\.", "embeddings_norm/"),
    ]
    for source, place in PARTS_OF_LAYER.items():
        rules += [
            Rule(rf"{layer}{source}\.weight", f"{target}{place}/kernel", "linear"),
            Rule(rf"{layer}{source}\.bias", f"{target}{place}/bias"),
        ]
    for source, place in NORMS_OF_LAYER.items():
        rules += _norm(rf"{layer}{source}\.", f"{target}{place}/")
    return rules


def roberta_section(state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """config.model.text of a file, whose shapes tell everything but the number of heads.

    Raises:
      ConversionError: the file lacks the tensors that tell.
    """
    shapes = {name.removeprefix("roberta."): np.shape(x) for name, x in state_dict.items()}
    layers = [int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layer.")]
    try:
        vocab_size, width = shapes["embeddings.word_embeddings.weight"]
        return {
            "name": "roberta",
            "vocab_size": vocab_size,
            "hidden_dim": width,
            "num_layers": max(layers) + 1,
            "num_heads": max(1, width // HEAD_WIDTH),
            "ffn_dim": shapes["encoder.layer.0.intermediate.dense.weight"][0],
            "max_positions": shapes["embeddings.position_embeddings.weight"][0],
        }
    except (KeyError, ValueError, IndexError) as error:
        raise ConversionError(
            f"not a RoBERTa: {error} of its tensors' names and shapes; it has "
            f"{', '.join(list(shapes)[:3])} ..."
        ) from error


def _norm(source: str, target: str) -> list[Rule]:
    """Weight and bias of a LayerNorm; "gamma" and "beta" in the oldest files."""
    return [
        Rule(rf"{source}(?:weight|gamma)", f"{target}scale"),
        Rule(rf"{source}(?:bias|beta)", f"{target}bias"),
    ]

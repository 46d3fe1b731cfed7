"""Names of Sa2VA's state dict: its SAM2, and the layers that turn language into prompt tokens.

A file of Sa2VA holds a vision and a language model too. They make the hidden state of a [SEG]
token; from there on, SAM2 needs only what these tables read. Source: magic-research/Sa2VA
(d01bf3fa), `grounding_encoder` and `text_hidden_fcs` of projects/llava_sam2.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from avs_jax.convert.rules import Rule
from avs_jax.convert.sam2_names import sam2_names, sam2_rules

SAM2 = "grounding_encoder.sam2_model."
PROJECTION = "text_hidden_fcs"
LAYERS = (0, 2)  # linear; 1 is the ReLU


def sa2va_rules() -> list[Rule]:
    """The state dict -> models.sam2.model.SAM2 with `language_dim`, any size and version.

    Ignored: all that is neither SAM2 nor the projection, which is the vision and language models.
    """
    segmenting = [
        dataclasses.replace(rule, pattern=re.escape(SAM2) + rule.pattern) for rule in sam2_rules()
    ]
    return [
        *segmenting,
        Rule(rf"{PROJECTION}\.(\d)\.weight", rf"{PROJECTION}/layers_\1/kernel", "linear"),
        Rule(rf"{PROJECTION}\.(\d)\.bias", rf"{PROJECTION}/layers_\1/bias"),
        Rule(rf"(?!grounding_encoder\.|{PROJECTION}\.).*", None),
    ]


def sa2va_names(model_config: Mapping[str, Any]) -> list[str]:
    """The names that `sa2va_rules` read, in the original's order."""
    projection = [f"{PROJECTION}.{i}.{kind}" for i in LAYERS for kind in ("weight", "bias")]
    return [f"{SAM2}{name}" for name in sam2_names(model_config)] + projection


def tracker_names(model_config: Mapping[str, Any]) -> list[str]:
    """The original's names of a model of task `track`: Sa2VA's if it reads hidden states."""
    return (sa2va_names if model_config.get("language_dim") else sam2_names)(model_config)


def tracker_rules(model_config: Mapping[str, Any]) -> list[Rule]:
    """The table for the names of `tracker_names`."""
    return sa2va_rules() if model_config.get("language_dim") else sam2_rules(model_config)

"""Models: `build_model` makes one from the `model` section of a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from avs_jax.models.avs import AVS
from avs_jax.models.parts import check_parts
from avs_jax.models.rules import check_rules
from avs_jax.spec import InputError, nearest

__all__ = ["AVS", "build_model"]


def build_model(model_config: Mapping[str, Any], module: type[nn.Module] = AVS) -> nn.Module:
    """The model of config.model, a ConfigDict or nested dicts, with one key per module field.

    InputError names a missing or unknown key, an unknown part, or an invalid value.
    """
    config = model_config.to_dict() if hasattr(model_config, "to_dict") else dict(model_config)
    fields = {f.name: f for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
    required = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    unknown, missing = sorted(set(config) - set(fields)), sorted(required - set(config))
    if unknown:
        raise InputError(
            f"model.{unknown[0]}: no such key; nearest: {nearest(unknown[0], sorted(fields))}"
        )
    if missing:
        raise InputError(f"the model configuration lacks {missing}")
    rules = getattr(module, "RULES", ())
    if getattr(module, "HAS_PARTS", False):
        check_parts(config, rules)
    else:
        check_rules(rules, config)
    return module(**config)

"""Models: `build_model` makes one from the `model` section of a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from avs_jax.models.avs import AVS
from avs_jax.models.parts import part_rules
from avs_jax.models.rules import check_rules
from avs_jax.spec import InputError, nearest

__all__ = ["AVS", "build_model"]


def build_model(model_config: Mapping[str, Any], module: type[nn.Module] = AVS) -> nn.Module:
    """The model of a configuration.

    Args:
      model_config: config.model, an ml_collections.ConfigDict or nested dicts, with one key per
        field of the module.
      module: of the model.

    Raises:
      InputError: a key that is missing or unknown, a part that no table has, a value that cannot
        be; names the key, the value and the choices.
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
    rules = [*getattr(module, "RULES", ())]
    if getattr(module, "HAS_PARTS", False):
        rules += part_rules(config)
    check_rules(rules, config)
    return module(**config)

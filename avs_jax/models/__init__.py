"""Models: `build_model` makes one from the `model` section of a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from avs_jax.models.avs import AUDIO_BACKBONES, AVS, BACKBONES, FUSIONS, REFINERS, part_class
from avs_jax.models.check import check_model_config
from avs_jax.spec import InputError, nearest

__all__ = ["AVS", "build_model"]


def build_model(model_config: Mapping[str, Any]) -> AVS:
    """The model of a configuration.

    Args:
      model_config: config.model of configs/base.py: an ml_collections.ConfigDict or nested dicts,
        with one key per field of AVS.

    Raises:
      InputError: a key that is missing or unknown, a part that no table has, a value that cannot
        be; names the key, the value and the choices.
    """
    config = model_config.to_dict() if hasattr(model_config, "to_dict") else dict(model_config)
    fields = {field.name for field in dataclasses.fields(AVS)} - {"parent", "name"}
    unknown, missing = sorted(set(config) - fields), sorted(fields - set(config))
    if unknown:
        raise InputError(
            f"model.{unknown[0]}: no such key; nearest: {nearest(unknown[0], sorted(fields))}"
        )
    if missing:
        raise InputError(f"the model configuration lacks {missing}")
    for what, table in (
        ("backbone", BACKBONES),
        ("audio_backbone", AUDIO_BACKBONES),
        ("fusion", FUSIONS),
        ("refiner", REFINERS),
    ):
        part_class(what, table, config[what])
    check_model_config(config)
    return AVS(**config)

"""Values that no model can have are refused before anything is built, in words."""

import pytest
from ml_collections import ConfigDict

from avs_jax.models import build_model
from avs_jax.spec import InputError
from configs.s4_ama_brm import get_config


@pytest.mark.parametrize("key, value, message", [
    ("num_queries", 0, "a whole number, at least 1"),
    ("num_classes", 1, "at least 2"),
    ("num_prototypes", -1, "at least 0"),
    ("hidden_dim", 100, "a multiple of 32"),
    ("audio_std", 0.0, "above 0"),
    ("pre_mask_dropout", 1.5, "a share, 0..1"),
    ("dtype", "float23", "one of ['float32', 'bfloat16'"),
    ("pixel_decoder.num_heads", 3, "a divisor of model.hidden_dim = 128: one of [1, 2, 4, 8"),
    ("pixel_decoder.num_points", 0, "at least 1"),
    ("decoder.num_heads", 0, "a divisor of model.hidden_dim = 128"),
    ("decoder.num_layers", 0, "at least 1"),
    ("backbone.window_size", 0, "at least 1"),
    ("backbone.embed_dim", -32, "at least 1"),
    ("backbone.depths", (1, 1, 1), "4 numbers, each at least 1"),
    ("backbone.num_heads", (1, 2, 5, 8), "channels, [32, 64, 128, 256]"),
    ("backbone.num_heads", (1, 2, 4), "4 numbers that divide"),
    ("backbone.drop_path_rate", 1.0, "0 <= rate < 1"),
    ("audio_backbone.width", 0, "at least 1"),
    ("fusion.num_heads", 7, "a divisor of model.fusion.embed_dim = 128"),
    ("fusion.grid", 0, "at least 1"),
    ("fusion.temperature_mode", "pow", "one of ['mul', 'div']"),
    ("fusion.normalize", "none", "one of ['minmax', 'softmax_hw']"),
    ("refiner.ramp", (0.6, 0.3), "(start, end) with 0 <= start <= end <= 1"),
    ("refiner.ramp", (0.6,), "(start, end)"),
])  # fmt: skip
def test_an_impossible_value_is_named_with_what_it_may_be(key, value, message):
    config = get_config("demo").model
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError) as error:
        build_model(config)
    assert str(error.value).startswith(f"model.{key} = {value!r}: expected ")
    assert message in str(error.value)


@pytest.mark.parametrize("key, value", [("num_queries", "many"), ("backbone.depths", 3)])
def test_a_value_of_another_kind_is_no_traceback(key, value):
    plain = get_config("demo").model.to_dict()
    section, _, name = key.rpartition(".")
    (plain[section] if section else plain)[name] = value
    with pytest.raises(InputError, match=f"model.{key} = {value!r}: expected"):
        build_model(plain)


@pytest.mark.parametrize("section", ["backbone", "audio_backbone", "fusion", "refiner"])
def test_an_unknown_part_names_the_choices(section):
    config = get_config("demo").model
    config[section].name = "swim"
    with pytest.raises(InputError, match=rf"model.{section}.name = 'swim': choose one of \['"):
        build_model(config)


def test_parts_that_are_off_are_not_checked():
    config = get_config("demo").model
    config.fusion.update(name="none", num_heads=7)
    config.refiner.update(name="none", ramp=(0.6, 0.3))
    build_model(config)
    build_model(ConfigDict(config))

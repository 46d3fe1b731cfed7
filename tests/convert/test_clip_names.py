"""CLIP's names: both kinds of files match without remainder, and each becomes the other."""

import functools
import json

import jax
import numpy as np
import pytest

from avs_jax.convert.clip_names import (
    clip_names,
    clip_rules,
    hf_from_original,
)
from avs_jax.convert.rules import ConversionError, apply_rules
from avs_jax.models import build_model
from avs_jax.models.align import Align
from tests.cases_golden import FOLDER, state_dict
from tests.clip_files import original_from_hf
from tests.golden.compare import shapes_of

CONFIG = {
    "pairs": "vt",
    "embed_dim": 512,
    "backbone": {"name": "clip_vit"},
    "text": {"name": "clip"},
}


@functools.cache
def published(patch):
    return json.loads((FOLDER / f"names_clip_vit_b{patch}.json").read_text())


@pytest.mark.parametrize("patch, count", [(32, 151_277_313), (16, 149_620_737)])
def test_published_files_match_without_remainder(patch, count):
    """In both kinds of names, and every tensor's operation is the one in the map."""
    file, config = published(patch), dict(CONFIG)
    config["backbone"] = {"name": "clip_vit", "patch_size": patch}
    batch = {
        "images": np.zeros((1, 1, 224, 224, 3), np.uint8),
        "text_ids": np.zeros((1, 1, 77), np.int32),
        "text_mask": np.ones((1, 1, 77), bool),
    }
    model = build_model(config, Align)
    shapes = shapes_of(jax.eval_shape(model.init, jax.random.key(0), batch)["params"])
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
    blanks = {
        kind: {name: np.broadcast_to(np.int8(0), shape) for name, shape, _ in file[kind]["entries"]}
        for kind in ("hf", "openai")
    }
    found = hf_from_original(blanks["openai"])
    for state in (blanks["hf"], found):
        apply_rules(state, clip_rules(), shapes)
    assert {name: x.shape for name, x in found.items()} == {
        name: x.shape for name, x in blanks["hf"].items()
    }
    assert clip_names(config) == [name for name, _, _ in file["hf"]["entries"]]
    for name, sources, operation in file["map"]:
        is_stacked = operation.startswith("concatenate")
        assert len(sources) == (3 if is_stacked else 1)
        single = hf_from_original({"visual.x": np.zeros(1), name: blanks["openai"][name]})
        assert set(single) - {"visual.x"} == set(sources)


def test_files_come_back_bit_for_bit():
    state = state_dict("clip", "clip")
    original = original_from_hf(state)
    assert len(original) == 94 - 4 * 5  # of five blocks, three projections became one
    back = hf_from_original(original)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value)
    q, k, v = (
        state[f"text_model.encoder.layers.1.self_attn.{n}_proj.weight"] for n in ("q", "k", "v")
    )
    stacked = original["transformer.resblocks.1.attn.in_proj_weight"]
    np.testing.assert_array_equal(stacked, np.concatenate([q, k, v]))
    np.testing.assert_array_equal(original["text_projection"], state["text_projection.weight"].T)
    assert hf_from_original(state).keys() == state.keys()


def test_constants_are_dropped_and_strangers_are_reported():
    state = original_from_hf(state_dict("clip", "clip"))
    state |= {"input_resolution": np.int64(64), "context_length": np.int64(20)}
    state["visual.layer1.0.conv1.weight"] = np.zeros((1, 1))  # of the ResNets
    found = hf_from_original(state)
    assert "input_resolution" not in found
    with pytest.raises(
        ConversionError, match=r"source tensor visual.layer1.0.conv1.weight \(1, 1\)"
    ):
        apply_rules(found, clip_rules(), {})
    state["transformer.resblocks.0.attn.in_proj_bias"] = np.zeros(5)
    with pytest.raises(ConversionError, match="in_proj_bias: shape .5,. is not that of three"):
        hf_from_original(state)


def test_other_towers_have_no_names():
    with pytest.raises(ConversionError, match="CLIP has no names for towers"):
        clip_names(CONFIG | {"text": {"name": "tiny"}})

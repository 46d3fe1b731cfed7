"""Sa2VA's SAM2 and projection: strict both ways, and back under the original's names."""

import numpy as np
import pytest

from avs_jax.convert.rules import ConversionError, apply_rules, invert_rules
from avs_jax.convert.sa2va_names import sa2va_names, sa2va_rules
from avs_jax.convert.sam2_names import sam2_names
from avs_jax.inference.sam2 import Sam2
from avs_jax.models import build_model
from avs_jax.models.sam2.mask_decoder import DecodedMasks
from avs_jax.models.sam2.model import SAM2
from avs_jax.programs.export_weights import original_state_dict
from avs_jax.programs.weight_conversion import convert
from configs import sam2_sa2va
from tests.sam2_golden import param_shapes

OTHERS = (  # of a vision and a language model, as Sa2VA's files name them
    "language_model.model.embed_tokens.weight",
    "vision_model.encoder.layers.0.mlp.fc1.weight",
    "mlp1.0.weight",
    "model.visual.blocks.0.attn.qkv.weight",
)


@pytest.fixture(scope="module")
def shapes():
    return param_shapes(build_model(sam2_sa2va.get_config("tiny").model, SAM2))


@pytest.fixture(scope="module")
def state(shapes):
    """A random state dict of `sam2_sa2va:tiny`, with tensors of the other models."""
    config = sam2_sa2va.get_config("tiny")
    blank = {path: np.broadcast_to(np.int8(0), shape) for path, shape in shapes.items()}
    rng = np.random.default_rng(0)
    found = invert_rules(blank, sa2va_rules(), sa2va_names(config.model))
    drawn = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in found.items()}
    return dict.fromkeys(OTHERS, np.ones(3, np.float32)) | drawn


@pytest.fixture(scope="module")
def converted(state):
    return convert(state, "sa2va", sam2_sa2va.get_config("tiny"), strict=True)


def test_every_tensor_comes_back(state, converted):
    """Under Sa2VA's names and in its order; the other models are ignored and named."""
    config = sam2_sa2va.get_config("tiny")
    assert converted.ignored == list(OTHERS) and not converted.fresh
    back = original_state_dict(converted.variables["params"], {}, {}, config)
    assert list(back.state_dict) == [name for name in state if name not in OTHERS]
    for name, array in back.state_dict.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    names = {name.removeprefix("grounding_encoder.sam2_model.") for name in back.state_dict}
    assert set(sam2_names(config.model)) == {n for n in names if not n.startswith("text_hidden")}
    assert not back.missing


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text_hidden_fcs.3.weight": np.ones((3, 3), np.float32)}, "the model has no such"),
        ({"text_hidden_fcs.0.weight": np.ones((9, 9), np.float32)}, r"expected \(24, 24\)"),
        ({"grounding_encoder.sam2_model.extra": np.ones(3, np.float32)}, "extra .* no rule"),
        ({"grounding_encoder.sam2_model.no_mem_embed": None}, "no_mem_embed .* nothing in the"),
        ({"text_hidden_fcs.2.bias": None}, "text_hidden_fcs.2.bias would"),
    ],
)
def test_what_does_not_fit_is_named(state, shapes, change, message):
    changed = {name: x for name, x in (state | change).items() if x is not None}
    with pytest.raises(ConversionError, match=message):
        apply_rules(changed, sa2va_rules(), shapes)


def test_plain_sam2_has_no_place_for_the_projection(state, shapes):
    plain = {path: shape for path, shape in shapes.items() if not path.startswith("text_")}
    with pytest.raises(ConversionError, match="text_hidden_fcs/layers_0/kernel: the model has no"):
        apply_rules(state, sa2va_rules(), plain)


def test_hidden_states_become_tokens(state, converted):
    """Linear, ReLU, Linear with the original's tensors."""
    sam2 = Sam2(sam2_sa2va.get_config("tiny"), converted.variables["params"])
    states = np.random.default_rng(1).normal(size=(2, 3, 24)).astype(np.float32)
    found = sam2._call("project_language", states)
    first, second = (
        [state[f"text_hidden_fcs.{i}.{x}"] for x in ("weight", "bias")] for i in (0, 2)
    )
    hidden = np.maximum(states @ first[0].T + first[1], 0)
    np.testing.assert_allclose(found, hidden @ second[0].T + second[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("hides", [True, False])
def test_masks_of_absent_objects(converted, hides):
    """SAM2 empties them, Sa2VA keeps them; either way, the pointer is that of no object."""
    config, rng = sam2_sa2va.get_config("tiny"), np.random.default_rng(2)
    config.model.hides_absent = hides
    drawn = (
        rng.normal(size=size).astype(np.float32) for size in ((2, 4, 4, 4), (2, 4), (2, 4, 32))
    )
    masks, ious, tokens = drawn
    decoded = DecodedMasks(masks, ious, tokens, np.float32([[1], [-1]]), np.zeros((2, 4, 4, 4)))
    params = converted.variables["params"]
    found = build_model(config.model, SAM2).apply(
        {"params": params}, decoded, np.ones(2, bool), method="as_segments"
    )
    want = masks[np.arange(2), ..., 1 + ious[:, 1:].argmax(1)]
    want[1] = -1024 if hides else want[1]
    np.testing.assert_array_equal(found.low_res_mask, want)
    np.testing.assert_array_equal(found.obj_ptr[1], params["no_obj_ptr"][0])

"""The pixel decoder against the original, stage by stage, inside the golden model."""

import numpy as np
import pytest

from avs_jax.models.decoders.pixel_decoder import offset_bias, reference_points
from avs_jax.models.layers import sine_position_encoding
from tests.golden.compare import assert_golden
from tests.golden.weights import msda_offset_bias
from tests.vct_golden import channels_first, golden, tiny_outputs

SETS = ("s4", "ms3", "ss")


@pytest.fixture(
    scope="module",
    params=[x if x == "s4" else pytest.param(x, marks=pytest.mark.slow) for x in SETS],
)
def case(request):
    return golden(request.param), tiny_outputs(request.param)["intermediates"]["pixel_decoder"]


def test_projected_levels(case):
    arrays, seen = case
    for i, level in enumerate(seen["input_proj"]):
        assert_golden(arrays, f"pixel_decoder/input_proj.{i}", channels_first(level))
    assert_golden(arrays, "pixel_decoder/enc_src", seen["enc_src"])
    assert_golden(arrays, "pixel_decoder/enc_pos", seen["enc_pos"])


def test_encoder_layers(case):
    arrays, seen = case
    attended, output = seen["enc_layers"]["self_attn"], seen["enc_layers"]["output"]
    assert_golden(arrays, "pixel_decoder/enc_layer.0.self_attn", attended[0])
    for i in range(6):
        assert_golden(arrays, f"pixel_decoder/enc_layer.{i}", output[i])


def test_pyramid_and_outputs(case):
    arrays, seen = case
    for name in ("adapter_1", "layer_1", "mask_features"):
        assert_golden(arrays, f"pixel_decoder/{name}", channels_first(seen[name]))
    for i, level in enumerate(seen["multi_scale"]):
        assert_golden(arrays, f"pixel_decoder/multi_scale.{i}", channels_first(level))


def test_reference_points():
    expected = golden("s4")["pixel_decoder/reference_points"][0, :, 0]
    np.testing.assert_allclose(reference_points([(3, 4), (6, 8), (12, 16)]), expected, atol=1e-7)


def test_offset_bias_is_the_original_formula():
    np.testing.assert_allclose(offset_bias(8, 3, 4), msda_offset_bias(), atol=1e-5)


def test_position_encoding_puts_rows_first():
    encoding = sine_position_encoding(3, 5, 8)
    assert encoding.shape == (3, 5, 8)
    assert np.all(encoding[:, :1, :4] == encoding[:, :, :4])
    assert np.all(encoding[:1, :, 4:] == encoding[:, :, 4:])
    np.testing.assert_allclose(encoding[2, 0, 1], 1.0, atol=1e-6)  # cos(2 pi)

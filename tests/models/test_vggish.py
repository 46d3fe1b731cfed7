"""VGGish: numbers of the original under both weight rules, and its table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from avs_jax.convert.tables import vggish_rules
from avs_jax.models.backbones.vggish import VGGish
from tests.backbone_files import entries, golden_state
from tests.conftest import GOLDEN
from tests.golden.compare import assert_golden, shapes_of, vct_params
from tests.golden.weights import avs_value
from tests.models.test_swin import channels_first, checkpoint_entries, golden_s4

apply = jax.jit(VGGish().apply)


@functools.cache
def abstract_params(width: int = 64):
    log_mel = jnp.zeros((1, 96, 64))
    return jax.eval_shape(VGGish(width).init, jax.random.key(0), log_mel)["params"]


def test_convolution_map_agrees_with_vct():
    golden = golden_s4()
    log_mel = np.concatenate([golden[f"in/audio_log_mel_{clip}"] for clip in range(2)])[:, 0]
    names = [name for name in checkpoint_entries() if name.startswith("audio_backbone.")]
    rules = vggish_rules("audio_backbone", "audio_backbone")
    params = vct_params({"audio_backbone": abstract_params()}, rules, names)["audio_backbone"]
    out = apply({"params": params}, log_mel)
    assert out.shape == (10, 6, 4, 512)
    assert_golden(golden, "audio_backbone/out", channels_first(out))


def test_convolution_map_agrees_with_avsbench_and_its_file():
    """The whole published file, embedding MLP included, goes through the table."""
    golden = np.load(GOLDEN / "golden_vggish.npz")
    shapes = {
        name: shape
        for name, (shape, _) in checkpoint_entries().items()
        if name.startswith("audio_backbone.features.")
    }
    state = {
        name.removeprefix("audio_backbone."): avs_value(name.removeprefix("audio_backbone."), shape)
        for name, shape in shapes.items()
    }
    state["embeddings.0.weight"] = np.zeros((1, 1))  # known, not taken, whatever its shape
    flat = apply_rules(state, vggish_rules("", ""), shapes_of(abstract_params()))
    params = traverse_util.unflatten_dict(flat, sep="/")
    out = apply({"params": params}, golden["net/input"][:, 0])
    expected = golden["net/conv_features_512x6x4"]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(channels_first(out), expected, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(
        np.asarray(out)[:1].reshape(1, -1), golden["net/flat12288"], rtol=0, atol=1e-5 * scale
    )


def test_embedding_agrees_with_avsbench():
    """Its 128 numbers after the last ReLU, from the whole published file."""
    golden = np.load(GOLDEN / "golden_vggish.npz")
    model = VGGish(embedding=(4096, 4096, 128))
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 64)))["params"]
    state = golden_state(entries("vggish") | entries("vggish_pca"))
    flat = apply_rules(state, vggish_rules("", "", has_embedding=True), shapes_of(tree))
    params = traverse_util.unflatten_dict(flat, sep="/")
    out = jax.jit(model.apply)({"params": params}, golden["net/input"][:, 0])
    expected = golden["net/embedding128"]
    assert (expected == 0).any() and expected.max() > 0.01
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_width_scales_every_layer_and_initialization_keeps_the_scale():
    """Kaiming weights keep the scale of standardized log-mels through all layers."""
    log_mel = jax.random.normal(jax.random.key(0), (2, 96, 64))
    for dtype in ("float32", "bfloat16"):
        model = VGGish(width=16, dtype=dtype)
        out, variables = jax.jit(model.init_with_output)(jax.random.key(1), log_mel)
        assert out.shape == (2, 6, 4, 128) and out.dtype == jnp.dtype(dtype)
        assert 0.3 < np.asarray(out, np.float32).std() < 10
    channels = {k: v["kernel"].shape[-1] for k, v in variables["params"].items()}
    numbers = (0, 3, 6, 8, 11, 13)
    widths = (16, 32, 64, 64, 128, 128)
    assert channels == {f"features_{n}": w for n, w in zip(numbers, widths, strict=True)}
    assert all(not v["bias"].any() for v in variables["params"].values())
    embed = VGGish(width=4, embedding=(64, 64, 32))
    out, _ = jax.jit(embed.init_with_output)(jax.random.key(1), log_mel)
    assert 0.3 < np.asarray(out).std() < 10


def test_invalid_values_are_named():
    with pytest.raises(ValueError, match="log_mel: axis 96"):
        jax.eval_shape(VGGish().init, jax.random.key(0), jnp.zeros((1, 64, 96)))

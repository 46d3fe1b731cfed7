"""ResNet: numbers of the original in both layouts, and frozen norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.convert.tables import resnet_rules
from avs_jax.models.backbones.resnet import ResNet
from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.rules import check_rules
from avs_jax.spec import InputError
from tests.backbone_files import assert_probe, b2_entries, fill, golden_state
from tests.conftest import GOLDEN
from tests.golden.weights import rand_input

SMALL = ResNet(depths=(2, 1, 1, 1), width=4)
GOLDEN_LAYERS = ("layer1", "layer2", "layer3_1", "layer4_1")


def shapes(model: ResNet):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def images(num_frames=2):
    return jax.random.normal(jax.random.key(3), (num_frames, 45, 70, 3))


@functools.cache
def variables():
    return jax.jit(SMALL.init)(jax.random.key(0), images())


def test_resnet50_agrees_with_the_original():
    """The layers that run of AVSBench's two-branch net: two of the ten frames of its golden."""
    model = ResNet()
    tree = shapes(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == 23_508_032
    state = golden_state(b2_entries(), prefix="resnet.")
    variables = fill(tree, state, resnet_rules("", ""))
    x = rand_input(100, (10, 3, 224, 224))[:2].transpose(0, 2, 3, 1)
    outputs = jax.jit(model.apply)(variables, x)
    golden = np.load(GOLDEN / "golden_resnet50_layers.npz")
    for level, layer in zip(FEATURE_LEVELS, GOLDEN_LAYERS, strict=True):
        assert_probe(outputs[level], f"main/backbone_{layer}", golden)


def test_sides_that_nothing_divides_are_rounded_up():
    outputs = jax.eval_shape(SMALL.apply, variables(), images())
    sizes = [(2, 12, 18, 16), (2, 6, 9, 32), (2, 3, 5, 64), (2, 2, 3, 128)]
    assert [outputs[level].shape for level in FEATURE_LEVELS] == sizes


def test_training_reads_but_does_not_change_the_loaded_statistics():
    def apply(**arguments):
        run = functools.partial(SMALL.apply, **arguments)
        return jax.jit(run)(variables(), images())

    outputs, updates = apply(train=True, mutable=["batch_stats"])
    for path, leaf in jax.tree.leaves_with_path(updates["batch_stats"]):
        expected = 1.0 if "var" in jax.tree_util.keystr(path) else 0.0
        np.testing.assert_array_equal(leaf, expected)
    np.testing.assert_array_equal(outputs["res5"], apply()["res5"])


def test_trained_norms_follow_the_valid_frames_of_the_batch():
    """Every norm moves, by statistics that a frame that is not valid does not enter."""
    model, valid = SMALL.clone(trained_norms=True), np.array([True, True, False])

    def update(x):
        run = functools.partial(model.apply, train=True, valid=valid, mutable=["batch_stats"])
        return jax.jit(run)(variables(), x)[1]["batch_stats"]

    x = images(3)
    stats = update(x)
    before = variables()["batch_stats"]
    assert all(map(np.any, jax.tree.leaves(jax.tree.map(lambda a, b: a != b, stats, before))))
    jax.tree.map(np.testing.assert_array_equal, stats, update(x.at[2].set(9.0)))
    assert np.any(stats["bn1"]["mean"] != update(x.at[1].set(9.0))["bn1"]["mean"])


def test_remat_and_bfloat16_change_little_or_nothing():
    x = images()

    def loss(params, model):
        tree = {"params": params, "batch_stats": variables()["batch_stats"]}
        return jnp.square(model.apply(tree, x)["res2"]).mean()  # of both kinds of blocks

    plain = jax.jit(jax.grad(functools.partial(loss, model=SMALL)))(variables()["params"])
    again = jax.jit(jax.grad(functools.partial(loss, model=SMALL.clone(remat=True))))(
        variables()["params"]
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))
    half, outputs = (
        jax.jit(lambda v, x, net=net: net.apply(v, x)["res3"])(variables(), x)
        for net in (SMALL.clone(dtype="bfloat16"), SMALL)
    )
    assert half.dtype == jnp.bfloat16
    error = np.asarray(half, np.float32) - np.asarray(outputs)
    assert 0 < np.abs(error).mean() < 0.02 * np.abs(outputs).mean()


def test_invalid_values_are_named():
    with pytest.raises(InputError, match="depths"):
        check_rules(ResNet.RULES, {"backbone": {"depths": (1, 2, 3)}})
    with pytest.raises(ValueError, match="x: shape"):
        jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((32, 32, 3)))

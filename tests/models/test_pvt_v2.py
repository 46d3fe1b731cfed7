"""PVT v2: numbers of the original, and the properties of its scan, drop path and remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.convert.tables import pvt_v2_rules
from avs_jax.models.backbones.pvt_v2 import PVTv2, depthwise_convolve
from avs_jax.models.backbones.stages import FEATURE_LEVELS
from avs_jax.models.rules import check_rules
from avs_jax.spec import InputError
from tests.backbone_files import assert_probe, entries, fill, golden_state
from tests.conftest import GOLDEN
from tests.golden.weights import rand_input

SMALL = PVTv2(
    embed_dims=(8, 16, 20, 24), depths=(2, 3, 1, 1), num_heads=(1, 2, 5, 4), mlp_ratios=(2, 2, 1, 2)
)
SEED = 800  # of the goldens' images, plus their side


def shapes(model: PVTv2):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@functools.cache
def variables():
    """Random everywhere, because zeros and ones would hide a wrong bias or norm.

    NumPy's, so that the first call may be inside a traced function.
    """
    rng = np.random.default_rng(1)
    draw = lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape))  # noqa: E731
    return jax.tree.map(draw, shapes(SMALL))


def images(num_frames=2):
    return jax.random.normal(jax.random.key(3), (num_frames, 45, 70, 3))


@pytest.mark.slow
def test_b5_agrees_with_the_original():
    """The four stages at 224 px; weights of the official file."""
    model = PVTv2()
    tree = shapes(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 81_443_008
    state = golden_state(entries("pvt_v2_b5_official"))
    variables = fill(tree, state, pvt_v2_rules("", "", model.depths))
    x = rand_input(SEED + 224, (1, 3, 224, 224)).transpose(0, 2, 3, 1)
    outputs = jax.jit(model.apply)(variables, x)
    golden = np.load(GOLDEN / "golden_backbones.npz")
    for stage, level in enumerate(FEATURE_LEVELS, start=1):
        assert_probe(outputs[level], f"pvt/224/stage{stage}", golden)


def test_sides_that_nothing_divides_are_rounded_up():
    outputs = jax.eval_shape(SMALL.apply, variables(), images())
    sizes = [(2, 12, 18, 8), (2, 6, 9, 16), (2, 3, 5, 20), (2, 2, 3, 24)]
    assert [outputs[level].shape for level in FEATURE_LEVELS] == sizes


def test_incomplete_cells_at_the_bottom_and_right_yield_no_keys():
    """At stride 4 the 12 x 18 map has 1 x 2 cells of 8: what is below row 8 is no key."""
    model = SMALL.clone(depths=(1, 1, 1, 1))
    tree = jax.tree.map(lambda x: x, variables())
    for i in range(1, 5):
        block = tree["params"][f"block{i}"]
        tree["params"][f"block{i}"] = jax.tree.map(lambda leaf: leaf[:1], block)
        kernel = tree["params"][f"block{i}"]["mlp"]["dwconv"]["kernel"]
        tree["params"][f"block{i}"]["mlp"]["dwconv"]["kernel"] = jnp.zeros_like(kernel)
    run = jax.jit(lambda x: model.apply(tree, x)["res2"])
    x = images(1)
    changed = x.at[:, 40:].add(1.0)  # rows 9 and on at stride 4, by patches of 7 px
    difference = np.abs(run(changed) - run(x)).max((0, 2, 3))
    assert difference[:8].max() < 1e-5 and difference[10:].min() > 1e-3


@pytest.mark.slow
def test_drop_path_of_a_frame_depends_only_on_its_id():
    x = images(4)
    model = SMALL.clone(drop_path_rate=0.9)

    @functools.partial(jax.jit, static_argnames="train")
    def run(x, frame_ids, train=True):
        rngs = {"drop_path": jax.random.key(5)}
        return model.apply(variables(), x, train=train, frame_ids=frame_ids, rngs=rngs)["res3"]

    whole = run(x, None)
    subset = run(x[jnp.array([3, 1])], jnp.array([3, 1]))
    np.testing.assert_allclose(subset, whole[jnp.array([3, 1])], rtol=0, atol=2e-5)
    assert np.abs(run(x[3:], jnp.array([0]))[0] - subset[0]).max() > 0.01
    assert np.abs(whole - run(x, None, train=False)).max() > 0.01


@pytest.mark.slow
def test_remat_changes_no_gradient():
    """In the first stage, whose two blocks are scanned like those of any other."""
    x = images(1)[:, :32, :32]

    def gradients(remat):
        model = SMALL.clone(remat=remat)
        loss = lambda v: jnp.square(model.apply(v, x)["res2"][..., 0]).mean()  # noqa: E731
        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss))(variables()))) == remat
        return jax.jit(jax.grad(loss))(variables())

    plain, remat = gradients(False), gradients(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain)) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_depthwise_convolution(dtype):
    """Compared with XLA's grouped convolution in float32."""
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (2, 5, 4, 3), (3, 3, 1, 3), (2, 5, 4, 3)
    x, kernel, direction = (
        jax.random.normal(k, s, dtype) for k, s in zip(keys, sizes, strict=True)
    )

    def in_groups(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=3
        )

    out, pull = jax.vjp(depthwise_convolve, x, kernel)
    wide = [a.astype(jnp.float32) for a in (x, kernel, direction)]
    expected, pull_expected = jax.vjp(in_groups, *wide[:2])
    results = [out, *pull(direction)], [expected, *pull_expected(wide[2])]
    tolerance = {"float32": 1e-5, "bfloat16": 0.01}[dtype]
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * scale)


def test_bfloat16_stays_close_to_float32():
    model = SMALL.clone(dtype="bfloat16")
    half, outputs = (
        jax.jit(lambda v, x, net=net: net.apply(v, x)["res3"])(variables(), images())
        for net in (model, SMALL)
    )
    assert half.dtype == jnp.bfloat16
    error = np.asarray(half, np.float32) - np.asarray(outputs)
    assert 1e-4 < error.std() / np.std(outputs) < 0.05
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes(model)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (2, 2, 2)}, "depths"),
        ({"sr_ratios": (8, 4, 2, 0)}, "sr_ratios"),
        ({"num_heads": (1, 2, 3, 4)}, "divide the stages' channels"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_invalid_fields_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        check_rules(PVTv2.RULES, {"backbone": fields})


def test_invalid_shapes_are_named():
    with pytest.raises(ValueError, match="x: shape"):
        jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((32, 32, 3)))
    with pytest.raises(ValueError, match="at least 32 px|32 px"):
        jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 16, 64, 3)))
    with pytest.raises(ValueError, match="frame_ids"):
        SMALL.apply(variables(), images(), train=True, frame_ids=jnp.arange(3))

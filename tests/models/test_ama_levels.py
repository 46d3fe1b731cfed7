"""AMA's coarser grids: against the single grids that they are made of."""

import jax
import numpy as np
import pytest

from avs_jax.models.fusion.ama import AMA, normalize_map
from avs_jax.models.rules import check_rules
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import InputError

SMALL = {"embed_dim": 8, "num_heads": 2, "grid": 8}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((3, 6)).astype(np.float32)
    return audio, rng.random((3, 16, 16, 1), dtype=np.float32)


@pytest.mark.slow
def test_the_map_is_a_weighted_sum_of_single_grids(inputs):
    """Each level alone is an AMA of its own grid, with the same query."""
    audio, motion = inputs
    model = AMA(**SMALL, levels=(4, 2))
    variables = jax.jit(model.init)(jax.random.key(0), audio, motion)
    params = dict(variables["params"])
    params["level_weights"] = np.float32([0.3, -0.5, 1.0])
    params["level_4"] = params["level_4"] | {"temperature": np.float32([3.0])}
    statistics = variables["batch_stats"]
    got, _ = model.apply({"params": params, "batch_stats": statistics}, audio, motion)

    small = np.asarray(resize_bilinear(motion, (8, 8)))
    weights = np.exp([0.3, -0.5, 1.0]) / np.exp([0.3, -0.5, 1.0]).sum()
    shared = {k: v for k, v in params.items() if not k.startswith("level_")}
    mixed = 0
    for weight, side in zip(weights, (8, 4, 2), strict=True):
        own = shared if side == 8 else shared | params[f"level_{side}"]
        stats = statistics if side == 8 else statistics[f"level_{side}"]
        stats = {k: v for k, v in stats.items() if not k.startswith("level_")}
        pooled = small.reshape(3, side, 8 // side, side, 8 // side, 1).mean((2, 4))
        single = AMA(**SMALL | {"grid": side})
        _, found = single.apply({"params": own, "batch_stats": stats}, audio, pooled)
        mean = np.asarray(found["attention"]).mean(1).reshape(3, side, side, 1)
        mixed += weight * (side / 8) ** 2 * np.asarray(resize_bilinear(mean, (8, 8)))[..., 0]
    np.testing.assert_allclose(got, normalize_map(mixed), atol=2e-4)


@pytest.mark.slow
def test_one_grid_has_no_more_parameters_and_still_frames_no_map(inputs):
    audio, motion = inputs
    plain = jax.eval_shape(AMA(**SMALL).init, jax.random.key(0), audio, motion)
    one = jax.eval_shape(AMA(**SMALL, levels=()).init, jax.random.key(0), audio, motion)
    assert jax.tree.structure(plain) == jax.tree.structure(one)
    model = AMA(**SMALL, levels=(4,))
    variables = jax.jit(model.init)(jax.random.key(0), audio, motion)
    weight, _ = model.apply(variables, audio, np.zeros_like(motion))
    assert np.abs(weight).max() < 1e-4


@pytest.mark.parametrize("levels", [(8,), (3,), (0,), (4, 4), ("4",)])
def test_impossible_levels_are_named(levels):
    with pytest.raises(InputError, match="fusion.levels = .*: expected different divisors"):
        check_rules(AMA.RULES, {"fusion": SMALL | {"levels": levels}})

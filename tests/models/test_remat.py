"""Recomputation: where each policy has it, and that it changes memory and no gradient."""

import jax
import numpy as np
import pytest

from avs_jax.models import build_model
from avs_jax.models.avs import REMAT_POLICIES
from avs_jax.models.decoders.pixel_decoder import PixelDecoder
from avs_jax.models.decoders.vct_decoder import VCTDecoder
from avs_jax.runtime.step import CPU_SCHEDULE, CPU_WHOLE_LOOPS
from avs_jax.runtime.stored_config import check_same_config
from tests import small


def features(rng, width, sizes):
    return [rng.standard_normal((2, n, n, width), np.float32) for n in sizes]


def count_values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def pixel_decoder_case(remat):
    rng, sizes = np.random.default_rng(0), (16, 8, 4, 2)
    levels = dict(zip(("res2", "res3", "res4", "res5"), features(rng, 8, sizes), strict=True))
    sizes = dict(hidden_dim=32, num_layers=2, ffn_dim=16, num_heads=2, num_points=2)
    return PixelDecoder(**sizes, remat=remat), (levels,)


def decoder_case(remat):
    rng = np.random.default_rng(1)
    *multi_scale, mask_features = features(rng, 32, (2, 4, 8, 16))
    audio = rng.standard_normal((2, 6, 4, 32), np.float32)
    sizes = dict(num_classes=2, num_prototypes=3, num_queries=5, num_layers=3, ffn_dim=16)
    return VCTDecoder(**sizes, num_heads=2, remat=remat), (multi_scale, mask_features, audio)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pixel_decoder_case, decoder_case])
def test_recomputation_changes_no_gradient(case):
    results = []
    for remat in (False, True):
        module, inputs = case(remat)
        variables = jax.jit(module.init)(jax.random.key(0), *inputs)

        def loss(variables, module=module, inputs=inputs):
            outputs = module.apply(variables, *inputs)[0]
            return sum((x**2).sum() for x in jax.tree.leaves(outputs))

        backward = jax.eval_shape(lambda v, loss=loss: jax.vjp(loss, v), variables)[1]
        results.append((jax.jit(jax.grad(loss))(variables), count_values(backward)))
    (plain, many), (again, few) = results
    assert few < many
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(plain))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale)


def kept_by_the_forward_pass(config, batch):
    """Values of the model's training forward pass that its backward pass takes, by autodiff."""
    model = build_model(config.model)
    keys = dict(zip(("params", "gumbel"), jax.random.split(jax.random.key(0)), strict=True))
    variables = jax.eval_shape(lambda: model.init(keys, batch))
    params, stats = variables.pop("params"), variables
    stats = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), stats)

    def loss(params):
        outputs, _ = model.apply(
            {**stats, "params": params}, batch, train=True, rngs=keys, mutable=["batch_stats"]
        )
        return outputs["pred_masks"].sum()

    return count_values(jax.eval_shape(lambda p: jax.vjp(loss, p), params)[1])


@pytest.mark.slow
def test_each_policy_keeps_less_than_the_one_before():
    sizes, batch = [], small.train_batch(small.small_config())
    batch = {name: batch[name][:1] for name in ("images", "pre_masks", "log_mel", "motion")}
    for policy in REMAT_POLICIES:
        config = small.small_config()
        config.model.remat = policy
        sizes.append(kept_by_the_forward_pass(config, batch))
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_policy_that_does_not_exist():
    config = small.small_config()
    config.model.remat = "some"
    with pytest.raises(ValueError, match=r"model.remat = 'some'.*none.*backbone.*all"):
        build_model(config.model)


def test_a_run_may_resume_under_another_policy(tmp_path):
    """Also one from when recomputation was a key of the backbone."""
    stored, config = small.small_config(), small.small_config()
    config.model.remat = "all"
    check_same_config(stored, config, tmp_path)
    del stored.model["remat"]
    stored.model.backbone.remat = True
    check_same_config(stored, config, tmp_path)


def test_loops_of_one_turn_stay_whole_where_asked():
    """The name of XLA's pass is right: a wrong one would be taken in silence."""

    def double(x):
        return jax.lax.scan(lambda carry, _: (carry * 2, None), x, length=1)[0]

    def compiled(options):
        return jax.jit(double, compiler_options=options).lower(1.0).compile().as_text()

    assert "while(" in compiled(CPU_SCHEDULE | CPU_WHOLE_LOOPS)
    assert "while(" not in compiled(CPU_SCHEDULE)

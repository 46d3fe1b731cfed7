"""Query generation against the original, and its straight-through assignment by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models.decoders.ppqg import PPQG, hard_assignment, reweight
from avs_jax.ops.sampling import resize_bilinear
from tests.golden.compare import assert_golden
from tests.vct_golden import channels_first, golden, tiny_outputs


@pytest.fixture(scope="module", params=("s4", "ms3", pytest.param("ss", marks=pytest.mark.slow)))
def case(request):
    return golden(request.param), tiny_outputs(request.param)["intermediates"]


def test_assignment_is_equal(case):
    arrays, intermediates = case
    np.testing.assert_array_equal(
        intermediates["ppqg"]["assign_index"], arrays["ppqg/assign_index"]
    )


def test_stages(case):
    arrays, intermediates = case
    ppqg = intermediates["ppqg"]
    assert_golden(arrays, "ppqg/pre_proj", channels_first(ppqg["pre_proj"]))
    assert_golden(arrays, "ppqg/query_mixer", ppqg["query_mixer"])
    if "ppqg/pre_attn/sample" in arrays:
        assert_golden(arrays, "ppqg/pre_attn", np.swapaxes(ppqg["pre_attn"], 0, 1))
    assert_golden(arrays, "ppqg/raw_attn", ppqg["raw_attn"])
    hard = ppqg["hard_attn"][:, None]
    expected = arrays["ppqg/hard_attn/sample"]
    hard = hard.reshape(-1)[:: int(arrays["ppqg/hard_attn/stride"])]
    np.testing.assert_allclose(hard, expected, atol=2e-7)  # 1 - p + p
    assert_golden(arrays, "ppqg/assign_attn_out", ppqg["assign_attn_out"])
    assert_golden(arrays, "ppqg/queries", np.swapaxes(ppqg["queries"], 0, 1))
    start = intermediates["decoder"]["init_output"]
    assert_golden(arrays, "decoder/init_output", np.swapaxes(start, 0, 1))


def test_hard_assignment_is_one_hot_with_the_gradient_of_the_softmax():
    key = jax.random.key(0)
    logits = jax.random.normal(key, (2, 5, 7))
    weight = jax.random.normal(jax.random.fold_in(key, 1), logits.shape)
    assigned, pull = jax.vjp(hard_assignment, logits)
    np.testing.assert_allclose(assigned.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(assigned.argmax(1), logits.argmax(1))
    soft = jax.vjp(lambda x: jax.nn.softmax(x, axis=1), logits)[1]
    np.testing.assert_array_equal(pull(weight)[0], soft(weight)[0])


def test_noise_decides_the_assignment():
    model = PPQG(num_queries=4, num_prototypes=0)
    features = jax.random.normal(jax.random.key(0), (1, 2, 3, 32))
    variables = model.init(jax.random.key(1), features)
    winner = jnp.array([[3, 1, 0, 2, 2, 1]])
    noise = 100 * jax.nn.one_hot(winner, 4, axis=1)
    _, _, intermediates = model.apply(variables, features, None, noise)
    np.testing.assert_array_equal(intermediates["assign_index"], winner)


def test_a_wrong_number_of_pixels_is_an_error_that_gives_the_size():
    model = PPQG(num_queries=4, num_prototypes=0)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 4, 4, 32)))
    with pytest.raises(ValueError, match="3 x 4 = 12 pixels.* are for 16, e.g. images of 16 x 16"):
        model.apply(variables, jnp.zeros((1, 3, 4, 32)))


def test_reweighting_agrees_with_the_original(golden_dir):
    arrays = np.load(golden_dir / "golden_ama.npz")
    x = np.moveaxis(arrays["reweight/x"], 1, -1)
    weight = resize_bilinear(jnp.asarray(arrays["eval/up"][:, 0, :, :, None]), x.shape[1:3])
    out = reweight(jnp.asarray(x), weight[..., 0], arrays["reweight/lambda"][0])
    np.testing.assert_allclose(out, np.moveaxis(arrays["reweight/out"], 1, -1), atol=1e-5)

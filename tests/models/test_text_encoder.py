"""The text encoder against RoBERTa's values, stage by stage; what masks and padding mean."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules, invert_rules
from avs_jax.convert.text_names import roberta_rules
from avs_jax.models.text.encoder import TextEncoder, position_ids
from tests.golden.refer.weights import refer_value
from tests.golden.weights import rand_input

SMALL = TextEncoder(
    vocab_size=200, hidden_dim=64, num_layers=2, num_heads=4, ffn_dim=256, max_positions=40
)


@pytest.fixture(scope="module")
def golden():
    from tests.conftest import GOLDEN

    with np.load(GOLDEN / "refer" / "golden_text_roberta.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def names(golden):
    return [name for name, _ in json.loads(golden["meta/json"].tobytes())["params"]]


@pytest.fixture(scope="module")
def params(golden):
    meta = json.loads(golden["meta/json"].tobytes())
    state = {name: refer_value(name, tuple(shape)) for name, shape in meta["params"]}
    tree = jax.eval_shape(SMALL.init, jax.random.key(0), np.zeros((1, 3), np.int32))["params"]
    shapes = {p: x.shape for p, x in traverse_util.flatten_dict(tree, sep="/").items()}
    return traverse_util.unflatten_dict(apply_rules(state, roberta_rules(), shapes), sep="/")


def steps(params, ids, mask=None):
    collect = []
    SMALL.apply({"params": params}, np.asarray(ids, np.int32), mask, collect)
    return collect


def test_stages_agree_with_the_golden(golden, params):
    ids, mask = golden["ragged/input_ids"], golden["ragged/attention_mask"] > 0
    np.testing.assert_array_equal(position_ids(ids), golden["ragged/position_ids"])
    found = steps(params, ids, mask)
    for i, x in enumerate(found):
        np.testing.assert_allclose(x, golden[f"ragged/hidden{i}"], atol=1.5e-5, rtol=0)
    np.testing.assert_array_equal(golden["ragged/hidden2"], golden["ragged/last_hidden_state"])


def test_positions_count_ids_and_attention_follows_the_mask(golden, params):
    ids, key = golden["masked_real_tokens/input_ids"], "last_hidden_state"
    mask = golden["masked_real_tokens/attention_mask"] > 0
    found = steps(params, ids, mask)[-1]
    np.testing.assert_allclose(found, golden[f"masked_real_tokens/{key}"], atol=1.5e-5, rtol=0)
    found = steps(params, golden["ragged/input_ids"][:3])[-1]
    np.testing.assert_allclose(found, golden[f"pad_attended/{key}"], atol=1.5e-5, rtol=0)


def test_gradients_agree_with_the_golden(golden, params, names):
    ids, mask = golden["ragged/input_ids"].astype(np.int32), golden["ragged/attention_mask"] > 0
    weight = rand_input(12, (64,))

    @jax.jit
    def loss(params):
        x = SMALL.apply({"params": params}, ids, mask)
        share = mask / mask.sum(1, keepdims=True)
        return ((x * share[..., None]).sum(1) @ weight).sum()

    value, gradient = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, golden["grad/loss"], atol=1.5e-5, rtol=1e-6)
    flat = traverse_util.flatten_dict(gradient, sep="/")
    found = invert_rules(flat, roberta_rules(), names)
    for name, x in found.items():
        # Key biases have no gradient: what is left is noise.
        want = golden[f"grad/norm/{name}"]
        np.testing.assert_allclose(np.linalg.norm(x), want, atol=4e-5, rtol=1e-5, err_msg=name)


def test_padding_and_masked_tokens_change_nothing(params):
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 200, (2, 9)).astype(np.int32)
    mask = np.ones((2, 9), bool)
    longer = np.concatenate([ids, np.ones((2, 5), np.int32)], axis=1)
    wider = np.concatenate([mask, np.zeros((2, 5), bool)], axis=1)
    found = steps(params, longer, wider)[-1][:, :9]
    np.testing.assert_allclose(found, steps(params, ids, mask)[-1], atol=2e-6)
    mask[:, 4] = False
    changed = ids.copy()
    changed[:, 4] = 7
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    both = [steps(params, x, mask)[-1][:, kept] for x in (ids, changed)]
    np.testing.assert_array_equal(*both)
    with pytest.raises(ValueError, match="39 tokens, but max_positions = 40 has room for 38"):
        steps(params, np.zeros((1, 39)))


def test_bfloat16_is_finite_and_close(params):
    ids = np.arange(4, 16, dtype=np.int32)[None]
    exact = steps(params, ids)[-1]
    rough = SMALL.clone(dtype="bfloat16").apply({"params": params}, ids).astype(np.float32)
    assert np.isfinite(rough).all() and np.abs(rough - exact).max() < 0.1

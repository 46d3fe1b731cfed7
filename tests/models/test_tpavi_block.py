"""The TPAVI block alone: numbers of the original in every mode, padded frames, chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules, invert_rules
from avs_jax.convert.tpavi_names import tpavi_rules
from avs_jax.models.fusion import tpavi_block
from avs_jax.models.fusion.tpavi_block import MODES, TPAVIBlock
from tests.golden.compare import shapes_of
from tests.golden.weights import avs_value
from tests.tpavi_golden import flat_tree, golden

ARRAYS, CASES = golden("block")
RULES = tpavi_rules({"backbone": {"name": "resnet50"}})
TOLERANCE = 2e-5  # of the largest value
# Gradients of what a batch norm or a softmax takes off again: zero but for noise.
VANISHING = {
    "gaussian": ("g.bias", "W_z.0.bias", "align_channel.bias"),
    "embedded": ("g.bias", "W_z.0.bias", "align_channel.bias", "phi.bias"),
    "dot": ("W_z.0.bias",),
    "concatenate": ("W_z.0.bias",),
}


def channels_last(name):
    return np.moveaxis(ARRAYS[name], 1, -1)


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


X, AUDIO, WEIGHT = channels_last("input_x"), ARRAYS["input_audio"], channels_last("input_w")
ALL = np.ones(X.shape[:2], bool)


def make_block(setting, mode, names):
    """A block and its golden variables; `names` of its state dict."""
    block = TPAVIBlock(mode, audio_bias=setting == "s4")
    values = {name: avs_value(name, shape, not shape) for name, shape in names}
    state = {f"tpavi_b1.{n}": np.int64(0) if v is None else v for n, v in values.items()}
    tree = jax.eval_shape(
        functools.partial(block.init, use_audio=True), jax.random.key(0), X, AUDIO, ALL
    )
    shapes = {f"tpavi_b1/{k}": v for k, v in shapes_of(tree["params"]).items()}
    stats = shapes_of(tree["batch_stats"])
    shapes |= {f"batch_stats/tpavi_b1/{k}": v for k, v in stats.items()}
    filled = traverse_util.unflatten_dict(apply_rules(state, RULES, shapes), sep="/")
    return block, {
        "params": filled["tpavi_b1"],
        "batch_stats": filled["batch_stats"]["tpavi_b1"],
    }


def assert_close(value, name, floor=0.0):
    expected = ARRAYS[name]
    scale = max(float(np.abs(expected).max()), floor)
    np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE * scale, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_block_agrees_with_the_original(case):
    setting, mode, source = case.split("/")
    block, variables = make_block(setting, mode, CASES[case])
    apply = functools.partial(block.apply, use_audio=source == "audio")

    def loss(params, x, audio):
        (out, _), updates = apply(
            variables | {"params": params}, x, audio, ALL, train=True, mutable=["batch_stats"]
        )
        return (out * WEIGHT).sum(), updates["batch_stats"]

    @jax.jit
    def run(params, x, audio):
        grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        return apply(variables, x, audio, ALL), grad(params, x, audio)

    (out, seen), (grads, stats) = run(variables["params"], X, AUDIO)
    assert_close(channels_first(out), f"{case}/out")
    assert_close(channels_first(seen["y"]), f"{case}/y")
    assert_close(channels_first(grads[1]), f"{case}/train_grad_x")
    if source == "audio":
        assert_close(seen["audio"], f"{case}/audio_temp")
        assert_close(grads[2], f"{case}/train_grad_audio")
    for name in ("mean", "var"):
        assert_close(stats["W_z_1"][name], f"{case}/train_running_{name}")
    names = [f"tpavi_b1.{name}" for name, shape in CASES[case] if shape and "running" not in name]
    found = invert_rules(flat_tree(grads[0], "tpavi_b1/"), RULES, names)
    scale = max(float(np.abs(g).max()) for g in found.values())
    for name in names:
        name = name.removeprefix("tpavi_b1.")
        if f"{case}/grad/{name}" in ARRAYS:
            floor = scale if name in VANISHING[mode] else 0.0
            assert_close(found[f"tpavi_b1.{name}"], f"{case}/grad/{name}", floor)


@pytest.mark.parametrize("mode", MODES)
def test_chunks_of_queries_change_nothing(mode, monkeypatch):
    """Also where they do not divide the queries; the backward pass goes through them."""
    rng = np.random.default_rng(0)
    shapes = (2, 30, 4), (2, 30, 4), (2, 30, 3)
    query, key, value = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    counted = jnp.asarray(rng.random((2, 30)) > 0.3)

    def loss(query, key, value):
        return jnp.sin(tpavi_block.attend(mode, query, key, value, counted)).sum()

    whole = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    monkeypatch.setattr(tpavi_block, "CHUNK_SIZE", 30 * 7)
    chunked = jax.grad(loss, argnums=(0, 1, 2))(query, key, value)
    for a, b in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_audio", [True, False])
def test_positions_follow_the_definition(mode, use_audio):
    """Against the full matrix over all T h w positions, of the frames that are counted."""
    rng = np.random.default_rng(1)
    b, t, h, w, c = 2, 3, 2, 3, 4
    x = rng.standard_normal((b, t, h, w, c)).astype(np.float32)
    audio = rng.standard_normal((b, t, 128)).astype(np.float32)
    counted = np.array([[1, 1, 0], [1, 1, 1]], bool)
    block = TPAVIBlock(mode)
    variables = block.init(jax.random.key(0), x, audio, counted, use_audio=use_audio)
    _, seen = block.apply(variables, x, audio, counted, use_audio=use_audio)
    params = jax.tree.map(np.asarray, variables["params"])

    def linear(name, y):
        return y @ params[name]["kernel"] + params[name]["bias"]

    heard = np.broadcast_to(linear("align_channel", audio)[:, :, None, None], x.shape)
    query, key = x, heard if use_audio else x
    if mode != "gaussian":
        query, key = linear("theta", query), linear("phi", key)
    for clip in range(b):
        q, k, v = (a[clip].reshape(t * h * w, -1) for a in (query, key, linear("g", x)))
        keep = np.repeat(counted[clip], h * w)
        k, v = k[keep], v[keep]
        if mode == "concatenate":
            pairs = [[np.concatenate([i, j]) for j in k] for i in q]
            scores = np.maximum(linear("W_f_0", np.array(pairs))[..., 0], 0)
        else:
            scores = q @ k.T
        if mode in ("gaussian", "embedded"):
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
        else:
            weights = scores / len(k)
        expected = (weights @ v).reshape(t, h, w, -1)
        np.testing.assert_allclose(seen["y"][clip], expected, atol=2e-5)


def test_fresh_block_is_a_layer_norm():
    block = TPAVIBlock()
    variables = block.init(jax.random.key(0), X, AUDIO, ALL, use_audio=True)
    out, _ = block.apply(variables, X, AUDIO, ALL, use_audio=True)
    centered = X - X.mean(-1, keepdims=True)
    expected = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_padded_frames_leave_the_statistics_alone():
    block = TPAVIBlock()
    counted = ALL.copy()
    counted[1, 3:] = False
    variables = block.init(jax.random.key(0), X, AUDIO, counted, use_audio=True)

    def update(x):
        _, updates = block.apply(
            variables, x, AUDIO, counted, use_audio=True, train=True, mutable=["batch_stats"]
        )
        return updates["batch_stats"]["W_z_1"]

    other = X.copy()
    other[1, 3:] = 7.0
    jax.tree.map(np.testing.assert_array_equal, update(X), update(other))

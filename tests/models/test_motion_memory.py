"""What a cell's motion knows of the other seconds: formulas, start, causality, missing frames."""

import jax
import numpy as np
import pytest
from scipy import special

from avs_jax.models.fusion.ama import AMA
from avs_jax.models.fusion.motion_memory import MotionGRU, TimeAttention
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from tests import small

B, T, S, E = 2, 4, 9, 4
ALL = np.ones((B, T), bool)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal((B, T, S, E)).astype(np.float32)


def make(kind, causal):
    return MotionGRU(causal) if kind == "gru" else TimeAttention(2, causal)


def drawn(model, x):
    """Parameters with an output projection that is not zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, ALL)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32) / 2, shapes)


GRU = pytest.param("gru", marks=pytest.mark.slow)
KINDS = pytest.mark.parametrize("kind", ["attention", GRU])


@KINDS
def test_it_starts_as_the_identity(kind, x):
    model = make(kind, False)
    variables = model.init(jax.random.key(0), x, ALL)
    np.testing.assert_array_equal(model.apply(variables, x, ALL), x)


@KINDS
@pytest.mark.parametrize("causal", [False, True])
def test_causality_and_missing_frames(kind, causal, x):
    model = make(kind, causal)
    variables = drawn(model, x)
    want = np.asarray(model.apply(variables, x, ALL))
    later = x.copy()
    later[:, 2:] *= -1
    found = np.asarray(model.apply(variables, later, ALL))
    same = np.abs(found[:, :2] - want[:, :2]).max() < 1e-6
    assert same == causal
    valid = ALL.copy()
    valid[0, 2:] = False
    whole = model.apply(variables, x, valid)
    short = model.apply(variables, x[:1, :2], ALL[:1, :2])
    np.testing.assert_allclose(whole[:1, :2], short, atol=1e-5)
    assert np.isfinite(whole).all()
    one_clip = model.apply(variables, x[1:], ALL[1:])
    np.testing.assert_allclose(one_clip[0], want[1], atol=1e-5)


def test_attention_against_loops(x):
    model = make("attention", True)
    p = drawn(model, x)["params"]
    want = np.zeros_like(x)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = normed * p["norm"]["scale"] + p["norm"]["bias"]
    q, k, v = (normed @ p[n]["kernel"] + p[n]["bias"] for n in ("q_proj", "k_proj", "v_proj"))
    for b, t, s in np.ndindex(B, T, S):
        for g in range(2):
            part = slice(2 * g, 2 * g + 2)
            scores = [q[b, t, s, part] @ k[b, u, s, part] / np.sqrt(2) for u in range(t + 1)]
            weights = special.softmax(scores)
            want[b, t, s, part] = sum(w * v[b, u, s, part] for u, w in enumerate(weights))
    want = x + want @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    np.testing.assert_allclose(model.apply({"params": p}, x, ALL), want, atol=1e-4)


@pytest.mark.slow
def test_gru_against_loops(x):
    """One pass forward; a 3 x 3 convolution by hand."""
    model = make("gru", True)
    p = drawn(model, x)["params"]

    def conv(name, maps):
        kernel, bias = p["forward"][name]["kernel"], p["forward"][name]["bias"]
        padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return bias + sum(
            padded[:, i : i + 3, j : j + 3] @ kernel[i, j] for i in range(3) for j in range(3)
        )

    state, want = np.zeros((B, 3, 3, E)), []
    for t in range(T):
        maps = x[:, t].reshape(B, 3, 3, E)
        gates = special.expit(conv("gates", np.concatenate([maps, state], -1)))
        update, reset = gates[..., :E], gates[..., E:]
        new = np.tanh(conv("candidate", np.concatenate([maps, reset * state], -1)))
        state = (1 - update) * new + update * state
        want.append(state.reshape(B, S, E))
    want = x + np.stack(want, 1) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    np.testing.assert_allclose(model.apply({"params": p}, x, ALL), want, atol=1e-4)


@pytest.mark.slow
@KINDS
def test_the_map_starts_as_without_it(kind):
    rng = np.random.default_rng(2)
    audio = rng.standard_normal((6, 5)).astype(np.float32)
    motion = rng.random((6, 4, 4, 1), dtype=np.float32)
    fields = {"embed_dim": 8, "num_heads": 2, "grid": 4}
    model = AMA(**fields, temporal=kind)
    variables = model.init(jax.random.key(0), audio, motion, num_frames=3)
    params = {k: v for k, v in variables["params"].items() if k != "memory"}
    want, _ = AMA(**fields).apply(variables | {"params": params}, audio, motion)
    got, _ = model.apply(variables, audio, motion, num_frames=3)
    np.testing.assert_array_equal(got, want)


def test_training_needs_all_frames():
    config = small.tiny_config()
    config.model.fusion.temporal = "gru"
    with pytest.raises(InputError, match="frames meet in model.fusion, so training needs all"):
        make_task(config)
    config.data.train_frames = "all"
    make_task(config)

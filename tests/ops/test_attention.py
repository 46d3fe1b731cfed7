"""Attention without weights, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.ops import attention
from avs_jax.ops.attention import map_attention, softmax_attention


def formula(q, k, v, biases=(), masked=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("nqgc,nsgc->ngqs", q, k) / np.sqrt(q.shape[-1])
    for bias in biases:
        scores = scores + np.asarray(bias, np.float64)
    if masked is not None:
        scores = np.where(masked, np.finfo(np.float32).min, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("ngqs,nsge->nqge", weights, v)


def inputs(queries, keys, heads=2, width=8, value_width=5, rows=3):
    rng = np.random.default_rng(0)
    sizes = (queries, width), (keys, width), (keys, value_width)
    arrays = (rng.standard_normal((rows, length, heads, c), np.float32) for length, c in sizes)
    return [jnp.asarray(array) for array in arrays]


def test_the_formula():
    q, k, v = inputs(6, 7)
    rng = np.random.default_rng(1)
    biases = [rng.standard_normal(s).astype(np.float32) for s in ((1, 2, 6, 7), (3, 1, 6, 7))]
    masked = rng.random((3, 1, 6, 7)) < 0.4
    masked[0, 0, 2] = True  # this query attends evenly
    found = softmax_attention(q, k, v, biases, masked)
    np.testing.assert_allclose(found, formula(q, k, v, biases, masked), atol=2e-6)
    np.testing.assert_allclose(found[0, 2], np.asarray(v[0]).mean(0), atol=1e-6)


def test_large_scores_do_not_overflow():
    q, k, v = inputs(4, 5)
    found = softmax_attention(100 * q, 100 * k, v)
    np.testing.assert_allclose(found, formula(100 * q, 100 * k, v), atol=1e-4)


def test_bfloat16_sums_in_float32():
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(6, 300))
    found = softmax_attention(q, k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), formula(q, k, v), atol=8e-3)


@pytest.mark.parametrize("queries", [512, 576, 257, 20])
def test_blocks_change_nothing(queries, monkeypatch):
    q, k, v = inputs(queries, 40)
    masked = np.random.default_rng(2).random((3, 1, 1, 40)) < 0.3

    def loss(attend, q, k, v):
        return jnp.square(attend(q, k, v, masked=masked)).sum()

    sizes = []
    one = softmax_attention
    monkeypatch.setattr(
        attention,
        "softmax_attention",
        lambda q, *rest, **more: (sizes.append(q.shape[1]), one(q, *rest, **more))[1],
    )
    found = map_attention(q, k, v, masked)
    assert set(sizes) == {{512: 256, 576: 192}.get(queries, queries)}
    np.testing.assert_allclose(found, formula(q, k, v, masked=masked), atol=2e-6)
    gradients = jax.grad(loss, (1, 2, 3))(map_attention, q, k, v)
    for ours, whole in zip(gradients, jax.grad(loss, (1, 2, 3))(one, q, k, v), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=5e-6, atol=1e-5)


def test_blocks_take_less_memory():
    q, k, v = inputs(1024, 1024, rows=1)

    def temporaries(attend):
        return jax.jit(attend).lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(map_attention) < 0.5 * temporaries(softmax_attention)

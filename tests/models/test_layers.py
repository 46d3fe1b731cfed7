"""Convolutions, norms and attention: their gradients, and what they keep for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.models.decoders.pixel_decoder import Encoder
from avs_jax.models.layers import GroupNorm, LayerNorm, MultiheadAttention, convolve


def plain_norm(params, x, groups):
    """The definition, for automatic differentiation; groups 0: over the last axis."""
    y = x.reshape(*x.shape[:-1], groups, -1) if groups else x
    axes = (1, 2, 4) if groups else (-1,)
    mean, var = y.mean(axes, keepdims=True), y.var(axes, keepdims=True)
    y = ((y - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
    shape = (1, 1, 1, -1)
    return y * params["scale"].reshape(shape) + params["bias"].reshape(shape)


def kept(function, *arguments):
    """Arrays that the gradient of a function keeps, by shape, the arguments themselves aside."""
    leaves = jax.tree.leaves(jax.vjp(function, *arguments)[1])
    given = {id(x) for x in jax.tree.leaves(arguments)}
    return [x.shape for x in leaves if isinstance(x, jax.Array) and id(x) not in given]


def pull_back(function, x, kernel, direction):
    """The value, and the gradients of its product with `direction`."""
    value, pull = jax.vjp(function, x, kernel)
    return value, *pull(direction)


def plain_convolution(x, kernel, dilation=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (5, 1), (3, 2), (3, 6)])
def test_gradients_of_a_convolution(size, dilation, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 7, 4, 3), (size, size, 3, 6), (2, 7, 4, 6)
    given = [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]
    ours, expected = (
        pull_back(lambda x, kernel, f=f: f(x, kernel, dilation), *given)
        for f in (convolve, plain_convolution)
    )
    tolerance = {"float32": 1e-5, "bfloat16": 0.01}[dtype]
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("platform, convolutions", [("cpu", 2), ("cuda", 3)])
def test_only_cpus_get_the_kernels_gradient_as_products(platform, convolutions):
    x = jnp.zeros((2, 8, 8, 4))
    traced = jax.jit(lambda *a: pull_back(convolve, *a)).trace(x, jnp.zeros((3, 3, 4, 4)), x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution(") == convolutions
    assert text.count("stablehlo.dot_general") == (9 if platform == "cpu" else 0)


@pytest.mark.parametrize("groups", [0, 4])
def test_gradient_of_a_norm(groups):
    module = GroupNorm(groups) if groups else LayerNorm()
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 + 2 * jax.random.normal(keys[0], (2, 3, 5, 16))
    params = {"scale": jax.random.normal(keys[1], (16,)), "bias": jnp.ones(16)}
    direction = jax.random.normal(keys[2], x.shape)

    def ours(params, x):
        return module.apply({"params": params}, x)

    def gradients(function):
        return jax.grad(lambda p, x: (function(p, x) * direction).sum(), argnums=(0, 1))(params, x)

    def plain(params, x):
        return plain_norm(params, x, groups)

    np.testing.assert_allclose(ours(params, x), plain(params, x), rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients(ours),
        gradients(plain),
    )
    assert sum(np.prod(shape) == x.size for shape in kept(ours, params, x)) <= 1


def test_a_norm_of_bfloat16_computes_in_float32():
    x = 100 + jax.random.normal(jax.random.key(0), (2, 64)).astype(jnp.bfloat16)
    params = {"scale": jnp.ones(64), "bias": jnp.zeros(64)}

    def norm(x):
        return LayerNorm().apply({"params": params}, x)

    out, pull = jax.vjp(norm, x)
    wide, pull_wide = jax.vjp(norm, x.astype(jnp.float32))
    gradient, expected = pull(out)[0], pull_wide(out.astype(jnp.float32))[0]
    assert out.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), wide, atol=0.02)
    np.testing.assert_allclose(gradient.astype(jnp.float32), expected, atol=0.02)


def test_attention_saves_no_map_for_the_backward_pass():
    module, heads, queries, tokens = MultiheadAttention(2), 2, 7, 11
    query = jax.random.normal(jax.random.key(0), (3, queries, 8))
    source = jax.random.normal(jax.random.key(1), (3, tokens, 8))
    masked = jax.random.bernoulli(jax.random.key(2), 0.3, (3, queries, tokens))
    params = module.init(jax.random.key(3), query, source, source)

    def attend(params):
        return module.apply(params, query, source, source, masked)

    assert not [s for s in kept(attend, params) if np.prod(s) == 3 * heads * queries * tokens]


def test_an_encoder_layer_saves_only_its_products():
    sizes, width, hidden, points = ((2, 2), (4, 4), (8, 8)), 16, 64, 4
    tokens, heads, layers = 84, 2, 3
    module = Encoder(layers, hidden, heads, points)
    x = jax.random.normal(jax.random.key(0), (1, tokens, width))
    position = jax.random.normal(jax.random.key(1), (1, tokens, width))
    params = module.init(jax.random.key(2), x, position, sizes)

    def encode(params):
        return module.apply(params, x, position, sizes)[0]

    # Input, values, sampled and two sums; three numbers per point; the hidden layer.
    expected = layers * tokens * (5 * width + 3 * heads * 3 * points + hidden)
    shapes = [shape for shape in kept(encode, params) if tokens in shape]
    assert sum(np.prod(shape) for shape in shapes) <= expected + 3 * tokens * width

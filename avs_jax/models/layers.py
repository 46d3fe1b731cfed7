"""Shared layers with PyTorch's parameters, initial values and semantics.

Parameters are float32 with Flax's names (kernel, bias, scale, embedding); `dtype` is the compute
dtype. Norms compute in at least float32 and return their input's dtype.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.ops.attention import softmax_attention
from avs_jax.spec import InputError

Initializer = Callable[..., jax.Array]

xavier_uniform = nn.initializers.xavier_uniform()
# kaiming_uniform(a=1), fan in: detectron2's c2_xavier_fill.
kaiming_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for kernels and biases."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def remat_in_loop(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body`, recomputed in the backward pass from its arguments.

    It is wrapped in a length-1 scan. Otherwise XLA:CPU schedules the parameter gradients last and
    keeps all of their inputs alive until then.

    Args:
      body: (module, *args) -> arrays, args arrays or None. It reads only the parameters of `module`
        and its submodules, and draws nothing random.
    """

    def run(module, *args):
        def iterate(module, carry, _):
            return carry, nn.remat(body)(module, *args)

        loop = nn.scan(iterate, variable_broadcast="params", split_rngs={"params": False}, length=1)
        _, results = loop(module, None, None)
        return jax.tree.map(lambda x: x[0], results)

    return run


class Linear(nn.Module):
    """x W + b on the last axis; initializers default to `torch_uniform`."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        default = torch_uniform(fan_in)
        kernel = self.param("kernel", self.kernel_init or default, (fan_in, self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init or default, (self.features,))
            y += jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y


class Conv(nn.Module):
    """Convolution of [N, h, w, C] with an odd square kernel, stride 1, zero-padded to keep h, w."""

    features: int
    kernel_size: int
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, x.shape[-1]
        default = torch_uniform(size * size * channels)
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init or default, shape)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", self.bias_init or default, (self.features,))
            y += jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y


def _convolution(x: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(size // 2 * dilation,) * 2 for size in kernel.shape[:2]],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """[N, h, w, C] with an odd kernel [k, k, C, D], stride 1, zero-padded: [N, h, w, D].

    Entries of the kernel are `dilation` pixels apart. On CPUs the gradients are another convolution
    and k * k products. In a loop (`remat_in_loop`), XLA:CPU takes 5 and 100 times longer for the
    gradients that autodiff writes; elsewhere, up to twice as long.
    """
    return _convolution(x, kernel, dilation)


def _convolve_forward(x, kernel, dilation):
    return _convolution(x, kernel, dilation), (x, kernel)


def _convolve_backward(dilation, kept, gradient):
    def by_autodiff(x, kernel, gradient):
        return jax.vjp(lambda x, k: _convolution(x, k, dilation), x, kernel)[1](gradient)

    def by_products(x, kernel, gradient):
        return _convolution_gradients(x, kernel, gradient, dilation)

    x, kernel = kept
    return jax.lax.platform_dependent(x, kernel, gradient, cpu=by_products, default=by_autodiff)


def _convolution_gradients(x, kernel, gradient, dilation):
    """d_x convolves the gradient with the flipped kernel; each entry of d_kernel is a product.

    The products read shifted gradients. Shifted views of x would take XLA:CPU five times as long
    where x has four times the channels.
    """
    d_x = _convolution(gradient, kernel[::-1, ::-1].swapaxes(2, 3), dilation)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    d_kernel = [
        jnp.einsum("nhwc,nhwd->cd", x, view, preferred_element_type=wide)
        for _, _, view in views_of_entries(gradient, kernel.shape[:2], dilation)
    ]
    return d_x, jnp.stack(d_kernel[::-1]).reshape(kernel.shape).astype(kernel.dtype)


convolve.defvjp(_convolve_forward, _convolve_backward)


def views_of_entries(
    x: jax.Array, kernel_size: tuple[int, int], dilation: int = 1
) -> Iterator[tuple[int, int, jax.Array]]:
    """Yields (i, j, view): zero-padded x [N, h, w, C] as entry [i, j] of an odd kernel sees it."""
    h, w = x.shape[1:3]
    margins = [(size // 2 * dilation,) * 2 for size in kernel_size]
    padded = jnp.pad(x, ((0, 0), *margins, (0, 0)))
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * dilation, j * dilation
            yield i, j, padded[:, top : top + h, left : left + w]


def max_pool(x: jax.Array, size: int, padding: int = 0) -> jax.Array:
    """The largest of each size x size pixels, two pixels apart.

    [N, h, w, C] -> [N, (h + 2 padding - size) // 2 + 1, .., C]. Padding is never the largest. On
    CPUs, XLA takes 9 to 60 times as long for the gradient of nn.max_pool. Here, equal pixels share
    the gradient.
    """
    edge = (padding, padding)
    x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (2 * ((length - size) // 2) + 1 for length in x.shape[1:3])
    views = (x[:, i : i + rows : 2, j : j + columns : 2] for i in range(size) for j in range(size))
    return functools.reduce(jnp.maximum, views)


class NormedConv(nn.Module):
    """Convolution without bias, then GroupNorm: detectron2's Conv2d with a norm, and its names."""

    features: int
    kernel_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        x = convolve(x, self.param("kernel", kaiming_uniform, shape))
        return GroupNorm(name="norm")(x)


class Embedding(nn.Module):
    """A learned table [num, features], initially unit normal."""

    num: int
    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("embedding", nn.initializers.normal(1.0), (self.num, self.features))


class MLP(nn.Module):
    """Linear layers `layers_0`, `layers_1`, ... with ReLU between them, on the last axis."""

    features: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32
    prefix: str = "layers"
    stride: int = 1  # of the numbers in the names; 2 if activations are numbered too

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, width in enumerate(self.features):
            x = nn.relu(x) if i else x
            x = Linear(width, dtype=self.dtype, name=f"{self.prefix}_{i * self.stride}")(x)
        return x


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _scale_and_shift(
    module: nn.Module, channels: int, scale_init: Initializer = nn.initializers.ones
) -> tuple[jax.Array, jax.Array]:
    scale = module.param("scale", scale_init, (channels,))
    return scale, module.param("bias", nn.initializers.zeros, (channels,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axes: tuple[int, ...], epsilon: float
) -> jax.Array:
    """Zero mean and unit variance over `axes`, then scale and shift, which broadcast to x.

    The backward pass needs x and two numbers per row; autodiff would keep four maps of x's size.
    """
    return _normalize_forward(x, scale, bias, axes, epsilon)[0]


def _normalize_forward(x, scale, bias, axes, epsilon):
    y = _wide(x)
    mean = y.mean(axes, keepdims=True)
    y -= mean
    inverse = jax.lax.rsqrt(jnp.square(y).mean(axes, keepdims=True) + epsilon)
    y *= inverse
    y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
    return y.astype(x.dtype), (x, mean, inverse, scale)


def _normalize_backward(axes, epsilon, kept, gradient):
    x, mean, inverse, scale = kept
    gradient = _wide(gradient)
    unit = (_wide(x) - mean) * inverse
    shared = tuple(axis for axis, size in enumerate(scale.shape) if size == 1)
    d_scale = (gradient * unit).sum(shared, keepdims=True)
    d_bias = gradient.sum(shared, keepdims=True)
    gradient = gradient * scale
    along = (gradient * unit).mean(axes, keepdims=True)
    d_x = inverse * (gradient - gradient.mean(axes, keepdims=True) - unit * along)
    return d_x.astype(x.dtype), d_scale, d_bias


_normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the last axis, then a learned scale and shift."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        scale, bias = (p.reshape(shape) for p in _scale_and_shift(self, x.shape[-1]))
        return _normalize(x, scale, bias, (x.ndim - 1,), self.epsilon)


class GroupNorm(nn.Module):
    """LayerNorm over the pixels and each of 32 groups of channels of [N, h, w, C]."""

    num_groups: int = 32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        if channels % self.num_groups:
            raise InputError(
                f"GroupNorm: {channels} channels do not divide into {self.num_groups} groups"
            )
        groups = (self.num_groups, channels // self.num_groups)
        scale, bias = (p.reshape(1, 1, 1, *groups) for p in _scale_and_shift(self, channels))
        y = x.reshape(*x.shape[:-1], *groups)
        return _normalize(y, scale, bias, (1, 2, 4), self.epsilon).reshape(x.shape)


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm2d on [N, h, w, C]; padded frames do not enter the statistics.

    Training normalizes by the biased variance of the batch and moves the running statistics
    (collection `batch_stats`: mean, var) a tenth of the way to the batch's mean and unbiased
    variance. Under jit on a mesh, the batch is the global one.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes [N, h, w, C].

        `train` uses and records the batch's statistics, over the frames of `valid`, bool [N] (None
        for all).
        """
        y, channels = _wide(x), x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if train:
            mean, var, count = _moments(y, valid)
            if not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                # A batch without valid frames has no statistics.
                rate = jnp.where(count > 0, self.momentum, 0.0)
                running_mean.value += rate * (mean - running_mean.value)
                running_var.value += rate * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        inverse = jax.lax.rsqrt(var + self.epsilon)
        y = (y - jnp.broadcast_to(mean, y.shape)) * jnp.broadcast_to(inverse, y.shape)
        scale, bias = _scale_and_shift(self, channels, self.scale_init)
        y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
        return y.astype(x.dtype)


def _moments(x: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean [C], biased variance [C] and number of pixels of the valid frames of [N, h, w, C]."""
    num_frames, height, width, _ = x.shape
    weight = jnp.ones(num_frames, x.dtype) if valid is None else valid.astype(x.dtype)
    count = weight.sum() * (height * width)
    weight = weight[:, None, None, None] / jnp.maximum(count, 1)
    mean = (x * weight).sum((0, 1, 2))
    centered = x - jnp.broadcast_to(mean, x.shape)
    return mean, (jnp.square(centered) * weight).sum((0, 1, 2)), count


class InProjection(nn.Module):
    """The three input projections of an attention, in one kernel [C, 3C] as in PyTorch."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array) -> list[jax.Array]:
        width = query.shape[-1]
        kernel = self.param("kernel", xavier_uniform, (width, 3 * width))
        bias = self.param("bias", nn.initializers.zeros, (3 * width,))
        kernels = jnp.split(kernel.astype(self.dtype), 3, axis=1)
        biases = jnp.split(bias.astype(self.dtype), 3)
        return [
            x.astype(self.dtype) @ k + b[None, None]
            for x, k, b in zip((query, key, value), kernels, biases, strict=True)
        ]


@jax.checkpoint
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, masked: jax.Array | None) -> jax.Array:
    """Attention of G heads: q [N, Q, G, c], k and v [N, S, G, c] to [N, Q, G, c].

    The backward pass recomputes the maps [N, G, Q, S].
    """
    return softmax_attention(q, k, v, masked=None if masked is None else masked[:, None])


class MultiheadAttention(nn.Module):
    """softmax(q k^T / sqrt(C / G)) v with learned input and output projections, float32 softmax.

    Kernels start Xavier-uniform (as in Mask2Former), biases at zero.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        masked: jax.Array | None = None,
    ) -> jax.Array:
        """query [N, Q, C], key and value [N, S, C] -> [N, Q, C] in `dtype`.

        `masked` is bool [N, Q, S], True where a query must not look; no row may be all True.
        """
        width = query.shape[-1]
        if width % self.num_heads:
            raise InputError(f"attention: {width} channels do not divide into {self.num_heads}")
        head_dim = width // self.num_heads
        q, k, v = (
            x.reshape(*x.shape[:2], self.num_heads, head_dim)
            for x in InProjection(self.dtype, name="in_proj")(query, key, value)
        )
        out = _attend(q, k, v, masked).reshape(query.shape)
        project = Linear(
            width, True, xavier_uniform, nn.initializers.zeros, self.dtype, name="out_proj"
        )
        return project(out)


def sine_code(x: jax.Array, features: int) -> jax.Array:
    """Sines (even channels) and cosines (odd) of x f: [...] -> float32 [..., features].

    f = 10000^(-2 floor(i/2) / features) in channel i.
    """
    channel = np.arange(features)
    frequency = (10000.0 ** (-2 * (channel // 2) / features)).astype(np.float32)
    # Ranks are equal, since promoting them is an error here.
    frequency, is_sine = (
        np.expand_dims(a, tuple(range(x.ndim))) for a in (frequency, channel % 2 == 0)
    )
    angle = x.astype(jnp.float32)[..., None] * frequency
    return jnp.where(is_sine, jnp.sin(angle), jnp.cos(angle))


def sine_position_encoding(height: int, width: int, features: int) -> np.ndarray:
    """DETR's sine encoding of pixel positions: float32 [height, width, features].

    Each axis has half the channels, y first. A coordinate 1..n is scaled to (0, 2 pi]; channel i
    of an axis is its sine (i even) or cosine (i odd) at the frequency 10000^(-2 floor(i/2) / half).
    """
    half = features // 2
    exponent = 2 * (np.arange(half) // 2) / half

    def encode(size: int) -> np.ndarray:
        position = np.arange(1, size + 1) / (size + 1e-6) * 2 * np.pi
        angle = position[:, None] / 10000**exponent
        return np.where(np.arange(half) % 2 == 0, np.sin(angle), np.cos(angle))

    rows = np.broadcast_to(encode(height)[:, None], (height, width, half))
    columns = np.broadcast_to(encode(width)[None], (height, width, half))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)

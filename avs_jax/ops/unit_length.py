"""Vectors of unit length."""

import jax
import jax.numpy as jnp

EPSILON = 1e-12  # a shorter vector keeps its direction, not unit length


def normalize(x: jax.Array, epsilon: float = EPSILON) -> jax.Array:
    """[..., D] to unit length, in at least float32; its gradient is finite at zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))

"""Vectors of unit length."""

import jax
import jax.numpy as jnp

EPSILON = 1e-12  # a shorter vector keeps its direction, not unit length


def normalize(x: jax.Array) -> jax.Array:
    """[..., D] to unit length, in float32."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, EPSILON**2))

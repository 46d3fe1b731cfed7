"""What XLA's defaults compute wrongly on CPUs, our programs compute rightly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.runtime import compilation


@pytest.fixture(autouse=True)
def as_users_compile():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_with_a_broadcast_constant(dtype):
    def function(x):
        return ((x @ jnp.full_like(x, 0.5)) * x).sum(-1)

    got = compilation.jit(function)(jnp.ones((64, 64), dtype))
    np.testing.assert_array_equal(got, np.full(64, 64 * 64 / 2, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_between_two_relus(dtype):
    def function(x, kernel):
        return jax.nn.relu(jax.nn.relu(x) @ kernel).max(-1)

    got = compilation.jit(function)(jnp.ones((64, 64), dtype), jnp.eye(64, dtype=dtype))
    np.testing.assert_array_equal(got, np.ones(64, dtype))


def test_other_devices_get_no_options_of_cpus():
    def count(**options):
        return compilation.jit(lambda x: x + 1, {"xla_no_such_option": True}, **options)

    x = jnp.ones(())
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        count()(x)
    assert count(platform="gpu")(x) == 2

"""No program of ours holds what XLA:CPU is known to compute wrongly.

XLA may hand a matrix product with the sum or maximum that follows it to YNNPACK. With jaxlib 0.10.2
and later the result is garbage where one factor is a constant that was broadcast.
"""

import os
import re

import jax
import jax.numpy as jnp
import pytest

from avs_jax import xla_flags
from avs_jax.plan import trace_step
from avs_jax.runtime import sharding
from tests import small


def fused_products(hlo: str) -> tuple[int, list[str]]:
    """How many of YNNPACK's fusions there are, and their products with a broadcast constant."""
    bodies = dict(re.findall(r"^%(\S+) \(.*\{\n((?:  .*\n)*)\}", hlo, re.MULTILINE))
    names = re.findall(r"calls=%([\w.\-]+).*__ynn_fusion", hlo)
    suspicious = []
    for name in names:
        rows = dict(re.findall(r"^  (?:ROOT )?(%\S+) = (.*)$", bodies[name], re.MULTILINE))

        def is_constant(value, rows=rows):
            operation = re.match(r"\S+ (broadcast|constant|bitcast|convert)\(([^)]*)", rows[value])
            if operation is None:
                return False
            return operation[1] == "constant" or is_constant(operation[2])

        for row in rows.values():
            product = re.match(r"\S+ dot\((%[^,]+), (%[^)]+)\)", row)
            if product and any(map(is_constant, product.groups())):
                suspicious.append(row)
    return len(names), suspicious


def test_the_pattern_is_found():
    def wrong(x):
        return ((x @ jnp.full_like(x, 0.5)) * x).sum(-1)

    def right(x):
        return ((x @ x) * x).sum(-1)

    x = jnp.ones((64, 64))
    is_avoided = xla_flags.FLAG in os.environ["XLA_FLAGS"]  # products are fused with nothing
    for function, count in ((wrong, int(not is_avoided)), (right, 0)):
        num_fusions, suspicious = fused_products(jax.jit(function).lower(x).compile().as_text())
        assert (num_fusions, len(suspicious)) == (1, count)


@pytest.mark.slow
def test_the_training_step_has_none():
    config = small.tiny_config()
    step = trace_step(config, sharding.make_mesh(config))
    num_fusions, suspicious = fused_products(step.traced.lower().compile().as_text())
    assert num_fusions > 100 and not suspicious

"""What a compiled program sends between devices, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from avs_jax.ops.rows import map_rows
from avs_jax.runtime.collectives import Collective, describe_collectives, find_collectives
from avs_jax.runtime.hlo import Program


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def compile_rows(function, mesh, *arrays):
    """The function of arrays whose rows are split over all devices."""
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.jit(function).lower(*(jax.device_put(x, rows) for x in arrays)).compile()


def collectives(compiled):
    return find_collectives(Program.parse(compiled.as_text()))


def test_collectives_inside_and_outside_of_loops(mesh):
    def repeated(x):
        body = lambda i, total: total * 0.5 + (x * total).sum()  # noqa: E731
        return jax.lax.fori_loop(0, 3, body, x.mean())

    x = np.ones((16, 5), np.float32)
    found = collectives(compile_rows(repeated, mesh, x))
    assert {c.kind for c in found} == {"all-reduce"} and all(c.bytes == 4 for c in found)
    assert sorted(c.runs for c in found) == [1, 3]


def until_small(x):
    """Every row is halved until it is small: as often as the largest row of all needs."""
    return jax.vmap(lambda row: jax.lax.while_loop(lambda y: y.max() > 1, lambda y: y / 2, row))(x)


def largest(x):
    return jax.lax.top_k(x, 2)[1]


@pytest.mark.parametrize("function, kind", [(until_small, "all-reduce"), (largest, "all-gather")])
def test_rows_are_independent_only_where_that_is_said(mesh, function, kind):
    x = np.random.default_rng(3).uniform(0, 99, (16, 5)).astype(np.float32)
    joint = compile_rows(function, mesh, x)
    assert [c.kind for c in collectives(joint)] == [kind]
    if function is until_small:
        assert collectives(joint)[0].runs is None

    def by_rows(x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return map_rows(function, x)

    alone = compile_rows(by_rows, mesh, x)
    assert not collectives(alone)
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    expected = function(jnp.asarray(x))
    for compiled in (joint, alone):
        np.testing.assert_array_equal(compiled(jax.device_put(x, rows)), expected)
    np.testing.assert_array_equal(map_rows(function, jnp.asarray(x)), expected)  # no mesh


def test_the_description_sums_by_kind():
    found = [
        Collective("all-reduce", 100, 1, "a"),
        Collective("all-reduce", 8, 10, "b"),
        Collective("all-reduce", 1, None, "c"),
        Collective("all-gather", 64, 2, "d"),
    ]
    assert describe_collectives(found).splitlines() == [
        "collectives per step and device:",
        "  all-gather: 1 in the program, run 2 times, 128 bytes",
        "  all-reduce: 2 in the program, run 11 times, 180 bytes",
        "  all-reduce, in each iteration of a loop of unknown length: 1 in the program, run 1 "
        "times, 1 bytes",
    ]
    assert describe_collectives([]).endswith("  none")

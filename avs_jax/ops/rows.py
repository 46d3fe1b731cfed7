"""Functions of independent rows, which every device computes for its own rows alone.

XLA splits most operations over the devices that hold the rows of a batch, but not all: it gathers
the whole batch for a top_k, and a batched loop runs until the last row of all devices is done, so
its condition is a collective operation in every iteration.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from avs_jax.spec import Array


def map_rows(function: Callable[..., Array], *arrays: Array) -> Array:
    """`function(*arrays)`, without communication between devices.

    Under `jax.sharding.use_abstract_mesh`, the rows must be split over all axes of the mesh.
    Without a mesh, this is a call.

    Args:
      function: row i of its results depends on row i of the arrays alone.
      arrays: [N, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    rows = PartitionSpec(mesh.axis_names)
    # The loops of `function` start from constants, which the check would take for replicated rows.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return mapped(*arrays)


def where_rows(condition: Array, x: Array, y: Array | float) -> Array:
    """Row by row, x where the condition holds, else y: bool [N], [N, ...], [N, ...]."""
    return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

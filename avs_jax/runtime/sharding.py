"""Where arrays live: one mesh (data, fsdp), parameters by path regex, batches over both axes.

One device is the mesh (1, 1); several hosts share one mesh over all their devices. The axis types
are Auto: XLA propagates shardings from inputs and outputs, so the model's code knows no device.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from avs_jax.spec import Array, InputError

AXES = ("data", "fsdp")
# (path regex, layout): the first full match counts. "shard" splits the largest axis that the number
# of fsdp devices divides. Optimizer moments have the path of their parameter as a suffix.
RULES = (
    (r".*(kernel|embedding)", "shard"),
    (r".*", "replicate"),
)
MIN_SHARDED_SIZE = 2**14  # values; gathering smaller leaves costs more than replicating them


def make_mesh(config: ConfigDict, devices: list | None = None) -> Mesh:
    """The mesh of `config.train.mesh` over `devices`, by default all; InputError if misfit."""
    devices = jax.devices() if devices is None else devices
    count, (data, fsdp) = len(devices), (config.train.mesh.data, config.train.mesh.fsdp)
    if data == -1 and fsdp > 0 and count % fsdp == 0:
        data = count // fsdp
    if data * fsdp != count or min(data, fsdp) < 1:
        fits = [(count // n, n) for n in range(1, count + 1) if count % n == 0]
        raise InputError(
            f"config.train.mesh data={config.train.mesh.data}, fsdp={fsdp} does not fit {count} "
            f"device(s) of kind {devices[0].device_kind}; (data, fsdp) may be one of {fits}"
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree, mesh: Mesh):
    """The NamedSharding of every leaf of a tree (parameters or a training state), by RULES."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layout = next(row[1] for row in RULES if re.fullmatch(row[0], name))
        if layout == "shard":
            return NamedSharding(mesh, _largest_axis(leaf.shape, mesh.shape["fsdp"]))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def with_shardings(tree, shardings):
    """ShapeDtypeStructs of a tree with shardings, as compiling and restoring need them."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings,
    )


def _largest_axis(shape: tuple[int, ...], count: int) -> PartitionSpec:
    axes = [i for i, size in enumerate(shape) if size % count == 0]
    if count == 1 or not axes or np.prod(shape) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    largest = max(axes, key=lambda i: shape[i])
    return PartitionSpec(*("fsdp" if i == largest else None for i in range(len(shape))))


def check_batch_size(name: str, size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Checks that a batch splits into `accumulate` equal micro-batches over all devices."""
    unit = mesh.size * accumulate
    if size < 1 or size % unit:
        fits = sorted({max(unit, size // unit * unit), (max(size, 0) // unit + 1) * unit})
        raise InputError(
            f"{name}={size} is not divisible by {mesh.size} device(s) x {accumulate} "
            f"micro-batch(es); nearest sizes that are: {fits}, or use fewer devices"
        )


def batch_shapes(
    example: Mapping[str, Array], batch_size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of `put_batch`, from host arrays with any number of rows."""
    rows = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype, sharding=rows)
        for name, value in example.items()
    }


def seed_shape(mesh: Mesh) -> jax.ShapeDtypeStruct:
    """The shape and sharding of `put_seed`."""
    return jax.ShapeDtypeStruct((), np.uint32, sharding=replicated(mesh))


def put_seed(seed: int, mesh: Mesh) -> jax.Array:
    """0..2^32 - 1 -> uint32 [] on all devices."""
    return jax.device_put(np.uint32(seed), replicated(mesh))


def put_batch(batch: Mapping[str, Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Host arrays, this process's rows of the batch -> arrays with rows over all devices."""
    rows, local, arrays = batch_sharding(mesh), len(mesh.local_devices), {}
    for name, value in batch.items():
        value = np.asarray(value)
        if len(value) % local:
            raise ValueError(
                f"batch field {name}: {len(value)} rows cannot be split over the {local} device(s) "
                "of this process"
            )
        arrays[name] = jax.make_array_from_process_local_data(rows, value)
    return arrays

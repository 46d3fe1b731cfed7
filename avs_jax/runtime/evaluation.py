"""One pass of a model over records: batches to a table with one row per scored item.

Both validation and avs_jax.evaluate use it.

Each device scores one row at a time, so no number depends on the batch size. Larger batches would
change numbers: the order of a matrix product's sums can depend on its shape, and another order
changes a logit by about 1e-7, which can flip a pixel at a threshold. Padding all batches to one
size does not help: a batch is split over the devices, so the shape of a device's share depends on
their number.

Rows of a clip that differ only in Task.unshared_inputs are scored together, always TOGETHER in one
program; where a clip has fewer, copies fill the unused slots. A row's slot is its place in the
clip, so its numbers depend neither on the batch size nor on the other rows of the batch.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from avs_jax.progress import tracked
from avs_jax.runtime.sharding import AXES, batch_sharding, put_batch
from avs_jax.task import Batch, Record, Table, Task

Scores = Mapping[str, np.ndarray]

TOGETHER = 4  # rows of a clip; more take more memory, for nothing where a clip has fewer


class Evaluation(NamedTuple):
    """Result of one pass: the table with the rows of all processes, and figures by record name."""

    table: Table
    figures: dict[str, np.ndarray]


def make_eval_step(task: Task, mesh: Mesh):
    """Jitted (params, batch_stats, inputs) -> arrays [B, ...] of task.score.

    Every device runs forward pass and task.score on its own rows, with whole parameters:
    sharded ones are gathered first. So all devices run the program of a single one, and counts
    don't depend on how many there are. Left to the partitioner, sharded parameters make another
    program, which rounds differently and can flip a pixel at a threshold.
    """
    whole, rows = PartitionSpec(), PartitionSpec(AXES)

    def step(params, batch_stats, inputs):
        return task.score(apply_model(task, params, batch_stats, inputs), inputs)

    specs = dict(in_specs=(whole, whole, rows), out_specs=rows)
    step = jax.shard_map(step, mesh=mesh, check_vma=False, **specs)
    return jax.jit(step, out_shardings=batch_sharding(mesh))


def apply_model(task: Task, params, batch_stats, inputs: Mapping[str, jax.Array]) -> dict:
    """The model outputs that scoring and prediction read; XLA removes unused ones."""
    variables = {"params": params, "batch_stats": batch_stats}
    outputs = task.model.apply(variables, dict(inputs), train=False)
    return {name: outputs[name] for name in task.outputs if name in outputs}


def eval_batch_size(config: ConfigDict, mesh: Mesh) -> int:
    """config.evaluate.batch_size, rounded up to fill every device."""
    return -(-config.evaluate.batch_size // mesh.size) * mesh.size


def evaluate(
    task: Task,
    eval_step: Callable,
    variables: tuple[Any, Any],
    loader: Iterable[Batch],
    mesh: Mesh,
    *,
    facts: Mapping[str, Any] | None = None,
    title: str = "evaluate",
    num_figures: int = 0,
    observers: Sequence[Callable[[Scores, Batch], None]] = (),
    records: Sequence[Record] = (),
) -> Evaluation:
    """One pass over records: the same table on every process, with rows in the records' order.

    Args:
      eval_step: from `make_eval_step`, for the same mesh.
      variables: (params, batch_stats).
      loader: with a length; yields this process's rows of evaluation batches.
      facts: identify the run in the table.
      title: of the progress line and the figures.
      num_figures: number of records to draw, the first ones of this process.
      observers: called with this process's scores of each batch, and the batch.
      records: of the pass, for the figures.
    """
    meter, share = task.meter(facts or {}), 1
    figures: dict[str, np.ndarray] = {}
    is_first = jax.process_index() == 0
    for batch in tracked(loader, title, len(loader), "batch", is_shown=is_first):
        scores = _score(task, eval_step, variables, batch, mesh)
        meter.add(scores, batch)
        for observe in observers:
            observe(scores, batch)
        share = len(next(iter(scores.values())))
        for row in range(share):
            if len(figures) >= num_figures:
                break
            figures |= task.draw(scores, batch, row, title, records)
    return Evaluation(_gather(task, meter.table(), share), figures)


def _score(task: Task, eval_step, variables, batch: Batch, mesh: Mesh) -> dict[str, np.ndarray]:
    """The scores of this process's rows, one group of rows per device at a time."""
    inputs = task.inputs(batch)
    groups, step = _groups(task, batch, inputs), len(mesh.local_devices)
    count = _most_of_all_processes(-(-len(groups) // step))
    taken = groups + groups[-1:] * (count * step - len(groups))  # a last one fills the devices
    pending = []  # dispatch all before waiting for the first
    for i in range(0, len(taken), step):
        some = taken[i : i + step]
        one_of_each = [max(group) for group in some]
        all_slots = [row for group in some for row in _filled(group)]
        part = {
            name: value[all_slots if name in task.unshared_inputs else one_of_each]
            for name, value in inputs.items()
        }
        pending.append(eval_step(*variables, put_batch(part, mesh)))
    parts = [{name: _local_rows(x) for name, x in outputs.items()} for outputs in pending]
    row_of = np.concatenate(groups)  # of every computed one, -1 of an unused slot
    order = np.argsort(row_of)[np.count_nonzero(row_of < 0) :]
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def _groups(task: Task, batch: Batch, inputs: Mapping[str, np.ndarray]) -> list[list[int]]:
    """Rows that are scored together, in their slots; -1 where a clip has none in the batch."""
    if not task.unshared_inputs:
        return [[row] for row in range(len(next(iter(inputs.values()))))]
    shared = [value for name, value in inputs.items() if name not in task.unshared_inputs]
    groups: list[list[int]] = []
    for row, place in enumerate(batch["place"]):
        before = batch["place"][row - 1] if row else place
        joins = before < place and before // TOGETHER == place // TOGETHER
        if not (joins and all(np.array_equal(x[row], x[row - 1]) for x in shared)):
            groups.append([-1] * TOGETHER)
        groups[-1][place % TOGETHER] = row
    return groups


def _filled(group: list[int]) -> list[int]:
    return [max(group) if row < 0 else row for row in group]


def _most_of_all_processes(count: int) -> int:
    """All processes run a program equally often: it may gather parameters."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.array([count])).max())


def _local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of an array whose first axis is split over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _gather(task: Task, table: Table, share: int) -> Table:
    """Joins the tables of all processes, on every process."""
    if jax.process_count() == 1:
        return table
    buffer = io.BytesIO()
    table.save(buffer)
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([data.size])).ravel()
    padded = np.pad(data, (0, sizes.max() - data.size))
    parts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    files = [io.BytesIO(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]
    return task.join([type(table).load(file) for file in files], share)

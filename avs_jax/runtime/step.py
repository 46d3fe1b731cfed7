"""The training step, one jitted (state, batch) -> (state, metrics).

The randomness of step s comes from fold_in(key(seed), s) alone, so the state holds nothing random
and a resumed run draws the same numbers as an uninterrupted one. Frozen parameters are constants of
the differentiation.

With `accumulate` = k, the batch is split into k micro-batches that run one after another. Every
loss term is divided by a norm of the whole batch's targets, so terms and gradients of the
micro-batches add up to those of the batch. Two things differ: batch statistics, which come from the
micro-batches in order, and the cap of the boundary loss, which each micro-batch takes from its own
terms (losses/boundary.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from avs_jax.runtime.ema import init_ema, update_ema
from avs_jax.runtime.optim import split_frozen, unflatten
from avs_jax.spec import Array, InputError
from avs_jax.task import Task

# XLA:CPU schedules eagerly by default: it computes rematerialized values with the forward pass and
# keeps them alive until the backward pass.
CPU_SCHEDULE = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# It also unrolls length-1 loops and then schedules their operations freely. A loop left intact
# frees its memory before the next one starts: a step with recomputation takes a third less memory
# and a twelfth more time.
CPU_WHOLE_LOOPS = {"xla_disable_hlo_passes": "simplify-while-loops"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    `ema` holds averages of trainable parameters and batch_stats (ema.py), {} if off.
    """

    step: Array  # int32 [], steps done
    params: Any  # nested parameters, float32, frozen ones included
    batch_stats: Any  # running statistics of batch normalization, or {}
    opt_state: Any  # of the optimizer, over the flat trainable parameters
    ema: Any = dataclasses.field(default_factory=dict)


def init_variables(model, inputs: Mapping[str, Array], seed: int | Array) -> tuple[dict, dict]:
    """Initial (params, batch_stats) of a Linen model; under jit, XLA removes the forward pass.

    `seed` is a number, or uint32 [] for a program that is the same for any seed. The two differ by
    rounding: XLA computes small constants when it compiles.
    """
    variables = model.init(jax.random.key(seed), inputs, train=False)
    return variables["params"], variables.get("batch_stats", {})


def init_state(
    params, batch_stats, optimizer: optax.GradientTransformation, config: ConfigDict
) -> TrainState:
    """The state before the first step."""
    trainable, _ = split_frozen(params, config.optim.frozen)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(trainable),
        ema=init_ema(trainable, batch_stats, config.train.ema_decay),
    )


def make_train_step(
    model: Any,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    task: Task,
    config: ConfigDict,
    shardings: TrainState | None = None,
):
    """The jitted training step.

    Args:
      model, loss: the task's.
      optimizer, schedule: from `optim.make_optimizer`.
      task: provides the model's inputs and random streams, the loss's norms, and what is logged.
      shardings: of the state, from `sharding.tree_shardings`; None leaves them to XLA.

    Returns:
      (state, batch, seed) -> (state, metrics). `seed` is uint32 [], so that all seeds share one
      program. The input state is donated: do not use it again. Metrics are scalars: loss terms,
      the task's schedules and logged parameters, total_loss, grad_norm (before clipping), lr, and
      finite (bool, for loss and gradient).
    """
    mesh = shardings and shardings.step.mesh
    gradients = _make_gradients(model, loss, task, config.train.accumulate, mesh)

    def step(state: TrainState, batch, seed):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        trainable, frozen = split_frozen(state.params, config.optim.frozen)
        progress = state.step / config.train.steps
        (total, (terms, batch_stats)), grads = gradients(
            trainable, frozen, state.batch_stats, batch, key, progress
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        done = state.step + 1
        ema = update_ema(state.ema, trainable, batch_stats, done, config.train.ema_decay)
        grad_norm = optax.tree.norm(grads)
        metrics = terms | {
            "total_loss": total,
            "grad_norm": grad_norm,
            "lr": schedule(state.step),
            "finite": jnp.isfinite(total) & jnp.isfinite(grad_norm),
        }
        metrics |= {name: value(progress) for name, value in task.schedules.items()}
        flat = trainable | frozen
        logged = task.logged_params.items()
        metrics |= {name: flat[path].mean() for name, path in logged if path in flat}
        return TrainState(done, unflatten(flat), batch_stats, opt_state, ema), metrics

    options = None
    if (mesh.devices.flat[0].platform if mesh else jax.default_backend()) == "cpu":
        is_kept = config.model.get("remat", "none") == "none"
        options = CPU_SCHEDULE | ({} if is_kept else CPU_WHOLE_LOOPS)
    jit = functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    if mesh is None:
        return jit(step)
    return jit(step, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))


def _make_gradients(model: Any, loss: Callable, task: Task, count: int, mesh: Mesh | None):
    """(trainable, frozen, batch_stats, batch, key, progress) -> ((total, aux), gradients).

    Summed over `count` micro-batches; aux is (terms, batch_stats). On a mesh, the loss may compute
    rows on their own devices (ops/rows.py).
    """
    if count > 1 and task.norms is None:
        raise InputError(
            f"config.train.accumulate = {count}: the loss of task {task.name!r} compares the rows "
            "of a batch with each other, so its batches cannot be cut; expected 1"
        )
    streams = task.rng_streams

    def loss_fn(trainable, frozen, batch_stats, batch, key, progress, norms):
        keys = dict(zip(streams, jax.random.split(key, len(streams)), strict=True))
        loss_key = keys.pop("loss")
        outputs, updates = model.apply(
            {"params": unflatten(trainable | frozen), "batch_stats": batch_stats},
            task.inputs(batch),
            train=True,
            progress=progress,
            rngs=keys,
            mutable=["batch_stats"],
        )
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else nullcontext():
            total, terms = loss(outputs, batch, loss_key, norms)
        return total, (terms, updates.get("batch_stats", batch_stats))

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if count == 1:
        return functools.partial(grad_fn, norms=None)

    def gradients(trainable, frozen, batch_stats, batch, key, progress):
        norms = task.norms(batch)

        def micro_step(batch_stats, xs):
            index, micro = xs
            micro_key = jax.random.fold_in(key, index)
            (total, (terms, batch_stats)), grads = grad_fn(
                trainable, frozen, batch_stats, micro, micro_key, progress, norms
            )
            return batch_stats, (total, terms, grads)

        xs = (jnp.arange(count), micro_batches(batch, count))
        batch_stats, (total, terms, grads) = _scan_sum(micro_step, batch_stats, xs)
        return (total, (terms, batch_stats)), grads

    return gradients


def micro_batches(batch: Mapping[str, Array], count: int) -> dict[str, Array]:
    """[B, ...] -> [count, B / count, ...]; row r joins micro-batch r % count, on its own device."""

    def cut(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(cut, dict(batch))


def _scan_sum(body, carry, xs):
    """lax.scan that sums its outputs on the fly, to hold one gradient in memory instead of k."""
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(body, carry, jax.tree.map(lambda x: x[0], xs))[1],
    )

    def add(state, x):
        carry, sums = state
        carry, values = body(carry, x)
        return (carry, jax.tree.map(jnp.add, sums, values)), None

    return jax.lax.scan(add, (carry, zeros), xs)[0]

"""The training step, one jitted (state, batch) -> (state, metrics), and the step of prediction.

Randomness of step s comes from fold_in(key(seed), s) alone, so nothing random is part of the state
and a resumed run draws what an uninterrupted one would have drawn. Frozen parameters are constants
of the differentiation.

With `accumulate` = k the batch is cut into k micro-batches, run one after another. The sum over
them has the arithmetic of the whole batch: every loss term is a sum divided by a normaliser that is
known from the targets (number of masks, sum of class weights, number of prototype rows), so each
micro-batch's term counts with its share of the whole normaliser. Only batch statistics differ: they
are those of the micro-batches, in order; and the cap of the boundary loss, which holds in each.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from avs_jax.runtime.ema import init_ema, update_ema
from avs_jax.runtime.optim import split_frozen, unflatten
from avs_jax.spec import INPUT_FIELDS, Array

# Random streams of a step. A stream's key follows from its place: new ones come last.
STREAMS = ("gumbel", "drop_path", "pre_mask_dropout", "loss", "ama_dropout")
NOT_PREDICTED = ("aux_outputs", "intermediates")  # outputs that prediction does not keep
# Learned scalars worth a curve: name in the metrics -> path.
WATCHED = {"lambda": "predictor/visual_query_block/lambda", "tau": "ama/temperature"}
# XLA:CPU orders operations anew: by default each as early as it can be, so that what the backward
# pass makes again is made, and kept, with the forward pass.
CPU_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# It also takes apart loops of one turn, whose parts then move freely too. Kept whole, each is done
# with its memory before the next begins: a third less of it in a step with recomputation, for a
# twelfth more time.
CPU_WHOLE_LOOPS = {"xla_disable_hlo_passes": "simplify-while-loops"}
# outputs, batch, key -> (weighted total, {"loss_*": weighted term, "boundary_*": figure})
Criterion = Callable[[dict, Mapping[str, Array], Array], tuple[Array, dict[str, Array]]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32 [], steps done.
      params: nested parameters, float32, frozen ones included.
      batch_stats: running statistics of batch normalisation, {} where there is none.
      opt_state: the optimiser's, over the flat trainable parameters.
      ema: averages of trainable parameters and batch_stats (ema.py), {} where they are off.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = dataclasses.field(default_factory=dict)


def init_variables(model, batch: Mapping[str, Array], seed: int) -> tuple[dict, dict]:
    """Initial (params, batch_stats) of a Linen model; under jit, XLA drops the forward pass."""
    inputs = {name: batch[name] for name in INPUT_FIELDS if name in batch}
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
    model,
    criterion: Criterion,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    shardings: TrainState | None = None,
):
    """The jitted training step.

    Args:
      model: Linen module, `apply(variables, batch, train=, rngs=, mutable=)` -> outputs.
      criterion: (outputs, batch, key) -> (total, terms); the terms are weighted and sum to the
        total.
      optimizer: over {path: gradient}, from `optim.make_optimizer`.
      schedule: learning rate by step.
      config: the whole configuration; read are seed, optim.frozen, loss.no_object_weight,
        train.steps, train.accumulate and train.ema_decay.
      shardings: of the state, from `sharding.tree_shardings`; None leaves them to XLA.

    Returns:
      (state, batch) -> (state, metrics). The state passed in is donated: do not use it again.
      Metrics, all scalars: what the criterion names, total_loss, grad_norm (before the clip), lr,
      finite (bool: loss and gradient are).
    """

    gradients = _make_gradients(model, criterion, config)

    def step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
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
        flat = trainable | frozen
        metrics |= {name: flat[path].mean() for name, path in WATCHED.items() if path in flat}
        return TrainState(done, unflatten(flat), batch_stats, opt_state, ema), metrics

    mesh = shardings and shardings.step.mesh
    options = None
    if (mesh.devices.flat[0].platform if mesh else jax.default_backend()) == "cpu":
        options = CPU_ORDER | ({} if config.model.remat == "none" else CPU_WHOLE_LOOPS)
    jit = functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    if mesh is None:
        return jit(step)
    return jit(step, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))


def _make_gradients(model, criterion: Criterion, config: ConfigDict):
    """(trainable, frozen, batch_stats, batch, key, progress) -> ((total, aux), gradients).

    Of the whole batch, or summed over its micro-batches; aux is (terms, batch_stats).
    """

    def loss_fn(trainable, frozen, batch_stats, batch, key, progress, whole):
        keys = dict(zip(STREAMS, jax.random.split(key, len(STREAMS)), strict=True))
        loss_key = keys.pop("loss")
        variables = {"params": unflatten(trainable | frozen), "batch_stats": batch_stats}
        inputs = {**batch, "progress": progress}
        outputs, updates = model.apply(
            variables, inputs, train=True, rngs=keys, mutable=["batch_stats"]
        )
        total, terms = criterion(outputs, batch, loss_key)
        if whole is not None:
            part = normalizers(batch, config)
            terms = {k: v * part[_family(k)] / whole[_family(k)] for k, v in terms.items()}
            total = sum(value for name, value in terms.items() if name.startswith("loss_"))
        return total, (terms, updates.get("batch_stats", batch_stats))

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    count = config.train.accumulate
    if count == 1:
        return functools.partial(grad_fn, whole=None)

    def gradients(trainable, frozen, batch_stats, batch, key, progress):
        whole = normalizers(batch, config)

        def micro_step(batch_stats, xs):
            index, micro = xs
            micro_key = jax.random.fold_in(key, index)
            (total, (terms, batch_stats)), grads = grad_fn(
                trainable, frozen, batch_stats, micro, micro_key, progress, whole
            )
            return batch_stats, (total, terms, grads)

        xs = (jnp.arange(count), micro_batches(batch, count))
        batch_stats, (total, terms, grads) = _scan_sum(micro_step, batch_stats, xs)
        return (total, (terms, batch_stats)), grads

    return gradients


def make_predict_step(model):
    """The jitted forward pass of evaluation and prediction.

    Args:
      model: Linen module.

    Returns:
      (params, batch_stats, batch) -> outputs (spec.py), without NOT_PREDICTED.
    """

    @jax.jit
    def predict(params, batch_stats, batch):
        inputs = {name: batch[name] for name in INPUT_FIELDS if name in batch}
        variables = {"params": params, "batch_stats": batch_stats}
        outputs = model.apply(variables, inputs, train=False)
        return {name: value for name, value in outputs.items() if name not in NOT_PREDICTED}

    return predict


def micro_batches(batch: Mapping[str, Array], count: int) -> dict[str, Array]:
    """[B, ...] -> [count, B / count, ...]; row r enters micro-batch r % count, on its device."""

    def cut(x):
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    return jax.tree.map(cut, dict(batch))


def normalizers(batch: Mapping[str, Array], config: ConfigDict) -> dict[str, Array]:
    """What the loss terms of a batch are divided by, from its targets alone: {family: float32 []}.

    A frame has one matched query per target (at most all Q) of class weight 1; the others weigh
    `no_object_weight`.
    """
    targets = (batch["target_valid"] & batch["supervised"][..., None]).sum(-1)  # [B, T]
    queries, weight = config.model.num_queries, config.loss.no_object_weight
    matched = jnp.minimum(targets, queries)
    class_weight = jnp.where(batch["supervised"], matched + weight * (queries - matched), 0.0)
    masks = jnp.maximum(targets.sum(), 1).astype(jnp.float32)
    counts = {"loss_ce": class_weight.sum(), "loss_mask": masks, "loss_dice": masks}
    counts["loss_boundary"] = jnp.maximum(batch["supervised"].sum(), 1).astype(jnp.float32)
    if "proto_valid" in batch:
        counts["loss_proto"] = jnp.maximum(batch["proto_valid"].sum(), 1).astype(jnp.float32)
    return counts


def _family(term: str) -> str:
    """loss_mask_3 -> loss_mask; a figure such as boundary_bce goes with loss_boundary."""
    if term.startswith("boundary_"):
        return "loss_boundary"
    return "_".join(term.split("_")[:2])


def _scan_sum(body, carry, xs):
    """lax.scan whose outputs are summed as they come: the memory of one gradient, not of k."""
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(body, carry, jax.tree.map(lambda x: x[0], xs))[1],
    )

    def add(state, x):
        carry, sums = state
        carry, values = body(carry, x)
        return (carry, jax.tree.map(jnp.add, sums, values)), None

    return jax.lax.scan(add, (carry, zeros), xs)[0]

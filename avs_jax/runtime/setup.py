"""The functions and shapes of a training run, before any value is computed.

Training initializes or restores its state from them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from avs_jax.runtime import sharding
from avs_jax.runtime.step import (
    TrainState,
    init_state,
    init_variables,
    make_train_step,
)
from avs_jax.task import Task, select, stack_rows

RUN_ONCE = {"xla_backend_optimization_level": 0}  # for programs that compile longer than they run


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """A run before any value is computed."""

    model: Any  # the task's Linen module
    loss: Callable  # the task's
    optimizer: optax.GradientTransformation  # over {path: gradient}
    schedule: optax.Schedule  # learning rate by step
    task: Task  # what else the step needs: see runtime/step.py
    config: ConfigDict
    mesh: Mesh
    example: Mapping[str, np.ndarray]  # an empty batch of one row, of what reaches the devices
    state: TrainState  # ShapeDtypeStructs with shardings
    shardings: TrainState  # of the state

    def init_variables(self) -> tuple[dict, dict]:
        """Random (params, batch_stats) from the seed, on the mesh."""
        return jax.jit(
            functools.partial(init_variables, self.model),
            out_shardings=(self.shardings.params, self.shardings.batch_stats),
            compiler_options=RUN_ONCE,
        )(self.task.inputs(self.example), np.uint32(self.config.seed))

    def init_state(self, params: Mapping, batch_stats: Mapping) -> TrainState:
        """The state before the first step, on the mesh."""
        new_state = _state_maker(self.optimizer, self.config)
        compiled = jax.jit(new_state, out_shardings=self.shardings, compiler_options=RUN_ONCE)
        return compiled(params, batch_stats)

    def seed(self) -> jax.Array:
        """The last argument of the training step, on the mesh."""
        return sharding.put_seed(self.config.seed, self.mesh)

    def make_train_step(self) -> Callable:
        return make_train_step(
            self.model,
            self.loss,
            self.optimizer,
            self.schedule,
            self.task,
            self.config,
            self.shardings,
        )

    def step_shapes(self) -> tuple[TrainState, dict, jax.ShapeDtypeStruct]:
        """ShapeDtypeStructs with shardings of the step's (state, batch, seed)."""
        batch = sharding.batch_shapes(self.example, self.config.train.batch_size, self.mesh)
        return self.state, batch, sharding.seed_shape(self.mesh)


def make_train_setup(
    model: Any, loss: Callable, make_optimizer: Callable, task: Task, config: ConfigDict, mesh: Mesh
) -> TrainSetup:
    """Traces everything for its shapes and computes no parameter.

    Args:
      model, loss: the task's, see `Task`.
      make_optimizer: (params, config) -> (optimizer, schedule), as `optim.make_optimizer`.
      task: provides what else the step needs.
    """
    fields = task.rows.fields
    example = select(stack_rows([task.rows.empty(train=True)], fields), fields, "input", "target")
    params, batch_stats = jax.eval_shape(
        functools.partial(init_variables, model, seed=config.seed), task.inputs(example)
    )
    optimizer, schedule = make_optimizer(params, config)
    state = jax.eval_shape(_state_maker(optimizer, config), params, batch_stats)
    shardings = sharding.tree_shardings(state, mesh)
    state = sharding.with_shardings(state, shardings)
    return TrainSetup(
        model, loss, optimizer, schedule, task, config, mesh, example, state, shardings
    )


def _state_maker(optimizer: optax.GradientTransformation, config: ConfigDict) -> Callable:
    return functools.partial(init_state, optimizer=optimizer, config=config)

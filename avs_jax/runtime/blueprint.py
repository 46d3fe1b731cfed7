"""What of a training run follows from its configuration and the mesh alone.

Functions and shapes, before there is any number: training builds its state from it, or restores it.
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

from avs_jax.data import pipeline
from avs_jax.losses.criterion import compute_losses
from avs_jax.models import build_model
from avs_jax.runtime import optim, sharding
from avs_jax.runtime.step import TrainState, init_state, init_variables, make_train_step

QUICK_COMPILATION = {"xla_backend_optimization_level": 0}  # of what runs once


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A run before its first number.

    Attributes:
      config: the whole configuration.
      mesh: the devices.
      model: Linen module.
      optimizer: over {path: gradient}.
      schedule: learning rate by step.
      example: an empty batch of one clip, host arrays.
      state: ShapeDtypeStructs with shardings.
      shardings: of the state.
    """

    config: ConfigDict
    mesh: Mesh
    model: Any
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    example: Mapping[str, np.ndarray]
    state: TrainState
    shardings: TrainState

    def init_variables(self) -> tuple[dict, dict]:
        """(params, batch_stats) of the seed, on the mesh."""
        return jax.jit(
            _initializer(self.model, self.config),
            out_shardings=(self.shardings.params, self.shardings.batch_stats),
            compiler_options=QUICK_COMPILATION,
        )(self.example)

    def init_state(self, params: Mapping, batch_stats: Mapping) -> TrainState:
        """The state before the first step, on the mesh."""
        new_state = _state_maker(self.optimizer, self.config)
        return jax.jit(new_state, out_shardings=self.shardings)(params, batch_stats)

    def make_train_step(self) -> Callable:
        """The jitted step, see step.py."""
        criterion = functools.partial(compute_losses, loss_config=self.config.loss)
        return make_train_step(
            self.model, criterion, self.optimizer, self.schedule, self.config, self.shardings
        )

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch of a step: ShapeDtypeStructs with shardings."""
        return sharding.batch_shapes(self.example, self.config.train.batch_size, self.mesh)


def make_blueprint(config: ConfigDict, mesh: Mesh) -> Blueprint:
    """Computes no parameter: all is traced for its shapes.

    Args:
      config: see configs/base.py.
      mesh: from `sharding.make_mesh`.

    Raises:
      ValueError: the configuration names something that does not exist.
    """
    model = build_model(config.model)
    example = pipeline.stack_clips([pipeline.empty_clip(config, is_training=True)])
    params, batch_stats = jax.eval_shape(_initializer(model, config), example)
    optimizer, schedule = optim.make_optimizer(params, config)
    state = jax.eval_shape(_state_maker(optimizer, config), params, batch_stats)
    shardings = sharding.tree_shardings(state, mesh)
    state = sharding.with_shardings(state, shardings)
    return Blueprint(config, mesh, model, optimizer, schedule, example, state, shardings)


def _initializer(model, config: ConfigDict) -> Callable:
    return functools.partial(init_variables, model, seed=config.seed)


def _state_maker(optimizer: optax.GradientTransformation, config: ConfigDict) -> Callable:
    return functools.partial(init_state, optimizer=optimizer, config=config)

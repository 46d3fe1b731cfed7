"""A trained model on the device: inputs to outputs. stablehlo.py exports the same functions."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.evaluation import apply_model
from avs_jax.runtime.step import init_variables
from avs_jax.task import Task


class Predictor:
    """A task's model with the parameters of a checkpoint.

    Attributes:
      variables: (params, batch_stats), on the device.
    """

    def __init__(self, task: Task, config: ConfigDict, checkpoint: Checkpoint):
        """Reads the weights that config.evaluate.weights chooses; InputError if there are none."""
        self.task, self.config, self.checkpoint = task, config, checkpoint
        self.variables = jax.device_put(checkpoint.variables(config.evaluate.weights))
        self._checked: set[tuple] = set()
        self._made: dict[Hashable, Any] = {}
        self._forward = jax.jit(
            lambda params, batch_stats, inputs: apply_model(task, params, batch_stats, inputs)
        )
        self._derive = jax.jit(task.derive)

    def step(self) -> None:
        """Called before every run of the model, and before every frame of task `track`.

        A subclass may report progress here, or raise to stop.
        """

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The model's task.outputs for the task's input fields [B, ...]; see `check`."""
        self.step()
        self.check(inputs)
        return self._forward(*self.variables, dict(inputs))

    def arrays(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The predictions for the same inputs, computed row by row, on the host."""
        count = len(next(iter(inputs.values())))
        parts = []
        for row in range(count):
            part = {name: value[row : row + 1] for name, value in inputs.items()}
            parts.append(jax.device_get(self._derive(self.outputs(part), part)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned when this key was new.

        For what serves every video: jitted functions, whose programs are then compiled once per
        size, and further models.
        """
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def check(self, inputs: Mapping[str, jax.ShapeDtypeStruct | np.ndarray]) -> None:
        """Checks, once per shape, that configuration, checkpoint and inputs fit together.

        Only shapes and dtypes of the inputs are read.
        """
        shapes = tuple(sorted((name, tuple(x.shape[2:])) for name, x in inputs.items()))
        if shapes in self._checked:
            return
        self.task.check_inputs(self.variables[0], inputs)
        one = {  # float64, which NumPy makes, is float32 in a model
            name: jax.ShapeDtypeStruct((1, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
            for name, x in inputs.items()
        }
        wanted = jax.eval_shape(lambda row: init_variables(self.task.model, row, 0), one)
        self.checkpoint.check_fits(*wanted)
        self._checked.add(shapes)

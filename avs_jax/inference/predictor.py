"""A trained model on the device: inputs to outputs, for own videos and arrays.

stablehlo.py exports the same functions.
"""

from collections.abc import Mapping

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
      task: under `config`.
      config: the whole configuration.
      checkpoint: where the parameters come from.
      variables: (params, batch_stats), on the device.
    """

    def __init__(self, task: Task, config: ConfigDict, checkpoint: Checkpoint):
        """Reads the parameters: their average where config.evaluate.weights says so.

        Raises:
          InputError: the checkpoint has no such weights.
        """
        self.task, self.config, self.checkpoint = task, config, checkpoint
        self.variables = jax.device_put(checkpoint.variables(config.evaluate.weights))
        self._checked: set[tuple] = set()
        self._forward = jax.jit(
            lambda params, batch_stats, inputs: apply_model(task, params, batch_stats, inputs)
        )
        self._derive = jax.jit(task.derive)

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The model's outputs, those of task.outputs.

        Args:
          inputs: the input fields of the task's rows, [B, ...].

        Raises:
          InputError: the checkpoint does not fit the configuration, or these inputs.
        """
        self.check(inputs)
        return self._forward(*self.variables, dict(inputs))

    def arrays(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What prediction returns for the same inputs, row by row, on the host."""
        count = len(next(iter(inputs.values())))
        parts = []
        for row in range(count):
            part = {name: value[row : row + 1] for name, value in inputs.items()}
            parts.append(jax.device_get(self._derive(self.outputs(part), part)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def check(self, inputs: Mapping[str, jax.ShapeDtypeStruct | np.ndarray]) -> None:
        """Checks once per shape that configuration, checkpoint and inputs belong together.

        Args:
          inputs: as in `outputs`; anything with shapes and dtypes.

        Raises:
          InputError: they do not.
        """
        shapes = tuple(sorted((name, tuple(x.shape[2:])) for name, x in inputs.items()))
        if shapes in self._checked:
            return
        params, _ = self.variables
        self.task.check_inputs(params, inputs)
        small = {
            name: np.broadcast_to(np.zeros((), x.dtype), (1, *x.shape[1:]))
            for name, x in inputs.items()
        }
        wanted = jax.eval_shape(lambda: init_variables(self.task.model, small, 0))
        self.checkpoint.check_fits(*wanted)
        self._checked.add(shapes)

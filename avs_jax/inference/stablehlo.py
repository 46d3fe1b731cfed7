"""A trained model as one file that needs only JAX to run: StableHLO and weights.

The file is an .npz:

  program     uint8, serialized by `jax.export`: the forward pass and task.derive
  weights/*   float32, parameters and running statistics by path
  about       JSON text: inputs and outputs with dtypes and axes, the configuration, versions

The program maps (weights, arrays) to the arrays of `predict --arrays`. Weights are arguments, not
constants, which keeps the program small and lets all platforms share them. Numbers of rows and
frames are symbolic; all other sizes are fixed by the configuration.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from avs_jax.convert.writer import write_state_dict
from avs_jax.inference.predictor import Predictor
from avs_jax.runtime.evaluation import apply_model
from avs_jax.runtime.optim import flatten, unflatten
from avs_jax.runtime.stored_config import plain_config
from avs_jax.spec import InputError, first_line
from avs_jax.task import Task, array_fields

PLATFORMS = ("cpu", "cuda", "tpu", "rocm")
WEIGHTS = "weights"
COLLECTIONS = ("params", "batch_stats")
FREE_AXES = ("B", "T")


def input_shapes(task: Task, **sizes: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The program's inputs: the task's input fields, without last axes of size 1.

    `sizes` are those of FREE_AXES, numbers or symbols.
    """
    known = {**task.rows.sizes, **sizes}
    shapes = {}
    for name, field in array_fields(task.rows.fields).items():
        axes = field.axes.split()
        if task.rows.sizes.get(axes[-1]) == 1 and axes[-1] not in FREE_AXES:
            axes.pop()
        shape = [int(a) if a.isdigit() else known[a] for a in axes]
        shapes[name] = jax.ShapeDtypeStruct(tuple(shape), field.dtype)
    return shapes


def make_program(task: Task):
    """(weights, arrays) -> results, see above; pure and traceable."""
    fields = task.rows.fields

    def program(weights: Mapping[str, jax.Array], arrays: Mapping[str, jax.Array]):
        inputs = {
            name: x if x.ndim == len(fields[name].axes.split()) else x[..., None]
            for name, x in arrays.items()
        }
        variables = unflatten(weights)[WEIGHTS]
        collections = (variables.get(name, {}) for name in COLLECTIONS)
        return task.derive(apply_model(task, *collections, inputs), inputs)

    return program


def export_program(
    predictor: Predictor, platforms: Sequence[str] = ("cpu", "cuda")
) -> export.Exported:
    """Lowers a predictor's program for all platforms, with symbolic B and T.

    Raises:
      InputError: the model's operations depend on how many clips or frames there are.
    """
    sizes = zip(FREE_AXES, export.symbolic_shape(", ".join(FREE_AXES)), strict=True)
    weights = jax.eval_shape(lambda: flat_weights(predictor))
    program = jax.jit(make_program(predictor.task))
    inputs = input_shapes(predictor.task, **dict(sizes))
    try:
        return export.export(program, platforms=tuple(platforms))(weights, inputs)
    # What a model says that wants a number where there is only a symbol.
    except (
        TypeError,
        jax.errors.InconclusiveDimensionOperation,
        jax.errors.TracerBoolConversionError,  # of jax 0.10.0
    ) as error:
        raise InputError(
            f"this model of task {predictor.task.name!r} cannot be exported for any number of "
            f"clips and frames ({first_line(error)}); predict --arrays runs it"
        ) from error


def flat_weights(predictor: Predictor) -> dict[str, jax.Array]:
    """Name in the file -> array."""
    return flatten({WEIGHTS: dict(zip(COLLECTIONS, predictor.variables, strict=True))})


def write_program(
    path: str | os.PathLike, predictor: Predictor, platforms: Sequence[str] = ("cpu", "cuda")
) -> dict[str, Any]:
    """Writes the .npz for some of PLATFORMS; `about`, and the program's size "program_bytes"."""
    task = predictor.task
    one = input_shapes(task, B=1, T=1)
    full = {
        name: jax.ShapeDtypeStruct(
            (*x.shape, 1)[: len(task.rows.fields[name].axes.split())], x.dtype
        )
        for name, x in one.items()
    }
    predictor.check(full)
    exported = export_program(predictor, platforms)
    program = np.frombuffer(exported.serialize(), np.uint8)
    inputs = input_shapes(task, **{axis: axis for axis in FREE_AXES})
    about = {
        "inputs": {name: [x.dtype.name, *x.shape] for name, x in inputs.items()},
        "outputs": {
            name: [x.dtype.name, *map(str, x.shape)]
            for name, x in jax.tree.unflatten(exported.out_tree, exported.out_avals).items()
        },
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax_version": jax.__version__,
        "config": plain_config(predictor.config),
    }
    arrays = {"program": program, "about": np.array(json.dumps(about))}
    arrays |= jax.device_get(flat_weights(predictor))
    write_state_dict(path, arrays, "npz")
    return about | {"program_bytes": program.size}

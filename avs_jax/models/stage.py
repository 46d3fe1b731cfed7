"""An optional stage of a model: a fusion or a refiner between the encoders and the decoder.

A stage is a file with a module and its row, `STAGE`; models/parts.py lists the row under the name
by which a configuration chooses it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax


@dataclasses.dataclass(frozen=True)
class StageInputs:
    """What is there when a stage runs; frames are folded into N.

    Attributes:
      fields: the model's inputs that the stage reads: [N, ...], images padded to multiples of 32.
      audio: [N, 6, 4, D], tokens (time, band).
      features: {"res2": [N, h, w, C], ...} of the image encoder.
      levels: [N, h, w, D] at strides 32, 16, 8.
      mask_features: [N, h, w, D] at stride 4.
      valid: bool [N], frames that count in batch statistics; None: all.
      ids: int32 [N], that random draws follow; None outside of training.
      train: training behavior.
      progress: [], share of the training that is done.
    """

    fields: Mapping[str, jax.Array]
    audio: jax.Array
    features: Mapping[str, jax.Array]
    levels: Sequence[jax.Array]
    mask_features: jax.Array
    valid: jax.Array | None
    ids: jax.Array | None
    train: bool
    progress: jax.Array | float


class StageResult(NamedTuple):
    """What a stage gives.

    Attributes:
      value: what takes the place that `acts_on` names: a map [N, h, w] at stride 4 that weighs the
        pixels of the queries, new mask features, or new levels.
      outputs: by name, [N, ...]: further outputs of the model.
      intermediates: anything worth looking at.
    """

    value: Any
    outputs: Mapping[str, jax.Array] = {}
    intermediates: Any = None


class Stage(NamedTuple):
    """The row of a stage.

    Attributes:
      module: whose fields are the keys of the stage's section of the configuration.
      parameter: its name in the parameter tree.
      acts_on: "queries", "features" (mask_features) or "levels".
      apply: (module, StageInputs) -> StageResult.
      reads: fields of the batch, beside images and log_mel.
      outputs: names of its outputs that prediction returns.
      rng_streams: that training draws from.
      schedules: section of the configuration -> {name in the log: progress -> number}.
      logged_params: name in the log -> path of a learned scalar.
    """

    module: type[nn.Module]
    parameter: str
    acts_on: str
    apply: Callable[[nn.Module, StageInputs], StageResult]
    reads: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    rng_streams: tuple[str, ...] = ()
    schedules: Callable[[Mapping[str, Any]], dict[str, Callable]] = lambda section: {}
    logged_params: Mapping[str, str] = {}

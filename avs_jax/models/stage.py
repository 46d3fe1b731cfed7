"""An optional stage of a model: a fusion or a refiner between the encoders and the decoder.

A stage is a file with a module and a row, `STAGE`. models/parts.py lists the row under the name
that configurations use.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from avs_jax.models.rules import look_up
from avs_jax.spec import InputError

PLACES = ("pixel_weights", "update_queries", "features", "levels")  # fields of StageResult


@dataclasses.dataclass(frozen=True)
class StageInputs:
    """Everything a stage may read; frames are folded into N.

    Attributes:
      fields: the model inputs listed in `Stage.reads`, [N, ...], images padded to multiples of 32.
      audio: [N, 6, 4, D], tokens (time, band).
      features: {"res2": [N, h, w, C], ...} of the image encoder.
      levels: [N, h, w, D] at strides 32, 16, 8.
      mask_features: [N, h, w, D] at stride 4.
      valid: bool [N], frames that count in batch statistics; None for all.
      ids: int32 [N], frame ids that seed random draws; None outside training.
      num_frames: of each clip in N.
      progress: [], fraction of the training that is done.
      text: tokens [N, L, Dt] and which exist, bool [N, L]; None where the model reads no text.
      image_size: (H, W) of the images before padding.
      mask_prior: () -> mask logits [N, h, w] that no stage has had a part in.
      location: logits [N, h, w] at stride 8 of what the expression means; None without a localizer.
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
    num_frames: int = 1
    text: tuple[jax.Array, jax.Array] | None = None
    image_size: tuple[int, int] | None = None
    mask_prior: Callable[[], jax.Array] | None = None
    location: jax.Array | None = None


class StageResult(NamedTuple):
    """The result of a stage; None leaves a place as it is.

    Attributes:
      pixel_weights: [N, h, w] at stride 4, by which PPQG reweights the pixels that it generates the
        queries from; those of several stages are added.
      update_queries: function of the generated queries, [N, Q, D] -> [N, Q, D]; those of several
        stages run in order.
      features: new mask features.
      levels: new levels.
      outputs: name -> [N, ...], added to the model's outputs.
      intermediates: anything worth inspecting.
    """

    pixel_weights: jax.Array | None = None
    update_queries: Callable[[jax.Array], jax.Array] | None = None
    features: jax.Array | None = None
    levels: Sequence[jax.Array] | None = None
    outputs: Mapping[str, jax.Array] = {}
    intermediates: Any = None


KEYS = {  # that turn a field on
    "motion": "data.motion.source",
    "motion_track": "data.track.source",
    "sound_track": "data.track.source",
    "pre_masks": "data.pre_masks",
}


def check_fields(read: Collection[str], fields: Collection[str]) -> None:
    """Raises InputError if the model reads fields that rows do not have."""
    for name in sorted(set(read) - set(fields)):
        where = f"; config.{KEYS[name]} turns it on" if name in KEYS else ""
        raise InputError(f"the model reads {name}, which the rows do not have{where}")


def check_frames(mixing: Sequence[str], train_frames: str) -> None:
    """Raises InputError if training lacks frames that a part mixes.

    Args:
      mixing: the parts that mix frames.
      train_frames: config.data.train_frames.
    """
    if mixing and train_frames != "all":
        raise InputError(
            f"config.data.train_frames = {train_frames!r}: frames meet in {mixing[0]}, so "
            "training needs all of them; expected 'all'"
        )


class Stage(NamedTuple):
    """The row of a stage.

    Attributes:
      module: its fields are the keys of the stage's section of the configuration.
      parameter: the module's name in the parameter tree.
      acts_on: the places that its results may change, of PLACES.
      apply: (module, StageInputs) -> StageResult.
      reads: fields of the batch besides images and log_mel.
      outputs: names of the outputs that prediction returns.
      rng_streams: random streams of training.
      schedules: section of the configuration -> {name in the log: progress -> number}.
      logged_params: name in the log -> path of a learned scalar.
      frames_meet: section of the configuration -> whether the stage mixes frames, so that training
        needs all of them.
    """

    module: type[nn.Module]
    parameter: str
    acts_on: tuple[str, ...]
    apply: Callable[[nn.Module, StageInputs], StageResult]
    reads: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    rng_streams: tuple[str, ...] = ()
    schedules: Callable[[Mapping[str, Any]], dict[str, Callable]] = lambda section: {}
    logged_params: Mapping[str, str] = {}
    frames_meet: Callable[[Mapping[str, Any]], bool] = lambda section: False


class StageSettings(NamedTuple):
    """What the stages of a model add to its task.

    Attributes:
      outputs: names of the outputs that prediction returns.
      rng_streams: random streams of training.
      schedules: name in the log -> (progress -> number).
      logged_params: name in the log -> path of a learned scalar.
      mixing: the parts that mix frames, "model.temporal" among them.
    """

    outputs: tuple[str, ...]
    rng_streams: tuple[str, ...]
    schedules: dict[str, Callable]
    logged_params: dict[str, str]
    mixing: list[str]


def stage_settings(model: nn.Module, model_config: Any) -> StageSettings:
    """The settings of the stages that are on, in their order.

    Args:
      model: with the method `stages`, dotted section of the configuration -> Stage.
      model_config: config.model.
    """
    outputs, rng_streams, schedules, logged_params, mixing = (), (), {}, {}, []
    if model_config.get("temporal", {"name": "none"})["name"] != "none":
        mixing.append("model.temporal")
    for place, stage in model.stages().items():
        section = look_up(model_config, place)
        outputs += stage.outputs
        rng_streams += stage.rng_streams
        schedules |= stage.schedules(section)
        logged_params |= stage.logged_params
        if stage.frames_meet(section):
            mixing.append(f"model.{place}")
    return StageSettings(outputs, rng_streams, schedules, logged_params, mixing)

"""Task `track`: what points, boxes or masks mark, in images and videos. It predicts only."""

import functools
from typing import Any, NoReturn

from ml_collections import ConfigDict

from avs_jax.data.prompts import PromptRows, complete_arrays
from avs_jax.inference import prompted_video
from avs_jax.models import build_model
from avs_jax.models.sam2.model import SAM2
from avs_jax.models.sam2.tracking import Segments
from avs_jax.spec import InputError
from avs_jax.task import PredictFlag, Task

PREDICT_FLAGS = {
    "points": PredictFlag(
        "json: object -> number of a frame -> [[x, y, 1 or 0], ..]", is_per_video=True
    ),
    "boxes": PredictFlag(
        "json: object -> number of a frame -> [left, top, right, bottom]", is_per_video=True
    ),
    "masks": PredictFlag(
        "folder of indexed images 00000.png, ..: the value k is object k", is_per_video=True
    ),
    "language": PredictFlag(
        "npz: object -> tokens [L, D] of a language model, D as it reads them", is_per_video=True
    ),
}
PREDICT_HELP = prompted_video.__doc__


def make_task(config: ConfigDict) -> Task:
    """The task under one configuration; InputError for an unknown part or a bad value."""
    side = config.data.image_size
    if not isinstance(side, int) or side < 32 or side % 32:
        raise InputError(f"config.data.image_size = {side!r}: expected a multiple of 32")
    return Task(
        name="track",
        rows=PromptRows(side),
        model=build_model(config.model, SAM2),
        outputs=Segments._fields,
        array_inputs=functools.partial(
            complete_arrays,
            image_size=side,
            resize=config.data.frame_resize,
            num_slots=config.model.prompt_slots,
        ),
        predict_video=prompted_video.predict_prompted,
        weight_files=("sam2", "sa2va"),
        predict_flags=tuple(PREDICT_FLAGS),
        loss=_predicts_only,
        score=_predicts_only,
        meter=_predicts_only,
        protocols=_predicts_only,
        measure="none",
        join=_predicts_only,
    )


def _predicts_only(*_: Any, **__: Any) -> NoReturn:
    raise InputError("task 'track' predicts only: it is neither trained nor evaluated")

"""Task `segment`: the pixels of the sounding objects, frame by frame.

A host is a row with a model, its loss, and a function from outputs to class scores. Rows of clips,
meter, protocols, controls and prediction are the same for all hosts.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from avs_jax import tasks
from avs_jax.controls import clip_controls, training_sounds
from avs_jax.data.avsbench_folders import BY_DATASET
from avs_jax.data.clip import ClipRows
from avs_jax.data.trunk_features import clip_rows
from avs_jax.inference import clip_video
from avs_jax.inference.predictor import Predictor
from avs_jax.inference.trunk_weights import with_trunk_key
from avs_jax.inference.zero_shot import ZeroShot
from avs_jax.losses import criterion, prompted
from avs_jax.losses import tpavi as tpavi_loss
from avs_jax.models import avs, build_model, tpavi
from avs_jax.models.align import Align
from avs_jax.models.sam2 import host as sam2
from avs_jax.models.stage import check_fields, check_frames, stage_settings
from avs_jax.results import metrics, pixel_scores, segmentation
from avs_jax.results.predictions import Layout
from avs_jax.results.table import interleave
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.spec import InputError
from avs_jax.task import PredictFlag, Task

PREDICT_FLAGS = {
    "pre_masks": PredictFlag(
        "folder with a color mask PNG per second of the video", is_per_video=True
    ),
    "align": PredictFlag("checkpoint of task `align`, to name what sounds"),
    "flow_weights": PredictFlag("of RAFT, where config.data.motion.model names one"),
}
PREDICT_HELP = clip_video.__doc__


class Host(NamedTuple):
    """A model family of this task.

    Attributes:
      module: Linen module; its fields are the keys of config.model.
      loss: (outputs, batch, key, norms, *, loss_config) -> (total, terms).
      norms: (batch, config) -> divisors of the terms.
      scores: (outputs, inputs, score_size) -> float32 [B, T, h, w, K].
      outputs: of the model that prediction returns, besides those of its stages.
      rng_streams: of training, including "loss"; those of the stages follow.
      logged_params: name in the log -> path of a learned scalar.
      frames_meet: config.model -> whether the model mixes frames, so training needs all of them.
      check_inputs: (params, inputs), see Task.
      rows: config -> the rows of its batches.
      weight_files: see Task.
    """

    module: type
    loss: Callable
    norms: Callable
    scores: Callable
    outputs: tuple[str, ...]
    rng_streams: tuple[str, ...]
    logged_params: Mapping[str, str] = {}
    frames_meet: Callable[[ConfigDict], bool] = lambda model: False
    check_inputs: Callable = lambda params, inputs: None
    rows: Callable[[ConfigDict], ClipRows] = ClipRows
    weight_files: tuple[str, ...] = ()


def _query_norms(batch, config: ConfigDict) -> dict[str, jax.Array]:
    return criterion.loss_norms(batch, config.model.num_queries, config.loss.no_object_weight)


def _pixel_norms(batch, config: ConfigDict) -> dict[str, jax.Array]:
    return tpavi_loss.loss_norms(batch, config.loss)


def _object_norms(batch, config: ConfigDict) -> dict[str, jax.Array]:
    del config
    return prompted.loss_norms(batch)


HOSTS = {
    "vct": Host(
        module=avs.AVS,
        loss=criterion.compute_losses,
        norms=_query_norms,
        scores=pixel_scores.query_scores,
        outputs=("pred_logits", "pred_masks"),
        rng_streams=(*avs.RNG_STREAMS, "loss"),
        logged_params={"lambda": "predictor/visual_query_block/lambda"},
        weight_files=("vct",),
        check_inputs=avs.check_inputs,
    ),
    "tpavi": Host(
        module=tpavi.TPAVI,
        loss=tpavi_loss.compute_losses,
        norms=_pixel_norms,
        scores=pixel_scores.logit_scores,
        outputs=("pred_masks",),
        rng_streams=(*tpavi.RNG_STREAMS, "loss"),
        frames_meet=lambda model: True,
        weight_files=("tpavi",),
    ),
    "sam2": Host(
        module=sam2.SAM2Host,
        loss=prompted.compute_losses,
        norms=_object_norms,
        scores=pixel_scores.logit_scores,
        outputs=("pred_masks", "object_score_logits"),
        rng_streams=(*sam2.RNG_STREAMS, "loss"),
        frames_meet=lambda model: model.memory,
        rows=clip_rows,
    ),
}


def complete_config(config: ConfigDict, stored: ConfigDict | None = None) -> ConfigDict:
    """The configuration with what cached features say about their weights."""
    return with_trunk_key(config, stored) if config.data.get("trunk_features") else config


def _make_namer(path: str) -> clip_video.Namer:
    """Names objects by a checkpoint of task `align`."""
    checkpoint = Checkpoint.find(path)
    task = tasks.make_task(checkpoint.config)
    if not isinstance(task.model, Align):
        raise InputError(f"--align={path}: a run of task {task.name!r}")
    return ZeroShot(Predictor(task, checkpoint.config, checkpoint)).name_objects


def prediction_layout(config: ConfigDict) -> Layout:
    """The layout of prediction files; InputError if the dataset is not an AVSBench setting."""
    setting = BY_DATASET.get(config.data.dataset.split("/")[0])
    if setting is None:
        raise InputError(
            f"config.data.dataset is {config.data.dataset!r}: predictions are laid out for "
            f"{', '.join(BY_DATASET)}"
        )
    return Layout(setting.predictions, config.data.num_classes, config.evaluate.score_size)


def make_task(config: ConfigDict) -> Task:
    """The task under one configuration; InputError for an unknown host or part or a bad value."""
    if config.host not in HOSTS:
        raise InputError(f"config.host = {config.host!r}: choose one of {sorted(HOSTS)}")
    host = HOSTS[config.host]
    training_sounds.check_config(config)
    clip_controls.check_config(config)
    model, rows = build_model(config.model, host.module), host.rows(config)
    check_fields(model.reads(), rows.fields)
    stages = stage_settings(model, config.model)
    mixing = [f"host {config.host!r}"] if host.frames_meet(config.model) else []
    check_frames(mixing + stages.mixing, config.data.train_frames)
    size = config.evaluate.score_size
    layout = functools.partial(prediction_layout, config)
    return Task(
        name="segment",
        rows=rows,
        model=model,
        loss=functools.partial(host.loss, loss_config=config.loss),
        norms=functools.partial(host.norms, config=config),
        rng_streams=host.rng_streams + stages.rng_streams,
        schedules=stages.schedules,
        logged_params={**host.logged_params, **stages.logged_params},
        outputs=host.outputs + stages.outputs,
        score=functools.partial(pixel_scores.score, scores=host.scores, size=size),
        derive=functools.partial(pixel_scores.derive, scores=host.scores, size=size),
        meter=functools.partial(segmentation.ClipMeter, config.data.num_classes),
        protocols=metrics.all_protocols,
        batches=metrics.batches,
        validation=metrics.validation_protocols,
        measure="mIoU",
        join=functools.partial(interleave, by="clip_id"),
        sizes=segmentation.sizes,
        summarize=segmentation.summarize,
        controls=functools.partial(clip_controls.clip_controls, config, rows),
        alter=functools.partial(training_sounds.false_training_sounds, config),
        draw=segmentation.draw_clip,
        check_inputs=host.check_inputs,
        array_inputs=functools.partial(
            clip_video.complete_arrays, fields=rows.fields, sizes=rows.sizes, reads=model.reads()
        ),
        read_predictions=functools.partial(segmentation.read_predictions, rows=rows, layout=layout),
        write_predictions=functools.partial(segmentation.write_predictions, layout=layout),
        predict_video=functools.partial(
            clip_video.predict_video, scores=host.scores, make_namer=_make_namer
        ),
        weight_files=host.weight_files,
        predict_flags=tuple(PREDICT_FLAGS),
    )

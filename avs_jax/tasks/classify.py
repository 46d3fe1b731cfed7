"""Task `classify`: what sounds in a clip, from its frames and its sound."""

import functools

from ml_collections import ConfigDict

from avs_jax.controls.modality_controls import modality_controls
from avs_jax.data.labeled_clips import LabeledClipRows
from avs_jax.data.records import metadata, open_records
from avs_jax.inference import class_video
from avs_jax.losses import classification as losses
from avs_jax.models import build_model
from avs_jax.models.classify import Classify
from avs_jax.results import classification as results
from avs_jax.results.table import interleave
from avs_jax.spec import InputError
from avs_jax.task import PredictFlag, Task, as_they_are

PREDICT_FLAGS: dict[str, PredictFlag] = {}
PREDICT_HELP = class_video.__doc__

OUTPUTS = ("logits", "frames_logits", "audio_logits", "modality_weights")


def complete_config(config: ConfigDict, stored: ConfigDict | None = None) -> ConfigDict:
    """The configuration with the class names of the records, which so become the checkpoint's."""
    del stored  # a resumed run has its records
    if config.data.class_names:
        return config
    config = config.copy_and_resolve_references()
    config.data.class_names = tuple(metadata(open_records(config, "train")).get("classes", ()))
    return config


def make_task(config: ConfigDict) -> Task:
    """The task under one configuration; InputError for a value that cannot be."""
    model, rows = build_model(config.model, Classify), LabeledClipRows(config.data)
    data, multi_label = config.data, config.data.labels == "masks"
    if multi_label and config.loss.smoothing:
        raise InputError(
            f"config.loss.smoothing = {config.loss.smoothing}: multi-label targets are "
            "not smoothed, expected 0.0"
        )
    if config.model.get("timesformer") and data.train_frames != data.num_frames:
        raise InputError(
            f"config.data.train_frames = {data.train_frames}: frames meet in TimeSformer, so "
            f"training needs all of them: {data.num_frames}"
        )
    names = tuple(data.class_names)
    return Task(
        name="classify",
        rows=rows,
        model=model,
        loss=functools.partial(
            losses.compute_losses, loss_config=config.loss, multi_label=multi_label
        ),
        norms=losses.loss_norms,
        rng_streams=("drop_path", "dropout", "modality", "loss"),
        logged_params={"balance": "head/balance"} if config.model.av_fusion == "late_logit" else {},
        outputs=OUTPUTS,
        score=as_they_are,
        meter=results.ClassMeter,
        protocols=functools.partial(results.protocols, multi_label=multi_label),
        measure="mAP" if multi_label else "top-1",
        join=functools.partial(interleave, by="clip_id"),
        sizes=results.sizes,
        controls=functools.partial(modality_controls, config.evaluate.missing_modalities),
        recorders=lambda split: (
            () if multi_label else (results.ConfusionRecorder(names, data.num_classes),)
        ),
        predict_video=functools.partial(
            class_video.predict_classes, names=names, multi_label=multi_label
        ),
    )

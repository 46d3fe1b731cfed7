"""Task `refer`: the pixels of what an expression means in a clip with sound, or of nothing.

The models are hosts of task `segment`, with the tokens of the expression as one more input: they
enter the feature maps (models/fusion/cma.py), the decoder's prompt, or both, and a score says
whether what is meant is in the frame.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from avs_jax.controls.expression_controls import expression_controls
from avs_jax.data.expressions import make_tokenizer
from avs_jax.data.records import beside_records
from avs_jax.data.tokens import VOCABULARY, read_vocabulary, tokenizer_files
from avs_jax.data.trunk_features import expression_rows
from avs_jax.inference import expression_video
from avs_jax.inference.trunk_weights import with_trunk_key
from avs_jax.losses import criterion, prompted, referral
from avs_jax.losses.localization import localization_norms
from avs_jax.models import avs, build_model
from avs_jax.models.inputs import TEXT_FIELDS
from avs_jax.models.sam2 import host as sam2
from avs_jax.models.stage import check_fields, check_frames, stage_settings
from avs_jax.results import pixel_scores, refavs, segmentation
from avs_jax.results.predictions import Layout
from avs_jax.results.table import interleave
from avs_jax.spec import InputError
from avs_jax.task import PredictFlag, Task

PREDICT_FLAGS = {"text": PredictFlag("the expression", is_repeated=True)}
PREDICT_HELP = expression_video.__doc__

OUTPUTS = ("pred_logits", "pred_masks", "presence_logits")


class Host(NamedTuple):
    """A model family of this task; the fields are those of tasks/segment.py's hosts.

    Attributes:
      norms: config -> (batch -> divisors), or None where the loss compares rows with each other.
      check: config -> None; raises InputError for a part the task cannot do without.
    """

    module: type
    loss: Callable
    norms: Callable[[ConfigDict], Callable | None]
    check: Callable[[ConfigDict], None]
    rng_streams: tuple[str, ...]
    check_inputs: Callable = lambda params, inputs: None
    logged_params: Mapping[str, str] = {}


def complete_config(config: ConfigDict, stored: ConfigDict | None = None) -> ConfigDict:
    """The configuration with what only the data knows, for the checkpoint to keep.

    That is the vocabulary of the records, and which weights made cached features.
    """
    config = _with_vocabulary(config)
    return with_trunk_key(config, stored) if config.data.get("trunk_features") else config


def _with_vocabulary(config: ConfigDict) -> ConfigDict:
    text = config.data.text
    if text.source != "tiny" or text.words or text.tokenizer:
        return config
    config = config.copy_and_resolve_references()
    config.data.text.words = tuple(read_vocabulary(beside_records(config, VOCABULARY)))
    return config


def make_task(config: ConfigDict) -> Task:
    """The task under one configuration.

    Raises:
      InputError: a part that the task cannot do without, or a value that cannot be.
    """
    name = config.get("host", "vct")
    if name not in HOSTS:
        raise InputError(f"config.host = {name!r}: choose one of {sorted(HOSTS)}")
    host = HOSTS[name]
    _check(config)
    host.check(config)
    model, rows = build_model(config.model, host.module), expression_rows(config)
    _check_vocabulary(config)
    check_fields(model.reads(), rows.fields)
    stages = stage_settings(model, config.model)
    check_frames(stages.mixing, config.data.train_frames)
    evaluate, score_at = config.evaluate, make_score(config)
    score = functools.partial(score_at, size=(evaluate.score_size,) * 2)
    return Task(
        name="refer",
        rows=rows,
        model=model,
        loss=functools.partial(host.loss, loss_config=config.loss),
        norms=host.norms(config),
        rng_streams=host.rng_streams + stages.rng_streams,
        schedules=stages.schedules,
        logged_params={**host.logged_params, **stages.logged_params},
        outputs=OUTPUTS,
        unshared_inputs=TEXT_FIELDS,
        score=score,
        derive=functools.partial(_derive, score=score),
        meter=refavs.ExpressionMeter,
        protocols=refavs.protocols,
        batches=refavs.batches,
        measure="J&f_beta",
        join=functools.partial(interleave, by="clip_id"),
        sizes=segmentation.sizes,
        controls=expression_controls,
        draw=_draw,
        check_inputs=host.check_inputs,
        array_inputs=_complete_arrays,
        read_predictions=functools.partial(
            refavs.read_predictions, rows=rows, layout=_layout(config)
        ),
        write_predictions=functools.partial(
            segmentation.write_predictions, layout=lambda: _layout(config)
        ),
        predict_video=functools.partial(
            expression_video.predict_expressions, score=score_at, threshold=refavs.THRESHOLD
        ),
        predict_flags=tuple(PREDICT_FLAGS),
    )


def make_score(config: ConfigDict) -> Callable[..., dict[str, Any]]:
    """(outputs, inputs, size=) -> pred, presence and fallback: pixel_scores.expression_score."""
    return functools.partial(
        pixel_scores.expression_score,
        threshold=refavs.THRESHOLD,
        fallback=config.evaluate.fallback,
        presence_threshold=config.evaluate.presence_threshold,
    )


def _check(config: ConfigDict) -> None:
    needs = {
        "model.text.name": (config.model.text.name, config.data.text.source),
        "data.num_classes": (config.data.num_classes, 2),
    }
    for key, (value, wanted) in needs.items():
        if value != wanted:
            raise InputError(f"config.{key} = {value!r}: task 'refer' expects {wanted!r}")
    if config.evaluate.fallback not in pixel_scores.FALLBACKS:
        raise InputError(
            f"config.evaluate.fallback = {config.evaluate.fallback!r}: choose one of "
            f"{pixel_scores.FALLBACKS}"
        )
    threshold = config.evaluate.presence_threshold
    if not 0 <= threshold < 1:
        raise InputError(
            f"config.evaluate.presence_threshold = {threshold!r}: expected at least 0 and below 1"
        )


def _check_vocabulary(config: ConfigDict) -> None:
    """A token past the encoder's table would be read as its last row."""
    text, table = config.data.text, config.model.text.vocab_size
    has_files = bool(text.tokenizer) and all(
        path.is_file() for path in tokenizer_files(text.tokenizer)
    )
    if not text.words and not has_files:
        return  # where nothing reads text, the tokenizer may be absent
    size = make_tokenizer(text).size
    if size > table:
        raise InputError(f"config.model.text.vocab_size = {table}: the tokenizer has {size} tokens")


def _check_queries(config: ConfigDict) -> None:
    if config.model.head.name != "referral":
        raise InputError(
            f"config.model.head.name = {config.model.head.name!r}: task 'refer' expects 'referral'"
        )
    _check_text_is_read(config, "decoder.prompt", config.model.decoder.prompt, "none")
    localizer = config.model.get("localizer", {"name": "none"})["name"]
    phrases = config.data.text.get("num_phrases", 0)
    if (localizer == "none") != (phrases == 0):
        raise InputError(
            f"config.data.text.num_phrases = {phrases!r} with config.model.localizer.name = "
            f"{localizer!r}: a localizer needs at least 1, and without one nothing reads them"
        )
    seconds = config.data.text.get("num_seconds", 0)
    if seconds and localizer == "none":
        raise InputError(
            f"config.data.text.num_seconds = {seconds} with config.model.localizer.name = 'none': "
            "only a localizer hears them; expected 0"
        )
    asked = config.data.text.get("num_asked", 1)
    if asked > max(1, phrases):
        raise InputError(
            f"config.data.text.num_asked = {asked}: expected at most "
            f"config.data.text.num_phrases = {phrases}"
        )
    if not config.loss.masks and localizer == "none":
        raise InputError(
            "config.loss.masks = False with config.model.localizer.name = 'none': only a localizer "
            "learns without masks"
        )


def _check_prompts(config: ConfigDict) -> None:
    _check_text_is_read(config, "text_prompt", config.model.text_prompt, False)
    if config.model.memory and config.data.train_frames != "all":
        raise InputError(
            f"config.data.train_frames = {config.data.train_frames!r}: frames meet in the memory, "
            "so training needs all of them; expected 'all'"
        )


def _check_text_is_read(config: ConfigDict, key: str, value: Any, off: Any) -> None:
    if config.model.fusion.name != "cma" and value == off:
        raise InputError(
            f"config.model.{key} = {off!r} without the fusion 'cma': the masks would not "
            "depend on the expression"
        )


def _query_norms(config: ConfigDict) -> Callable | None:
    if config.loss.align_weight:  # the alignment compares the rows of a batch with each other
        return None
    return functools.partial(
        _asked_norms,
        num_queries=config.model.num_queries,
        no_object_weight=config.loss.no_object_weight,
    )


def _asked_norms(batch: Mapping[str, Any], **weights: Any) -> dict[str, Any]:
    located = localization_norms(batch) if "phrase_targets" in batch else {}
    return located | criterion.loss_norms(referral.asked_targets(batch), **weights)


def _derive(outputs, inputs, *, score):
    return {**outputs, **score(outputs, inputs)}


def _draw(scores, batch, row, title, records):
    """The figure of one expression, with its words in place of the category."""
    del records  # that are looked up for stored flow
    return segmentation.draw_clip(scores, {**batch, "category": batch["text"]}, row, title, ())


def _complete_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    inputs = dict(arrays)
    inputs.setdefault("valid", np.ones(inputs["images"].shape[:2], bool))
    return inputs, []


def _layout(config: ConfigDict) -> Layout:
    return Layout(refavs.PREDICTIONS, 2, config.evaluate.score_size)


HOSTS = {
    "vct": Host(
        module=avs.AVS,
        loss=referral.compute_losses,
        norms=_query_norms,
        check=_check_queries,
        rng_streams=(*avs.RNG_STREAMS, "loss"),
        check_inputs=avs.check_inputs,
        logged_params={"align_scale": "head/align_scale"},
    ),
    "sam2": Host(
        module=sam2.SAM2Host,
        loss=prompted.compute_losses,
        norms=lambda config: prompted.loss_norms,
        check=_check_prompts,
        rng_streams=(*sam2.RNG_STREAMS, "loss"),
    ),
}

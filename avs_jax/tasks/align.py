"""Task `align`: frames, sound and text of what sounds, close where they belong together."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from avs_jax.controls.pair_controls import pair_controls
from avs_jax.data.pairs import PairRows
from avs_jax.losses import alignment as losses
from avs_jax.models import build_model
from avs_jax.models.align import PAIRS, Align, modalities
from avs_jax.results import alignment as results
from avs_jax.results.table import interleave
from avs_jax.spec import InputError
from avs_jax.task import Task

UNITS = ("clip", "second")


def make_task(config: ConfigDict) -> Task:
    """The task under one configuration; InputError for a value that cannot be."""
    model = build_model(config.model, Align)
    _check_choices(config)
    used, pairs = modalities(config.model.pairs), PAIRS[config.model.pairs]
    rows = PairRows(config.data, used)
    if rows.vocab_size and rows.vocab_size > model.text.get("vocab_size", rows.vocab_size):
        raise InputError(
            f"config.model.text.vocab_size = {model.text['vocab_size']}: the tokenizer has "
            f"{rows.vocab_size} tokens"
        )
    outputs = [f"{name}_embed" for name in used]
    has_audio_pair = any("audio" in pair and "text" not in pair for pair in pairs)
    return Task(
        name="align",
        rows=rows,
        model=model,
        loss=functools.partial(losses.compute_losses, pairs=pairs, loss_config=config.loss),
        norms=None,
        rng_streams=("drop_path", "loss"),
        logged_params={"log_scale": "logit_scale"},
        outputs=tuple(outputs),
        score=_embeds,
        derive=_embeds,
        meter=results.EmbeddingMeter,
        protocols=functools.partial(
            results.protocols, pairs=pairs, relevant=config.evaluate.relevant
        ),
        measure="R@1",
        join=functools.partial(interleave, by="clip_id"),
        sizes=results.sizes,
        controls=functools.partial(
            pair_controls, config.evaluate.shuffled_pairs and has_audio_pair
        ),
    )


def _embeds(outputs: Mapping[str, Any], inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    del inputs
    return dict(outputs)


def _check_choices(config: ConfigDict) -> None:
    loss = config.loss
    for key, choices in {
        "loss.name": losses.LOSSES,
        "loss.unit": UNITS,
        "loss.same_class": losses.TREATMENTS,
        "loss.mining": losses.MININGS,
        "evaluate.relevant": results.RELEVANCES,
    }.items():
        section, name = key.split(".")
        if config[section][name] not in choices:
            raise InputError(f"config.{key} = {config[section][name]!r}: choose one of {choices}")
    if loss.name == "sigmoid" and config.model.get("bias_init") is None:
        raise InputError(
            "config.loss.name = 'sigmoid' needs the learned bias: --config.model.bias_init=-10.0"
        )

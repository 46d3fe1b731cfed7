"""Task `align`: frames, sound and text of what sounds, close where they belong together."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from avs_jax.controls.pair_controls import pair_controls
from avs_jax.data.avsbench_folders import BY_DATASET
from avs_jax.data.pairs import PairRows
from avs_jax.inference import embedding_search, zero_shot
from avs_jax.losses import alignment as losses
from avs_jax.models import build_model
from avs_jax.models.align import PAIRS, Align, modalities
from avs_jax.results import alignment as results
from avs_jax.results.predictions import Layout, write_batch
from avs_jax.results.table import interleave
from avs_jax.spec import InputError
from avs_jax.task import PredictFlag, Task

PREDICT_FLAGS = {"text": PredictFlag("a class to choose from", is_repeated=True)}
PREDICT_HELP = zero_shot.__doc__ + "\n" + embedding_search.__doc__

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
    outputs += [f"{name}_seconds" for name in used if name != "text"]
    outputs += ["sound_map"]
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
        write_predictions=functools.partial(_write_maps, config),
        predict_video=zero_shot.classify_video if "text" in used else None,
        weight_files=("clip",),
        predict_flags=tuple(PREDICT_FLAGS),
        search=embedding_search.search_index,
    )


def _embeds(outputs: Mapping[str, Any], inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    del inputs
    kept = {name: x for name, x in outputs.items() if name.endswith("_embed")}
    if "sound_map" in outputs:
        kept["pred"] = _probability(outputs["sound_map"])
    return kept


def _probability(sound_map: jax.Array) -> jax.Array:
    """Maps [B, T, h, w] as float32 in 0..1: each frame's least and largest cosine are 0 and 1."""
    low, high = (f(sound_map, (2, 3), keepdims=True) for f in (jnp.min, jnp.max))
    # On a GPU, a quotient of equals can be 1 + 1e-7.
    return jnp.minimum((sound_map - low) / jnp.maximum(high - low, 1e-6), 1)


def _write_maps(config: ConfigDict, directory, scores: Mapping, batch: Mapping) -> None:
    """Where the model hears each second: probabilities that `segment` scores like any method's."""
    setting = BY_DATASET.get(config.data.dataset.split("/")[0])
    if setting is None or "pred" not in scores:
        raise InputError(
            f"config.data.dataset = {config.data.dataset!r}: maps are written for "
            f"{', '.join(BY_DATASET)}, by models with sound and a backbone of maps"
        )
    frames = np.broadcast_to(np.arange(batch["valid"].shape[1])[None], batch["valid"].shape)
    layout = Layout(setting.predictions, 2, scores["pred"].shape[-1])
    write_batch(
        pathlib.Path(directory).expanduser(),
        layout,
        scores["pred"],
        {**batch, "frame_index": frames},
    )


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

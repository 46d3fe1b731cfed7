"""Task `describe`: an expression for the object under a mask, from its clip and its sound."""

import functools
import pathlib

from ml_collections import ConfigDict

from avs_jax.data.descriptions import DescriptionRows
from avs_jax.data.records import beside_records
from avs_jax.data.tokens import VOCABULARY, read_vocabulary, split_words, words_of
from avs_jax.inference import describe_video
from avs_jax.losses import description as losses
from avs_jax.models import build_model
from avs_jax.models.describe import Describe
from avs_jax.results import descriptions as results
from avs_jax.results.table import interleave
from avs_jax.spec import InputError
from avs_jax.task import PredictFlag, Task, as_they_are

PREDICT_FLAGS = {
    "masks": PredictFlag(
        "folder of indexed images 00000.png, ..: the value k is object k", is_per_video=True
    )
}
STRIDE = 32  # of the coarsest map: masks are pooled to its cells
PREDICT_HELP = describe_video.__doc__


def complete_config(config: ConfigDict, stored: ConfigDict | None = None) -> ConfigDict:
    """The configuration with its vocabulary, which so becomes the checkpoint's."""
    del stored  # a resumed run has its records
    text = config.data.text
    if text.words:
        return config
    path = pathlib.Path(text.tokenizer).expanduser() if text.tokenizer else None
    config = config.copy_and_resolve_references()
    config.data.text.words = tuple(read_vocabulary(path or beside_records(config, VOCABULARY)))
    return config


def make_task(config: ConfigDict) -> Task:
    """The task under one configuration; InputError for a value that cannot be."""
    text = config.data.text
    if text.source != "tiny":
        raise InputError(
            f"config.data.text.source = {text.source!r}: descriptions are made of whole words, "
            "expected 'tiny'"
        )
    if config.data.image_size % STRIDE:
        raise InputError(
            f"config.data.image_size = {config.data.image_size}: expected a multiple of {STRIDE}"
        )
    if config.model.max_words > text.max_tokens - 1:
        raise InputError(
            f"config.model.max_words = {config.model.max_words}: config.data.text.max_tokens = "
            f"{text.max_tokens} has room for {text.max_tokens - 1}"
        )
    model, rows = build_model(config.model, Describe), DescriptionRows(config)
    to_text = functools.partial(words_of, words=tuple(text.words))
    if text.words and len(text.words) + 4 > config.model.vocab_size:
        raise InputError(
            f"config.model.vocab_size = {config.model.vocab_size}: the vocabulary has "
            f"{len(text.words) + 4} tokens"
        )
    return Task(
        name="describe",
        rows=rows,
        model=model,
        loss=functools.partial(losses.compute_losses, loss_config=config.loss),
        norms=losses.loss_norms,
        rng_streams=("drop_path", "dropout", "loss"),
        outputs=("words", "word_score"),
        score=as_they_are,
        meter=functools.partial(results.DescriptionMeter, to_text=to_text),
        protocols=functools.partial(results.protocols, split_words=split_words),
        measure="CIDEr-D / 10",
        join=functools.partial(interleave, by="clip_id"),
        sizes=results.sizes,
        predict_video=functools.partial(describe_video.predict_descriptions, to_text=to_text),
        predict_flags=tuple(PREDICT_FLAGS),
    )

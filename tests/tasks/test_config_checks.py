"""Configurations that a task refuses before anything runs."""

import functools

import pytest

from avs_jax.data.tokens import vocabulary_text
from avs_jax.runtime.command_line import override
from avs_jax.spec import InputError
from avs_jax.tasks import complete_config, make_task
from configs import (
    describe_generated,
    parts,
    qvh_avigate,
    qvh_custom,
    refer_cma,
    s4_tpavi_pvt_v2,
    s4_vct,
)


def small_temporal():
    section = parts.divided()
    section.update(num_layers=1, hidden_dim=16, num_heads=2, ffn_dim=16)
    return section


@pytest.mark.parametrize(
    "recipe, key, value, message",
    [
        (s4_vct, "model.fusion", parts.ama(), "reads motion, .*; config.data.motion.source turns"),
        (s4_vct, "model.fusion", parts.sync(), "reads motion_track.*config.data.track.source"),
        (s4_vct, "evaluate.audio", "silense", "'silense' .*nearest: silence"),
        (s4_vct, "evaluate.motion", "still", "config.evaluate.motion is 'still', expected zero"),
        (s4_vct, "evaluate.manifest", "m.json", "config.evaluate.audio names nothing to use"),
        (refer_cma, "model.temporal", small_temporal(), "frames meet in model.temporal"),
        (refer_cma, "data.text.words", ("w",) * 253, "vocab_size = 256: the tokenizer has 257"),
        (describe_generated, "data.image_size", 112, "image_size = 112: expected a multiple of 32"),
        (s4_tpavi_pvt_v2, "model.backbone.num_heads", (3, 1, 2, 2), "model.backbone.num_heads"),
    ],
)
def test_what_could_not_run_is_refused(recipe, key, value, message):
    config = recipe.get_config("tiny")
    *sections, name = key.split(".")
    functools.reduce(getattr, sections, config)[name] = value
    with pytest.raises(InputError, match=message):
        make_task(config)


def test_a_key_that_is_not_written_has_its_default():
    config = s4_vct.get_config("tiny")
    config.data.motion.source = "auto"
    config.model.fusion = {"name": "ama", "num_heads": 8}
    assert make_task(config).name == "segment"


@pytest.mark.parametrize("recipe", [qvh_custom, qvh_avigate])
def test_gates_may_average_over_padding_as_the_original_does(recipe):
    flags = ["--config.model.fusion.gate.pooling=reference"]
    task = make_task(override(recipe.get_config("tiny"), flags))
    assert task.model.fusion["gate"]["pooling"] == "reference"


def test_descriptions_have_the_words_of_a_vocabulary_of_the_user_s(tmp_path):
    (tmp_path / "vocabulary.json").write_text(vocabulary_text(["the", "red", "star"]))
    config = describe_generated.get_config("tiny")
    config.data.text.tokenizer = str(tmp_path / "vocabulary.json")
    assert complete_config(config).data.text.words == ("the", "red", "star")
    config.model.vocab_size = 5
    with pytest.raises(InputError, match="the vocabulary has 7 tokens"):
        make_task(complete_config(config))

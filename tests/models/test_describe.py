"""Words from features: the captioner's numbers, greedy and beam search, and what a word may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.losses.description import word_losses
from avs_jax.models import build_model, describe
from avs_jax.models.decoders.words import LSTMDecoder, TransformerDecoder
from avs_jax.models.describe import LEVELS, Describe, object_features, resize_mask
from avs_jax.ops.beam_search import beam_search
from avs_jax.spec import MEL_BANDS, MEL_FRAMES, InputError
from configs import describe_generated, describe_refavs
from tests.cases_golden import arrays, assert_golden, meta, state_dict

NAME = "caption_seed"
PLACES = {
    "image_encoder.0.weight": "image_encoder/kernel",
    "image_encoder.0.bias": "image_encoder/bias",
    "word_embed.weight": "embedding",
    "lstm.weight_ih_l0": "lstm/input_kernel",
    "lstm.weight_hh_l0": "lstm/state_kernel",
    "lstm.bias_ih_l0": "lstm/input_bias",
    "lstm.bias_hh_l0": "lstm/state_bias",
    "output.weight": "output/kernel",
    "output.bias": "output/bias",
}


def golden_variables(model):
    scale = meta(NAME)["models"][model].get("scale", {})
    flat = {}
    for name, value in state_dict(NAME, model).items():
        value = value * np.float32(scale.get(name, 1.0))
        is_linear = value.ndim == 2 and name != "word_embed.weight"
        flat[PLACES[name]] = jnp.asarray(value.T if is_linear else value)
    return {"params": traverse_util.unflatten_dict(flat, sep="/")}


def captioner(vocab_size=30):
    return LSTMDecoder(vocab_size, embed_dim=12, hidden_dim=16)


def test_the_captioner_and_its_losses():
    golden = arrays(NAME)
    variables, decoder = golden_variables("caption"), captioner()
    image, captions = jnp.asarray(golden["in/images"])[:, None], golden["in/captions"]

    def loss(variables, which):
        logits = decoder.apply(variables, (image, None), captions[:, :-1])
        words = captions[:, 1:]
        counts = jnp.ones(words.shape, bool) if which == "seed" else words != 0
        each = jnp.where(counts, word_losses(logits, words, 0.1 if which == "smooth" else 0), 0)
        per_sentence = each.sum(1) / counts.sum(1)
        return each.sum() / counts.sum(), (logits, per_sentence)

    (value, (logits, per_sentence)), gradient = jax.value_and_grad(loss, has_aux=True)(
        variables, "masked"
    )
    assert_golden(NAME, "logits", logits)
    assert_golden(NAME, "loss_masked", value)
    assert_golden(NAME, "loss_masked_per_sentence", per_sentence)
    flat = traverse_util.flatten_dict(gradient["params"], sep="/")
    order = meta(NAME)["models"]["caption"]["grad_norm_names"]
    norms = np.array([np.linalg.norm(flat[PLACES[name]]) for name in order])
    assert_golden(NAME, "grad_norms_masked", norms)
    assert_golden(NAME, "loss_masked_smooth0.1", loss(variables, "smooth")[0])
    assert_golden(NAME, "loss_seed", loss(variables, "seed")[0])
    random = decoder.apply(variables, (image, None), golden["in/captions_random"][:, :-1])
    assert_golden(NAME, "logits_random", random)


def search(variables, decoder, image, **options):
    count, beams = len(image), options.get("num_beams", 1)
    repeated = jnp.repeat(image, beams, 0)

    def logits(ids):
        found = decoder.apply(variables, (repeated, None), ids.reshape(-1, ids.shape[-1]))
        return found.reshape(*ids.shape, -1)

    options = {"vocab_size": decoder.vocab_size} | options
    return jax.jit(functools.partial(beam_search, logits, count, **options))()


@pytest.mark.parametrize(
    "key, start, end, words",
    [
        ("greedy_ids", 1, 2, 20),
        pytest.param("greedy_ids_max5_start3_end4", 3, 4, 5, marks=pytest.mark.slow),
    ],
)
def test_greedy_words(key, start, end, words):
    image = jnp.asarray(arrays(NAME)["in/images"])[:, None]
    found = search(
        golden_variables("caption"), captioner(), image, max_words=words, start=start, end=end
    )
    np.testing.assert_array_equal(found.ids[:, 0], arrays(NAME)[key][:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("kind, power", [("sum", 0.0), ("mean", 1.0)])
def test_a_wide_beam_finds_the_best_of_all_sequences(kind, power):
    """All 6^4 continuations fit into the beam, so it must find what scoring every one finds."""
    golden = arrays(NAME)
    image = jnp.asarray(golden["in/tiny_image"])[:, None]
    options = {"max_words": 4, "start": 1, "end": 2, "length_power": power}
    decoder, variables = captioner(6), golden_variables("tiny")
    found = search(variables, decoder, image, num_beams=1296, **options)
    greedy = search(variables, decoder, image, **options)
    for i in range(3):
        for rank in range(5):
            want = golden[f"exhaustive{i}/{kind}/ids"][rank]
            np.testing.assert_array_equal(found.ids[i, rank], want)
        scores = golden[f"exhaustive{i}/{kind}/score"]
        np.testing.assert_allclose(found.scores[i, :5], scores, atol=1e-5)
        np.testing.assert_array_equal(greedy.ids[i, 0], golden[f"exhaustive{i}/greedy_ids"])
        log_prob = golden[f"exhaustive{i}/greedy_score"]
        np.testing.assert_allclose(greedy.log_probs[i, 0], log_prob, atol=1e-5)


def test_a_beam_beats_greed_where_greed_is_wrong():
    """Case 1 of the exhaustive ones: the best sequence begins with the second best word."""
    golden = arrays(NAME)
    image = jnp.asarray(golden["in/tiny_image"])[1:2, None]
    found = search(
        golden_variables("tiny"), captioner(6), image, max_words=4, start=1, end=2, num_beams=3,
        length_power=0.0,
    )  # fmt: skip
    np.testing.assert_array_equal(found.ids[0, 0], golden["exhaustive1/sum/ids"][0])
    assert found.scores[0, 0] > golden["exhaustive1/greedy_score"] + 0.5


def test_size_of_the_example():
    decoder = LSTMDecoder(5000, 256, 512)
    seen, ids = (jnp.zeros((1, 1, 2048)), None), jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), seen, ids))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 7_519_624


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoder",
    [LSTMDecoder(9, 4, 8), TransformerDecoder(9, 8, 1, 2, 8)],
    ids=["lstm", "transformer"],
)
def test_a_word_sees_what_is_before_it_and_no_padding(decoder):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((2, 3, 5)), jnp.float32)
    mask, ids = jnp.array([[1, 1, 0], [1, 0, 0]], bool), jnp.asarray(rng.integers(0, 9, (2, 6)))
    variables = decoder.init(jax.random.key(1), (features, mask), ids)
    once = decoder.apply(variables, (features, mask), ids)
    later = decoder.apply(variables, (features, mask), ids.at[:, 4].add(1) % 9)
    np.testing.assert_allclose(later[:, :4], once[:, :4], atol=1e-6)
    assert np.abs(later[:, 4] - once[:, 4]).max() > 1e-4
    padded = decoder.apply(variables, (jnp.where(mask[..., None], features, 7.0), mask), ids)
    np.testing.assert_allclose(padded, once, atol=1e-5)


def test_features_of_an_object_by_loops():
    rng = np.random.default_rng(3)
    maps = np.float32(rng.standard_normal((1, 2, 2, 3, 4)))
    mask = rng.random((1, 2, 8, 12)) < 0.4
    mask[0, 1] = False
    share = resize_mask(jnp.asarray(mask), (2, 3))
    want = np.zeros((2, 3))
    for i, j in np.ndindex(2, 3):
        want[i, j] = mask[0, 0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean()
    np.testing.assert_allclose(share[0, 0], want, atol=1e-6)
    found = object_features(jnp.asarray(maps), share)
    total = want.sum()
    mean = sum(want[i, j] * maps[0, 0, i, j] for i in range(2) for j in range(3)) / total
    y = sum(want[i, j] * (i + 0.5) / 2 for i in range(2) for j in range(3)) / total
    x = sum(want[i, j] * (j + 0.5) / 3 for i in range(2) for j in range(3)) / total
    np.testing.assert_allclose(found[0, 0], [*mean, y, x, total / 6], rtol=1e-5, atol=1e-6)
    assert not np.asarray(found[0, 1]).any()


def test_cells_tell_what_else_is_there(monkeypatch):
    """Two cells outside the mask change, and no mean does: only a model with cells sees it."""
    rng = np.random.default_rng(0)
    maps = {
        level: rng.standard_normal((4, size, size, 6)).astype(np.float32)
        for level, size in zip(LEVELS, (4, 2, 1), strict=True)
    }
    changed = {level: x.copy() for level, x in maps.items()}
    changed["res3"][:, 2] += 1
    changed["res3"][:, 3] -= 1
    mask = np.zeros((2, 2, 64, 64), bool)
    mask[:, :, :32] = True  # the upper half
    batch = {
        "images": np.zeros((2, 2, 64, 64, 3), np.uint8),
        "mask": mask,
        "log_mel": np.zeros((2, 2, MEL_FRAMES, MEL_BANDS), np.float32),
        "text_ids": np.zeros((2, 3), np.int32),
    }
    monkeypatch.setattr(describe, "encode_audio", lambda *_: jnp.zeros((4, 5)))
    for cells, sees in (("none", False), ("res3", True)):
        config = describe_generated.get_config("tiny").model.to_dict()
        model = build_model({**config, "cells": cells}, Describe)
        logits, variables = [], None
        for found in (maps, changed):
            monkeypatch.setattr(describe, "encode_frames", lambda *_, pad, found=found: found)
            variables = variables or model.init(jax.random.key(0), batch)
            logits.append(np.asarray(model.apply(variables, batch)["word_logits"]))
        assert (np.abs(logits[0] - logits[1]).max() > 1e-3) == sees
    config["decoder"] = dict(describe_refavs.get_config("lstm").model.decoder)
    with pytest.raises(InputError, match="'res3'.*reads the mean of all features"):
        build_model({**config, "cells": "res3"}, Describe)

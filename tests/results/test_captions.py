"""BLEU and CIDEr-D against sacrebleu, pycocoevalcap and counts; nothing in common gives zero."""

import json
import pathlib

import numpy as np
import pytest

from avs_jax.data.tokens import WordTokenizer, split_words, tokenize, words_of
from avs_jax.results.captions import bleu, bleu_counts, cider_d
from avs_jax.results.descriptions import DescriptionMeter, protocols, sizes

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden/cases/golden_caption_metrics.json"
SETS = {k: v for k, v in json.loads(GOLDEN.read_text()).items() if k != "meta"}


@pytest.mark.parametrize("name", SETS)
def test_counts_and_scores_of_word_lists(name):
    pairs, scores = SETS[name]["pairs"], SETS[name]["scores"]
    captions = [pair["hypothesis"] for pair in pairs]
    references = [pair["references"] for pair in pairs]
    counts, known = bleu_counts(captions, references), scores["counts"]
    assert counts.matches == known["matches"] and counts.totals == known["totals"]
    assert counts.length == known["hypothesis_length"]
    assert counts.reference_length == known["closest_reference_length"]
    found = bleu(counts)
    np.testing.assert_allclose(found, scores["bleu_from_counts"], rtol=1e-12)
    np.testing.assert_allclose(
        found, np.array(scores["sacrebleu_corpus"]["none"]) / 100, atol=1e-12
    )
    cider = cider_d(captions, references)
    np.testing.assert_allclose(cider, scores["coco_cider_d"]["sentence"], atol=1e-10)
    np.testing.assert_allclose(cider.mean(), scores["coco_cider_d"]["corpus"], atol=1e-10)


def test_nothing_in_common_is_zero():
    assert bleu(bleu_counts([["a"]], [[["b"]]])) == [0.0] * 4
    assert bleu(bleu_counts([[]], [[["b"]]])) == [0.0] * 4
    first = bleu(bleu_counts([["a", "b"]], [[["a", "b"]]]))
    assert first == [1.0, 1.0, 0.0, 0.0]  # no trigram


def test_an_object_has_one_description_and_several_references():
    words = ("the", "red", "star", "one", "that", "sounds")
    tokenizer = WordTokenizer(words)
    ids = tokenize(tokenizer, "The red star", 8).ids
    assert words_of(ids.tolist(), words) == "the red star"
    meter = DescriptionMeter({}, lambda x: words_of(x, words))
    said = np.array([[4, 5, 6, 2, -1], [4, 5, 6, 2, -1], [4, 7, 8, 9, 2], [4, 2, -1, -1, -1]])
    batch = {
        "valid": np.ones((4, 2), bool),
        "clip_id": ["a", "b", "c", "d"],
        "object": ["v/0", "v/0", "v/1", "v/2"],
        "text": ["the red one", "the red star", "the red star that sounds", "none"],
        "has_object": np.array([1, 1, 1, 0], bool),
    }
    meter.add({"words": said, "word_score": np.zeros(4)}, batch)
    table = meter.table()
    assert table["description"].tolist()[:3] == [
        "the red star",
        "the red star",
        "the one that sounds",
    ]
    assert sizes(table, 4) == {"expressions": 3, "objects": 2, "expressions_without_object": 1}
    found = protocols(table, split_words)["words"]
    assert found["exact"] == 0.5 and found["distinct"] == 1
    # unigrams: 3 of 3, and the, that, sounds of 4; words: 7 against 3 + 5
    assert found["BLEU-1"] == pytest.approx(np.exp(1 - 8 / 7) * 6 / 7)

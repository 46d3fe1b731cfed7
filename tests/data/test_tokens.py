"""Tokens of both tokenizers, and texts that nobody expects."""

import json
import pickle

import numpy as np
import pytest

from avs_jax.data import tokens
from avs_jax.data.tokens import BOS, EOS, PAD, UNKNOWN, load_tokenizer, tokenize
from avs_jax.spec import InputError

TEXTS = ["the red star", "The red one, making the LOW sound", "the dog's drum"]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(tokens.vocabulary_text(tokens.count_words(TEXTS, 100)))
    return load_tokenizer("tiny", path)


@pytest.fixture
def hub(tmp_path):
    """A byte-level BPE with RoBERTa's special tokens, as both kinds of files."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        TEXTS * 10, 320, special_tokens=[*tokens.SPECIAL], show_progress=False
    )
    for folder in ("one", "pair"):
        (tmp_path / folder).mkdir()
    tokenizer.save(str(tmp_path / "one" / "tokenizer.json"))
    tokenizer.save_model(str(tmp_path / "pair"))
    return tmp_path


def test_words_by_frequency_and_their_ids(tiny):
    words = tokens.count_words(TEXTS, 100)
    assert words[:2] == ["the", "red"] and words[2:] == sorted(words[2:])
    assert tokens.count_words(TEXTS, 6) == ["the", "red"]
    found = tokenize(tiny, "THE\tred  unicorn", 8)
    assert found.ids.tolist() == [BOS, 4, 5, UNKNOWN, EOS, PAD, PAD, PAD]
    assert found.ids.dtype == np.int32 and found.mask.sum() == 5 and not found.is_cut
    assert tokens.split_words("the dog's drum, now!") == ["the", "dog's", "drum", ",", "now", "!"]


def test_texts_nobody_expects(tiny):
    empty = tokenize(tiny, "", 5)
    assert empty.ids.tolist() == [BOS, EOS, PAD, PAD, PAD] and empty.num_pieces == 0
    long = tokenize(tiny, "red " * 10_000, 5)
    assert long.ids.tolist() == [BOS, 5, 5, 5, EOS] and long.is_cut and long.num_pieces == 10_000
    strange = tokenize(tiny, "\x00the\x07red\ud83d \U0001f600", 8)
    assert strange.ids.tolist()[:5] == [BOS, 4, 5, UNKNOWN, EOS]
    with pytest.raises(InputError, match="400,000 characters"):
        tokenize(tiny, "red " * 100_000, 5)
    with pytest.raises(InputError, match="max_tokens = 2"):
        tokenize(tiny, "red", 2)


def test_both_kinds_of_files_give_the_library_s_ids(hub):
    library = pytest.importorskip("tokenizers")
    whole = library.Tokenizer.from_file(str(hub / "one" / "tokenizer.json"))
    found = [load_tokenizer("roberta", hub / name) for name in ("one", "pair")]
    found.append(load_tokenizer("roberta", hub / "one" / "tokenizer.json"))
    for text in [*TEXTS, "an emoji \U0001f600 and é"]:
        want = whole.encode(text).ids
        for tokenizer in [*found, pickle.loads(pickle.dumps(found[0]))]:
            assert tokenizer.pieces(text) == want
        assert tokenize(found[0], text, 60).ids.tolist()[: len(want) + 2] == [BOS, *want, EOS]


def test_a_file_that_asks_for_padding_and_truncation(hub):
    library = pytest.importorskip("tokenizers")
    path = hub / "one" / "tokenizer.json"
    plain = load_tokenizer("roberta", path)
    words = "the red star " * 5
    wanted = [tokenize(plain, text, 20) for text in ("the red star", words)]
    asking = library.Tokenizer.from_file(str(path))
    asking.enable_padding(length=8)
    asking.enable_truncation(6)
    asking.save(str(path))
    loaded = load_tokenizer("roberta", path)
    for text, own in zip(("the red star", words), wanted, strict=True):
        np.testing.assert_array_equal(tokenize(loaded, text, 20).ids, own.ids)
        assert tokenize(loaded, text, 20).num_pieces == own.num_pieces


def test_files_of_another_kind_are_refused(tmp_path, hub):
    def refused(source, path, match):
        with pytest.raises(InputError, match=match):
            load_tokenizer(source, path)

    refused("tiny", tmp_path / "no.json", "no.json: missing")
    refused("roberta", tmp_path / "no", "no: missing")
    refused("bert", tmp_path, "choose one of")
    path = tmp_path / "v.json"
    for content in ({"words": ["a"]}, {"format": tokens.FORMAT, "words": ["a", "a"]}, {}):
        path.write_text(json.dumps(content))
        refused("tiny", path, r"v\.json")
    refused("roberta", path, "not a tokenizer")
    library = pytest.importorskip("tokenizers")
    library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    refused("roberta", path, "expected RoBERTa's 0, 1, 2, 3")


def test_tokens_of_clip(tmp_path):
    """Its start and end around the library's ids, padded with the end."""
    library = pytest.importorskip("tokenizers")
    whole = library.CharBPETokenizer(suffix="</w>", lowercase=True)
    special = ["<unk>", *tokens.CLIP_SPECIAL]
    whole.train_from_iterator(TEXTS * 10, 200, special_tokens=special, show_progress=False)
    whole.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = load_tokenizer("clip", path)
        found = tokenize(tokenizer, "The RED star", 20)
        want = whole.encode("the red star", add_special_tokens=False).ids
        assert found.ids.tolist() == [1, *want, 2] + [2] * (18 - len(want))
        assert found.mask.sum() == len(want) + 2
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.special == (1, 2, 2) and copy.pieces("red") == tokenizer.pieces("red")
    other = library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a"))
    other.save(str(tmp_path / "other.json"))
    with pytest.raises(InputError, match="other.json: no <.startoftext.> and"):
        load_tokenizer("clip", tmp_path / "other.json")

"""What predictions say of texts that are cut, without a model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.tokens import EOS, WordTokenizer, cut_note, tokenize
from avs_jax.inference import describe_video, expression_video
from avs_jax.inference.clip_features import HashedWords
from tests import video_files

WORDS = ("the", "dog", "that", "barks")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return video_files.write(tmp_path_factory.mktemp("cut") / "x.mp4", video_files.steady(2))


def test_expressions(video, tmp_path):
    tokenizer = WordTokenizer(WORDS)
    task = SimpleNamespace(
        rows=SimpleNamespace(
            tokens=lambda text, name: tokenize(tokenizer, text, 5),
            prepare=lambda record, rng: {},
        ),
        inputs=lambda row: row,
    )
    texts = ["the dog", "the dog that barks", "the dog that barks, not that dog"]
    seen = []

    def outputs(inputs):
        seen.append(inputs["text_ids"])
        return {}

    def score(outputs, inputs, size):
        shape = (len(inputs["text_ids"]), 2)
        return {"pred": np.ones((*shape, *size)), "presence": np.ones(shape)}

    predictor = SimpleNamespace(
        config=SimpleNamespace(
            data=SimpleNamespace(num_frames=2, frame_offset=0.0, text=SimpleNamespace(max_tokens=5))
        ),
        task=task,
        once=lambda key, make: score,
        outputs=outputs,
    )
    output = tmp_path / "out"
    lines = expression_video.predict_expressions(predictor, video, output, score, 0.4, texts)
    found = json.loads((output / "results.json").read_text())["expressions"]
    assert [expression["cut_word_pieces"] for expression in found] == [0, 1, 5]
    limit = "not read, config.data.text.max_tokens = 5)"
    assert lines[:3] == [
        "'the dog': seconds 0, 1",
        f"'the dog that barks': seconds 0, 1 (cut: the last word piece was {limit}",
        f"'the dog that barks, not that dog': seconds 0, 1 (cut: the last 5 word pieces were "
        f"{limit}",
    ]
    np.testing.assert_array_equal(seen[0][1], seen[0][2])  # they read the same


def test_descriptions(video, tmp_path):
    (tmp_path / "masks").mkdir()
    for t in range(2):  # object 2 in second 1 only
        mask = np.zeros((48, 64), np.uint8)
        mask[4:12, 4:12], mask[20:30, 20:40] = 1, 2 * t
        Image.fromarray(mask).save(tmp_path / "masks" / f"{t:05d}.png")
    words = iter([[4, 5, EOS], [4, 5, 6], [EOS, -1, -1]])
    predictor = SimpleNamespace(
        config=SimpleNamespace(
            data=SimpleNamespace(num_frames=1, frame_offset=0.0), model=SimpleNamespace(max_words=3)
        ),
        task=SimpleNamespace(
            rows=SimpleNamespace(prepare=lambda record, rng: {}), inputs=lambda row: row
        ),
        arrays=lambda inputs: {"words": np.array([next(words)]), "word_score": np.zeros(1)},
    )
    lines = describe_video.predict_descriptions(
        predictor, video, tmp_path / "out", str, str(tmp_path / "masks")
    )
    found = json.loads((tmp_path / "out" / "results.json").read_text())["objects"]
    cut = {k: [window["is_cut"] for window in windows] for k, windows in found.items()}
    assert cut == {"1": [False, True], "2": [False]}
    assert "1 of 3 descriptions were cut, without an end: config.model.max_words = 3" in lines


def test_words_of_a_query():
    words = HashedWords({"text_dim": 4, "max_words": 2})
    assert [words.num_cut(text) for text in ("the dog", "the dog that barks")] == [0, 2]
    assert cut_note(0, "data.max_words", 2) == ""

"""Rows of expressions: the reference loader's truth, tokens, and texts nobody expects."""

import json
import pickle

import numpy as np
import pytest

from avs_jax.data.expressions import ExpressionRows
from avs_jax.data.records import record_name
from avs_jax.losses.referral import asked_targets
from avs_jax.spec import InputError
from configs import refer_cma
from tfds_builders.refer_clips import list_clips

WORDS = ("the", "dog", "man", ",", "object")


@pytest.fixture(scope="module")
def clips():
    from tests.conftest import GOLDEN

    found, _, problems = list_clips(GOLDEN / "refer" / "refavs")
    assert not problems
    records = {split: [clip.read()[0] for clip in clips] for split, clips in found.items()}
    return {
        split: [r | {"item": i} for r in rows for i in range(len(r["uids"]))]
        for split, rows in records.items()
    }


@pytest.fixture(scope="module")
def config():
    config = refer_cma.get_config("tiny")
    config.data.text.words = WORDS
    config.data.text.max_tokens = 6
    config.evaluate.score_size = 256
    return config


def test_truth_and_text_are_the_reference_s(clips, config, golden_dir):
    rows = pickle.loads(pickle.dumps(ExpressionRows(config)))
    with np.load(golden_dir / "refer" / "golden_refavs_loader.npz") as file:
        golden = dict(file)
    expected = json.loads(golden["meta/json"].tobytes())["refavs"]
    for split, records in clips.items():
        assert len(records) == len(expected[split])
        for i, record in enumerate(records):
            row = rows.prepare(record)
            bits = np.unpackbits(golden[f"refavs/{split}/{i}/masks_packbits"])
            np.testing.assert_array_equal(row["labels"], bits.reshape(10, 256, 256))
            assert row["text"] == expected[split][i]["text"]
            assert row["is_null"] == (split == "test_n") and row["valid"].all()
            labels = rows.prepare_labels(record)
            np.testing.assert_array_equal(labels["labels"], row["labels"])


def test_rows_have_the_name_that_record_name_tells(clips, config):
    rows = ExpressionRows(config)
    for record in clips["train"]:
        assert rows.prepare(record)["clip_id"] == record_name(record)
    assert record_name({"clip_id": b"x"}) == "x"


def test_tokens_and_what_is_cut(clips, config):
    rows = ExpressionRows(config)
    first, second = (rows.prepare(record) for record in clips["train"])
    assert first["text_ids"].tolist() == [0, 4, 5, 3, 3, 2] and first["is_cut"]
    assert first["text_mask"].all() and first["has_text"]
    train = [rows.prepare(r, np.random.default_rng(0)) for r in clips["train"] + clips["val"]]
    ids = [row["object_id"] for row in train]
    assert ids[0] == ids[2] != ids[1]  # of the dog, of the man
    assert set(train[0]) == {n for n, f in rows.fields.items() if f.phase in ("both", "train")}
    assert set(first) == {n for n, f in rows.fields.items() if f.phase in ("both", "evaluate")}
    record = clips["train"][0]
    empty = rows.prepare(record | {"text": ""})
    assert not empty["has_text"] and empty["text_ids"].tolist() == [0, 2, 1, 1, 1, 1]
    long = rows.prepare(record | {"text": "dog " * 10_000})
    assert long["is_cut"] and long["text_ids"].tolist() == [0, 5, 5, 5, 5, 2]
    assert rows.prepare(record | {"text": "\x00dog\U0001f600"})["text_ids"].tolist()[:4] == [
        0,
        5,
        3,
        2,
    ]
    with pytest.raises(InputError, match="aaa111_0_10000_dog_1.*1,000,000 characters"):
        rows.prepare(record | {"text": "d" * 1_000_000})


def test_a_training_row_has_other_expressions_of_its_clip(clips, config):
    rows, record = ExpressionRows(config), clips["train"][0]
    count, own = config.data.text.num_phrases, rows.prepare(record, np.random.default_rng(0))
    others = len(record["expressions"]) - 1
    assert own["phrase_valid"].tolist() == [True] * (1 + others) + [False] * (count - 1 - others)
    np.testing.assert_array_equal(own["phrase_ids"][0], own["text_ids"])
    np.testing.assert_array_equal(own["phrase_mask"][0], own["text_mask"])
    assert own["phrase_objects"][0] == own["object_id"]
    # The masks have gone through the crop and the flip of the row's own.
    target = own["target_masks"][0, own["target_labels"][0].tolist().index(1)]
    np.testing.assert_array_equal(own["phrase_targets"][0, 0], target)
    for item in range(1, 1 + others):
        other = rows.prepare(record | {"item": item}, np.random.default_rng(0))
        (place,) = np.flatnonzero((own["phrase_ids"] == other["text_ids"]).all(1))
        assert own["phrase_objects"][place] == other["object_id"]
        present = other["target_labels"][0].tolist().index(1)
        np.testing.assert_array_equal(
            own["phrase_targets"][0, place], other["target_masks"][0, present]
        )
    assert not own["phrase_targets"][:, 1 + others :].any()
    # All that the clip sounds like, although only some of its frames are here.
    every = rows.prepare(record)
    assert own["clip_has_sound"].tolist() == [True] * config.data.num_frames
    np.testing.assert_array_equal(own["clip_log_mel"], every["log_mel"])
    assert own["clip_seconds"].tolist() == list(range(config.data.num_frames))


def test_several_expressions_of_a_row_are_asked(clips, config):
    config = config.copy_and_resolve_references()
    config.data.text.num_asked = 3
    rows, record = ExpressionRows(config), clips["train"][0]
    assert len(record["expressions"]) == 2
    own = rows.prepare(record, np.random.default_rng(0))
    for name in ("ids", "mask"):
        phrases, asked = own[f"phrase_{name}"], own[f"asked_{name}"]
        np.testing.assert_array_equal(asked[:2], phrases[:2])
        np.testing.assert_array_equal(asked[2], phrases[0])  # in a place that does not count
    batch = {name: value[None] for name, value in own.items()}
    targets = {name: np.asarray(value) for name, value in asked_targets(batch).items()}
    assert targets["supervised"].tolist() == [[True], [True], [False]]
    for item in range(2):
        other = rows.prepare(record | {"item": item}, np.random.default_rng(0))
        (place,) = np.flatnonzero((own["asked_ids"][:2] == other["text_ids"]).all(1))
        for name in ("masks", "labels", "valid"):
            np.testing.assert_array_equal(
                targets[f"target_{name}"][place], other[f"target_{name}"], err_msg=name
            )
        assert targets["frame_index"][place] == other["frame_index"]
    assert "asked_ids" not in rows.prepare(record)
    config.data.text.num_asked = 1
    assert "asked_ids" not in ExpressionRows(config).prepare(record, np.random.default_rng(0))


def test_a_null_expression_has_no_masks_of_an_object_of_its_number(clips, config):
    record = clips["train"][0]
    fid = record["expression_fids"][0]
    record = {**record, "expression_fids": [fid, fid], "is_null": [False, True]}
    row = ExpressionRows(config).prepare(record, np.random.default_rng(0))
    assert row["phrase_valid"][:2].all() and row["phrase_targets"][0, 0].any()
    assert not row["phrase_targets"][0, 1].any()


def test_a_training_row_hears_drawn_seconds(clips, config):
    config = config.copy_and_resolve_references()
    config.data.text.num_seconds = 3
    rows, record = ExpressionRows(config), clips["train"][0]
    every = rows.prepare(record)["log_mel"]
    drawn = set()
    for seed in range(5):
        own = rows.prepare(record, np.random.default_rng(seed))
        seconds = own["clip_seconds"].tolist()
        assert own["clip_has_sound"].all() and seconds == sorted(set(seconds)) and len(seconds) == 3
        np.testing.assert_array_equal(own["clip_log_mel"], every[seconds])
        np.testing.assert_array_equal(own["log_mel"][0], every[own["frame_index"][0]])
        drawn.add(tuple(seconds))
    assert len(drawn) > 1
    config.data.text.num_seconds = config.data.num_frames + 1
    with pytest.raises(InputError, match=r"num_seconds is 11, expected 0 \(all\) to"):
        ExpressionRows(config)


def test_a_tokenizer_must_be_named(clips, config):
    config = config.copy_and_resolve_references()
    config.data.text.words = ()
    with pytest.raises(InputError, match="data.text.tokenizer is empty.*needs a vocabulary.json"):
        ExpressionRows(config).prepare(clips["val"][0])

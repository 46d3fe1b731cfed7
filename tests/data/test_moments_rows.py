"""Rows of queries: the arrays of the reference's loader, and the rules where we depart from it."""

import pickle

import numpy as np
import pytest

from avs_jax.data.moments import FIELDS, MomentRows, log_rms
from avs_jax.spec import InputError
from avs_jax.task import stack_rows
from configs import tvsum_qd_detr
from tests.conftest import GOLDEN
from tests.ground_fixture import copy_qvhighlights, copy_tvsum, read_records

QVH = {"video_dims": (6, 4), "text_dim": 5}
TVSUM = {
    "video_dims": (4, 3),
    "text_dim": 5,
    "clip_seconds": 1.0,
    "normalize": "joined",
    "normalize_text": False,
    "num_pairs": 1,
    "num_annotators": 20,
}
RAW = {"normalize": "none", "normalize_text": False, "endpoints": False}
CASES = {
    "qvh": QVH,
    "qvh_audio": QVH | {"audio_dim": 3},
    "qvh_raw": QVH | RAW,
    "tvsum": TVSUM,
    "tvsum_audio": TVSUM | {"audio_dim": 3},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fixture")
    return {
        "qvh": read_records(copy_qvhighlights(folder / "qvh"), "qvhighlights"),
        "tvsum": read_records(copy_tvsum(folder / "tvsum"), "tvsum"),
    }


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "ground" / "golden_data.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("train", [True, False])
def test_arrays_of_the_reference(records, golden, case, train):
    rows = MomentRows(**CASES[case])
    for i, record in enumerate(records[case.partition("_")[0]]):
        row = rows.prepare(record, np.random.default_rng(i) if train else None)
        item = {
            name: golden.get(f"{case}/{i}/{name}")
            for name in (
                "video_feat",
                "query_feat",
                "audio_feat",
                "saliency_all_labels",
                "span_labels",
            )
        }
        num_clips, num_words = len(item["video_feat"]), len(item["query_feat"])
        assert np.flatnonzero(row["video_mask"]).tolist() == list(range(num_clips))
        assert np.flatnonzero(row["text_mask"]).tolist() == list(range(num_words))
        np.testing.assert_array_equal(row["video"][:num_clips], item["video_feat"])
        np.testing.assert_array_equal(row["text"][:num_words], item["query_feat"])
        if "audio" in case:
            np.testing.assert_array_equal(row["audio"][:num_clips], item["audio_feat"])
        else:
            assert "audio" not in row
        for name in ("video", "text", "audio"):  # the padding is zero
            size = num_words if name == "text" else num_clips
            assert not row.get(name, np.zeros(0))[size:].any()
        labels = np.zeros(rows.max_clips, np.float32)
        known = item["saliency_all_labels"][:num_clips]
        labels[: len(known)] = known
        np.testing.assert_allclose(row["saliency_labels"], labels, rtol=2e-7)
        spans = row["target_spans"][row["target_valid"]]
        if "tvsum" in case:
            assert not len(spans)
        elif len(record["windows"]) <= 5:
            np.testing.assert_array_equal(spans, item["span_labels"])
        for name in ("pos", "neg"):  # any clip of that score will do, as long as it exists
            found = row[f"saliency_{name}_pairs"]
            expected = golden[f"{case}/{i}/saliency_{name}_labels"]
            assert found.max() < num_clips and found.min() >= 0
            scores = item["saliency_all_labels"]
            if expected[0] < len(scores) and expected[0] < num_clips - 1:
                assert scores[found[0]] == scores[expected[0]]


def test_batches_of_the_reference(records, golden):
    rows = MomentRows(**QVH)
    batch = stack_rows(
        [rows.prepare(r, np.random.default_rng(0)) for r in records["qvh"]], rows.fields
    )
    for name, ours in (("video_feat", "video"), ("query_feat", "text")):
        np.testing.assert_array_equal(batch[ours], golden[f"qvh/batch/{name}"])
        np.testing.assert_array_equal(batch[f"{ours}_mask"], golden[f"qvh/batch/{name}_mask"])
    assert batch["target_valid"].sum(axis=1).tolist() == golden["qvh/batch/span_count"].tolist()
    for i in (0, 2, 3, 4):
        np.testing.assert_array_equal(batch["target_spans"][i], golden["qvh/batch/span_labels"][i])


def test_five_of_seven_windows_are_drawn(records, golden):
    rows, record = MomentRows(**QVH), records["qvh"][1]
    everything = np.asarray(record["windows"]) / 150
    spans = np.stack([everything.mean(axis=1), np.diff(everything)[:, 0]], axis=1)
    drawn = set()
    for seed in range(40):
        row = rows.prepare(record, np.random.default_rng(seed))
        assert row["target_valid"].all()
        distance = np.abs(row["target_spans"][:, None] - spans[None]).max(axis=2)
        assert distance.min(axis=1).max() < 1e-6
        chosen = distance.argmin(axis=1).tolist()
        assert len(set(chosen)) == 5
        drawn.add(tuple(chosen))
    assert {window for chosen in drawn for window in chosen} == set(range(7)) and len(drawn) > 20
    measured = golden["qvh/1/span_labels"]
    assert np.abs(measured[:, None] - spans[None]).max(axis=2).min(axis=1).max() < 1e-6
    evaluated = rows.prepare(record)
    np.testing.assert_allclose(evaluated["target_spans"], spans[:5], atol=1e-6)
    assert len(evaluated["windows"]) == 7  # scores need all of them


def test_pairs(records):
    rows, record = MomentRows(**QVH), records["qvh"][0]
    listed = np.asarray(record["saliency_clips"]).tolist()
    easy = set()
    for seed in range(60):
        row = rows.prepare(record, np.random.default_rng(seed))
        (best, inside), (worst, outside) = row["saliency_pos_pairs"], row["saliency_neg_pairs"]
        assert (best, worst) == (20, 9) and inside in listed and outside not in listed
        easy.add((inside, outside))
    assert {inside for inside, _ in easy} == set(listed) and len({o for _, o in easy}) > 20
    ties = {  # clips 0, 2 and 6 have the highest score of query 13, which lists every clip
        tuple(rows.prepare(records["qvh"][2], np.random.default_rng(s))["saliency_pos_pairs"])
        for s in range(40)
    }
    assert {clip for pair in ties for clip in pair} == {0, 2, 6}
    evaluated = [rows.prepare(record) for _ in range(2)]
    for name in FIELDS:
        if name in evaluated[0]:
            np.testing.assert_array_equal(evaluated[0][name], evaluated[1][name])


def test_a_listed_clip_without_features(records):
    """Query 15 lists clips 14 and 15 of 16; its sound has 15 rows."""
    rows = MomentRows(**QVH, audio_dim=3)
    row = rows.prepare(records["qvh"][4], np.random.default_rng(0))
    assert row["video_mask"].sum() == 15
    assert np.flatnonzero(row["saliency_labels"]).tolist() == [14]
    assert row["saliency_pos_pairs"].tolist() == [14, 14] and row["saliency_neg_pairs"][0] == 14


def test_queries_without_annotations(records):
    rows = MomentRows(**QVH)
    record = records["qvh"][0] | {
        "windows": np.zeros((0, 2)),
        "saliency_clips": np.zeros(0, np.int32),
        "saliency": np.zeros((0, 0)),
    }
    row = rows.prepare(record)
    assert not row["target_valid"].any() and not row["saliency_labels"].any()
    assert row["saliency_pos_pairs"].tolist() == row["saliency_neg_pairs"].tolist() == [-1, -1]
    assert row["windows"].shape == (0, 2) and row["ratings"].shape == (0, 3)


def test_saliency_from_windows(records):
    rows = MomentRows(**QVH, saliency="windows")
    for seed in range(20):
        row = rows.prepare(records["qvh"][0], np.random.default_rng(seed))  # 10..24 s, 40..44 s
        inside = {*range(5, 12), 20, 21}
        assert set(np.flatnonzero(row["saliency_labels"] == 1)) == inside
        assert row["saliency_labels"].sum() == len(inside)
        assert inside.issuperset(row["saliency_pos_pairs"].tolist())
        assert inside.isdisjoint(row["saliency_neg_pairs"].tolist())


def test_truth(records):
    rows = MomentRows(**QVH)
    truth = rows.truth(records["qvh"][0])
    assert (truth["qid"], truth["vid"], truth["query"]) == (
        "11",
        "aaaaaaaaaaa_0.0_150.0",
        "query 11",
    )
    assert truth["duration"] == 150 and truth["windows"].tolist() == [[10, 24], [40, 44]]
    assert truth["ratings"].shape == (75, 3) and truth["ratings"][5].tolist() == [3, 2, 2]
    assert truth["ratings"].sum() == records["qvh"][0]["saliency"].sum()
    truth = MomentRows(**TVSUM).truth(records["tvsum"][1])
    assert truth["ratings"].shape == (9, 20) and truth["windows"].shape == (0, 2)


def test_text_ids_follow_the_query(records):
    rows = MomentRows(**QVH)
    ids = [rows.prepare(record)["text_id"] for record in records["qvh"]]
    assert len(set(map(int, ids))) == 5 and min(ids) >= 0
    same = records["qvh"][1] | {"query": b"query 11"}  # as array_record gives it
    assert rows.prepare(same)["text_id"] == ids[0]


def test_fields_describe_the_rows(records):
    rows = pickle.loads(pickle.dumps(MomentRows(**QVH, audio_dim=3, energy=True)))
    record = records["qvh"][0] | {"energy": np.linspace(-5, 0, 75)}
    for train in (True, False):
        row = rows.prepare(record, np.random.default_rng(0) if train else None)
        empty = rows.empty(train)
        expected = {n for n, f in rows.fields.items() if f.phase == "both" or not train}
        assert row.keys() == empty.keys() == expected
        for name, field in rows.fields.items():
            if field.role != "metadata":
                shape = tuple(
                    int(a) if a.isdigit() else rows.sizes[a] for a in field.axes.split()[1:]
                )
                for array in (row[name], empty[name]):
                    assert (np.shape(array), np.asarray(array).dtype) == (shape, field.dtype), name
    assert not rows.empty(False)["qid"] and not rows.empty(False)["video_mask"].any()
    np.testing.assert_allclose(row["energy"], record["energy"], rtol=1e-6)
    inputs = {name for name, field in rows.fields.items() if field.role == "input"}
    assert inputs == {"video", "video_mask", "text", "text_mask", "audio", "energy"}


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"video_dims": (6, 5)}, {}, r"query 11: video features 1 are \[78, 4\].*video_dims"),
        ({"video_dims": (6,)}, {}, "2 kinds of video features, but video_dims = "),
        ({"text_dim": 4}, {}, r"text are \[7, 5\].*text_dim"),
        ({"audio_dim": 3}, {"audio": b""}, "has no audio features, but audio_dim asks for it"),
        ({"energy": True}, {}, "energy of 0 clips for 75, and energy is on"),
        ({"clip_seconds": 1.0}, {}, "a clip is 2 s, but clip_seconds is 1"),
        ({"max_clips": 40}, {}, "150 s are more than max_clips = 40 of 2 s"),
        ({"num_annotators": 2}, {}, r"saliency are \[9, 3\].*num_annotators"),
    ],
)
def test_records_that_do_not_fit_the_configuration(records, settings, change, message):
    rows = MomentRows(**QVH | settings)
    with pytest.raises(InputError, match=message):
        rows.prepare(records["qvh"][0] | change)


def test_the_titles_of_tvsum_are_not_cut(records):
    """CLIP has 77 tokens at most."""
    text = np.ones((77, 5), np.float32)
    rows = MomentRows(**TVSUM, max_words=tvsum_qd_detr.get_config().data.max_words)
    row = rows.prepare(records["tvsum"][0] | {"text": text})
    assert row["text_mask"].sum() == 77 and row["cut_words"] == 0


def test_words_left_out_are_counted(records):
    record = records["tvsum"][0] | {"text": np.ones((9, 5), np.float32)}
    row = MomentRows(**TVSUM, max_words=7).prepare(record)
    assert row["text_mask"].sum() == 7 and row["cut_words"] == 2


def test_values_that_cannot_be():
    for name, value in (("normalize", "l2"), ("saliency", "all"), ("num_pairs", 3)):
        with pytest.raises(InputError, match=f"{name} is {value!r}, expected one of"):
            MomentRows(**{name: value})


def test_energy_of_a_sound():
    """A full-scale square wave in the second clip of three and a half seconds."""
    waveform = np.zeros((3500, 2), np.int16)
    waveform[1000:2000] = 16384
    energy = log_rms(waveform, 1000, 4, 1.0)
    assert energy.dtype == np.float32
    np.testing.assert_allclose(energy, np.log(np.array([0, 0.5, 0, 0]) + 1e-5), rtol=1e-6)
    halves = log_rms(np.ones(1000, np.float32), 1000, 3, 0.5)
    np.testing.assert_allclose(halves, np.log(np.array([1, 1, 0]) + 1e-5), atol=1e-6)

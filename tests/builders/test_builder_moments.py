"""Builders of queries on videos: what goes in comes back, and all that is wrong is listed."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest

from avs_jax.data.avsbench_folders import AVSS
from avs_jax.data.decode import decode_labels
from avs_jax.data.moments import MomentRows
from avs_jax.data.records import Records
from avs_jax.generate import datasets
from avs_jax.programs import build_dataset
from scripts import derive_moments
from tests.ground_fixture import copy_qvhighlights, copy_tvsum, read_records
from tfds_builders import avs_moments, refer_clips
from tfds_builders import moments as builders
from tfds_builders.avsbench import category_labels, list_clips
from tfds_builders.moment_annotations import parse_annotation, read_annotations
from tfds_builders.qvhighlights.qvhighlights_dataset_builder import RELEASE
from tfds_builders.tvsum.tvsum_dataset_builder import TVSUM


def run(dataset, manual_dir, data_dir, *flags):
    where = [f"--manual_dir={manual_dir}", f"--data_dir={data_dir}"]
    return build_dataset.main([f"--dataset={dataset}", *where, *flags])


def open_built(data_dir, name, layout, split="train"):
    return Records(data_dir / name / layout / "1.0.0", split)


def load(data):
    return np.load(io.BytesIO(data), allow_pickle=False)


def assert_equal_records(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, str):
            assert found[name].decode() == value
        elif isinstance(value, list):
            assert list(found[name]) == value
        elif isinstance(value, bytes):
            assert found[name] == value
        else:
            if value.ndim:
                assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_qvhighlights_reads_back(tmp_path, capsys):
    source = copy_qvhighlights(tmp_path / "qvh")
    assert run("qvhighlights", source, tmp_path / "data") == 0
    out = capsys.readouterr().out
    assert "train 5, val 2 queries, 0 skipped; features video 6+4, text 5, audio 3" in out
    built = open_built(tmp_path / "data", "qvhighlights", "release")
    assert built.metadata["annotations"]["val"] == "highlight_val_release.jsonl"
    for split, count in (("train", 5), ("val", 2)):
        records = open_built(tmp_path / "data", "qvhighlights", "release", split)
        expected = read_records(source, "qvhighlights", split)
        assert len(records) == len(expected) == count
        for found, record in zip(records, expected, strict=True):
            assert_equal_records(found, record)
    first = built[0]
    with np.load(source / "features/clip_features/aaaaaaaaaaa_0.0_150.0.npz") as file:
        np.testing.assert_array_equal(load(first["video"][1]), file["features"])
        assert load(first["video"][1]).dtype == np.float16  # the file's precision
    assert first["energy"].shape == (0,) and first["ratings"].size == 0
    assert run("qvhighlights", source, tmp_path / "data") == 0
    assert "already built" in capsys.readouterr().out


def test_tvsum_has_a_layout_per_domain(tmp_path, capsys):
    source = copy_tvsum(tmp_path / "tvsum")
    assert run("tvsum/BK", source, tmp_path / "data") == 0
    assert "train 4, val 2 queries" in capsys.readouterr().out
    for layout, count in (("all", 5), ("VT", 1)):
        assert run(f"tvsum/{layout}", source, tmp_path / "data") == 0
        built = open_built(tmp_path / "data", "tvsum", layout)
        assert len(built) == count
    records = open_built(tmp_path / "data", "tvsum", "BK")
    assert [record["vid"].decode() for record in records] == ["vidA", "vidB", "vidD", "vidE"]
    assert records[0]["ratings"].shape == (12, 20) and records[0]["clip_seconds"] == 1
    assert run("tvsum/XY", source, tmp_path / "data") == 1
    assert "no such layout; there are all, BK" in capsys.readouterr().err


def test_everything_wrong_is_listed_and_can_be_skipped(tmp_path, capsys):
    source = copy_qvhighlights(tmp_path / "qvh")
    (source / "highlight_val_release.jsonl").unlink()
    annotations = source / "highlight_train_release.jsonl"
    lines = [json.loads(line) for line in annotations.read_text().splitlines()]
    bad = [
        lines[0],
        lines[0] | {"qid": "x", "relevant_windows": [[3, 1]]},
        lines[0] | {"qid": "y", "relevant_clip_ids": [75, 1, 2, 3, 4, 5, 6, 7, 8]},
        lines[0] | {"qid": "../z"},
        lines[0] | {"qid": "w", "saliency_scores": [[1, 2, 3]]},
        {"qid": 9, "vid": "v", "query": "q"},
        lines[0] | {"qid": "u", "duration": -1},
        lines[0] | {"qid": "t", "query": None},
        lines[0] | {"qid": "s", "query": " "},
        lines[0] | {"qid": "r", "query": "a \ud800"},
        lines[0] | {"qid": None},
        lines[0] | {"qid": "q", "vid": "a\nb"},
        lines[0] | {"qid": "p", "relevant_windows": [[0, float("nan")]]},
    ]
    text = [json.dumps(line) for line in lines + bad]
    annotations.write_text("\n".join([*text, "{"]))
    features = source / "features"
    (features / "slowfast_features/bbbbbbbbbbb_60.0_94.0.npz").unlink()
    short = features / "pann_features/bbbbbbbbbbb_60.0_94.0.npy"
    np.save(short, np.zeros((14, 3), np.float32))
    narrow = features / "clip_features/ccccccccccc_0.0_40.0.npz"
    np.savez(narrow, features=np.zeros((19, 3), np.float32))
    hostile = features / "clip_text_features/qid14.npz"
    np.savez(hostile, last_hidden_state=np.array([pickle.loads], object))
    nan = features / "pann_features/ddddddddddd_30.0_62.0.npy"
    np.save(nan, np.full((16, 3), np.nan, np.float32))
    renamed = features / "clip_text_features/qid15.npz"
    np.savez(renamed, other=np.zeros((1, 5), np.float32))
    assert run("qvhighlights", source, tmp_path / "data") == 1
    error = capsys.readouterr().err
    for line, reason in [
        (6, "qid 11 is listed twice"),
        (7, "window [3, 1] of qid x is not within 0..150 s"),
        (8, "of qid y, expected 0..74"),
        (9, "qid '../z' cannot be a file's name"),
        (10, "1 saliency_scores for the clips"),
        (11, "lacks duration"),
        (12, "duration of qid u is -1"),
        (13, "query of qid t is None, expected text"),
        (14, "query of qid s is ' ', expected text"),
        (15, "query or domain of qid r holds half a character"),
        (16, "qid is None, expected text or a whole number"),
        (17, "vid 'a\\nb' cannot be a file's name"),
        (18, "relevant_windows of qid p is not a list of lists of finite numbers"),
        (19, "not JSON"),
    ]:
        assert f"release.jsonl, line {line}: " in error and reason in error, reason
    assert "bbbbbbbbbbb_60.0_94.0.npz: missing" in error
    assert f"{short}: 14 rows, expected 15 or more" in error
    assert f"{narrow}: shape [19, 3], expected [n, 4]" in error
    assert f"{hostile}: unreadable array last_hidden_state" in error
    assert f"{nan}: holds NaN or infinity" in error
    assert f"{renamed}: unreadable array last_hidden_state" in error
    assert "20 missing or damaged files in 17 clips (2 clips are good)" in error
    assert not (tmp_path / "data/qvhighlights/release/1.0.0").exists()
    assert run("qvhighlights", source, tmp_path / "data", "--skip_bad") == 0
    built = open_built(tmp_path / "data", "qvhighlights", "release")
    assert [record["qid"] for record in built] == [b"11", b"12"]
    assert built.metadata["num_skipped"] == 17 and len(built.metadata["skipped"]) == 20


def test_a_qid_has_one_text_in_all_splits(tmp_path):
    """Words are stored by qid, so a second text would get the words of the first."""
    source = copy_qvhighlights(tmp_path / "qvh")
    path = source / "highlight_val_release.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    path.write_text(json.dumps(first | {"query": "something else"}) + "\n" + json.dumps(second))
    queries, problems = builders.list_queries(source, RELEASE)
    assert len(problems) == 1 and f"{path}: qid {first['qid']} is " in problems[0]
    assert [query.clip_id for query in queries["val"]] == [str(second["qid"])]
    source = copy_tvsum(tmp_path / "tvsum")  # its words are stored by video
    path = source / "tvsum_val.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(line | {"query": "something else"}))
    queries, problems = builders.list_queries(source, TVSUM.layouts[0])
    assert problems == [] and len(queries["val"]) == 1


def test_a_text_may_hold_the_line_separators_of_unicode(tmp_path):
    line = {"qid": 1, "vid": "v", "query": "a\u2028b\x85c", "duration": 4}
    (tmp_path / "a.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\r\n")
    (found,), problems = read_annotations(tmp_path / "a.jsonl", 2.0)
    assert problems == [] and found.query == line["query"]


def test_sound_may_be_absent_as_a_whole(tmp_path, capsys):
    source = copy_qvhighlights(tmp_path / "qvh")
    shutil.rmtree(source / "features/pann_features")
    assert run("qvhighlights", source, tmp_path / "data") == 0
    assert "features video 6+4, text 5; energy no" in capsys.readouterr().out
    built = open_built(tmp_path / "data", "qvhighlights", "release")
    assert built[0]["audio"] == b""


def test_folders_that_are_not_the_dataset(tmp_path, capsys):
    assert run("qvhighlights", tmp_path, tmp_path / "data") == 1
    assert "highlight_{split}_release.jsonl" in capsys.readouterr().err
    source = copy_qvhighlights(tmp_path / "qvh")
    shutil.rmtree(source / "features/clip_features")
    assert run("qvhighlights", source, tmp_path / "data") == 1
    assert "no folder of features: looked for" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("qvhighlights", source, tmp_path / "data", "--flow_dir=flow")
    assert "qvhighlights has no optical flow" in capsys.readouterr().err


def test_a_record_of_full_size(tmp_path):
    """What a query of QVHighlights takes: its features and less than 2 % beside them."""
    arrays = {"slowfast": (75, 2304), "clip": (75, 512), "pann": (75, 2048), "text": (32, 512)}
    files = {}
    for name, shape in arrays.items():
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, np.float32))
        files[name] = builders.ArrayFile(tmp_path / f"{name}.npy", "", shape[1])
    line = {"qid": 1, "vid": "v", "query": "q", "duration": 150, "relevant_windows": [[0, 150]]}
    line |= {"relevant_clip_ids": list(range(75)), "saliency_scores": [[4, 4, 4]] * 75}
    annotation = parse_annotation(json.dumps(line), 2.0)
    video = (files["slowfast"], files["clip"])
    query = builders.QueryFiles(annotation, video, files["text"], files["pann"], None)
    record, problems = query.read()
    size = len(query.features().serialize_example(record))
    features = sum(4 * rows * columns for rows, columns in arrays.values())
    assert problems == [] and features < size < 1.02 * features


# ---- windows from masks ----


@pytest.fixture(scope="module")
def avss(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "AVSBench_semantic"
    datasets.write_clips(path, 5, 2, 2, seed=5, size=32, workers=1, setting="avss")
    return path


def test_runs_of_seconds():
    assert avs_moments.runs([0, 1, 3, 4, 7]) == [[0, 2], [3, 5], [7, 8]]
    assert avs_moments.runs([]) == []


def test_windows_are_where_a_class_has_a_mask(avss, tmp_path, capsys):
    output = tmp_path / "moments"
    flags = [f"--manual_dir={avss}", f"--output={output}"]
    assert derive_moments.main(["--dataset=avsbench_semantic", *flags]) == 0
    out = capsys.readouterr().out
    names = list(category_labels(AVSS, avss))
    clips, _ = list_clips(AVSS, avss, AVSS.layouts[0])
    for split, listed in clips.items():
        whole = [clip for clip in listed if len(clip.masks) == len(clip.frames)]
        lines = (output / f"moments_{split}.jsonl").read_text().splitlines()
        partial = len(listed) - len(whole)
        assert f"{split}: {len(lines)} queries on {len(listed)} clips; {partial} clips" in out
        seen = set()
        for line in map(json.loads, lines):
            clip = next(clip for clip in whole if clip.clip_id == line["vid"])
            sounding = np.zeros(len(clip.frames), bool)
            for start, end in line["relevant_windows"]:
                assert not sounding[int(start) : int(end)].any()
                sounding[int(start) : int(end)] = True
            label = names.index(line["query"].replace(" ", "_"))
            for t, path in clip.masks.items():
                labels = decode_labels(path.read_bytes(), AVSS.num_classes)
                assert (labels == label).any() == sounding[t]
            assert line["qid"] == f"{clip.clip_id}-{label}" and line["duration"] == len(sounding)
            energy = np.load(output / f"features/energy/{clip.clip_id}.npy")
            assert energy.shape == (len(sounding), 1) and np.isfinite(energy).all()
            seen.add((line["vid"], label))
        assert len(seen) == len(lines) > 0


def test_from_masks_to_rows(avss, tmp_path):
    """Annotations, features beside them, a dataset, a row."""
    output = tmp_path / "moments"
    flags = [f"--manual_dir={avss}", f"--output={output}"]
    assert derive_moments.main(["--dataset=avsbench_semantic", *flags]) == 0
    rng = np.random.default_rng(0)
    lines = {}
    for path in output.glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            lines[line["qid"]] = line
            for kind, name, shape in (
                ("video", line["vid"], (int(line["duration"]), 6)),
                ("text", line["qid"], (3, 4)),
            ):
                (output / "features" / kind).mkdir(exist_ok=True)
                features = rng.normal(size=shape).astype(np.float16)
                np.save(output / "features" / kind / f"{name}.npy", features)
    assert run("own_moments", output, tmp_path / "data") == 0
    built = open_built(tmp_path / "data", "own_moments", "folder")
    assert built.metadata["has_energy"]
    rows = MomentRows(
        max_clips=10,
        video_dims=(6,),
        text_dim=4,
        clip_seconds=1.0,
        energy=True,
        saliency="windows",
    )
    for record in built:
        row, line = rows.prepare(record, np.random.default_rng(1)), lines[record["qid"].decode()]
        windows = np.array(line["relevant_windows"])
        spans = np.stack([windows.mean(axis=1), np.diff(windows)[:, 0]], axis=1) / line["duration"]
        np.testing.assert_allclose(row["target_spans"][row["target_valid"]], spans, atol=1e-6)
        inside = [t for start, end in line["relevant_windows"] for t in range(int(start), int(end))]
        assert np.flatnonzero(row["saliency_labels"]).tolist() == inside
        assert row["energy"][: int(line["duration"])].all()
    assert rows.truth(record)["ratings"].shape == (0, 3)


def test_damaged_masks_are_listed(avss, tmp_path, capsys):
    source = shutil.copytree(avss, tmp_path / "AVSBench_semantic")
    clips, _ = list_clips(AVSS, source, AVSS.layouts[0])
    broken, silent = [c for c in clips["test"] + clips["train"] if len(c.masks) == len(c.frames)][
        :2
    ]
    broken.masks[1].write_bytes(b"no image")
    silent.wav.unlink()
    flags = [f"--manual_dir={source}", f"--output={tmp_path / 'moments'}"]
    assert derive_moments.main(["--dataset=avsbench_semantic", *flags]) == 1
    error = capsys.readouterr().err
    assert f"{broken.masks[1]}: unreadable image" in error and f"{silent.wav}: missing" in error
    assert not (tmp_path / "moments").exists()
    assert derive_moments.main(["--dataset=avsbench_semantic", "--skip_bad", *flags]) == 0
    text = "".join(path.read_text() for path in (tmp_path / "moments").glob("*.jsonl"))
    assert broken.clip_id not in text and silent.clip_id not in text


def test_binary_masks_ask_for_the_category(tmp_path):
    source = tmp_path / "Multi-sources"
    datasets.write_clips(source, 2, 1, 1, seed=5, size=32, workers=1, setting="ms3")
    flags = [f"--manual_dir={source}", f"--output={tmp_path / 'moments'}"]
    assert derive_moments.main(["--dataset=avsbench_ms3", *flags]) == 0
    lines = (tmp_path / "moments/moments_train.jsonl").read_text().splitlines()
    csv = (source / "ms3_meta_data.csv").read_text()
    for line in map(json.loads, lines):
        row = next(row for row in csv.splitlines() if row.startswith(line["vid"]))
        assert line["query"] in row.replace("_", " ")


def test_expressions_ask_for_their_object(tmp_path, capsys):
    source, output = tmp_path / "refavs", tmp_path / "moments"
    datasets.write_clips(source, 2, 1, 2, size=32, workers=0, setting="refer")
    flags = ["--dataset=refavs", f"--manual_dir={source}", f"--output={output}"]
    assert derive_moments.main(flags) == 0
    assert "train: " in capsys.readouterr().out
    clips, _, _ = refer_clips.list_clips(source)
    lines = {}
    for split in ("train", "val", "test"):
        for line in map(json.loads, (output / f"moments_{split}.jsonl").read_text().splitlines()):
            lines[line["qid"]] = (split, line)
    in_view = 0
    for clip in [clip for listed in clips.values() for clip in listed]:
        masks = clip.masks()
        for row in clip.rows:
            if row.is_null:
                assert row.uid not in lines
                continue
            shown = [
                t for t, p in enumerate(masks[row.fid]) if decode_labels(p.read_bytes(), 2).any()
            ]
            if not shown:
                assert row.uid not in lines
                continue
            in_view += 1
            split, line = lines.pop(row.uid)
            assert split == row.split.split("_")[0] and line["domain"] == row.split
            assert line["query"] == row.text and line["vid"] == clip.folder
            assert line["relevant_clip_ids"] == shown
            assert line["relevant_windows"] == avs_moments.runs(shown)
            assert np.load(output / f"features/energy/{clip.folder}.npy").shape == (10, 1)
    assert in_view and not lines
    assert derive_moments.main([*flags, "--dataset=refavs/other"]) == 1
    assert "no layout 'other'" in capsys.readouterr().err

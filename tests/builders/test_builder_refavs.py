"""Ref-AVS: what goes in comes back once per clip, and all that is wrong is listed."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.records import Records
from avs_jax.data.tokens import read_vocabulary
from avs_jax.generate import datasets
from avs_jax.programs import build_dataset
from avs_jax.spec import EXPRESSION_KINDS, InputError
from tfds_builders.refer_clips import read_expressions

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIP, NULL = "aaa111_0_10000", "null_c-bbb222_5000_15000"


@pytest.fixture
def source(tmp_path, golden_dir):
    return shutil.copytree(golden_dir / "refer" / "refavs", tmp_path / "refavs")


def build(source, *flags):
    where = [f"--manual_dir={source}", f"--data_dir={source.parent / 'data'}"]
    return build_dataset.main(["--dataset=refavs", *where, *flags])


def records(source, split):
    return Records(source.parent / "data" / "refavs" / "release" / "1.1.0", split)


def test_the_published_layout_reads_back(source, capsys):
    assert build(source) == 0
    out = capsys.readouterr().out
    assert "expressions: train 2, val 1, test_u 2, test_n 1; 1 null; 1 of split TODO dropped" in out
    assert "test_u: 2 in the csv, 1 of classes that train lacks" in out
    train = records(source, "train")
    assert len(train) == 2 and train.metadata["num_clips"] == 4
    first, second = train[0], train[1]
    assert (first["item"], second["item"], train[-1]["item"]) == (0, 1, 1)
    assert first["expressions"][0] == b"The dog that barks first, then stops"
    assert second["uids"][1] == f"{CLIP}_man_2".encode() and second["vid"] == CLIP.encode()
    folder = source / "gt_mask" / CLIP
    for place, fid in enumerate((0, 1)):
        want = [(folder / f"fid_{fid}" / f"0000{t}.png").read_bytes() for t in range(10)]
        assert list(first["masks"])[10 * place : 10 * place + 10] == want
    assert first["frames"][9] == (source / "media" / CLIP / "frames" / "9.jpg").read_bytes()
    assert len(first["waveform"]) == 10 * first["sample_rate"]
    unseen = records(source, "test_u")
    assert unseen[0]["is_seen"].tolist() == [False, True]
    assert records(source, "test_n")[0]["is_null"].tolist() == [True]
    words = read_vocabulary(source.parent / "data" / "refavs" / "release" / "1.1.0/vocabulary.json")
    assert {"dog", "barks", ","} <= set(words) and "violin" not in words
    with pytest.raises(IndexError):
        train[2]
    path = source.parent / "data" / "refavs" / "release" / "1.1.0" / "metadata.json"
    noted = json.loads(path.read_text())
    path.write_text(json.dumps(noted | {"items": {"train": [0]}}))
    with pytest.raises(InputError, match="items of 'train'"):
        records(source, "train")


def test_everything_wrong_is_listed(source, capsys):
    (source / "gt_mask" / CLIP / "fid_1" / "00003.png").unlink()
    shutil.rmtree(source / "gt_mask" / NULL)  # tolerated: nothing is meant
    Image.new("L", (30, 30)).save(source / "gt_mask" / CLIP / "fid_0" / "00000.png")
    Image.new("L", (128, 96)).save(source / "gt_mask" / CLIP / "fid_0" / "00001.png")  # 2 : 1
    (source / "media" / CLIP / "frames" / "2.jpg").write_bytes(b"no image")
    (source / "media" / "ccc333_20000_30000" / "audio.wav").unlink()
    assert build(source) == 1
    err = capsys.readouterr().err
    for text in ("fid_1/00003.png: missing", "fid_0/00000.png: 30x30 px, but the frames are"):
        assert text in err
    assert "2.jpg: unreadable image" in err and "audio.wav: missing" in err
    assert "00001.png" not in err and NULL not in err
    assert build(source, "--skip_bad") == 0
    null = records(source, "test_n")
    assert len(null) == 1 and not len(null[0]["fids"]) and not len(null[0]["masks"])


def test_a_null_row_with_a_mask_is_wrong(source, capsys):
    Image.new("L", (64, 48), 255).save(source / "gt_mask" / NULL / "fid_0" / "00004.png")
    assert build(source) == 1
    assert "00004.png: marks 3072 pixels, but its expression is null" in capsys.readouterr().err


def write_csv(path, rows, encoding="utf-8", newline="\n"):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, lineterminator=newline)
        writer.writerow(["vid", "uid", "split", "fid", "exp"])
        writer.writerows(rows)


def test_expressions_nobody_expects(tmp_path):
    path = tmp_path / "metadata.csv"
    texts = ['"quoted", and\na new line', "an emoji \U0001f600", "bell\x07", "trailing "]
    rows = [["a_0_1", f"a_0_1_dog_{i}", "train", "0", text] for i, text in enumerate(texts)]
    write_csv(path, rows, encoding="utf-8-sig", newline="\r\n")
    found, dropped, problems = read_expressions(path)
    assert [row.text for row in found] == texts and not problems and not dropped
    bad = {
        "a_0_1_dog_0": "listed twice",
        "../x_dog_1": "cannot be the name of a folder",
        "b_0_1_dog_1": "is of folder b_0_1, expected a_0_1",
        "dog": "expected {DIR}_{class}_{n}",
    }
    rows = [["a_0_1", "a_0_1_dog_0", "train", "0", "dog"]]
    rows += [["a_0_1", uid, "train", "0", "dog"] for uid in bad]
    rows += [["..", "a_0_1_dog_2", "train", "0", "dog"], ["a_0_1", "a_0_1_dog_3", "x", "0", "dog"]]
    rows += [["a_0_1", "a_0_1_dog_4", "train", "-1", "dog"]]
    rows += [["a_0_1", f"a_0_1_dog_{5 + i}", "train", "0", t] for i, t in enumerate(("", "\x00 "))]
    rows += [["a_0_1", "a_0_1_dog_7", "train", "0", "word " * 10_000], ["a_0_1", "TODO"]]
    rows += [["a_0_1", "a_0_1_dog_8", "TODO", "0", ""]]
    write_csv(path, rows)
    found, dropped, problems = read_expressions(path)
    assert len(found) == 1 and dropped == 1 and len(problems) == len(rows) - 2
    wanted = [*bad.values(), "vid '..'", "split 'x'", "fid '-1'", "empty expression"]
    wanted += ["empty expression", "has 50,000 characters, at most 1,000", "not 5 fields"]
    for text, problem in zip(wanted, problems, strict=True):
        assert text in problem, problem
    path.write_text("vid,uid,split\n")
    with pytest.raises(InputError, match="expected vid, uid, split, fid, exp"):
        read_expressions(path)


def test_generated_clips_build(tmp_path, capsys):
    source = tmp_path / "clips"
    datasets.write_clips(source, 2, 1, 1, size=32, workers=0, setting="refer")
    assert build(source) == 0
    details = json.loads((source / "generated_details.json").read_text())["expressions"]
    total = 0
    for split in ("train", "val", "test_s", "test_u", "test_n"):
        found = records(source, split)
        total += len(found)
        for record in found:
            uid = record["uids"][record["item"]].decode()
            assert bool(record["is_null"][record["item"]]) == details[uid].startswith("null")
            kind = int(record["kinds"][record["item"]])
            assert ("null_c", *EXPRESSION_KINDS)[kind] == details[uid].replace("_m", "_c")
    assert total == len(details)
    assert not any(np.any(record["is_seen"]) for record in records(source, "test_u"))


def test_another_process_takes_finished_shards_for_current(source):
    """Hashes of strings differ between processes, and with them the order of a set."""
    code = (
        "import pathlib, sys\n"
        "from tfds_builders.refer_clips import list_clips\n"
        "from tfds_builders.shards import source_digest\n"
        "clips, *_ = list_clips(pathlib.Path(sys.argv[1]))\n"
        "print([source_digest(group) for group in clips.values()])"
    )
    names = [f"{CLIP}_{word}_9" for word in ("tuba", "frog", "boat", "wolf", "harp", "drum")]
    with open(source / "metadata.csv", "a", newline="") as file:
        csv.writer(file).writerows([CLIP, name, "train", "0", "a thing"] for name in names)
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(source)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1

"""Checking a download of Ref-AVS: counts of expressions, and each kind of damage at once."""

import json
import shutil

import pytest
from PIL import Image

from avs_jax.data.avsbench_folders import MANIFEST
from avs_jax.programs import prepare_avsbench
from tfds_builders.refavs_check import find_refavs

CLIP, NULL = "aaa111_0_10000", "null_c-bbb222_5000_15000"


@pytest.fixture
def source(tmp_path, golden_dir):
    return shutil.copytree(golden_dir / "refer" / "refavs", tmp_path / "refavs")


def check(folder, capsys):
    """Exit status, the report, and what was printed."""
    path = folder.parent / "report.json"
    status = prepare_avsbench.main(["check", str(folder), f"--json={path}"])
    (report,) = json.loads(path.read_text())
    return status, report, capsys.readouterr().out


def test_a_part_of_the_published_set(source, capsys):
    status, report, text = check(source, capsys)
    assert status == 1  # most of it is missing
    assert [problem["kind"] for problem in report["problems"]] == ["count"] * 5
    assert "train: 2 usable rows, expected 14113" in text
    assert report["unit"] == "expressions"
    assert report["splits"]["test_u"] == {"expected": 1656, "listed": 2, "good": 2}
    assert report["wavs"] == {
        "rates": {"2000": 4},
        "channels": {"1": 4},
        "shortest": 10.0,
        "longest": 10.0,
        "shorter_than_frames": [],
    }
    assert "1 expressions refer to nothing; 1 rows of split TODO dropped" in text
    assert "test_u: 1 expressions of classes that train lacks" in text


def test_generated_clips_have_no_published_counts(source, capsys):
    (source / MANIFEST).write_text("{}")
    status, report, text = check(source, capsys)
    assert status == 0 and not report["problems"]
    assert "  test_n         ?       1       1" in text and "problems: none" in text


def test_every_damage_is_listed(source, capsys):
    (source / MANIFEST).write_text("{}")
    (source / "gt_mask" / CLIP / "fid_1" / "00003.png").unlink()
    Image.new("L", (64, 48), 255).save(source / "gt_mask" / NULL / "fid_0" / "00004.png")
    (source / "media" / CLIP / "frames" / "2.jpg").write_bytes(b"no image")
    shutil.rmtree(source / "media" / "ccc333_20000_30000")
    (source / "media" / "stray_0_10000").mkdir()
    csv = source / "metadata.csv"
    lines = csv.read_text().splitlines()
    lines.append("ddd444_0_10000,ddd444_0_10000_dog_0,train,x,the dog")  # a faulty row of media
    csv.write_text("\n".join(lines) + "\n")
    (source / "media" / "ddd444_0_10000").mkdir(exist_ok=True)
    status, report, text = check(source, capsys)
    found = {problem["message"]: problem["kind"] for problem in report["problems"]}
    assert len(found) == len(report["problems"])  # train and val share a folder
    expected = {
        "fid_1/00003.png: missing": "mask",
        "00004.png: marks 3072 pixels, but its expression is null": "mask",
        "frames/2.jpg: unreadable image": "frame",
        "ccc333_20000_30000: no such folder, but": "folder",
        "stray_0_10000: no row of metadata.csv names this clip": "folder",
        "fid 'x' of ddd444_0_10000_dog_0": "row",
    }
    assert status == 1 and len(found) == len(expected)
    for message, kind in expected.items():
        (line,) = [m for m in found if message in m]
        assert found[line] == kind and line in text
    assert report["splits"]["train"] == {"expected": None, "listed": 2, "good": 0}


def test_avss_is_not_taken_for_it(tmp_path):
    (tmp_path / "metadata.csv").write_text("vid,uid,s_min,s_sec,a_obj,split,label\n")
    assert find_refavs(tmp_path) is None
    (tmp_path / "metadata.csv").write_text("\ufeffvid,uid,split,fid,exp\r\n")
    assert find_refavs(tmp_path) == tmp_path

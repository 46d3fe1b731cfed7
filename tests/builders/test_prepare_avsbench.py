"""Checking a download finds each kind of damage; preparing it makes VCT's layout, once."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.avsbench_csv import read_rows
from avs_jax.data.avsbench_folders import MANIFEST, MS3, S4
from avs_jax.data.input_files import read_wav
from avs_jax.generate import datasets
from avs_jax.programs import prepare_avsbench
from tfds_builders import download_check, prepare_384
from tfds_builders.avsbench import list_clips
from tfds_builders.clip_files import read_clip

FOLDERS = {"s4": "Single-source", "ms3": "Multi-sources", "avss": "AVSBench_semantic"}
COUNTS = {"num_train": 2, "num_val": 1, "num_test": 2}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """All three settings; AVSS's clips bear the names of the others' as vid."""
    folder = tmp_path_factory.mktemp("download")
    for setting, name in FOLDERS.items():
        options = dict(seed=5, size=32, workers=1, setting=setting)
        datasets.write_clips(folder / name, **COUNTS, **options)
    return folder


@pytest.fixture
def download(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "download")


def check(folder, capsys):
    """Exit status, problems by kind, and what was printed."""
    path = folder.parent / "report.json"
    status = prepare_avsbench.main(["check", str(folder), f"--json={path}"])
    problems = [p for report in json.loads(path.read_text()) for p in report["problems"]]
    return status, problems, capsys.readouterr().out


def test_a_good_download(download, capsys):
    status, problems, text = check(download, capsys)
    assert status == 0 and problems == []
    assert "Single-source (S4), layout object224" in text
    assert "Multi-sources (MS3), layout object224" in text
    assert "AVSBench-semantic (AVSS), layout original" in text
    assert "  train          2       2       2" in text and text.count("problems: none") == 3
    assert "5 at 48000 Hz; 5.0 to 10.0 s; 0 shorter" in text
    assert "at most" in text and "config.data.max_targets" in text
    report = json.loads((download.parent / "report.json").read_text())[2]
    assert report["splits"]["test"] == {"expected": 2, "listed": 2, "good": 2}
    assert report["wavs"]["rates"] == {"48000": 5} and 2 <= report["max_classes"] <= 4
    assert prepare_avsbench.main(["check", str(download / "Multi-sources")]) == 0


S4_CLIP = "Single-source/s4_data/{}/train/helicopter/train_5_00000"


def missing_mask(folder):
    path = folder / S4_CLIP.format("gt_masks") / "train_5_00000_1.png"
    path.unlink()
    return "mask", f"{path}: missing"


def truncated_png(folder):
    path = next(folder.glob("Multi-sources/ms3_data/visual_frames/val*/*_2.png"))
    path.write_bytes(path.read_bytes()[:200])
    return "frame", f"{path}: unreadable image"


def wrong_size(folder):
    path = folder / "AVSBench_semantic/v2/train_5_00001/labels_semantic/9.png"
    Image.new("P", (16, 32)).save(path)
    return "mask", f"{path}: 16x32 px, expected 42x32"


def empty_wav(folder):
    path = folder / "AVSBench_semantic/v1s/test_5_00000/audio.wav"
    path.write_bytes(b"")
    return "wav", f"{path}: unreadable wav (empty)"


def wav_without_rate(folder):
    path = folder / "AVSBench_semantic/v1s/test_5_00000/audio.wav"
    path.write_bytes(path.read_bytes()[:24] + bytes(4) + path.read_bytes()[28:])
    return "wav", f"{path}: sampled at 0 Hz, expected 1000 to 384000"


def color_mask(folder):
    path = next(folder.glob("Multi-sources/ms3_data/pre_SAM_mask/val*/*_4_mask_color.png"))
    path.write_bytes(b"no picture")
    return "color mask", f"{path}: unreadable image"


def row_without_folder(folder):
    path = folder / "AVSBench_semantic/v2/test_5_00001"
    shutil.rmtree(path)
    return "folder", f"{path / 'frames'}: no such folder, but test_5_00001 is listed"


def folder_without_row(folder):
    path = folder / "Multi-sources/ms3_data/visual_frames/stray"
    path.mkdir()
    return "folder", f"{path}: no row of ms3_meta_data.csv names this clip"


def strange_split(folder):
    path = folder / "Single-source/s4_meta_data.csv"
    path.write_text(path.read_text().replace("helicopter,test", "helicopter,testing"))
    return "row", f"{path}, line 5: split 'testing' of test_5_00000 is none of train, val, test"


def missing_row(folder):
    path = folder / "AVSBench_semantic/metadata.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    return "count", "test: 1 usable rows, expected 2"


@pytest.mark.parametrize(
    "damage, more",
    [
        (missing_mask, []),
        (truncated_png, []),
        (wrong_size, []),
        (empty_wav, []),
        (wav_without_rate, []),
        (color_mask, []),
        (row_without_folder, []),
        (folder_without_row, []),
        (strange_split, ["count"]),  # one usable row less; its folder is not reported again
        (missing_row, ["folder"]),
    ],
)
def test_each_damage_is_found(download, capsys, damage, more):
    kind, message = damage(download)
    status, problems, text = check(download, capsys)
    assert status == 1
    assert sorted(p["kind"] for p in problems) == sorted([kind, *more])
    (problem,) = [p for p in problems if p["kind"] == kind]
    assert problem["message"].startswith(message) and message in text


def test_all_damages_at_once(download, capsys):
    damages = (missing_mask, truncated_png, empty_wav, folder_without_row, wrong_size)
    expected = [damage(download) for damage in damages]
    status, problems, text = check(download, capsys)
    assert status == 1 and len(problems) == len(expected)
    assert all(message in text for _, message in expected)


def test_expected_counts_of_the_real_sets(download, capsys):
    (download / "Single-source" / MANIFEST).unlink()
    _, problems, _ = check(download, capsys)
    assert [p["message"] for p in problems] == [
        "train: 2 usable rows, expected 3452",
        "val: 1 usable rows, expected 740",
        "test: 2 usable rows, expected 740",
    ]


def test_short_sounds_are_counted_not_refused(download, capsys):
    path = download / "AVSBench_semantic/v2/train_5_00001/audio.wav"
    (download / "AVSBench_semantic/v1s/train_5_00000/audio.wav").replace(path)  # 5 s for 10 frames
    shutil.copy(path, download / "AVSBench_semantic/v1s/train_5_00000/audio.wav")
    status, _, text = check(download, capsys)
    assert status == 0 and "5.0 to 10.0 s; 1 shorter than their frames" in text


def test_nothing_there(tmp_path, capsys):
    for command in ("check", "prepare"):
        assert prepare_avsbench.main([command, str(tmp_path)]) == 1
        assert "Single-source/s4_meta_data.csv" in capsys.readouterr().err
    (tmp_path / "s4_meta_data.csv").write_text("name,start,category,split\n")
    reports = download_check.check_setting(S4, tmp_path)
    assert (
        "holds neither s4_data/visual_frames nor s4_data_384"
        in reports[0]["problems"][0]["message"]
    )


# ---- prepare ----


def rename_semantic(folder):
    """Gives AVSS's rows the names of S4's and MS3's clips as vid, where the subset fits."""
    names = {
        "v1s": [row.name for row in read_rows(S4, folder / "Single-source")[0]],
        "v1m": [row.name for row in read_rows(MS3, folder / "Multi-sources")[0]],
    }
    source = folder / "AVSBench_semantic"
    rows = ["vid,uid,s_min,s_sec,a_obj,split,label"]
    for subset, clips in names.items():
        for name in clips:
            target = source / subset / f"{subset}-{name}"
            shutil.copytree(source / "v1m/moved", target)
            pre_masks = source / "pre_SAM_mask/AVSBench_semantic" / subset
            shutil.copytree(pre_masks.parent / "v1m/moved", pre_masks / f"{subset}-{name}")
            rows.append(f"{name},{subset}-{name},0,0,dog,train,{subset}")
    (source / "metadata.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture
def joinable(download):
    """A download whose AVSS part holds every clip of S4 and MS3."""
    source = download / "AVSBench_semantic"
    folder = next(path for path in (source / "v2").iterdir() if path.name.startswith("test"))
    shutil.copytree(folder, source / "v1m/moved")
    pre_masks = source / "pre_SAM_mask/AVSBench_semantic"
    shutil.copytree(pre_masks / "v2" / folder.name, pre_masks / "v1m/moved")
    rename_semantic(download)
    return download


def tree(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_prepare_makes_the_384_layout_once(joinable, capsys):
    assert prepare_avsbench.main(["prepare", str(joinable)]) == 0
    output = capsys.readouterr().out
    # S4: 5 clips of 5 frames and color masks; masks: 2 + 3 * 5
    assert "s4: 384 px files: 67 made, 0 kept" in output
    assert "ms3: 384 px files: 75 made, 0 kept" in output
    for folder, setting in (("Single-source", S4), ("Multi-sources", MS3)):
        root = joinable / folder
        clips, problems = list_clips(setting, root, setting.layout("vct384"))
        found = [read_clip(c)[1] for split in clips.values() for c in split]
        assert problems == [] and found == [[]] * 5
        for split, side in (("train", 384), ("test", 224)):
            clip = clips[split][0]
            with Image.open(clip.frames[0]) as frame, Image.open(clip.pre_masks[0]) as colors:
                assert frame.size == colors.size == (384, 384) and colors.mode == "P"
            for t, path in clip.masks.items():
                index = joinable / f"AVSBench_semantic/v1m/moved/labels_semantic/{t}.png"
                with Image.open(path) as made, Image.open(index) as classes:
                    mask = np.asarray(made)
                    resized = classes.resize((side, side), Image.Resampling.NEAREST)
                    want = np.asarray(resized) > 0
                np.testing.assert_array_equal(mask, want * np.uint8(255))
    before = tree(joinable)
    assert prepare_avsbench.main(["prepare", str(joinable)]) == 0
    assert "s4: 384 px files: 0 made, 67 kept" in capsys.readouterr().out
    assert tree(joinable) == before


def test_the_darkest_class_counts_as_foreground(tmp_path):
    """(0, 0, 64) is 7 as gray: a threshold above 0 would lose it."""
    colors = np.zeros((4, 6, 3), np.uint8)
    colors[1, 2] = (0, 0, 64)
    Image.fromarray(colors).save(tmp_path / "mask.png")
    with Image.open(io.BytesIO(prepare_384.resize_mask(tmp_path / "mask.png", 12))) as made:
        mask = np.asarray(made)
    assert mask.shape == (12, 12) and set(np.unique(mask)) == {0, 255}
    assert (mask[3:6, 4:6] == 255).all() and (mask == 255).sum() == 6


def test_prepare_resumes_and_names_what_is_missing(joinable, capsys):
    lost = joinable / "AVSBench_semantic/v1s/v1s-train_5_00001/frames/3.jpg"
    content = lost.read_bytes()
    lost.unlink()
    metadata = joinable / "AVSBench_semantic/metadata.csv"
    text = metadata.read_text()
    metadata.write_text(text.replace("val_5_00000,v1m-val_5_00000,0,0,dog,train,v1m\n", ""))
    assert prepare_avsbench.main(["prepare", str(joinable)]) == 1
    message = capsys.readouterr().err
    assert f"{lost}: missing" in message and "no v1m clip with vid val_5_00000" in message
    lost.write_bytes(content)
    metadata.write_text(text)
    assert prepare_avsbench.main(["prepare", str(joinable)]) == 0
    output = capsys.readouterr().out
    assert "s4: 384 px files: 1 made, 66 kept" in output
    assert "ms3: 384 px files: 15 made, 60 kept" in output


def test_prepare_makes_wavs_from_videos(download, capsys):
    shutil.rmtree(download / "AVSBench_semantic")
    lost = next((download / "Multi-sources/ms3_data/audio_wav/val").glob("*.wav"))
    original, _ = read_wav(lost)
    lost.unlink()
    assert prepare_avsbench.main(["prepare", str(download)]) == 0
    output = capsys.readouterr().out
    assert "ms3: wavs from videos: 1 made, 4 kept" in output
    assert "no AVSBench_semantic, so no 384 px variant" in output
    made, rate = read_wav(lost)
    assert rate == 16_000 and made.shape == original.shape
    assert np.corrcoef(made[:, 0], original[:, 0])[0, 1] > 0.8  # the video's sound is aac
    broken = next((download / "Single-source/s4_data/audio_wav/val").glob("*/*.wav"))
    broken.unlink()
    video = next((download / "Single-source/s4_data/raw_videos/val").glob("*/*.mp4"))
    video.write_bytes(video.read_bytes()[:500])
    assert prepare_avsbench.main(["prepare", str(download)]) == 1
    assert str(video) in capsys.readouterr().err and not broken.exists()

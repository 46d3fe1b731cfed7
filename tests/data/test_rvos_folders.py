"""The published folders of referring-video sets: frames and expressions, with or without masks."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from avs_jax.convert.mask_pickle import read_mask_pickle
from avs_jax.data.rvos_folders import VideoSet, rle_size
from avs_jax.data.rvos_truth import open_truth
from avs_jax.spec import InputError

SETS = ("davis17", "mevis", "revos", "ytvos")


@pytest.fixture
def make_tree(golden_dir, tmp_path):
    """Copies a set's published folder; ytvos has davis17's layout, but its own split."""

    def make(name):
        root = tmp_path / name
        if name != "ytvos":
            return shutil.copytree(golden_dir / "refer" / "rvos" / name, root)
        source = golden_dir / "refer" / "rvos" / "davis17"
        for part in ("", "meta_expressions"):
            shutil.copytree(source / part / "valid", root / part / "train")
        return root

    return make


@pytest.mark.parametrize("name", SETS)
def test_frames_and_expressions_of_every_layout(name, make_tree):
    root = make_tree(name)
    for file in root.rglob("mask_dict*"):
        file.unlink()
    videos = VideoSet(name, root)
    assert sum(len(group) for group in videos.of_videos().values()) == len(videos.expressions) > 0
    for video, names in videos.frames.items():
        parts = list(videos.windows(video, 4))
        assert [len(part) for part in parts] == [4, len(names) - 4][: len(parts)]
        frames = np.concatenate(parts)
        assert frames.shape == (len(names), 48, 64, 3) and frames.dtype == np.uint8
        with Image.open(videos.folder(video) / f"{names[-1]}.jpg") as image:
            np.testing.assert_array_equal(frames[-1], np.asarray(image))
    with pytest.raises(InputError, match=f"missing, so split {videos.split!r} of {name!r} cannot"):
        open_truth(videos, read_mask_pickle)


def test_a_split_without_masks_says_which_has_them(make_tree):
    root = make_tree("mevis")
    (root / "valid").mkdir()
    shutil.copy(root / "valid_u" / "meta_expressions.json", root / "valid")
    videos = VideoSet("mevis", root, "valid")
    assert videos.split == "valid" and len(videos.frames) == 2
    with pytest.raises(InputError, match="the split with public masks is 'valid_u'"):
        open_truth(videos, read_mask_pickle)


def test_frames_that_do_not_fit_say_why(make_tree):
    root = make_tree("mevis")
    videos = VideoSet("mevis", root)
    folder = videos.folder("0a1b2c")

    def fails(match):
        with pytest.raises(InputError, match=match):
            list(videos.windows("0a1b2c", 4))

    Image.new("RGB", (32, 48)).save(folder / "00005.jpg")
    fails("00005.jpg: 32x48 px, but the first frame has 64x48")
    (folder / "00004.jpg").write_bytes(b"\xff\xd8\xff")
    fails("00004.jpg: unreadable image")
    (folder / "00003.jpg").unlink()
    fails("00003.jpg: missing")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v["frames"].append("../x"), "'../x' is no name of a frame"),
        (lambda v: v["frames"].append("a/x"), "'a/x' is no name of a frame"),
        (lambda v: v["expressions"].update({"..": {"exp": "x"}}), "'..' is no name"),
        (lambda v: v["frames"].append("00000"), "a frame twice"),
        (lambda v: v["frames"].clear(), "without frames"),
        (lambda v: v["expressions"]["0"].update(type_id=float("inf")), "damaged .cannot convert"),
    ],
)
def test_damaged_names_and_numbers(change, match, make_tree):
    root = make_tree("mevis")
    path = root / "valid_u" / "meta_expressions.json"
    content = json.loads(path.read_text())
    change(content["videos"]["0a1b2c"])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=match):
        VideoSet("mevis", root)


def test_a_mask_of_infinite_size():
    """JSON may say so: Infinity, 1e400."""
    with pytest.raises(InputError, match="file: not an RLE"):
        rle_size(json.loads('{"size": [1e400, 2]}'), "file")

"""predict for SAM2, through the command line: images, videos, arrays, and bad prompts."""

import json

import numpy as np
import pytest
from PIL import Image

from avs_jax import predict
from avs_jax.data.video import read_frames
from avs_jax.inference.prompted_video import read_prompts
from avs_jax.spec import InputError
from tests.sam2_golden import save_smallest_sam2
from tests.video_files import steady, write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2") / "weights"
    save_smallest_sam2(folder)
    return folder


@pytest.fixture
def prompts(tmp_path):
    points, boxes = tmp_path / "points.json", tmp_path / "boxes.json"
    points.write_text(json.dumps({"dog": {"0": [[20, 10, 1], [3, 3, 0]]}}))
    boxes.write_text(json.dumps({"cat": {"1": [5, 5, 40, 30]}}))
    masks = tmp_path / "masks"
    masks.mkdir()
    index = np.zeros((48, 64), np.uint8)
    index[10:20, 10:20] = 7
    Image.fromarray(index).save(masks / "00002.png")
    return {"points": points, "boxes": boxes, "masks": masks}


@pytest.mark.slow
def test_folder_of_images(checkpoint, prompts, tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    rng = np.random.default_rng(0)
    for number in (2, 10, 1):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(frames / f"{number}.png")
    output = tmp_path / "out"
    argv = ["predict", f"--checkpoint={checkpoint}", f"--video={frames}", f"--output={output}"]
    argv += [f"--{name}={path}" for name, path in prompts.items()]
    assert predict.main(argv) == 0, capsys.readouterr().err
    assert "3 frames, 3 objects" in capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert results["objects"] == ["7", "cat", "dog"] and len(results["frames"]) == 3
    for name in results["objects"]:
        for number in range(3):
            mask = np.asarray(Image.open(output / "masks" / name / f"{number:05d}.png"))
            assert mask.shape == (48, 64) and set(np.unique(mask)) <= {0, 255}
            area = results["frames"][number]["objects"][name]["area"]
            assert area == pytest.approx((mask > 0).mean())
    assert len(list((output / "overlay").iterdir())) == 3


@pytest.mark.slow
def test_video_and_arrays(checkpoint, prompts, tmp_path, capsys):
    rng = np.random.default_rng(0)
    path = tmp_path / "clip.mp4"
    write(path, steady(0.25), rate=0)
    assert len(list(read_frames(path))) == 4
    output = tmp_path / "out"
    argv = ["predict", f"--checkpoint={checkpoint}"]
    video = [f"--video={path}", f"--output={output}", f"--points={prompts['points']}"]
    assert predict.main(argv + video) == 0, capsys.readouterr().err
    assert len(list((output / "masks" / "dog").iterdir())) == 4
    arrays = {
        "images": rng.integers(0, 255, (1, 2, 48, 64, 3), np.uint8),
        "boxes": np.array([[[[1, 2, 30, 40]], [[0, 0, 0, 0]]]], np.float32),
    }
    np.savez(tmp_path / "in.npz", **arrays)
    files = [f"--arrays={tmp_path}/in.npz", f"--output={tmp_path}/out.npz"]
    assert predict.main(argv + files) == 0, capsys.readouterr().err
    found = np.load(tmp_path / "out.npz")
    assert found["low_res_mask"].shape == (1, 2, 1, 16, 16)
    assert found["obj_ptr"].shape == (1, 2, 1, 32)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", "not JSON"),
        ("[1]", "a JSON list, expected an object"),
        ('{"../x": {"0": [[1, 2, 1]]}}', "'../x': letters"),
        ('{"a": {"first": [[1, 2, 1]]}}', "frame 'first' is not a whole number"),
        ('{"a": {"0": [[1, 2]]}}', "a, frame 0: expected points"),
        ('{"a": {"0": [["x", 2, 1]]}}', "a, frame 0: point .*'x', 2.*expected numbers .x, y."),
        ('{"a": {"0": [[1, 2, 5]]}}', "expected 0 or 1"),
        ('{"a": {"0": [[1, 2, [1]]]}}', "expected 0 or 1"),
        ('{"a": {"0": [{"x": 1, "y": 2, "on": 1}]}}', "a, frame 0: expected points"),
        ('{"a": {"0": 7}}', "a, frame 0: expected points"),
        ('{"a": {"0": [[NaN, 2, 1]]}}', "a coordinate is NaN"),
        (f'{{"a": {{"0": [[{10**400}, 2, 1]]}}}}', "expected numbers"),
        (json.dumps({"a": {"0": [[1, 2, 1]] * 1025}}), "1,025 points: expected at most"),
        ('{"a": {"0": [[1, 2, 1]], "00": [[3, 4, 1]]}}', "a, frame 0: given twice"),
        (json.dumps({"a": {"9" * 5000: [[1, 2, 1]]}}), "'9999.*is not a whole number"),
        ('{"a": {"-1": [[1, 2, 1]]}}', "frame '-1' is not a whole number"),
        ('{"-1": {"0": [[1, 2, 1]]}}', "object '-1': .* first a letter or a digit"),
        (json.dumps({"a" * 101: {"0": [[1, 2, 1]]}}), "at most 100"),
        ('{"a": {"0": []}}', "without points, box, mask or language"),
        ("{}", "no object in .*points.json"),
    ],
)
def test_prompts_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "points.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path, None, None)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"a": {"0": [1, 2, 3]}}', "a, frame 0: expected a box"),
        ('{"a": {"0": null}}', "a, frame 0: expected a box"),
        ('{"a": {"0": [1, 2, 3, "x"]}}', "expected numbers .left, top, right, bottom."),
        ('{"a": {"0": [1, 2, 3, Infinity]}}', "a coordinate is NaN or infinite"),
        ('{"a": {"0": [9, 2, 3, 4]}}', "expected left <= right and top <= bottom"),
    ],
)
def test_boxes_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "boxes.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(None, path, None)


def test_masks_that_cannot_be_read(tmp_path):
    """Frames are numbers, once each, and objects are numbers from 1 up."""

    def save(name, array):
        Image.fromarray(array).save(tmp_path / name)

    def refused(message):
        with pytest.raises(InputError, match=message):
            read_prompts(None, None, tmp_path)

    refused("no PNG in it")
    save("0.png", np.zeros((4, 4), np.uint8))
    refused(f"nothing to follow: no object in {tmp_path}")
    save("000.png", np.ones((4, 4), bool))
    refused("000.png: 0.png is of the same frame|0.png: 000.png is of the same frame")
    (tmp_path / "0.png").unlink()
    assert set(read_prompts(None, None, tmp_path)[0]) == {"1"}  # one bit: object 1
    save("1.png", np.zeros((4, 4, 3), np.uint8))
    refused(r"1.png: \(4, 4, 3\), expected one channel")
    (tmp_path / "1.png").write_bytes(b"no image")
    refused("1.png: unreadable image")
    (tmp_path / "1.png").rename(tmp_path / "first.png")
    refused("first.png: expected the number of a frame")


def test_language_prompts_the_first_frames(tmp_path):
    path = tmp_path / "language.npz"
    np.savez(path, dog=np.ones(32, np.float32), cat=np.ones((2, 32), np.float32))
    found = read_prompts(None, None, None, path, 3)
    assert set(found) == {0, 1, 2} and set(found[2]) == {"dog", "cat"}
    assert found[0]["dog"].language.shape == (1, 32) and found[0]["cat"].language.shape == (2, 32)
    np.savez(path, **{"../x": np.ones(32)})
    with pytest.raises(InputError, match="'../x': letters"):
        read_prompts(None, None, None, path)
    np.savez(path, dog=np.ones((1, 2, 3)))
    with pytest.raises(InputError, match="dog: language of shape"):
        read_prompts(None, None, None, path)

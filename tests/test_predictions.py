"""Predictions as files: what is read from them, what is refused, and the way there and back."""

import json

import numpy as np
import pytest
from PIL import Image

from avs_jax import evaluate as evaluation
from avs_jax.data import predictions
from avs_jax.data.clip import prepare_clip, prepare_labels
from avs_jax.data.colour_masks import CLASS_PALETTE
from avs_jax.data.pipeline import EvalBatches
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.results.counts import FrameCounter, FrameCounts
from avs_jax.spec import InputError
from configs.base import base_config

SCORE, NUM_CLIPS = 16, 4


class Source(list):
    """Records with the metadata that a builder leaves."""

    metadata = {"ground_truth": "drawn"}


def a_config(num_classes=2):
    config = base_config()
    config.data.dataset = "avsbench_s4" if num_classes == 2 else "avsbench_semantic/original"
    config.data.num_classes = num_classes
    config.data.image_size = 32
    config.data.num_frames = 3
    config.data.pre_masks = False
    config.evaluate.score_size = SCORE
    return config


def records(num_classes=2, side=16):
    """Clips of three frames, the last of two; the first clip has no mask on its second frame."""
    rng = np.random.default_rng(0)
    result = Source()
    for i in range(NUM_CLIPS):
        num_frames = 2 if i == NUM_CLIPS - 1 else 3
        index = [t for t in range(num_frames) if (i, t) != (0, 1)]
        masks = rng.integers(0, num_classes, (len(index), side, side), dtype=np.uint8)
        result.append(
            {
                "clip_id": f"clip.{i}",
                "category": ("dog", "cat")[i % 2],
                "category_label": 1,
                "frames": [np.zeros((32, 32, 3), np.uint8)] * num_frames,
                "masks": list(masks),
                "mask_index": np.array(index),
                "waveform": np.zeros(48_000, np.int16),
                "sample_rate": 16_000,
            }
        )
    return result


@pytest.fixture
def clips(monkeypatch):
    """Makes evaluate_predictions read these records."""

    def use(source):
        monkeypatch.setattr(evaluation, "open_records", lambda config, split: source)
        return source

    return use


def random_predictions(config, seed=1):
    shape = (NUM_CLIPS, 3, SCORE, SCORE)
    rng = np.random.default_rng(seed)
    if config.data.num_classes == 2:
        return rng.random(shape, np.float32)
    return rng.integers(0, config.data.num_classes, shape, dtype=np.int32)


def write_all(config, source, pred, directory):
    for i in range(len(source)):
        batch = EvalBatches(source, config, 1)[i]
        predictions.write_batch(directory, config, pred[i : i + 1], batch)


def truth_of(config, source):
    return [prepare_labels(record, config) for record in source]


# ---- there and back ----


@pytest.mark.parametrize("num_classes", [2, 71])
def test_written_predictions_score_as_those_in_memory(clips, tmp_path, num_classes):
    config = a_config(num_classes)
    source = clips(records(num_classes))
    pred = random_predictions(config)
    write_all(config, source, pred, tmp_path / "masks")
    report = evaluation.evaluate_predictions(config, tmp_path / "masks", tmp_path / "out")
    folder = tmp_path / "out" / "evaluation" / "test"
    read = FrameCounts.load(folder / "counts.npz")

    counter = FrameCounter(num_classes, read.facts)
    counter.add(pred, EvalBatches(source, config, NUM_CLIPS)[0])
    counter.result().save(tmp_path / "counts.npz")
    assert (folder / "counts.npz").read_bytes() == (tmp_path / "counts.npz").read_bytes()
    assert report.facts["ground_truth"] == "drawn" and report.facts["frames"] == 10
    assert json.loads((folder / "report.json").read_text())["scores"] == report.scores
    assert report.notes == []


@pytest.mark.parametrize("num_classes", [2, 3])
def test_prepare_labels_is_the_ground_truth_of_prepare_clip(num_classes):
    config = a_config(num_classes)
    config.data.prototype_target = "none"
    for record in records(num_classes, side=40):
        want, got = prepare_clip(record, config), prepare_labels(record, config)
        assert set(got) == {
            "labels", "valid", "supervised", "frame_index", "clip_id", "category"
        }  # fmt: skip
        for name, value in got.items():
            np.testing.assert_array_equal(value, want[name])


# ---- layouts and kinds of files ----


@pytest.mark.parametrize(
    "dataset, want",
    [
        ("avsbench_s4/vct384", "dog/clip.0/clip.0_1"),
        ("avsbench_ms3", "clip.0/clip.0_1"),
        ("avsbench_semantic", "clip.0/0"),
    ],
)
def test_names_are_those_of_the_dataset(dataset, want):
    config = a_config()
    config.data.dataset = dataset
    assert predictions.file_stem(config, "clip.0", "dog", 0) == want
    config.data.dataset = "my_clips"
    with pytest.raises(InputError, match="my_clips"):
        predictions.file_stem(config, "clip.0", "dog", 0)


def read_one(tmp_path, save, num_classes=2, side=SCORE):
    """What is read where `save(stem)` wrote each frame of the one clip."""
    config = a_config(num_classes)
    (truth,) = truth_of(config, records(num_classes)[1:2])
    for t in range(3):
        stem = tmp_path / predictions.file_stem(config, truth["clip_id"], truth["category"], t)
        stem.parent.mkdir(parents=True, exist_ok=True)
        save(str(stem))
    files = predictions.PredictionFiles(tmp_path, config)
    pred = files.read_clip(truth)
    files.finish()
    assert files.num_read == 3 and files.num_resized == (0 if side == SCORE else 3)
    return pred[0]


def png(array, mode=None):
    image = Image.fromarray(array)
    return lambda stem: (image.convert(mode) if mode else image).save(f"{stem}.png")


def npy(array):
    return lambda stem: np.save(f"{stem}.npy", array)


def test_binary_files(tmp_path):
    rng = np.random.default_rng(3)
    mask = rng.random((SCORE, SCORE)) < 0.5
    prob = rng.random((SCORE, SCORE), np.float32)
    grey = rng.integers(0, 256, (SCORE, SCORE), dtype=np.uint8)
    palette = Image.fromarray(mask.astype(np.uint8))
    palette.putpalette([0, 0, 0, 128, 0, 0])
    cases = {
        "mask": (png(np.uint8(255) * mask), mask),
        "one_bit": (png(np.uint8(255) * mask, "1"), mask),
        "palette": (lambda stem: palette.save(f"{stem}.png"), mask),
        "grey": (png(grey), grey / np.float32(255)),
        "16_bit": (png(grey.astype(np.uint16) * 257), grey / np.float32(255)),
        "bool": (npy(mask), mask),
        "integers": (npy(mask.astype(np.int64)), mask),
        "probability": (npy(prob), prob),
        "float64": (npy(prob.astype(np.float64)), prob),
    }
    for name, (save, want) in cases.items():
        got = read_one(tmp_path / name, save)
        assert got.dtype == np.float32, name
        np.testing.assert_allclose(got, want, atol=1e-7, err_msg=name)
        if want.dtype == bool or "float64" in name:
            np.testing.assert_array_equal(got, want, err_msg=name)


def test_semantic_files(tmp_path):
    rng = np.random.default_rng(4)
    classes = rng.integers(0, 71, (SCORE, SCORE), dtype=np.uint8)
    scores = np.eye(71, dtype=np.float32)[classes]
    for name, save in {
        "grey": png(classes),
        "colours": png(CLASS_PALETTE[classes]),
        "integers": npy(classes.astype(np.int64)),
        "scores": npy(scores),
    }.items():
        got = read_one(tmp_path / name, save, num_classes=71)
        assert got.dtype == np.int32, name
        np.testing.assert_array_equal(got, classes, err_msg=name)


def test_other_sizes_are_resized(tmp_path):
    rng = np.random.default_rng(5)
    mask = rng.random((SCORE, SCORE)) < 0.5
    large = mask.repeat(3, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(read_one(tmp_path / "a", npy(large), side=48), mask)
    classes = rng.integers(0, 71, (40, 24), dtype=np.uint8)
    y, x = (((np.arange(SCORE) + 0.5) * n / SCORE).astype(int) for n in (40, 24))
    got = read_one(tmp_path / "d", npy(classes), num_classes=71, side=40)
    np.testing.assert_array_equal(got, classes[y][:, x])
    # Bilinear is exact on a plane, away from the border where it is clamped.
    y, x = (np.arange(n, dtype=np.float32) + 0.5 for n in (24, 40))
    plane = y[:, None] / 24 * 0.5 + x / 40 * 0.4
    s = (np.arange(SCORE) + 0.5) / SCORE
    got = read_one(tmp_path / "b", npy(plane), side=24)
    np.testing.assert_allclose(got, s[:, None] * 0.5 + s * 0.4, atol=1e-6)
    small = read_one(tmp_path / "c", npy(plane[:4, :4]), side=4)
    want = resize_bilinear(plane[:4, :4, None], (SCORE, SCORE))[..., 0]
    np.testing.assert_allclose(small, want, atol=1e-6)


# ---- what is refused ----


def test_every_problem_is_listed(clips, tmp_path):
    config = a_config()
    source = clips(records())
    write_all(config, source, random_predictions(config), tmp_path)
    (tmp_path / "dog/clip.0/clip.0_1.npy").unlink()
    (tmp_path / "dog/clip.0/clip.0_2.npy").unlink()  # that frame has no ground truth
    (tmp_path / "cat/clip.1/clip.1_1.npy").rename(tmp_path / "cat/clip.1/clip.1_9.npy")
    np.save(tmp_path / "cat/clip.1/clip.1_3.npy", np.zeros((8, 8), np.float32))
    np.save(tmp_path / "dog/clip.2/clip.2_1.npy", np.full((16, 16), 1.5, np.float32))
    np.save(tmp_path / "dog/clip.2/clip.2_2.npy", np.full((16, 16), 7))
    np.save(tmp_path / "dog/clip.2/clip.2_3.npy", np.zeros((16, 16, 3), np.float32))
    png(np.zeros((16, 16), np.uint8))(str(tmp_path / "cat/clip.3/clip.3_1"))
    (tmp_path / "cat/clip.3/clip.3_2.npy").write_bytes(b"damaged")
    with pytest.raises(InputError) as error:
        evaluation.evaluate_predictions(config, tmp_path)
    lines = str(error.value).splitlines()
    assert "9 problem" in lines[0]
    for line, words in zip(
        sorted(lines[1:]),
        [
            ("clip.1_3.npy", "(8, 8)", "(16, 16)"),
            ("clip.3_2.npy",),
            ("clip.2_1.npy", "outside 0..1"),
            ("clip.2_2.npy", "[7]"),
            ("clip.2_3.npy", "(16, 16, 3)"),
            ("missing", "clip.1_1.png"),
            ("missing", "clip.0_1.png"),
            ("of no frame", "clip.1_9.npy"),
            ("twice", "clip.3_1.npy", "clip.3_1.png"),
        ],
        strict=True,
    ):
        assert all(word in line for word in words), (line, words)
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    "array, num_classes, words",
    [
        (np.full((SCORE, SCORE), 1, np.uint8), 2, "0 and 255"),
        (np.full((SCORE, SCORE, 3), 255, np.uint8), 2, "mode RGB"),
        (np.full((SCORE, SCORE), 71, np.uint8), 71, r"classes \[71\]"),
        (np.full((SCORE, SCORE, 3), 3, np.uint8), 71, r"colour \[3, 3, 3\]"),
    ],
)
def test_masks_that_say_nothing_are_refused(tmp_path, array, num_classes, words):
    with pytest.raises(InputError, match=words):
        read_one(tmp_path, png(array), num_classes)


def test_command_line(clips, tmp_path, capsys):
    config = a_config()
    source = clips(records())
    write_all(config, source, random_predictions(config), tmp_path / "p")
    arguments = ["evaluate", "--config=configs/s4_vct.py", "--config.data.num_frames=3"]
    sizes = [f"--config.evaluate.score_size={SCORE}", "--config.data.pre_masks=False"]
    assert evaluation.main([*arguments, *sizes, f"--predictions={tmp_path}/p", "--split=val"]) == 0
    assert "boundary_iou" in (tmp_path / "p" / "evaluation" / "val" / "report.md").read_text()
    for flags, words in (
        ([], "either --checkpoint or --predictions"),
        (["--predictions=a", "--checkpoint=b"], "either --checkpoint or --predictions"),
        (["--predictions=a", "--write_predictions=b"], "--write_predictions"),
        ([f"--predictions={tmp_path}/nothing"], "no such folder"),
    ):
        assert evaluation.main([*arguments, *flags]) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluation.main(["evaluate", "--help"])
    assert "<category>/<clip>/<clip>_<number>" in capsys.readouterr().out

"""Predictions as files: how they are read, which are refused, and writing and reading back."""

import functools

import numpy as np
import pytest
from PIL import Image

from avs_jax.data.clip import ClipRows
from avs_jax.data.pipeline import EvalBatches
from avs_jax.label_images import CLASS_PALETTE, indexed_image
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.results import metrics, segmentation
from avs_jax.results.predictions import PredictionFiles, write_batch
from avs_jax.spec import InputError
from avs_jax.tasks.segment import prediction_layout
from configs.segment import segment_config

SCORE, NUM_CLIPS = 16, 4


def a_config(num_classes=2):
    config = segment_config()
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
    result = []
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


def score_files(config, source, directory):
    """The table of a folder of predictions, and notes."""
    rows, layout = ClipRows(config), functools.partial(prediction_layout, config)
    facts = {"split": "test"}
    return segmentation.read_predictions(directory, source, facts, rows=rows, layout=layout)


def random_predictions(config, seed=1):
    shape = (NUM_CLIPS, 3, SCORE, SCORE)
    rng = np.random.default_rng(seed)
    if config.data.num_classes == 2:
        return rng.random(shape, np.float32)
    return rng.integers(0, config.data.num_classes, shape, dtype=np.int32)


def write_all(config, source, pred, directory):
    for i in range(len(source)):
        batch = EvalBatches(source, ClipRows(config), 1)[i]
        write_batch(directory, prediction_layout(config), pred[i : i + 1], batch)


def truth_of(config, source):
    return [ClipRows(config).prepare_labels(record) for record in source]


# ---- writing and reading back ----


@pytest.mark.parametrize("num_classes", [2, 71])
def test_written_predictions_score_as_those_in_memory(tmp_path, num_classes):
    config = a_config(num_classes)
    source = records(num_classes)
    pred = random_predictions(config)
    write_all(config, source, pred, tmp_path)
    table, notes = score_files(config, source, tmp_path)
    meter = segmentation.ClipMeter(num_classes, {"split": "test"})
    meter.add({"pred": pred}, EvalBatches(source, ClipRows(config), NUM_CLIPS)[0])
    want = meter.table()
    assert list(table.columns) == list(want.columns) and table.facts == want.facts
    for name, column in want.columns.items():
        np.testing.assert_array_equal(table[name], column)
    assert len(table.scored()) == 10 and notes == []


@pytest.mark.parametrize("num_classes", [2, 3])
def test_prepare_labels_is_the_ground_truth_of_a_whole_row(num_classes):
    config = a_config(num_classes)
    config.data.prototype_target = "none"
    for record in records(num_classes, side=40):
        want, got = ClipRows(config).prepare(record), ClipRows(config).prepare_labels(record)
        assert set(got) == {
            "labels", "objects", "valid", "supervised", "frame_index", "clip_id", "category"
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
    assert prediction_layout(config).stem("clip.0", "dog", 0) == want
    config.data.dataset = "my_clips"
    with pytest.raises(InputError, match="my_clips"):
        prediction_layout(config).stem("clip.0", "dog", 0)


def read_one(tmp_path, save, num_classes=2, side=SCORE):
    """What is read where `save(stem)` wrote each frame of the one clip."""
    config = a_config(num_classes)
    (truth,) = truth_of(config, records(num_classes)[1:2])
    for t in range(3):
        stem = tmp_path / prediction_layout(config).stem(truth["clip_id"], truth["category"], t)
        stem.parent.mkdir(parents=True, exist_ok=True)
        save(str(stem))
    files = PredictionFiles(tmp_path, prediction_layout(config))
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
    gray = rng.integers(0, 256, (SCORE, SCORE), dtype=np.uint8)
    palette = Image.fromarray(mask.astype(np.uint8))
    palette.putpalette([0, 0, 0, 128, 0, 0])
    white = Image.fromarray(np.uint8(255) * mask).convert("P")
    cases = {
        "mask": (png(np.uint8(255) * mask), mask),
        "one_bit": (png(np.uint8(255) * mask, "1"), mask),
        "16_bit_mask": (png(np.uint16(65535) * mask), mask),
        "opaque": (png(np.uint8(255) * mask, "LA"), mask),
        "palette": (lambda stem: palette.save(f"{stem}.png"), mask),
        "palette_255": (lambda stem: white.save(f"{stem}.png"), mask),
        "gray": (png(gray), gray / np.float32(255)),
        "16_bit": (png(gray.astype(np.uint16) * 257), gray / np.float32(255)),
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
        "gray": png(classes),
        "16_bit": png(classes.astype(np.uint16)),
        "palette": lambda stem: indexed_image(classes, CLASS_PALETTE).save(f"{stem}.png"),
        "colors": png(CLASS_PALETTE[classes]),
        "opaque": png(CLASS_PALETTE[classes], "RGBA"),
        "integers": npy(classes.astype(np.int64)),
        "scores": npy(scores),
    }.items():
        got = read_one(tmp_path / name, save, num_classes=71)
        assert got.dtype == np.int32, name
        np.testing.assert_array_equal(got, classes, err_msg=name)


def test_what_gray_files_hold_is_decided_by_folder(tmp_path):
    """One file with values between makes all of them probabilities, and those are interpolated."""
    config = a_config()
    (truth,) = truth_of(config, records()[1:2])
    mask = np.zeros((2 * SCORE, 2 * SCORE), np.uint8)
    mask[:, 11:] = 255
    between = mask.copy()
    between[0, 0] = 7
    # Nearest takes pixel 2 x + 1, bilinear the mean of 2 x and 2 x + 1.
    nearest, bilinear = np.arange(SCORE) >= 5, np.where(np.arange(SCORE) >= 6, 1.0, 0.0)
    bilinear[5] = 0.5
    for name, second, want in (("masks", mask, nearest), ("probabilities", between, bilinear)):
        for t in range(3):
            stem = tmp_path / name / prediction_layout(config).stem(truth["clip_id"], "cat", t)
            stem.parent.mkdir(parents=True, exist_ok=True)
            depth = np.uint16(257) if t else np.uint8(1)
            png(depth * (second if t == 1 else mask))(str(stem))
        files = PredictionFiles(tmp_path / name, prediction_layout(config))
        pred = files.read_clip(truth)
        files.finish()
        np.testing.assert_allclose(pred[:, 4], np.tile(want, (3, 1)), atol=1e-6)
        assert ["3 of 3 files resized to 16 px" in note for note in files.notes()] == [True]


@pytest.mark.parametrize("depth", [8, 16])
def test_the_ground_truth_itself_scores_1(tmp_path, depth):
    """As masks of either depth, at a size that is no multiple of the score size."""
    config = a_config()
    source = records(side=37)
    largest = np.array(2**depth - 1, f"uint{depth}")
    for record in source:
        for t, mask in zip(record["mask_index"], record["masks"], strict=True):
            stem = prediction_layout(config).stem(record["clip_id"], record["category"], t)
            (tmp_path / stem).parent.mkdir(parents=True, exist_ok=True)
            png(mask.astype(largest.dtype) * largest)(str(tmp_path / stem))
    table, _ = score_files(config, source, tmp_path)
    for protocol, scores in metrics.all_protocols(table).items():
        assert scores == dict.fromkeys(scores, pytest.approx(1, abs=1e-6)), protocol


def test_inverted_palettes_are_noted(tmp_path):
    """The index counts, whatever color it is shown in."""
    config = a_config()
    (truth,) = truth_of(config, records()[1:2])
    mask = np.zeros((SCORE, SCORE), bool)
    mask[3:8] = True
    for t, palette in enumerate(([0, 0, 0, 255, 0, 0], [255, 255, 255, 0, 0, 0], [0] * 6)):
        stem = tmp_path / prediction_layout(config).stem(truth["clip_id"], truth["category"], t)
        stem.parent.mkdir(parents=True, exist_ok=True)
        indexed_image(mask, np.array(palette, np.uint8)).save(f"{stem}.png")
    files = PredictionFiles(tmp_path, prediction_layout(config))
    np.testing.assert_array_equal(files.read_clip(truth), np.tile(mask, (3, 1, 1)))
    files.finish()
    (note,) = files.notes()
    assert "1 palette masks look inverted" in note and "clip.1_2.png" in note


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


def test_every_problem_is_listed(tmp_path):
    config = a_config()
    source = records()
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
        score_files(config, source, tmp_path)
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


def test_a_damaged_png_is_listed_once(tmp_path):
    """Also that of a frame that is not scored: it may have decided what the gray pngs are."""
    config = a_config()
    source = records()
    write_all(config, source, random_predictions(config), tmp_path)
    damaged = ["dog/clip.0/clip.0_2", "cat/clip.1/clip.1_2"]  # without and with ground truth
    for stem in damaged:
        (tmp_path / f"{stem}.npy").unlink()
        (tmp_path / f"{stem}.png").write_bytes(b"damaged")
    with pytest.raises(InputError) as error:
        score_files(config, source, tmp_path)
    lines = str(error.value).splitlines()
    assert "2 problem" in lines[0] and len(lines) == 3
    for line, stem in zip(lines[1:], damaged, strict=True):
        assert line.strip().startswith(str(tmp_path / f"{stem}.png: ")), line
        assert "unreadable image (not PNG or JPEG)" in line


RGBA_IN_ALPHA = np.zeros((SCORE, SCORE, 4), np.uint8)
RGBA_IN_ALPHA[2:9, 3:7, 3] = 255


@pytest.mark.parametrize(
    "array, num_classes, words",
    [
        (np.full((SCORE, SCORE), 1, np.uint8), 2, "above 1 .brightest: .*png.*0 and 255"),
        (np.full((SCORE, SCORE), 1, np.uint16), 2, "above 255 .brightest: .*png.*0 and 65535"),
        (np.full((SCORE, SCORE), 255, np.uint16), 2, "above 255 .brightest: .*png.*0 and 65535"),
        (RGBA_IN_ALPHA, 2, "mode RGBA: the alpha channel differs"),
        (RGBA_IN_ALPHA[..., 2:], 2, "mode LA: the alpha channel differs"),
        (RGBA_IN_ALPHA, 71, "mode RGBA: the alpha channel differs"),
        (np.full((SCORE, SCORE, 3), 255, np.uint8), 2, "mode RGB"),
        (np.full((SCORE, SCORE), 71, np.uint8), 71, r"classes \[71\]"),
        (np.full((SCORE, SCORE, 3), 3, np.uint8), 71, r"color \[3, 3, 3\]"),
    ],
)
def test_files_that_could_be_read_in_two_ways_are_refused(tmp_path, array, num_classes, words):
    with pytest.raises(InputError, match=words):
        read_one(tmp_path, png(array), num_classes)

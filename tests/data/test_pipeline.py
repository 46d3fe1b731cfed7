"""From records to batches: the same on any number of workers and processes, without losses."""

import io
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from avs_jax import spec
from avs_jax.data import motion, pipeline
from avs_jax.data.audio import log_mel
from avs_jax.data.clip import FIELDS, ClipRows
from avs_jax.data.decode import decode_labels
from avs_jax.data.pipeline import Loader
from avs_jax.data.records import open_records
from tests.clip_records import SIDE, make_config, make_record, png
from tfds_builders import features


@pytest.fixture(scope="module")
def records():
    return [make_record(k) for k in range(7)]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if isinstance(a[name], list | str):
            assert a[name] == b[name]
        else:
            assert a[name].dtype == b[name].dtype, name
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


TRACKS = {"motion_track", "sound_track"}  # off by default
TRAIN_FIELDS = [k for k, field in FIELDS.items() if field.phase != "evaluate" and k not in TRACKS]


def prepare_clip(record, config, rng=None):
    return ClipRows(config).prepare(record, rng)


def TrainBatches(records, config, batch_size, *share, **options):  # noqa: N802
    rows = ClipRows(config)
    return pipeline.TrainBatches(records, rows, batch_size, config.seed, *share, **options)


def EvalBatches(records, config, *args):  # noqa: N802
    return pipeline.EvalBatches(records, ClipRows(config), *args)


def train_loader(config, batch_size, start_step=0):
    batches = TrainBatches(open_records(config, "train"), config, batch_size, start_step=start_step)
    return Loader(batches, config.data.num_workers, config.data.prefetch)


def rng(seed=3):
    return np.random.default_rng(seed)


# ---- one clip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["auto", "difference"])
@pytest.mark.parametrize("masks", [(0,), (2,), (1, 4)])
def test_supervised_frames_equal_those_of_all(masks, source):
    record = make_record(1, masks, flow=True)
    config = make_config(num_supervised=2)
    config.data.motion.source = source
    few = prepare_clip(record, config, rng())
    config.data.train_frames = "all"
    every = prepare_clip(record, config, rng())
    assert set(few) == set(TRAIN_FIELDS) == set(every)
    assert few["valid"].tolist() == [True] * len(masks) + [False] * (2 - len(masks))
    assert few["frame_index"][: len(masks)].tolist() == list(masks)
    assert np.flatnonzero(every["supervised"]).tolist() == list(masks)
    assert every["valid"].all() and every["frame_index"].tolist() == [0, 1, 2, 3, 4]
    for name in few:
        for row, t in enumerate(masks):
            np.testing.assert_array_equal(few[name][row], every[name][t], err_msg=name)
        assert not few[name][len(masks) :].any()
    unsupervised = [t for t in range(5) if t not in masks]
    assert not every["target_valid"][unsupervised].any()


def test_at_most_num_supervised_frames():
    record = make_record(0, masks=(0, 1, 2, 3, 4))
    for frames in ("supervised", "all"):
        clip = prepare_clip(record, make_config(train_frames=frames), rng())
        assert np.flatnonzero(clip["supervised"]).tolist() == [0]


def test_supervised_frames_may_be_drawn():
    record = make_record(0, masks=(0, 1, 2, 4))
    config = make_config(num_supervised=2, supervised_choice="random")
    seen = set()
    for seed in range(40):
        clip = prepare_clip(record, config, np.random.default_rng(seed))
        assert clip["valid"].all() and clip["supervised"].all()
        seen.add(tuple(clip["frame_index"].tolist()))
    assert seen == {(0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (2, 4)}
    config.data.num_supervised = 4  # nothing to draw: what follows from rng does not change
    first = make_config(num_supervised=4)
    np.testing.assert_array_equal(
        prepare_clip(record, config, rng())["images"], prepare_clip(record, first, rng())["images"]
    )
    config.data.supervised_choice = "last"
    with pytest.raises(ValueError, match="supervised_choice is 'last', expected one of"):
        prepare_clip(record, config, rng())


def test_fields_have_the_shapes_of_the_contract():
    config = make_config(train_frames="all")
    clip = prepare_clip(make_record(0), config, rng())
    sizes = {"T": 5, "H": 48, "W": 48, "M": 2}
    for name, pattern, dtype in [
        ("images", "T H W 3", np.uint8),
        ("pre_masks", "T H W 3", np.uint8),
        ("log_mel", "T 96 64", np.float32),
        ("motion", "T H W 1", np.float32),
        ("valid", "T", bool),
        ("supervised", "T", bool),
        ("frame_index", "T", np.int32),
        ("target_masks", "T M H W", bool),
        ("target_labels", "T M", np.int32),
        ("target_valid", "T M", bool),
        ("proto_target", "T 23", np.float32),
        ("proto_valid", "T", bool),
    ]:
        spec.check_shape(name, clip[name], pattern, **sizes)
        assert clip[name].dtype == dtype, name


def test_targets_and_prototype():
    config = make_config(train_frames="all")
    config.data.augment.min_sizes = (40,)  # 48 px: 8 rows and columns of padding
    clip = prepare_clip(make_record(0), config, rng())
    assert clip["target_labels"][0].tolist() == [0, 1] and clip["target_valid"][0].all()
    background, square = clip["target_masks"][0]
    assert (background ^ square)[:40, :40].all()
    assert not (background | square)[40:].any() and not (background | square)[:, 40:].any()
    bright = clip["images"][0].min(axis=-1) - 1.0 * clip["images"][0].min()
    assert bright[square].mean() > bright[background].mean() + 20
    assert clip["proto_valid"].tolist() == [True, False, False, False, False]
    assert (
        np.flatnonzero(clip["proto_target"][0]).tolist() == [19]
        and not clip["proto_target"][1:].any()
    )
    none = prepare_clip(make_record(0), make_config(prototype_target="none"), rng())
    assert not none["proto_valid"].any() and not none["proto_target"].any()


# ---- MS3 and AVSS: the same code, other configurations --------------------------------------


def test_ms3_supervises_every_frame_and_has_no_prototypes():
    config = make_config(num_supervised=5, prototype_target="none", num_prototypes=0)
    clip = prepare_clip(make_record(0, masks=(0, 1, 2, 3, 4)), config, rng())
    assert clip["supervised"].all() and clip["target_valid"].shape == (5, 2)
    assert clip["proto_target"].shape == (5, 0) and not clip["proto_valid"].any()


def semantic_config(**data):
    config = make_config(
        num_frames=10,
        num_supervised=10,
        num_classes=71,
        num_prototypes=71,
        max_targets=3,
        prototype_target="classes",
        short_audio="zeros",
        square_first=True,
        **data,
    )
    config.data.motion.source = "none"
    return config


def semantic_record(num_frames, masks, seconds=None, height=60, width=90):
    """Left half class 70, one column in three of the rest class 14, bright where class 70 is."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, : width // 2] = 70
    labels[:, width // 2 :: 3] = 14
    image = np.where(labels[..., None] == 70, np.uint8(230), np.uint8(20)).repeat(3, -1)
    seconds = num_frames if seconds is None else seconds
    samples = np.random.default_rng(0).integers(-9000, 9000, (48_000 * seconds, 2))
    return make_record(0) | {
        "frames": [png(image)] * num_frames,
        "pre_masks": [png(image)] * num_frames,
        "masks": [png(labels)] * len(masks),
        "mask_index": np.array(masks, np.int32),
        "waveform": samples.astype(np.int16),
        "sample_rate": np.int32(48_000),
        "category": "dog",
        "category_label": np.int32(0),
    }


@pytest.mark.parametrize("frames, masks", [(5, [0]), (5, range(5)), (10, range(10))])
def test_semantic_clips_of_five_and_ten_frames(frames, masks):
    """v1s, v1m and v2: one row per supervised frame, padded to ten."""
    clip = prepare_clip(semantic_record(frames, list(masks)), semantic_config(), rng())
    count = len(masks)
    assert clip["valid"].tolist() == [True] * count + [False] * (10 - count)
    assert (clip["supervised"] == clip["valid"]).all()
    assert clip["frame_index"][:count].tolist() == list(masks)
    for name in ("images", "log_mel", "target_masks", "target_valid", "proto_target"):
        assert clip[name][:count].any() and not clip[name][count:].any(), name


def test_semantic_targets_are_the_classes_present():
    clip = prepare_clip(semantic_record(10, range(10)), semantic_config(), rng(1))
    for row in range(10):
        labels = clip["target_labels"][row][clip["target_valid"][row]].tolist()
        assert labels == np.flatnonzero(clip["proto_target"][row]).tolist()  # background too
        assert set(labels) <= {0, 14, 70} and 0 in labels and len(labels) >= 2
    assert clip["proto_valid"].all() and clip["proto_target"].shape == (10, 71)
    with pytest.raises(ValueError, match=r"more than config.data.max_targets = 2"):
        config = semantic_config()
        config.data.max_targets = 2
        prepare_clip(semantic_record(10, range(10)), config, rng(1))
    with pytest.raises(ValueError, match="num_prototypes = 23 and config.data.num_classes = 71"):
        config = semantic_config()
        config.data.num_prototypes = 23
        prepare_clip(semantic_record(10, range(10)), config, rng(1))


def test_frames_are_squared_before_augmentation():
    """A clip of 60 x 90 px trains exactly as its squashed copy does."""
    record = semantic_record(5, [0])
    squashed = dict(record)
    for field, resample in (("frames", 2), ("pre_masks", 0), ("masks", 0)):
        images = [Image.open(io.BytesIO(data)) for data in record[field]]
        squashed[field] = [png(np.asarray(i.resize((60, 60), resample))) for i in images]
    clip = prepare_clip(record, semantic_config(), rng())
    assert_equal(clip, prepare_clip(squashed, semantic_config(), rng()))
    config = semantic_config()
    config.data.square_first = False
    assert (prepare_clip(record, config, rng())["images"] != clip["images"]).any()


def test_missing_sound_is_zeros_or_the_last_second():
    record = semantic_record(10, range(10), seconds=3)
    config = semantic_config()
    mel = prepare_clip(record, config)["log_mel"]
    assert mel[:3].any((1, 2)).all() and not mel[3:].any()
    config.data.short_audio = "repeat"
    mel = prepare_clip(record, config)["log_mel"]
    assert (mel[3:] == mel[2]).all()


def test_semantic_evaluation_keeps_classes_and_pads():
    clip = prepare_clip(semantic_record(5, range(5)), semantic_config())
    assert clip["valid"].tolist() == [True] * 5 + [False] * 5
    assert set(np.unique(clip["labels"][:5])) == {0, 14, 70}
    assert (clip["labels"][5:] == 255).all() and not clip["images"][5:].any()


def test_a_frame_without_object_has_one_target():
    record = make_record(0) | {"masks": [png(np.zeros((SIDE, SIDE), np.uint8))]}
    clip = prepare_clip(record, make_config(), rng())
    assert clip["target_valid"].tolist() == [[True, False]]
    assert clip["target_labels"].tolist() == [[0, 0]] and not clip["target_masks"][0, 1].any()


def test_evaluation_squashes_and_labels_every_frame():
    record = make_record(2, masks=(0, 1, 3))
    config = make_config()
    clip = prepare_clip(record, config)
    assert clip["clip_id"] == "clip2" and clip["category"] == "dog_barking"
    assert set(np.unique(clip["labels"][[0, 1, 3]])) == {0, 1}
    assert (clip["labels"][[2, 4]] == spec.IGNORE_LABEL).all()
    assert clip["supervised"].tolist() == [True, True, False, True, False]
    square = np.asarray(Image.open(io.BytesIO(record["masks"][0])).resize((32, 32), 0)) > 0
    np.testing.assert_array_equal(clip["labels"][0], square)
    colors = {tuple(c) for c in clip["pre_masks"].reshape(-1, 3)}
    assert colors == {(0, 0, 255), (255, 127, 0)}  # nearest: no blended colors
    want = log_mel(record["waveform"], 16_000)
    np.testing.assert_array_equal(clip["log_mel"], want)


def test_a_record_of_a_video_needs_no_masks():
    images = np.random.default_rng(0).integers(0, 255, (3, 50, 30, 3), dtype=np.uint8)
    record = {
        "clip_id": "own.mp4",
        "frames": list(images),
        "masks": [],
        "mask_index": [],
        "waveform": np.zeros((3 * 48_000, 2), np.int16),
        "sample_rate": 48_000,
    }
    clip = prepare_clip(record, make_config(pre_masks=False))
    assert clip["valid"].tolist() == [True, True, True, False, False]
    assert not clip["images"][3:].any() and clip["images"][:3].any()
    assert (clip["labels"] == 255).all() and clip["images"].shape == (5, 48, 48, 3)


def test_motion_sources():
    record = make_record(0, flow=True)
    config = make_config()
    config.data.image_size = SIDE
    stored = prepare_clip(record, config)["motion"][..., 0]
    assert stored[:, 25, 10] == pytest.approx(1, abs=1e-3) and not stored[:, :19].any()
    np.testing.assert_array_equal(stored[0], stored[1])
    config.data.motion.source = "difference"
    difference = prepare_clip(record, config)["motion"][..., 0]
    assert difference.max() == 1 and difference[2, 25, 11:20].max() == 0  # inside the square
    assert difference[2, 25, 9] > 0.2 and not difference[:, :19].any()
    np.testing.assert_array_equal(difference[0], difference[1])
    config.data.motion.first_frame = "zeros"
    assert not prepare_clip(record, config)["motion"][0].any()
    still = record | {"frames": record["frames"][:1] * 5}
    config.data.motion.first_frame = "next"
    assert not prepare_clip(still, config)["motion"].any()


def test_motion_arithmetic():
    flow = np.zeros((2, 2, 2), np.float16)
    flow[0, 0], flow[1, 1] = (3, 4), (0, -1)
    np.testing.assert_allclose(motion.flow_strength(flow), [[1, 0], [0, 0.2]], atol=1e-6)
    one = np.full((1, 2, 3), 10, np.uint8)
    two = np.array([[[10, 10, 10], [4, 10, 13]]], np.uint8)
    np.testing.assert_array_equal(motion.frame_difference(one, two), [[0, 1]])


def test_labels_by_kind_of_image():
    gray = np.array([[0, 1, 255]], np.uint8)
    assert decode_labels(png(gray), 2).tolist() == [[0, 1, 1]]
    color = np.zeros((1, 3, 3), np.uint8)
    color[0, 1] = (0, 0, 9)
    assert decode_labels(png(color), 2).tolist() == [[0, 1, 0]]
    assert decode_labels(np.array([[0, 70, 255]]), 71).tolist() == [[0, 70, 255]]
    with pytest.raises(ValueError, match=r"\[71\].*0 to 70"):
        decode_labels(np.array([[71]]), 71)


def test_errors_name_the_clip_and_the_remedy():
    config = make_config()
    with pytest.raises(ValueError, match="clip clip0: .*--config.data.pre_masks=False"):
        prepare_clip(make_record(0) | {"pre_masks": []}, config)
    with pytest.raises(ValueError, match="clip clip0: 5 frames.*num_frames = 3"):
        prepare_clip(make_record(0), make_config(num_frames=3))
    with pytest.raises(ValueError, match="clip clip0: .*too short"):
        prepare_clip(make_record(0) | {"waveform": np.zeros(100, np.int16)}, config)
    with pytest.raises(ValueError, match="clip clip0"):
        prepare_clip(make_record(0) | {"frames": [b"not an image"] * 5}, config)
    with pytest.raises(ValueError, match="category_label is 24"):
        prepare_clip(make_record(0) | {"category_label": 24}, config, rng())
    with pytest.raises(ValueError, match="'every'.*'supervised', 'all'"):
        prepare_clip(make_record(0), make_config(train_frames="every"), rng())


# ---- batches -----------------------------------------------------------------------------------


def test_every_epoch_holds_every_clip_once_in_another_order(records):
    config = make_config(pre_masks=False)
    batches = TrainBatches(records, config, batch_size=3)
    sounds = np.stack([log_mel(r["waveform"], 16_000)[0] for r in records])
    seen = np.concatenate([batches[step]["log_mel"][:, 0] for step in range(7)])  # 3 epochs of 7
    order = [int(np.abs(sounds - sound).sum((1, 2)).argmin()) for sound in seen]
    epochs = [order[k : k + 7] for k in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_augmentation_changes_with_the_epoch_only(records):
    batches = TrainBatches(records[:1], make_config(), batch_size=1)
    assert_equal(batches[0], batches[0])
    assert (batches[0]["images"] != batches[1]["images"]).any()


def test_processes_share_the_batch(records):
    config = make_config()
    whole = TrainBatches(records, config, 4)[5]
    parts = [TrainBatches(records, config, 4, p, 2)[5] for p in range(2)]
    assert_equal(whole, {k: np.concatenate([part[k] for part in parts]) for k in whole})
    with pytest.raises(ValueError, match="4 rows cannot be shared by 3"):
        TrainBatches(records, config, 4, 0, 3)


def take(batches, count, **options):
    with Loader(batches, **options) as loader:
        iterator = iter(loader)
        return [next(iterator) for _ in range(count)]


def test_start_step_and_workers_change_nothing(records):
    """The position is the step: a later start or workers do not change the batches."""
    config = make_config()
    plain = TrainBatches(records, config, 2)
    want = [plain[step] for step in range(7)]
    for got, expected in zip(take(TrainBatches(records, config, 2), 7), want, strict=True):
        assert_equal(got, expected)
    late = TrainBatches(records, config, 2, start_step=4)
    for workers in (0, 2):
        got = take(late, 3, num_workers=workers)
        for a, b in zip(got, want[4:], strict=True):
            assert_equal(a, b)


def test_evaluation_counts_every_clip_once(records):
    config = make_config()
    batches = list(Loader(EvalBatches(records, config, 3)))
    assert [b["clip_id"] for b in batches] == [
        ["clip0", "clip1", "clip2"],
        ["clip3", "clip4", "clip5"],
        ["clip6", "", ""],
    ]
    assert all(b["images"].shape == (3, 5, 48, 48, 3) for b in batches)
    assert batches[2]["valid"].tolist() == [[True] * 5, [False] * 5, [False] * 5]
    assert (batches[2]["labels"][1:] == 255).all()
    shared = [list(Loader(EvalBatches(records, config, 2, p, 2))) for p in range(2)]
    assert [len(s) for s in shared] == [4, 4]
    names = [name for s in shared for b in s for name in b["clip_id"]]
    assert sorted(names) == ["", *(f"clip{k}" for k in range(7))]


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_propagate_from_the_loader(records, workers):
    broken = [*records[:2], records[2] | {"frames": [b"x"] * 5}]
    with pytest.raises(ValueError, match="clip clip2"):
        list(Loader(EvalBatches(broken, make_config(), 1), workers))


# ---- array_record files ------------------------------------------------------------------------


class TinyClips(tfds.core.GeneratorBasedBuilder):
    """Records with the features of the real builders."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return features.DatasetInfo(
            builder=self, features=features.record_features(), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for index in range(count):
            record = make_record(index, flow=index % 2 == 1)
            yield index, record | {"flow_has_first": False}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyClips(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


def test_batches_from_files(data_dir):
    config = make_config(dataset="tiny_clips", data_dir=str(data_dir))
    assert len(open_records(config, "train")) == 5
    in_memory = [make_record(index, flow=index % 2 == 1) for index in range(5)]
    with train_loader(config, 2, start_step=1) as loader:
        iterator = iter(loader)
        for step in (1, 2, 3):
            assert_equal(next(iterator), TrainBatches(in_memory, config, 2)[step])
    batches = list(Loader(EvalBatches(open_records(config, "test"), config, 2)))
    assert_equal(batches[1], EvalBatches(in_memory[:3], config, 2)[1])


def test_worker_processes_read_files(data_dir):
    config = make_config(dataset="tiny_clips", data_dir=str(data_dir), num_workers=1)
    with train_loader(config, 2) as loader:
        batch = next(iter(loader))
    config.data.num_workers = 0
    with train_loader(config, 2) as loader:
        assert_equal(batch, next(iter(loader)))


def test_missing_data_is_an_error(data_dir, tmp_path):
    config = make_config(data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/avsbench_s4"):
        train_loader(config, 2)
    config = make_config(dataset="tiny_clips", data_dir=str(data_dir))
    with pytest.raises(ValueError, match=r"'validation'.*\['test', 'train'\]"):
        open_records(config, "validation")


def test_variants_of_a_dataset(data_dir, tmp_path):
    """Builders with several configurations keep each in a folder of its own."""
    for variant in ("small", "large"):
        shutil.copytree(data_dir / "tiny_clips" / "1.0.0", tmp_path / "two" / variant / "1.0.0")
    config = make_config(dataset="two", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"\['two/large', 'two/small'\]"):
        open_records(config, "train")
    config.data.dataset = "two/large"
    assert len(open_records(config, "train")) == 5
    shutil.rmtree(tmp_path / "two" / "small")
    config.data.dataset = "two"
    assert len(open_records(config, "test")) == 3

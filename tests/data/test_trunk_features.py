"""Cached maps of a frozen image encoder: the same masks, and only from the model's own weights."""

import functools
import json
import pickle

import jax
import numpy as np
import pytest

from avs_jax.data.clip import ClipRows
from avs_jax.data.expressions import ExpressionRows
from avs_jax.data.trunk_features import (
    FeatureRows,
    TrunkFeatures,
    clip_rows,
    expression_rows,
    file_name,
    write_facts,
    write_features,
)
from avs_jax.inference.trunk_weights import encoder_weights, with_trunk_key
from avs_jax.models import build_model
from avs_jax.models.sam2.host import SAM2Host
from avs_jax.runtime.checkpoint import save_variables
from avs_jax.runtime.stored_config import check_same_config
from avs_jax.spec import TRUNK_MAPS, InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import complete_config, make_task
from configs import refer_sam2, s4_sam2, sam2, sam2_host
from scripts.cache_features import cache_records, make_encoder
from tests import small
from tests.conftest import GOLDEN
from tests.models.sam2.test_host import draw
from tfds_builders.refer_clips import list_clips

SHAPES = {"trunk_fine": (16, 16, 4), "trunk_middle": (8, 8, 8), "trunk_coarse": (4, 4, 32)}


def frozen_config():
    """`:tiny` with the trunk frozen and nothing augmented."""
    config = s4_sam2.get_config("tiny")
    config.optim.frozen = (r"sam2/(trunk|neck|conv_s\d)/.*", *sam2_host.UNUSED)
    config.data.augment.update(min_sizes=(64,), crop=False, color=False, flip=0.0)
    return config


def facts(folder, key="k", image_size=64):
    write_facts(folder, key, image_size, SHAPES)


def random_maps(count=5):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(count, *shape)) for name, shape in SHAPES.items()}


def test_rows_get_the_maps_of_their_frames(tmp_path):
    config, record = frozen_config(), small.records(1)[0]
    assert type(clip_rows(config)) is ClipRows
    config.data.trunk_features = str(tmp_path)
    with pytest.raises(InputError, match="no features.json there"):
        clip_rows(config)
    facts(tmp_path)
    rows, maps = clip_rows(config), random_maps()
    with pytest.raises(InputError, match="clip clip0_0: no cached features"):
        rows.prepare(record, None)
    write_features(tmp_path, file_name(record["frames"]), maps)
    record["masks"], record["mask_index"] = record["masks"] * 2, [1, 3]
    row = rows.prepare(record, np.random.default_rng(0))
    assert row["trunk_coarse"].shape == (1, 4, 4, 32)
    whole = rows.prepare(record, None)
    for name in TRUNK_MAPS:
        np.testing.assert_array_equal(row[name][0], maps[name][1].astype(np.float16))
        np.testing.assert_array_equal(whole[name], maps[name].astype(np.float16))
        assert whole[name].dtype == rows.empty(False)[name].dtype == np.float16


def test_clips_of_other_datasets_may_have_the_same_id(tmp_path):
    """All generated ones do: maps belong to frames."""
    config, record = frozen_config(), small.records(1)[0]
    other = record | {"frames": [np.uint8(255) - frame for frame in record["frames"]]}
    rows = ClipRows(config)

    def encode(images):
        sizes = [(len(images), *shape) for shape in SHAPES.values()]
        return [np.full(size, images.mean(), np.float16) for size in sizes]

    for records in ([record], [other]):
        assert cache_records(records, rows, encode, tmp_path, "k") == 1
        assert cache_records(records, rows, encode, tmp_path, "k") == 0
    config.data.trunk_features = str(tmp_path)
    one, two = (clip_rows(config).prepare(x, None)["trunk_coarse"] for x in (record, other))
    assert one.max() != two.max()


def test_expressions_share_the_maps_of_their_clip(tmp_path):
    """They are computed once per clip, and a row has the frames that training drew."""
    config = refer_sam2.get_config("tiny")
    config.data.augment.update(min_sizes=(64,), crop=False, color=False, flip=0.0)
    config.data.text.words = ("dog",)
    clip = list_clips(GOLDEN / "refer" / "refavs")[0]["train"][0].read()[0]
    records = [clip | {"item": i} for i in range(len(clip["uids"]))]
    assert len(records) > 1
    maps, calls = random_maps(10), []

    def encode(images):
        calls.append(images.shape)
        return [maps[name].astype(np.float16) for name in TRUNK_MAPS]

    assert cache_records(records, ClipRows(config), encode, tmp_path, "k") == 1
    assert calls == [(10, 64, 64, 3)]
    assert type(expression_rows(config)) is ExpressionRows
    config.data.trunk_features = str(tmp_path)
    task = make_task(config)
    for record in records:
        row = task.rows.prepare(record, np.random.default_rng(1))
        assert row["text_mask"].any() and row["frame_index"].shape == (1,)
        for name in TRUNK_MAPS:
            want = maps[name][row["frame_index"]].astype(np.float16)
            np.testing.assert_array_equal(row[name], want)
    assert set(TRUNK_MAPS) <= set(task.inputs(stack_rows([row], task.rows.fields)))
    assert pickle.loads(pickle.dumps(task.rows)).fields == task.rows.fields


def test_training_on_expressions_checks_whose_maps_they_are(tmp_path):
    config = refer_sam2.get_config("tiny")
    config.data.text.words = ("dog",)
    config.data.trunk_features = str(tmp_path)
    facts(tmp_path)
    with pytest.raises(InputError, match="does not match sam2/trunk/patch_embed/kernel"):
        complete_config(config)


def test_what_does_not_fit_is_named(tmp_path):
    config = frozen_config()
    config.data.trunk_features = str(tmp_path)
    facts(tmp_path, image_size=96)
    with pytest.raises(InputError, match="images of 96 px, config.data.image_size is 64"):
        clip_rows(config)
    facts(tmp_path)
    config.data.augment.flip = 0.5
    with pytest.raises(InputError, match="those of whole images"):
        clip_rows(config)
    config.data.augment.flip = 0.0
    config.data.trunk_key = "other"
    with pytest.raises(InputError, match="made by other weights"):
        clip_rows(config)
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float16))
    with pytest.raises(InputError, match=r"float16 \(2, 3\), expected \[T, 2048\]"):
        TrunkFeatures(tmp_path, 64).read("a.npy", [0])
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(InputError, match="b.npy"):
        TrunkFeatures(tmp_path, 64).read("b.npy", [0])
    (tmp_path / "features.json").write_text(json.dumps({"weights": "k", "image_size": 64}))
    with pytest.raises(InputError, match="names its features by clip ids.* run scripts/cache"):
        clip_rows(config)


def test_a_resumed_run_needs_the_weights_no_more_that_it_began_with(tmp_path):
    config = frozen_config()
    config.data.trunk_features = str(tmp_path / "moved")
    config.init.sam2 = str(tmp_path / "gone")
    (tmp_path / "moved").mkdir()
    facts(tmp_path / "moved", "key of the run")
    with pytest.raises(FileNotFoundError, match="gone"):
        complete_config(config)
    stored = config.copy_and_resolve_references()
    stored.data.update(trunk_features="/before", trunk_key="key of the run")
    resumed = complete_config(config, stored)
    assert resumed.data.trunk_key == "key of the run"
    check_same_config(stored, resumed, tmp_path)
    facts(tmp_path / "moved", "another key")
    with pytest.raises(InputError, match="made by other weights than those of the run"):
        complete_config(config, stored)
    with pytest.raises(InputError, match="data.trunk_key"):  # without the cache: other rounding
        config.data.trunk_features = ""
        check_same_config(stored, complete_config(config, stored), tmp_path)


@pytest.mark.slow
def test_masks_are_those_of_the_images(tmp_path):
    """Through the script, within float16; and training only takes maps of its own weights."""
    config, track = frozen_config(), sam2.vary(sam2.sam2_config("tiny"), "tiny")
    model = build_model(config.model, SAM2Host)
    rows, records = ClipRows(config), small.records(2)
    batch = stack_rows([rows.prepare(record, None) for record in records], rows.fields)
    inputs = {name: batch[name] for name in ("images", "log_mel", "valid")}
    variables = draw(model, inputs)
    weights = {"params": variables["params"]["sam2"]}
    save_variables(tmp_path / "weights", weights, track)
    config.init.sam2 = str(tmp_path / "weights")
    params, key = encoder_weights(config)
    encode, folder = make_encoder(config.model.sam2, params), tmp_path / "features"
    folder.mkdir()
    assert cache_records(records, rows, encode, folder, key) == 2
    assert cache_records(records, rows, encode, folder, key) == 0
    with pytest.raises(InputError, match="choose another folder"):
        cache_records(records, rows, encode, folder, "another key")

    config.data.trunk_features = str(folder)
    config = with_trunk_key(config)
    cached = FeatureRows(config)
    batch = stack_rows([cached.prepare(record, None) for record in records], cached.fields)
    run = jax.jit(functools.partial(model.apply, variables))
    want = run(inputs)["candidate_masks"]
    found = run(inputs | {name: batch[name] for name in TRUNK_MAPS})["candidate_masks"]
    np.testing.assert_allclose(found, want, atol=5e-3 * np.abs(want).max())
    assert np.abs(want).max() > 1e-3

    weights["params"]["conv_s0"]["bias"] += 1  # another encoder
    save_variables(tmp_path / "others", weights, track)
    config.init.sam2 = str(tmp_path / "others")
    with pytest.raises(InputError, match="made by other weights than"):
        with_trunk_key(config)
    config.optim.frozen = sam2_host.UNUSED
    with pytest.raises(InputError, match="does not match sam2/trunk/patch_embed/kernel"):
        with_trunk_key(config)

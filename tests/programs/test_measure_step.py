"""scripts/measure_step.py: batches of noise for every task that segments clips, and its table."""

import csv

import numpy as np
import pytest

from avs_jax.spec import TRUNK_MAPS, InputError
from avs_jax.tasks import make_task
from configs import refer_sam2, s4_ama, s4_sam2
from scripts import measure_step


@pytest.mark.parametrize("recipe", [s4_sam2, refer_sam2])
def test_batches_with_and_without_the_image_encoder(recipe):
    """The fields of the task's rows; the maps have the shapes that the encoder gives."""
    config = recipe.get_config()
    config.data.image_size, config.data.augment.min_sizes = 64, (64,)
    config.train.batch_size = 2
    plain = measure_step.random_batch(config)
    assert set(plain) == set(make_task(config).rows.empty(train=True)) | {"frame_index"}
    assert not set(TRUNK_MAPS) & set(plain)
    with measure_step.with_cached_maps(config) as cached:
        batch = measure_step.random_batch(cached)
    assert set(batch) == set(plain) | set(TRUNK_MAPS)
    clips, frames = batch["valid"].shape
    for name, shape in zip(TRUNK_MAPS, ((16, 16, 32), (8, 8, 64), (4, 4, 256)), strict=True):
        assert batch[name].shape == (clips, frames, *shape) and batch[name].dtype == np.float16
        assert batch[name].std() > 0.1
    assert ("text_ids" in batch) == (recipe is refer_sam2)
    assert not config.data.trunk_features


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [s4_sam2, refer_sam2])
def test_a_step_with_cached_maps(recipe):
    """It runs, and needs less memory than with the image encoder."""
    config = recipe.get_config("tiny")
    config.train.batch_size = 8
    config.optim.frozen = (r"sam2/(trunk|neck|conv_s\d)/.*", *config.optim.frozen)
    *_, encoder, seconds, size = measure_step.measure(config, 1, False)
    assert encoder == "run" and float(seconds) > 0
    with measure_step.with_cached_maps(config) as cached:
        *_, encoder, seconds, smaller = measure_step.measure(cached, 1, False)
    assert encoder == "cached maps" and float(seconds) > 0 and float(smaller) <= float(size)


def test_a_model_without_a_frozen_image_encoder():
    with (
        pytest.raises(InputError, match="--cached_maps: s4_ama_tiny has no config.data.trunk_feat"),
        measure_step.with_cached_maps(s4_ama.get_config("tiny")),
    ):
        pass


def test_rows_are_appended_below_one_header(tmp_path):
    for encoder in ("run", "cached maps"):
        row = ("s4_sam2", 64, 1, 1, encoder, "0.50", "1.00")
        measure_step.append_row(tmp_path / "t.csv", row)
    with (tmp_path / "t.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == measure_step.HEADER
    assert [row[4] for row in rows] == ["run", "cached maps"]

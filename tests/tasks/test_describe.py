"""Description from records to words: rows, and a run through the programs."""

import json

import numpy as np
import pytest
from PIL import Image

from avs_jax import predict
from avs_jax import train as program
from avs_jax.data.decode import decode_text
from avs_jax.data.descriptions import DescriptionRows
from avs_jax.generate.video_writer import write_video
from avs_jax.programs import build_dataset
from avs_jax.runtime import sharding
from avs_jax.runtime.setup import make_train_setup
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from configs import describe_generated
from tests.conftest import GOLDEN
from tfds_builders.refer_clips import list_clips

FOLDER = GOLDEN / "refer" / "refavs"


@pytest.fixture(scope="module")
def records():
    clips, _, _ = list_clips(FOLDER)
    rows = [clip.read()[0] for clip in clips["val"]]
    return [record | {"item": i} for record in rows for i in range(len(record["uids"]))]


def config_of(words=("the",)):
    config = describe_generated.get_config("tiny")
    config.data.text.words = tuple(words)
    return config


def test_rows_have_the_mask_and_words_only_in_training(records):
    rows = DescriptionRows(config_of())
    for record in records:
        row, trained = rows.prepare(record), rows.prepare(record, np.random.default_rng(0))
        is_null = bool(record["is_null"][record["item"]])
        assert bool(row["has_object"]) == bool(trained["has_object"]) == row["mask"].any()
        assert is_null <= (not row["has_object"])
        assert "text_ids" not in row and trained["text_ids"][0] == 0
        assert row["object"].split("/")[0] == decode_text(record["vid"])
        np.testing.assert_array_equal(row["mask"], trained["mask"])  # no crop, no flip
    with pytest.raises(InputError, match="1 masks for 2 frames"):
        clip = {"clip_id": "x", "frames": [np.zeros((8, 8, 3), np.uint8)] * 2}
        clip |= {"masks": [np.ones((8, 8), np.uint8)], "waveform": np.zeros(32_000, np.int16)}
        rows.prepare(clip | {"sample_rate": 16_000})


def test_values_that_cannot_be():
    config = config_of()
    config.model.max_words = 8
    with pytest.raises(InputError, match="config.data.text.max_tokens = 8 has room for 7"):
        make_task(config)
    config = config_of()
    config.data.text.source = "roberta"
    with pytest.raises(InputError, match="expected 'tiny'"):
        make_task(config)
    config = config_of(map(str, range(200)))
    with pytest.raises(InputError, match="vocab_size = 128: the vocabulary has 204 tokens"):
        make_task(config)
    config = config_of()
    config.model.decoder.dropuot = 0.1
    with pytest.raises(InputError, match="model.decoder.dropuot"):
        make_train_setup(make_task(config), config, sharding.make_mesh(config))


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_asked(tmp_path):
    flags = ["--dataset=refavs", f"--manual_dir={FOLDER}", f"--data_dir={tmp_path}/tfds"]
    assert build_dataset.main(flags) == 0
    config = describe_generated.get_config("tiny")
    config.data.data_dir = str(tmp_path / "tfds")
    config.train.final_splits = ("val", "test_u")
    assert program.train(config, tmp_path / "run")
    (report,) = (tmp_path / "run").glob("evaluation/*_val_*/report.json")
    found = json.loads(report.read_text())
    assert {"CIDEr-D / 10", "BLEU-4", "exact", "distinct"} <= found["scores"]["true_audio"][
        "words"
    ].keys()
    frames = np.full((16, 32, 48, 3), 90, np.uint8)
    write_video(tmp_path / "x.mp4", frames, 8, np.zeros(32_000, np.int16), 16_000)
    (tmp_path / "masks").mkdir()
    for t in range(2):
        mask = np.zeros((32, 48), np.uint8)
        mask[4:12, 4:12], mask[20:30, 20:40] = 1, 2 * (t == 1)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{t:05d}.png")
    flags = [f"--checkpoint={tmp_path}/run", f"--video={tmp_path}/x.mp4"]
    flags += [f"--masks={tmp_path}/masks", f"--output={tmp_path}/out"]
    assert predict.main(["x", *flags]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["objects"]) == {"1", "2"}
    assert [sorted(second["objects"]) for second in results["seconds"]] == [["1"], ["1", "2"]]

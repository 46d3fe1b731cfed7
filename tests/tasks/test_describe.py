"""Description from records to words: rows, a run through the programs, and learning by heart."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from avs_jax import predict
from avs_jax import train as program
from avs_jax.data.decode import decode_text
from avs_jax.data.descriptions import DescriptionRows
from avs_jax.data.tokens import count_words, words_of
from avs_jax.generate.video_writer import write_video
from avs_jax.programs import build_dataset
from avs_jax.runtime import sharding
from avs_jax.spec import InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from configs import describe_generated, describe_refavs, parts
from tests import small
from tests.conftest import GOLDEN
from tfds_builders.refer_clips import list_clips

FOLDER = GOLDEN / "refer" / "refavs"
NUM_STEPS = 400  # to learn by heart


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
        small.train_setup(config)


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


def colored_squares(count):
    """Clips of one frame with two squares; the words name one of them by its color and place."""
    colors = {
        "red": (220, 40, 40),
        "green": (40, 200, 60),
        "blue": (50, 60, 220),
        "white": (240,) * 3,
    }
    places = ["top left", "top right", "bottom left", "bottom right"]
    records, rng = [], np.random.default_rng(0)
    for i in range(count):
        color, place = list(colors)[i % 4], i // 4 % 4
        other = (place + 1 + i // 16) % 4
        frame = rng.integers(60, 90, (32, 32, 3), dtype=np.uint8)
        mask = np.zeros((32, 32), np.uint8)
        for where, paint in ((place, colors[color]), (other, (120, 120, 20))):
            top, left = 4 + 16 * (where // 2), 4 + 16 * (where % 2)
            frame[top : top + 8, left : left + 8] = paint
            if where == place:
                mask[top : top + 8, left : left + 8] = 1
        text = f"the {color} one in the {places[place]}, not in the {places[other]}"
        records.append(
            {
                "clip_id": f"c{i}", "frames": [frame], "masks": [mask], "text": text,
                "waveform": np.zeros(16_000, np.int16), "sample_rate": 16_000,
            }
        )  # fmt: skip
    return records


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["transformer", "lstm"])
def test_descriptions_are_learned_by_heart(decoder):
    """32 pairs, word for word, by beam search without any word given."""
    records = colored_squares(32)
    config = describe_refavs.get_config("demo")
    if decoder == "lstm":
        with config.unlocked():
            config.model.decoder = parts.word_lstm()
            config.model.decoder.update(parts.small_decoder(config.model.decoder))
    config.data.text.words = tuple(count_words([r["text"] for r in records], 100))
    config.data.update(num_frames=1, image_size=32)
    config.data.augment.min_sizes = (32,)
    config.model.audio_backbone.width = 2  # the clips are silent
    config.train.update(batch_size=32, steps=NUM_STEPS)
    config.optim.learning_rate = 3e-3
    task = make_task(config)
    setup = small.train_setup(config, jax.devices()[:1])
    rng = np.random.default_rng(0)
    batch = stack_rows([task.rows.prepare(record, rng) for record in records], task.rows.fields)
    batch = sharding.put_batch(batch, setup.mesh)
    state, step = setup.init_state(*setup.init_variables()), setup.make_train_step()
    for _ in range(NUM_STEPS):
        state, _ = step(state, batch, setup.seed())
    rows = stack_rows([task.rows.prepare(record) for record in records], task.rows.fields)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    found = jax.jit(task.model.apply)(variables, task.inputs(rows))["words"]
    said = [words_of(ids.tolist(), config.data.text.words) for ids in found]
    assert [text.replace(" ,", ",") for text in said] == [record["text"] for record in records]

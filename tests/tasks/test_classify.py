"""Classification from records to a report: rows, losses, a trained and evaluated run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import evaluate as evaluation
from avs_jax import predict
from avs_jax import train as program
from avs_jax.controls.modality_controls import modality_controls
from avs_jax.data.labeled_clips import LabeledClipRows
from avs_jax.generate.video_writer import write_video
from avs_jax.losses.classification import compute_losses, loss_norms
from avs_jax.spec import TRUE_AUDIO, InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from configs import classify_avss, classify_generated, classify_timesformer
from tests import small


def test_rows_have_classes_and_say_what_is_there():
    config = classify_generated.get_config("tiny")
    rows, record = LabeledClipRows(config.data), small.records(3)[2]
    row = rows.prepare(record)
    assert np.flatnonzero(row["classes"]).tolist() == [2] and row["known"] and row["present"].all()
    silent = rows.prepare({**record, "present": (True, False)})
    assert silent["present"].tolist() == [True, False] and not silent["log_mel"].any()
    np.testing.assert_array_equal(silent["images"], row["images"])
    unknown = rows.prepare({**record, "category_label": 0})
    assert not unknown["known"] and not unknown["classes"].any()
    with pytest.raises(InputError, match="clip clip0_2: category_label is 24, expected 1 to"):
        rows.prepare({**record, "category_label": 24})
    config = classify_avss.get_config("tiny")
    mask = np.zeros((8, 8), np.uint8)
    mask[0, :3] = (5, 70, 255)
    row = LabeledClipRows(config.data).prepare({**record, "masks": [mask], "mask_index": [0]})
    assert np.flatnonzero(row["classes"]).tolist() == [5, 70]


def test_masks_of_seconds_that_are_not_shown_name_no_class():
    """Unless only some frames have a mask: then it speaks for the whole clip."""
    config = classify_avss.get_config("tiny")
    rows, record = LabeledClipRows(config.data), small.records(1)[0]
    assert config.data.train_frames < 5 == len(record["frames"])
    masks = [np.full((8, 8), 10 + t, np.uint8) for t in range(5)]
    every = {**record, "masks": masks, "mask_index": range(5)}
    seen = set()
    for seed in range(20):
        row = rows.prepare(every, np.random.default_rng(seed))
        seconds = row["second"].tolist()
        assert np.flatnonzero(row["classes"]).tolist() == [10 + t for t in seconds]
        seen |= set(seconds)
        first = rows.prepare(
            every | {"masks": masks[:1], "mask_index": [0]}, np.random.default_rng(seed)
        )
        assert np.flatnonzero(first["classes"]).tolist() == [10]
    assert seen == set(range(5))
    assert np.flatnonzero(rows.prepare(every)["classes"]).tolist() == [10, 11, 12, 13, 14]


def test_controls_take_one_modality():
    records = small.records(2)
    found = modality_controls(True, records, "val").records
    rows = LabeledClipRows(classify_generated.get_config("tiny").data)
    present = {
        name: rows.prepare(altered[1])["present"].tolist() for name, altered in found.items()
    }
    assert present == {"without_sound": [True, False], "without_frames": [False, True]}
    assert not modality_controls(False, records, "val").records


@pytest.mark.parametrize("multi_label", [False, True])
def test_losses_by_loops(multi_label):
    rng = np.random.default_rng(0)
    logits = {k: rng.standard_normal((4, 3)) for k in ("logits", "frames_logits", "audio_logits")}
    classes = np.eye(3)[[0, 2, 1, 1]]
    if multi_label:
        classes[0, 1] = 1
    known, present = np.array([1, 1, 1, 0], bool), np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool)
    batch = {"classes": classes, "known": known, "present": present}
    smoothing = 0.0 if multi_label else 0.1
    config = classify_generated.get_config("tiny").loss
    config.update(smoothing=smoothing, single_weight=0.5)
    outputs = {k: jnp.asarray(x) for k, x in logits.items()}
    total, terms = compute_losses(outputs, batch, None, loss_config=config, multi_label=multi_label)
    want = {"loss_class": 0.0, "loss_frames": 0.0, "loss_audio": 0.0}
    for i in range(3):
        for name, key, counts, weight in (
            ("loss_class", "logits", True, 1.0),
            ("loss_frames", "frames_logits", present[i, 0], 0.5),
            ("loss_audio", "audio_logits", present[i, 1], 0.5),
        ):
            z, y = logits[key][i], classes[i]
            if multi_label:
                p = 1 / (1 + np.exp(-z))
                one = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
            else:
                p = np.exp(z) / np.exp(z).sum()
                one = -sum((0.9 * y[k] + 0.1 / 3) * np.log(p[k]) for k in range(3))
            want[name] += weight * counts * one / 3
    for name, value in want.items():
        np.testing.assert_allclose(terms[name], value, rtol=2e-6)
    np.testing.assert_allclose(total, sum(want.values()), rtol=2e-6)
    assert float(loss_norms({"known": np.zeros(2, bool)})["clips"]) == 1


def test_values_that_cannot_be():
    config = classify_avss.get_config("tiny")
    config.loss.smoothing = 0.1
    with pytest.raises(InputError, match="config.loss.smoothing = 0.1: multi-label targets"):
        make_task(config)
    config = classify_timesformer.get_config("tiny")
    config.data.train_frames = 2
    with pytest.raises(InputError, match="frames meet in TimeSformer"):
        make_task(config)
    config = classify_generated.get_config("tiny")
    config.data.labels = "names"
    with pytest.raises(InputError, match="config.data.labels = 'names'"):
        make_task(config)


@pytest.mark.slow
def test_a_run_is_trained_and_evaluated(tmp_path, monkeypatch):
    def clips_of(config, split):
        return small.records(9, {"train": 0, "val": 1, "test": 2}[split])

    for module in (program, evaluation):
        monkeypatch.setattr(module, "open_records", clips_of)
    config = classify_generated.get_config("tiny")
    config.model.modality_dropout = 0.5
    program.train(config, tmp_path)
    (report,) = tmp_path.glob("evaluation/*_test_*/report.json")
    found = json.loads(report.read_text())
    assert found["facts"]["clips"] == 9 and found["facts"]["classes"] == 3
    assert set(found["scores"]) == {TRUE_AUDIO, "without_sound", "without_frames"}
    assert set(found["scores"][TRUE_AUDIO]) == {"fused", "frames alone", "sound alone"}
    assert found["scores"]["without_sound"]["sound alone"]["top-1"] is None
    assert (report.parent / "confusion.svg").read_text().startswith("<svg")
    frames = np.full((56, 32, 48, 3), 90, np.uint8)  # 7 s: a window of 5 and one of 2
    write_video(tmp_path / "x.mp4", frames, 8, np.zeros(7 * 16_000, np.int16), 16_000)
    flags = [f"--checkpoint={tmp_path}", f"--video={tmp_path}/x.mp4", f"--output={tmp_path}/out"]
    assert predict.main(["x", *flags]) == 0
    windows = json.loads((tmp_path / "out" / "results.json").read_text())["windows"]
    assert [(window["second"], window["seconds"]) for window in windows] == [(0, 5), (5, 2)]
    assert all(name in config.data.class_names for name in windows[0]["classes"])
    task = make_task(config)
    batch = stack_rows([task.rows.empty(train=True)], task.rows.fields)
    assert "class_names" in config.data and set(task.inputs(batch)) == {
        "images", "log_mel", "valid", "present"
    }  # fmt: skip

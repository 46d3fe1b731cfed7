"""Alignment from records to a report: rows, a trained and evaluated run, protocols, controls."""

import json

import jax
import numpy as np
import pytest

from avs_jax import evaluate as evaluation
from avs_jax import train as program
from avs_jax.controls.pair_controls import SHUFFLED, pair_controls
from avs_jax.data.pairs import PairRows
from avs_jax.programs import convert_weights, export_weights
from avs_jax.results.alignment import EmbeddingTable, protocols
from avs_jax.results.report import Report, to_text
from avs_jax.runtime import sharding
from avs_jax.runtime.command_line import override
from avs_jax.spec import TRUE_AUDIO, InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task
from configs import align_clip, align_generated, align_s4, parts
from tests import small
from tests.cases_golden import state_dict
from tests.clip_files import original_from_hf
from tests.models.test_align_towers import TEXT, VISION
from tests.weight_files import write_safetensors_of


def rows_of(config, *modalities):
    return PairRows(config.data, modalities)


def test_rows_hold_the_same_second_of_frames_and_sound():
    config = align_s4.get_config("tiny")
    config.data.augment.update(crop=False, flip=0.0)
    record = small.records(1)[0]
    rows = rows_of(config, "audio", "frames", "text")
    whole = rows.prepare(record)
    assert whole["second"].tolist() == list(range(5))
    assert whole["valid"].all() and whole["images"].shape == (5, 32, 32, 3)
    assert whole["label"] == 0 and whole["category"] == "kind0" and whole["clip_id"] == "clip0_0"
    seen = set()
    for seed in range(20):
        drawn = rows.prepare(record, np.random.default_rng(seed))
        assert drawn["images"].shape == (1, 32, 32, 3) and drawn["text_ids"].shape == (1, 16)
        (t,) = np.flatnonzero((whole["log_mel"] == drawn["log_mel"]).all((1, 2)))
        np.testing.assert_array_equal(whole["images"][t], drawn["images"][0])
        assert drawn["second"].tolist() == [t]
        which = np.flatnonzero((whole["text_ids"] == drawn["text_ids"]).all(1))
        seen.add((int(t), *which.tolist()))
    assert {t for t, _ in seen} == set(range(5)) and {p for _, p in seen} == {0, 1}
    batch = stack_rows([whole, rows.empty(train=False)], rows.fields)
    assert batch["valid"][:, 0].tolist() == [True, False] and batch["label"][1] == -1


def test_texts_are_templates_with_the_category():
    config = align_s4.get_config("tiny")
    rows = rows_of(config, "text")
    ids, mask = rows.tokens("horse_clip-clop", ["the sound of a {}"])
    assert mask.sum() == 4 + 4 + 2 and ids[0, 0] == 0 and 3 not in ids  # horse clip - clop
    again, _ = rows.tokens("horse_clip-clop+unicorn", ["the sound of a {}"])
    assert (again[0] == 3).sum() == 2  # "and", "unicorn"
    assert "images" not in rows.fields and rows.vocab_size < 64
    record = small.records(1)[0] | {"category": ""}
    with pytest.raises(InputError, match="clip clip0_0: no category"):
        rows.prepare(record)
    with pytest.raises(InputError, match="text.path is empty: text.source = 'clip' needs"):
        rows_of(align_clip.get_config(), "text").prepare(small.records(1)[0])


def test_values_that_cannot_be():
    def refused(match, recipe=align_generated, **changes):
        config = recipe.get_config("tiny")
        config.update_from_flattened_dict(changes)
        with pytest.raises(InputError, match=match):
            make_task(config)

    refused("config.loss.name = 'hinge': choose one of", **{"loss.name": "hinge"})
    refused("config.loss.unit = 'frame'", **{"loss.unit": "frame"})
    refused("config.evaluate.relevant = 'all'", **{"evaluate.relevant": "all"})
    refused("needs the learned bias", **{"loss.name": "sigmoid"})
    refused("config.data.train_frames = 6", **{"data.train_frames": 6})
    refused("model.pairs = 'va'", **{"model.pairs": "va"})
    refused("vocab_size = 20: the tokenizer has", align_s4, **{"model.text.vocab_size": 20})


def table_of(**embeds):
    ids = np.arange(4)
    columns = {"clip_id": ids.astype(str), "category": np.array(["a", "b", "a", "c"])}
    columns["label"] = np.array([0, 1, 0, 2])
    return EmbeddingTable(columns | {f"{k}_embed": np.float32(x) for k, x in embeds.items()})


def test_choices_on_the_command_line_and_in_a_recipe():
    sigmoid = ["--config.loss.name=sigmoid", "--config.model.bias_init=-10.0"]
    assert make_task(override(align_generated.get_config("tiny"), sigmoid)).model.bias_init == -10
    config = align_generated.get_config("tiny")
    config.model.audio_backbone = parts.ast()
    assert make_task(config).model.audio_backbone["num_layers"] == 12


def test_protocols_by_clip_by_class_and_by_text():
    eye = np.eye(4)
    swapped = eye[[2, 1, 0, 3]]  # the two clips of "a" find each other
    table = table_of(audio=eye, frames=swapped, text=eye[[0, 1, 0, 3]])
    found = protocols(table, [("audio", "frames")], "clip")
    assert list(found) == ["audio to frames", "frames to audio"]
    assert found["audio to frames"]["R@1"] == 0.5 and "mAP" not in found["audio to frames"]
    by_class = protocols(table, [("audio", "frames"), ("audio", "text")], "class")
    assert by_class["frames to audio"]["R@1"] == 1 and by_class["frames to audio"]["mAP"] < 1
    zero_shot = by_class["audio to text"]
    assert zero_shot["chance"] == pytest.approx(1 / 3)  # three texts
    assert zero_shot["R@1"] == 0.75  # clip 2 is as far from every text
    assert by_class["text to audio"]["R@1"] == 1


def test_clips_of_unknown_category_belong_together_with_none():
    eye = np.eye(4)
    table = table_of(audio=eye, frames=eye)
    table.columns["category"][1:3] = ""
    found = protocols(table, [("audio", "frames")], "class")["audio to frames"]
    assert found["R@1"] == 1 and found["chance"] == pytest.approx(1 / 4)
    table.columns["category"][:] = ""
    assert protocols(table, [("audio", "frames")], "class")["audio to frames"]["R@1"] is None


def test_shuffled_pairs_are_a_permutation():
    records = small.records(9)
    assert not pair_controls(False, records, "val").records
    altered = pair_controls(True, records, "val").records[SHUFFLED]
    sounds = [record["waveform"][:50].tolist() for record in records]
    heard = [altered[i]["waveform"][:50].tolist() for i in range(9)]
    assert sorted(heard) == sorted(sounds) and heard != sounds
    assert [altered[i]["clip_id"] for i in range(9)] == [r["clip_id"] for r in records]


def test_ranks_are_no_percentages():
    scores = {TRUE_AUDIO: {"audio to frames": {"R@1": 0.5, "median rank": 2.0}}}
    text = to_text(Report({}, scores))
    assert "R@1 %  median rank" in text and "50.00          2.0" in text


@pytest.mark.slow
def test_a_run_is_trained_and_evaluated(tmp_path, monkeypatch):
    def clips_of(config, split):
        return small.records(9, {"train": 0, "val": 1, "test": 2}[split])

    for module in (program, evaluation):
        monkeypatch.setattr(module, "open_records", clips_of)
    config = align_generated.get_config("tiny")
    config.evaluate.relevant = "clip"
    program.train(config, tmp_path)
    (report,) = tmp_path.glob("evaluation/*_test_*/report.json")
    found = json.loads(report.read_text())
    assert found["facts"]["clips"] == 9 and found["facts"]["categories"] == 3
    assert set(found["scores"]) == {TRUE_AUDIO, SHUFFLED}
    for scores in found["scores"].values():
        assert scores["audio to frames"]["chance"] == pytest.approx(1 / 9)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss_audio_frames" in line]
    maps = tmp_path / "maps"
    flags = [f"--checkpoint={tmp_path}", "--split=test", f"--write_predictions={maps}"]
    assert evaluation.main(["x", *flags]) == 0
    files = sorted(maps.rglob("*.npy"))
    assert len(files) == 9 * 5 and all(0 <= np.load(path).min() for path in files)
    assert len(logged) == 4 and logged[0]["log_scale"] == pytest.approx(np.log(1 / 0.07), abs=1e-3)


@pytest.mark.slow
def test_a_step_compares_the_rows_of_all_devices():
    """Frozen towers would do: the loss of eight rows on eight devices is not ln 1 = 0."""
    config = align_generated.get_config("tiny")
    config.loss.same_class = "negative"
    setup = small.train_setup(config)
    rows = setup.task.rows
    batch = [rows.prepare(r, np.random.default_rng(0)) for r in small.records(8)]
    batch = sharding.put_batch(stack_rows(batch, rows.fields), setup.mesh)
    state = setup.init_state(*setup.init_variables())
    _, metrics = setup.make_train_step()(state, batch, setup.seed())
    assert metrics["finite"] and 1.5 < metrics["loss_audio_frames"] < 4  # about ln 8
    assert len(jax.tree.leaves(batch)[0].devices()) == 8


@pytest.mark.parametrize("kind", [pytest.param("hf", marks=pytest.mark.slow), "original"])
def test_clip_weights_come_in_and_go_out(tmp_path, kind, capsys):
    state = state_dict("clip", "clip")
    given = state if kind == "hf" else original_from_hf(state)
    write_safetensors_of(tmp_path / "clip.safetensors", given, {})
    sizes = [f"--config.model.backbone.{k}={v}" for k, v in VISION.items()]
    sizes += [f"--config.model.text.{k}={v}" for k, v in TEXT.items()]
    sizes += ["--config.model.embed_dim=24"]
    folder = tmp_path / "weights"
    flags = ["--source=clip", "--strict", f"--input={tmp_path}/clip.safetensors"]
    config = ["--config=configs/align_clip.py:tiny", *sizes]
    assert convert_weights.main(["x", *flags, f"--output={folder}", *config]) == 0
    assert "118,353 in " in capsys.readouterr().out
    output = tmp_path / "out.npz"
    flags = [f"--checkpoint={folder}", "--format=npz", f"--output={output}"]
    assert export_weights.main(["x", *flags]) == 0
    with np.load(output) as file:
        assert file.files == list(state)
        for name, value in state.items():
            np.testing.assert_array_equal(file[name], value)
    given.pop("logit_scale")
    write_safetensors_of(tmp_path / "less.safetensors", given, {})
    flags = ["--source=clip", f"--input={tmp_path}/less.safetensors"]
    assert convert_weights.main(["x", *flags, f"--output={tmp_path}/less", *config]) == 1
    assert "logit_scale (): nothing in the source fills it" in capsys.readouterr().err
    assert align_clip.get_config("b16").model.backbone.patch_size == 16

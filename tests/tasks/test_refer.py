"""Task `refer` through the programs: train, evaluate with controls, score files, predict arrays.

Records are those of the layout fixture, through the real reader; the model is `:tiny`.
"""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from avs_jax import evaluate as evaluation
from avs_jax import predict
from avs_jax import train as program
from avs_jax.controls.expression_controls import expression_controls
from avs_jax.data.expressions import clip_record
from avs_jax.data.pipeline import EvalBatches
from avs_jax.data.tokens import WordTokenizer, read_vocabulary
from avs_jax.inference.predictor import Predictor
from avs_jax.programs import build_dataset
from avs_jax.results.pixel_scores import FALLBACKS, expression_score
from avs_jax.runtime import sharding
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.command_line import UsageError, parse
from avs_jax.runtime.evaluation import evaluate, make_eval_step
from avs_jax.runtime.step import init_variables
from avs_jax.runtime.stored_config import check_same_config, flat_config, update_stored
from avs_jax.spec import InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import complete_config, make_task
from configs import parts, refer_cma, refer_sam2, refer_vct
from scripts import plot_words
from tests import small, video_files
from tests.conftest import GOLDEN
from tfds_builders.refer_clips import list_clips

SPLITS = ("val", "test_u", "test_n")  # that the fixture has besides train


def small_config():
    """The smallest recipe, on the fixture's splits."""
    config = refer_cma.get_config("tiny")
    config.model.backbone.depths = (1, 1, 1, 1)
    config.model.fusion.levels = ("res5",)
    config.train.final_splits = SPLITS
    return config


@pytest.fixture(scope="module")
def records():
    clips, _, _ = list_clips(GOLDEN / "refer" / "refavs")
    read = {split: [clip.read()[0] for clip in found] for split, found in clips.items()}
    return {
        split: [record | {"item": i} for record in rows for i in range(len(record["uids"]))]
        for split, rows in read.items()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished training run on built records."""
    folder = tmp_path_factory.mktemp("refer")
    flags = ["--dataset=refavs", f"--manual_dir={GOLDEN / 'refer' / 'refavs'}"]
    assert build_dataset.main([*flags, f"--data_dir={folder / 'tfds'}"]) == 0
    config = small_config()
    config.data.data_dir = str(folder / "tfds")
    assert program.train(config, folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_training_stores_the_vocabulary_and_reports_every_split(run):
    checkpoint = Checkpoint.find(run)
    path = run.parent / "tfds" / "refavs" / "release" / "1.1.0" / "vocabulary.json"
    assert list(checkpoint.config.data.text.words) == read_vocabulary(path)
    assert checkpoint.measure == "J&f_beta"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "total_loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {"loss_presence", "loss_align", "align_positives", "gamma_res5"} <= steps[0].keys()
    reports = {}
    for folder in (run / "evaluation").iterdir():
        if (folder / "report.json").is_file():
            report = json.loads((folder / "report.json").read_text())
            reports[report["facts"]["split"]] = report["scores"]
    assert set(reports) == set(SPLITS)
    unseen = reports["test_u"]
    assert set(unseen) >= {"true_audio", "no_text", "another_text", "silence"}
    assert {"unseen(paper)", "unseen(csv)", "refavs"} <= set(unseen["true_audio"])
    assert unseen["no_text"]["text"]["no_text_rate"] == 1
    assert reports["test_n"]["true_audio"]["null"]["S"] is not None


@pytest.mark.slow
def test_files_of_predictions_score_as_the_run_that_wrote_them(run, tmp_path):
    split = "--split=test_u"
    flags = [f"--checkpoint={run}", f"--output={tmp_path}/a", split]
    assert evaluation.main(["evaluate", *flags, f"--write_predictions={tmp_path}/files"]) == 0
    flags = ["--config=configs/refer_cma.py:tiny", f"--output={tmp_path}/b", split]
    flags += [f"--config.data.data_dir={run.parent / 'tfds'}", f"--predictions={tmp_path}/files"]
    assert evaluation.main(["evaluate", *flags]) == 0
    a, b = (
        json.loads(next((tmp_path / name).rglob("report.json")).read_text())["scores"]
        for name in "ab"
    )
    assert b["predictions"]["unseen(paper)"] == a["true_audio"]["unseen(paper)"]


@pytest.mark.slow
def test_expressions_of_a_clip_are_scored_together(records):
    """In fewer passes, with numbers that depend on neither batch nor devices, to the last bit."""
    config = small_config()
    config.data.text.words = ("the", "dog", "man", ",", "object")
    texts = ["the dog", "the man", "object", "dog", "man", "the object"]
    first, other = records["train"][0], records["val"][0]
    names = ("expression_fids", "kinds", "is_null", "is_seen")
    first = {**first, **{name: [first[name][0]] * 6 for name in names}, "expressions": texts}
    first["uids"] = [f"clip_dog_{i}" for i in range(6)]
    rows = [first | {"item": i} for i in range(6)] + [other | {"item": 0}]
    uids = [f"clip_man_{i}" for i in range(6)]
    task, rng, passes = make_task(config), np.random.default_rng(0), []
    noise = rng.integers(-20_000, 20_000, first["waveform"].shape, np.int16)
    rows.append(first | {"item": 1, "uids": uids, "waveform": noise})

    def score(task, batch_size, devices=1, fsdp=1):
        config.train.mesh.fsdp = fsdp
        mesh = sharding.make_mesh(config, jax.devices()[:devices])
        params = jax.device_put(variables, sharding.tree_shardings(variables, mesh))
        step, batches, found = (
            make_eval_step(task, mesh),
            EvalBatches(rows, task.rows, batch_size),
            [],
        )

        def counted(*args):
            passes.append(batch_size)
            return step(*args)

        evaluate(
            task,
            counted,
            (params, {}),
            [batches[i] for i in range(len(batches))],
            mesh,
            observers=[lambda scores, _: found.append((scores["pred"], scores["presence"]))],
        )
        return [np.concatenate(x)[: len(rows)] for x in zip(*found, strict=True)]

    inputs = task.inputs(EvalBatches(rows, task.rows, 1)[0])
    shapes, _ = jax.eval_shape(lambda x: init_variables(task.model, x, 0), inputs)
    variables = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, np.float32), shapes)
    alone = score(dataclasses.replace(task, unshared_inputs=()), 8)
    found = score(task, 8)
    assert passes == [8] * 8 + [8] * 4  # items 0 to 3, 4 and 5, and two clips of one
    for x, y in zip(found, alone, strict=True):
        np.testing.assert_allclose(x, y, atol=5e-6)
    masks, presence = found
    assert masks.max() > 0.1 and np.ptp(presence[:6, 0]) > 2e-4
    assert np.abs(presence[7] - presence[1]).max() > 2e-4  # not with the sound of the other rows
    for batch_size, devices, fsdp in ((1, 1, 1), (3, 1, 1), (8, 8, 2)):
        for x, y in zip(score(task, batch_size, devices, fsdp), found, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_several_expressions_are_asked_in_micro_batches(records):
    config = small_config()
    config.data.text.update(num_asked=2, words=("the", "dog", "man", ",", "object"))
    config.loss.align_weight = 0.0
    config.train.update(accumulate=2, batch_size=16)
    setup, rng = small.train_setup(config), np.random.default_rng(0)
    task, rows = setup.task, (*records["train"], *records["test_n"])
    rows = [task.rows.prepare(rows[i % len(rows)], rng) for i in range(16)]
    batch = stack_rows(rows, task.rows.fields)
    second = int(batch["phrase_valid"][:, 1].sum())
    assert 0 < second < 16  # some clips have one expression
    meant = int(batch["phrase_targets"][:, 0, :2].any((2, 3)).sum())
    norms = task.norms(batch)
    assert norms["frames"] == 16 + second
    assert norms["masks"] == 16 + second + meant  # a background each, and the objects
    assert norms["expressions"] == batch["phrase_valid"].sum()  # of the localizer's loss
    state = setup.init_state(*setup.init_variables())
    held = sharding.put_batch(batch, setup.mesh)
    _, metrics = setup.make_train_step()(state, held, setup.seed())
    assert metrics["finite"] and metrics["loss_presence"] > 0 and metrics["loss_mask"] > 0


@pytest.mark.slow
def test_arrays_in_and_out(run, records, tmp_path):
    task = make_task(Checkpoint.find(run).config)
    rows = [task.rows.prepare(record) for record in records["train"]]
    names = ("images", "log_mel", "text_ids", "text_mask")
    np.savez(tmp_path / "in.npz", **{name: np.stack([row[name] for row in rows]) for name in names})
    flags = [f"--checkpoint={run}", f"--arrays={tmp_path}/in.npz", f"--output={tmp_path}/out.npz"]
    assert predict.main(["predict", *flags]) == 0
    with np.load(tmp_path / "out.npz") as file:
        assert file["pred"].shape == (2, 10, 32, 32) and file["presence"].shape == (2, 10)


@pytest.mark.slow
def test_a_video_and_two_expressions(run, tmp_path):
    checkpoint = Checkpoint.find(run)
    task = make_task(checkpoint.config)
    predictor = Predictor(task, checkpoint.config, checkpoint)
    video = video_files.write(tmp_path / "x.mp4", video_files.steady(3))
    lines = task.predict_video(predictor, video, tmp_path / "out", text=["the dog", "the man"])
    assert len(lines) == 3 and lines[0].startswith("'the dog': ")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [found["text"] for found in results["expressions"]] == ["the dog", "the man"]
    for found in results["expressions"]:
        assert (tmp_path / "out" / found["overlay"]).stat().st_size > 1000
        for row in found["seconds"]:
            with Image.open(tmp_path / "out" / row["mask"]) as mask:
                pixels = np.asarray(mask)
            assert pixels.shape == (48, 64) and (pixels > 0).mean() == row["area"]
            assert 0 <= row["presence"] <= 1 and (row["presence"] > 0.5 or not row["area"])
    for text in ([], [" "]):
        with pytest.raises(InputError, match="missing or empty"):
            task.predict_video(predictor, video, tmp_path / "none", text=text)


@pytest.mark.slow
def test_heat_maps_of_words(run, tmp_path, capsys):
    flags = [f"--checkpoint={run}", "--split=test_u", f"--output={tmp_path}/page"]
    assert plot_words.main([*flags, "--count=1"]) == 0
    page = (tmp_path / "page" / "words.html").read_text()
    assert page.count("<img") == 1 and "Attention to words at res5" in page
    assert plot_words.main([*flags, "--level=res2"]) == 1
    assert "--level=res2: choose one of res5" in capsys.readouterr().err
    assert plot_words.main([*flags[:2], f"--output={run}"]) == 1
    assert "would be replaced as a whole" in capsys.readouterr().err


def test_which_words_and_expressions_are_drawn(records):
    rows = types.SimpleNamespace(sizes={"N": 6}, tokenizer=WordTokenizer(("dog",)))
    names = plot_words.names_of(types.SimpleNamespace(rows=rows), "The dog,\tbarks!", 7)
    assert names == ["<s>", "the", "dog", ",", "barks", "</s>", "(none)"]
    names = plot_words.names_of(types.SimpleNamespace(rows=rows), "dog", 6)
    assert names == ["<s>", "dog", "</s>", "", "", ""]
    both = [*records["train"], *records["test_n"]]
    kinds = [kind for kind, _ in plot_words.choose(both, 3)]
    assert kinds == ["other", "null"]  # the expressions of train are of one clip
    both[1] = both[1] | {"kinds": np.array([0, 2], np.int32)}
    assert [kind for kind, _ in plot_words.choose(both, 3)] == ["other", "sound", "null"]


def test_controls_change_what_they_say(records):
    found = expression_controls(records["test_u"], "test_u")
    assert set(found.records) == {"no_text", "another_text", "silence"}
    assert "swapped_audio left out: all expressions are about one clip" in found.notes
    texts = [clip_record(record)["text"] for record in records["test_u"]]
    swapped = [clip_record(record)["text"] for record in found.records["another_text"]]
    assert swapped == texts[::-1]
    assert not clip_record(found.records["no_text"][1])["text"]
    assert not np.any(found.records["silence"][0]["waveform"])
    both = [*records["train"], *records["test_u"]]
    swapped = expression_controls(both, "").records["swapped_audio"]
    for record, original in zip(swapped, both, strict=True):
        assert record["vid"] == original["vid"] and record["frames"] == original["frames"]
        assert not np.array_equal(record["waveform"], original["waveform"])


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_fallbacks_fire_only_where_something_is_meant(fallback):
    """Frames: a mask; no mask but present; the same, absent; padding."""
    masks = np.full((1, 4, 4, 4, 2), -20, np.float32)
    masks[0, 0, :2, :2, 0] = masks[0, 1:3, 2:, 2:, 1] = 20
    logits = np.zeros((1, 4, 2, 3), np.float32)
    logits[0, 0, 0] = (0, 9, 0)  # an object
    logits[0, 0, 1] = logits[0, 1:, 0] = (-9, -9, 9)  # "no object"
    logits[0, 1:, 1] = (9, 2, 3)  # rather background
    outputs = {
        "pred_logits": logits,
        "pred_masks": masks,
        "presence_logits": np.array([[3, 3, -3, 3]], np.float32),
    }
    inputs = {
        "images": np.zeros((1, 4, 16, 16, 3), np.uint8),
        "valid": np.array([[True, True, True, False]]),
    }
    score = jax.jit(
        lambda o, i: expression_score(o, i, size=(8, 8), threshold=0.4, fallback=fallback)
    )
    found = jax.tree.map(np.asarray, score(outputs, inputs))
    area = (found["pred"][0] > 0.4).any((1, 2))
    assert area.tolist() == [True, fallback in ("prev_frame", "top_query"), False, False]
    assert found["fallback"].tolist() == [[False, fallback != "none", False, False]]
    if fallback == "prev_frame":
        np.testing.assert_array_equal(found["pred"][0, 1], found["pred"][0, 0])
    if fallback == "top_query":
        assert found["pred"][0, 1, 7, 7] > 0.9 and found["pred"][0, 1, 0, 0] < 0.1
    assert found["presence"][0, 2] == pytest.approx(float(jax.nn.sigmoid(jnp.float32(-3))))


@pytest.mark.parametrize("threshold, masks", [(0.0, [1, 1, 1]), (0.6, [0, 1, 1]), (0.9, [0, 0, 1])])
def test_a_mask_needs_more_presence_than_the_threshold(threshold, masks):
    outputs = {
        "pred_logits": np.tile(np.float32([0, 9, 0]), (1, 3, 1, 1)),
        "pred_masks": np.full((1, 3, 4, 4, 1), 20, np.float32),
        "presence_logits": np.float32([[0, 1, 4]]),  # 0.5, 0.73, 0.98
    }
    inputs = {"images": np.zeros((1, 3, 16, 16, 3), np.uint8), "valid": np.ones((1, 3), bool)}
    settings = {"size": (4, 4), "threshold": 0.4, "fallback": "none"}
    found = expression_score(outputs, inputs, presence_threshold=threshold, **settings)
    assert (found["pred"][0] > 0.4).any((1, 2)).tolist() == [bool(x) for x in masks]
    np.testing.assert_allclose(found["presence"][0], [0.5, 0.7311, 0.982], atol=1e-4)


def test_queries_that_mean_the_same_vote():
    """Three of four queries mean the object; all of them doubt the left half."""
    masks = np.broadcast_to(np.float32([-1, -1, 20, 20])[:, None], (1, 1, 4, 4, 4))
    logits = np.zeros((1, 1, 4, 3), np.float32)
    logits[..., :3, 1], logits[..., 3, 2] = 20, 20
    outputs = {"pred_logits": logits, "pred_masks": masks, "presence_logits": np.full((1, 1), 9.0)}
    inputs = {"images": np.zeros((1, 1, 16, 16, 3), np.uint8), "valid": np.ones((1, 1), bool)}
    found = expression_score(outputs, inputs, size=(4, 4), threshold=0.4, fallback="none")
    doubt = float(jax.nn.sigmoid(jnp.float32(-1)))
    np.testing.assert_allclose(found["pred"][0, 0, :, [0, 3]], [[doubt] * 4, [1] * 4], atol=1e-4)
    # A query that is alone and not sure keeps its probability.
    alone = np.zeros_like(logits)
    alone[..., 1:, 2] = 20
    found = expression_score(
        outputs | {"pred_logits": alone}, inputs, size=(4, 4), threshold=0.4, fallback="none"
    )
    np.testing.assert_allclose(found["pred"][0, 0, :, 3], 1 / 3, atol=1e-4)


@pytest.mark.parametrize("recipe", [refer_cma, refer_sam2])
def test_false_sounds_are_refused(recipe, monkeypatch, capsys):
    """Also of a checkpoint whose configuration has their keys, which nothing read."""
    today = recipe.get_config("tiny")
    old = today.copy_and_resolve_references()
    with old.unlocked():
        old.data.false_sounds = {"share": 0.0, "types": "silence,noise,offscreen"}
        old.evaluate.update(audio="", moving_threshold=0.2)
        del old.data.frame_offset, old.model.fusion.raw_text, old.model.fusion.hidden_dim
    stored = update_stored(old)
    assert flat_config(stored) == flat_config(today)
    check_same_config(old, today, "run")
    checkpoint = types.SimpleNamespace(config=stored, directory="run")
    monkeypatch.setattr(evaluation.Checkpoint, "find", lambda path: checkpoint)
    assert evaluation.main(["evaluate", "--checkpoint=run", "--audio=silence"]) == 1
    assert "--audio: task 'refer' has no such controls" in capsys.readouterr().err
    for key in ("data.false_sounds.share=0.5", "evaluate.audio=silence"):
        flags = [f"--config=configs/{recipe.__name__.split('.')[-1]}.py:tiny", f"--config.{key}"]
        with pytest.raises(UsageError, match="no such key"):
            parse(["train", *flags], lambda values: None, "")


def test_mistakes_are_named(tmp_path):
    def refused(change, match, module=refer_cma):
        config = module.get_config("tiny")
        change(config)
        with pytest.raises(InputError, match=match):
            make_task(config)

    refused(lambda c: c.data.text.update(source="roberta"), "model.text.name = 'tiny'.*'roberta'")
    refused(lambda c: c.model.head.update(name="none"), "model.head.name = 'none'")
    for value in (-0.1, 1.0):
        message = f"presence_threshold = {value}: expected at least 0 and below 1"
        refused(lambda c, value=value: c.evaluate.update(presence_threshold=value), message)
    refused(lambda c: c.evaluate.update(fallback="last"), "fallback = 'last': choose one of")
    refused(lambda c: c.model.fusion.update(text_pool="sum"), "text_pool = 'sum'")
    refused(lambda c: c.model.decoder.update(prompt="none"), "would not depend", refer_vct)
    message = "num_asked = 13: expected at most config.data.text.num_phrases = 12$"
    refused(lambda c: c.data.text.update(num_asked=13), message)
    message = "num_asked = 2: expected at most config.data.text.num_phrases = 0$"
    refused(lambda c: c.data.text.update(num_asked=2), message, refer_vct)
    message = "num_seconds = 3 with .*only a localizer hears them; expected 0"
    refused(lambda c: c.data.text.update(num_seconds=3), message, refer_vct)
    refused(lambda c: c.loss.update(masks=False), "only a localizer learns", refer_vct)
    refused(lambda c: c.update(host="swin"), "config.host = 'swin': choose one of", refer_sam2)
    assert "num_seconds" not in refer_sam2.get_config("tiny").data.text
    refused(lambda c: c.model.update(memory=True), "frames meet in the memory", refer_sam2)
    off = {"text_prompt": False, "fusion": parts.absent()}
    refused(lambda c: c.model.update(off), "would not depend", refer_sam2)
    config = refer_vct.get_config("tiny")
    config.model.decoder.prompt = "none"
    config.model.fusion = parts.cma()
    config.model.fusion.num_heads = 2
    assert make_task(config).norms is None
    config.loss.align_weight = 0.0
    assert make_task(config).norms is not None
    config.data.data_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="dataset 'refavs' not found"):
        complete_config(config)

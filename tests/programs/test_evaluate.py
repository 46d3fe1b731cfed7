"""One pass over a split and the job around it, with a model of three numbers.

The model answers with the square whose red value equals what the sound says. So true sound scores
perfectly, swapped sound marks no square or the other one, and every number expected here follows
from the drawing.
"""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax import evaluate as evaluation
from avs_jax.controls import pairing
from avs_jax.data.clip import ClipRows
from avs_jax.data.pipeline import EvalBatches
from avs_jax.finished_conditions import FinishedConditions, condition_key
from avs_jax.results import metrics
from avs_jax.results.counts import FrameCounter, FrameCounts
from avs_jax.results.report import Report, to_json, to_markdown, to_text
from avs_jax.results.table import interleave
from avs_jax.runtime import evaluation as passes
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.runtime.sharding import make_mesh, tree_shardings
from avs_jax.runtime.step import init_variables
from avs_jax.spec import TRUE_AUDIO, InputError
from avs_jax.tasks import make_task
from configs.segment import segment_config
from tests import small

SIDE, SCORE, NUM_CLIPS, NUM_FRAMES = 32, 16, 10, 3
CATEGORIES = ("bell", "cat", "drum")


class Listener:
    """Segments the pixels whose red value says the loudness that is heard."""

    def apply(self, variables, inputs, train):
        assert not train
        heard = inputs["log_mel"].mean(axis=(2, 3))  # [B, T]
        level = jnp.round((heard - variables["params"]["low"]) / variables["params"]["step"])
        red = inputs["images"][:, :, 2::4, 2::4, 0].astype(jnp.float32)  # stride 4
        masks = jnp.where(red == 50 * (1 + level[..., None, None]), 20.0, -20.0)
        logits = jnp.array([[20.0, 0, 0], [0, 20.0, 0]])
        return {
            "pred_logits": jnp.broadcast_to(logits, (*heard.shape, 2, 3)),
            "pred_masks": jnp.stack([-masks, masks], axis=-1),
            "aux_outputs": [],
        }

    def init(self, key, inputs, train):
        del key, inputs, train
        return {"params": {"low": jnp.zeros(()), "step": jnp.ones(())}}


def a_config():
    config = segment_config()
    config.data.image_size = SIDE
    config.data.num_frames = NUM_FRAMES
    config.data.pre_masks = False
    config.evaluate.score_size = SCORE
    config.evaluate.batch_size = 3
    return config


def a_task(config, model=None):
    """The task with a model of three numbers."""
    return dataclasses.replace(make_task(config), model=model or Listener())


def evaluate_test_split(config, weights, output, predictions=None):
    checkpoint = Checkpoint.find(weights)
    return evaluation.evaluate_split(config, checkpoint, "test", "raw", output, predictions)


def loudness(category):
    return 10.0 ** CATEGORIES.index(category)


def records(named=False):
    """Each frame shows squares of two categories; the sounding one is the ground truth."""
    result = []
    for i in range(NUM_CLIPS):
        sounding, other = CATEGORIES[i % 3], CATEGORIES[(i + 1) % 3]
        num_frames = NUM_FRAMES - (i == 4)  # a short clip
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        image[:16, :16, 0] = 50 * (1 + CATEGORIES.index(sounding))
        image[16:, 16:, 0] = 50 * (1 + CATEGORIES.index(other))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:16, :16] = 1
        noise = np.random.default_rng(i).normal(size=16000 * num_frames)
        record = {
            "clip_id": f"clip{i:02d}".encode(),  # as records are read
            "category": sounding,
            "category_label": 1 + i % 3,
            "frames": [image] * num_frames,
            "masks": [mask] * num_frames,
            "mask_index": np.arange(num_frames),
            "pre_masks": [],
            "waveform": (30 * loudness(sounding) * noise).clip(-32768, 32767).astype(np.int16),
            "sample_rate": 16000,
            "flow": np.zeros((0,)),
        }
        if named:
            record["visible_labels"] = np.array([1 + i % 3, 1 + (i + 1) % 3], np.int32)
        result.append(record)
    return result


@pytest.fixture(scope="module")
def variables():
    """The levels of the three categories are a constant apart, since they grow tenfold."""
    clips = EvalBatches(records(), ClipRows(a_config()), NUM_CLIPS)[0]
    heard = [float(clips["log_mel"][i][:2].mean()) for i in range(3)]
    params = {"low": np.float32(heard[0]), "step": np.float32((heard[2] - heard[0]) / 2)}
    return params, {}


def run(config, variables, clips=None, devices=1, **kwargs):
    mesh = make_mesh(config, jax.devices()[:devices])
    task = a_task(config)
    step = passes.make_eval_step(task, mesh)
    size = passes.eval_batch_size(config, mesh)
    loader = EvalBatches(clips or records(), task.rows, size)
    batches = [loader[i] for i in range(len(loader))]
    result = passes.evaluate(task, step, variables, batches, mesh, **kwargs)
    assert step._cache_size() == 1  # compiled once, also for a last batch that is not full
    return result


def as_bytes(counts, tmp_path):
    counts.save(tmp_path / "counts.npz")
    return (tmp_path / "counts.npz").read_bytes()


def test_counts_match_the_drawing(variables):
    result = run(a_config(), variables)
    counts = result.table
    assert list(counts.clip_id[::NUM_FRAMES]) == [f"clip{i:02d}" for i in range(NUM_CLIPS)]
    assert counts.valid.sum() == NUM_CLIPS * NUM_FRAMES - 1
    scored = counts.scored()
    np.testing.assert_array_equal(scored.counts["gt"], 64)
    np.testing.assert_array_equal(scored.counts["inter"], 64)
    np.testing.assert_array_equal(scored.counts["union"], 64)
    assert result.figures == {}


@pytest.mark.parametrize("batch_size, devices", [(1, 1), (4, 1), (10, 1), (3, 8)])
def test_counts_depend_on_neither_batch_nor_devices(variables, tmp_path, batch_size, devices):
    config = a_config()
    want = run(config, variables).table
    config.evaluate.batch_size = batch_size
    assert passes.eval_batch_size(config, make_mesh(config, jax.devices()[:devices])) == (
        8 if devices == 8 else batch_size
    )
    got = run(config, variables, devices=devices).table
    assert as_bytes(got, tmp_path) == as_bytes(want, tmp_path)


@pytest.mark.parametrize("processes, batch_size", [(2, 2), (2, 8), (3, 3), (4, 16), (1, 4)])
def test_counts_do_not_depend_on_the_number_of_processes(tmp_path, processes, batch_size):
    """Each process counts the rows that EvalBatches gives it; of 16 clips a batch, one has none."""
    config = a_config()
    rng = np.random.default_rng(0)
    pred = {f"clip{i:02d}": rng.random((NUM_FRAMES, SCORE, SCORE), np.float32) for i in range(99)}

    def count(batch_size, process_index, process_count):
        counter = FrameCounter(2, {"ground_truth": "drawn"})
        batches = EvalBatches(records(), ClipRows(config), batch_size, process_index, process_count)
        for i in range(len(batches)):
            ids = batches[i]["clip_id"]
            counter.add(np.stack([pred[name or "clip98"] for name in ids]), batches[i])
        return counter.result()

    parts = [count(batch_size, i, processes) for i in range(processes)]
    assert any(not len(part.clip_id) for part in parts) == (processes == 4)
    joined = interleave(parts, batch_size // processes)
    assert list(joined.clip_id[::NUM_FRAMES]) == [f"clip{i:02d}" for i in range(NUM_CLIPS)]
    assert as_bytes(joined, tmp_path) == as_bytes(count(1, 0, 1), tmp_path)


def test_counts_of_a_real_model_depend_on_neither_batch_nor_devices(tmp_path):
    """Down to the last bit of the probabilities, which depend on the computed shapes.

    Nor on sharded parameters: partitioned like them, the forward pass would round differently.
    """
    config = small.small_config()
    rng = np.random.default_rng(0)
    task = make_task(config)
    inputs = task.inputs(EvalBatches(small.records(8), task.rows, 8)[0])
    shapes = jax.eval_shape(lambda x: init_variables(task.model, x, 0), inputs)
    params, batch_stats = jax.tree.map(
        lambda x: (
            (1 + 0.1 * rng.random(x.shape)).astype(np.float32)
            if x.ndim == 1
            else (rng.normal(size=x.shape) / max(1, np.prod(x.shape[:-1])) ** 0.5).astype(
                np.float32
            )
        ),
        shapes,
    )
    results = []
    for batch_size, devices, fsdp in ((1, 1, 1), (8, 1, 1), (8, 8, 2)):
        config.evaluate.batch_size = batch_size
        config.train.mesh.fsdp = fsdp
        mesh = make_mesh(config, jax.devices()[:devices])
        placed = jax.device_put(params, tree_shardings(params, mesh))
        batches = EvalBatches(small.records(8), task.rows, batch_size)
        pred: list[np.ndarray] = []
        result = passes.evaluate(
            task,
            passes.make_eval_step(task, mesh),
            (placed, batch_stats),
            [batches[i] for i in range(len(batches))],
            mesh,
            observers=[lambda scores, _, pred=pred: pred.append(scores["pred"])],
        )
        results.append((np.concatenate(pred).tobytes(), as_bytes(result.table, tmp_path)))
    assert np.ptp(np.concatenate(pred)) > 1e-3
    assert results[0] == results[1] == results[2]


def test_semantic_task_scores_the_argmax(variables):
    config = a_config()
    config.data.num_classes = 3

    class ThreeClasses(Listener):
        def apply(self, *args, **kwargs):
            outputs = super().apply(*args, **kwargs)
            logits = jnp.array([[20.0, 0, 0, 0], [0, 0, 20.0, 0]])  # the object is class 2
            shape = (*outputs["pred_logits"].shape[:2], 2, 4)
            return outputs | {"pred_logits": jnp.broadcast_to(logits, shape)}

    mesh = make_mesh(config, jax.devices()[:1])
    clips = records()
    for clip in clips:
        clip["masks"] = [2 * mask for mask in clip["masks"]]
    task = a_task(config, ThreeClasses())
    batch = EvalBatches(clips, task.rows, NUM_CLIPS)[0]
    step = passes.make_eval_step(task, mesh)
    counts, pictures = passes.evaluate(task, step, variables, [batch], mesh, num_figures=1)
    green = np.argwhere((pictures["clip00"] == (0, 128, 0)).all(axis=-1))  # contours of class 2
    assert len(green) > 4 * 40 and np.ptp(green[:, 0]) > 160  # in prediction and truth
    # Class 1 is never seen and counts as 0 in the mean over the three.
    assert metrics.semantic(counts)["mIoU"] == pytest.approx(2 / 3)


def test_figures_of_the_first_clips(variables):
    pictures = run(a_config(), variables, num_figures=2).figures
    assert list(pictures) == ["clip00", "clip01"]
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in pictures.values())
    other = run(a_config(), variables, num_figures=1, title="swapped audio").figures["clip00"]
    assert other.shape == pictures["clip00"].shape
    assert (other[:40] != pictures["clip00"][:40]).any()  # the heading says what was heard
    np.testing.assert_array_equal(other[40:], pictures["clip00"][40:])


# ---- pairs ----


def test_swap_audio_is_a_permutation_that_changes_every_category():
    rng = np.random.default_rng(0)
    categories = {f"c{i}": str(rng.integers(6)) for i in range(50)}
    pairs = pairing.swap_audio(categories)
    assert sorted(pairs.values()) == sorted(categories)
    assert all(categories[a] != categories[b] for a, b in pairs.items())
    shuffled = dict(reversed(list(categories.items())))
    assert pairing.swap_audio(shuffled) == pairs


def test_swap_texts_pairs_rows_that_ask_for_something_else():
    """Four phrases of each of ten things: never is the same thing asked for in other words."""
    phrases = ("the {}", "the {} appears", "you hear the {}", "a low {}")
    things = [f"thing{i}" for i in range(10)]
    texts = {f"{thing}/{n}": phrases[n].format(thing) for thing in things for n in range(4)}
    pairs = pairing.swap_texts(texts)
    assert sorted(pairs) == sorted(texts)
    assert all(a.split("/")[0] != b.split("/")[0] for a, b in pairs.items())
    assert len(set(pairs.values())) >= len(texts) - 4
    shuffled = dict(reversed(list(texts.items())))
    assert pairing.swap_texts(shuffled) == pairs


def test_swap_texts_when_no_row_fits_takes_any_other_text():
    """Any two of these 21 texts share one word, which five of them have (a difference set)."""
    texts = {f"{i}": " ".join(f"w{(i + d) % 21}" for d in (0, 1, 4, 14, 16)) for i in range(21)}
    assert all(texts[a] != texts[b] for a, b in pairing.swap_texts(texts).items())
    texts["\ud800"] = "\ud800"  # shares no word with any
    assert set(pairing.swap_texts(texts).values()) >= {"\ud800"}
    with pytest.raises(ValueError, match="two texts"):
        pairing.swap_texts({"a": "dog", "b": "dog"})


def test_swap_audio_when_one_category_has_most_clips():
    categories = {"a": "dog", "b": "dog", "c": "dog", "d": "cat", "e": "cow"}
    pairs = pairing.swap_audio(categories)
    assert all(categories[a] != categories[b] for a, b in pairs.items())
    assert {pairs[x] for x in "abc"} == {"d", "e"}
    with pytest.raises(ValueError, match="two categories"):
        pairing.swap_audio({"a": "dog", "b": "dog"})


def test_silent_audio_takes_the_sound_of_a_visible_object():
    dog, cat, cow, pig = range(1, 5)
    labels = {"a": dog, "b": cat, "c": cow}
    visible = {"a": [dog, cow, pig], "b": [pig, cat], "c": [cow, dog]}
    assert pairing.silent_audio(labels, visible) == {"a": "c", "c": "a"}


# ---- the whole job ----


class Source(list):
    """Records with the metadata that a builder leaves."""

    metadata = {"ground_truth": "drawn", "num_skipped": 2}


@pytest.fixture
def job(monkeypatch, tmp_path, variables):
    """(config, directory of a checkpoint, records that evaluate_split reads)."""
    config, clips = a_config(), Source(records(named=True))
    monkeypatch.setattr(evaluation, "make_task", a_task)
    monkeypatch.setattr(evaluation, "open_records", lambda config, split: clips)
    save_variables(tmp_path / "weights", {"params": variables[0]}, config)
    return config, tmp_path / "weights", clips


def test_figures_show_flow_if_vectors_are_stored(job):
    config, weights, records = job
    moving = [
        {**record, "flow": np.ones((len(record["frames"]), 8, 8, 2), np.float16)}
        for record in records
    ]
    checkpoint = Checkpoint.find(weights)
    run = evaluation.Evaluator(a_task(config), config, checkpoint, "raw", {})
    without, shown = (run(r, TRUE_AUDIO).figures for r in (records, moving))
    assert shown and shown.keys() == without.keys()
    assert all(len(shown[name]) > len(without[name]) for name in shown)


def test_evaluate_split_scores_true_and_false_sound(job, tmp_path, capsys):
    config, weights, _ = job
    report = evaluate_test_split(config, weights, tmp_path / "out")
    true, swapped, shown = (
        report.scores[name] for name in ("true_audio", "swapped_audio", "audio_in_picture")
    )
    assert list(true) == list(metrics.BINARY)
    for protocol, values in true.items():
        assert values == pytest.approx(dict.fromkeys(values, 1.0), abs=1e-6)
        main = next(iter(values))
        if protocol == "cavp":  # scores the background, too
            continue
        assert swapped[protocol][main] == pytest.approx(0, abs=1e-6)
        assert shown[protocol][main] == pytest.approx(0, abs=1e-6)
    assert report.facts["ground_truth"] == "drawn"
    assert report.facts["clips_skipped_when_built"] == 2
    assert report.facts["clips"] == NUM_CLIPS
    assert report.facts["frames"] == NUM_CLIPS * NUM_FRAMES - 1

    (folder,) = (tmp_path / "out" / "evaluation").iterdir()
    assert folder.name.startswith("converted_avsbench_s4_test_raw_")
    assert json.loads((folder / "report.json").read_text())["scores"] == report.scores
    assert "| swapped audio | stream | 0.00 |" in (folder / "report.md").read_text()
    page = (folder / "report.html").read_text()
    assert page.count("<audio") == page.count("<img") > 0  # what each figure's model heard
    counts = FrameCounts.load(folder / "counts.npz")
    assert metrics.all_protocols(counts) == true
    assert counts.facts["audio"] == "true_audio" and counts.facts["split"] == "test"
    shown_counts = FrameCounts.load(folder / "counts_audio_in_picture.npz")
    # With the silent object's sound the model marks that object, which is as large.
    np.testing.assert_array_equal(shown_counts.scored().counts["pred"], 64)
    assert "true audio" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_evaluation_keeps_its_finished_conditions(
    job, tmp_path, capsys, monkeypatch
):
    config, weights, clips = job
    config.evaluate.num_pictures = 1
    call, seen = evaluation.Evaluator.__call__, []

    def watched(self, records, condition, observers=()):
        seen.append(condition)
        if condition == "audio_in_picture" and seen.count(condition) == 1:
            raise KeyboardInterrupt
        return call(self, records, condition, observers)

    monkeypatch.setattr(evaluation.Evaluator, "__call__", watched)
    with pytest.raises(KeyboardInterrupt):
        evaluate_test_split(config, weights, tmp_path / "out")
    assert "2 of 3 conditions are kept; the same command resumes" in capsys.readouterr().err
    evaluate_test_split(config, weights, tmp_path / "out")
    assert seen == ["true_audio", "swapped_audio", "audio_in_picture", "audio_in_picture"]
    evaluate_test_split(config, weights, tmp_path / "whole")  # evaluates everything
    assert len(seen) == 7
    (resumed,), (whole,) = (
        sorted((tmp_path / name / "evaluation").iterdir()) for name in ("out", "whole")
    )  # nothing else is left
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert len(names) == 9
    assert names == {path.relative_to(resumed) for path in resumed.rglob("*") if path.is_file()}
    for name in names:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


def test_finished_conditions_of_other_records_do_not_count(job, tmp_path):
    table = FrameCounts.from_rows([], {})
    result = passes.Evaluation(table, {"a": np.ones((2, 3, 3), np.uint8)})
    report, records = tmp_path / "report", job[2]
    finished = [
        FinishedConditions(report, condition_key({"split": "test"}, given, 1), FrameCounts)
        for given in (records, records[:-1])
    ]
    finished[0].save("silence", result, {"x.json": "{}"})
    found, files = finished[0].load("silence")
    assert files == {"x.json": "{}"} and (found.figures["a"] == 1).all()
    assert finished[1].load("silence") is None and finished[0].load("other") is None


def test_a_checkpoint_without_checksums_keeps_no_conditions(job, tmp_path, monkeypatch):
    """Nothing would tell it from another one in its place."""
    config, weights, _ = job

    def interrupted(self, records, condition, observers=()):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation.Checkpoint, "checksum", None)
    monkeypatch.setattr(evaluation.FinishedConditions, "load", lambda *args: pytest.fail("loaded"))
    monkeypatch.setattr(evaluation.Evaluator, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_test_split(config, weights, tmp_path / "out")


def test_another_run_does_not_replace_a_report(job, tmp_path):
    config, weights, _ = job
    evaluate_test_split(config, weights, tmp_path / "out")
    (report,) = (tmp_path / "out").rglob("report.json")
    before = report.read_bytes()
    save_variables(
        tmp_path / "other", {"params": {"low": np.zeros(()), "step": np.ones(())}}, config
    )
    with pytest.raises(InputError, match="the checkpoint .*/weights .*not of .*/other "):
        evaluate_test_split(config, tmp_path / "other", tmp_path / "out")
    assert report.read_bytes() == before


def test_written_predictions_score_the_same(job, tmp_path):
    config, weights, _ = job
    config.evaluate.swapped_audio = False
    evaluate_test_split(config, weights, tmp_path / "a", tmp_path / "masks")
    evaluation.evaluate_predictions(config, tmp_path / "masks", "test", tmp_path / "b")
    files = [
        dict(np.load(next((tmp_path / folder / "evaluation").glob("*/counts.npz"))))
        for folder in ("a", "b")
    ]
    facts = [file.pop("facts_json") for file in files]
    assert facts[0] != facts[1] and files[0].keys() == files[1].keys()
    for name, array in files[0].items():
        assert array.tobytes() == files[1][name].tobytes(), name


def test_a_clip_without_ground_truth_is_an_error(job, tmp_path):
    config, weights, clips = job
    clips[1] |= {"masks": [], "mask_index": np.zeros(0, np.int32)}
    with pytest.raises(InputError, match="1 of 10 clips have no ground truth"):
        evaluate_test_split(config, weights, tmp_path / "out")


def test_skipped_conditions_are_noted(job, tmp_path):
    config, weights, clips = job
    for clip in clips:
        clip["visible_labels"] = np.zeros(0, np.int32)
        clip["category"] = "bell"
    report = evaluate_test_split(config, weights, tmp_path / "out")
    assert list(report.scores) == ["true_audio"]
    assert "two categories" in report.notes[0] and "visible_labels" in report.notes[1]


def test_mismatched_tensors_are_listed(job, tmp_path):
    config, _, _ = job
    params = {"low": np.zeros(2, np.float32), "extra": np.zeros(3, np.float32)}
    save_variables(tmp_path / "other", {"params": params}, config)
    with pytest.raises(ValueError, match="3 tensor") as error:
        evaluate_test_split(config, tmp_path / "other", tmp_path / "out")
    for line in ("extra (3,)", "low: (2,)", "step ()"):
        assert line in str(error.value)


def test_command_line(job, tmp_path, capsys):
    _, weights, _ = job
    arguments = ["evaluate", "--config=configs/s4_vct.py", f"--checkpoint={weights}"]
    sizes = [f"--config.data.image_size={SIDE}", f"--config.data.num_frames={NUM_FRAMES}"]
    sizes += [f"--config.evaluate.score_size={SCORE}", "--config.data.pre_masks=False"]
    output = [f"--output={tmp_path}/out", "--split=val"]
    assert evaluation.main([*arguments, *sizes, *output]) == 0
    assert list((tmp_path / "out" / "evaluation").glob("converted_avsbench_s4_val_raw_*/report.md"))
    missing = ["evaluate", "--config=configs/s4_vct.py", f"--checkpoint={tmp_path}/nothing"]
    assert evaluation.main(missing) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_the_model_is_the_checkpoints_and_overrides_are_in_the_report(job, tmp_path, capsys):
    """Evaluating another model would be silently wrong if the shapes agree."""
    config, _, _ = job
    config.model.audio_mean, config.evaluate.swapped_audio = -1.4, False
    save_variables(
        tmp_path / "trained", {"params": {"low": np.float32(0), "step": np.float32(1)}}, config
    )
    run = ["evaluate", f"--checkpoint={tmp_path}/trained", f"--output={tmp_path}/out"]
    other = ["--config=configs/s4_vct.py", "--config.evaluate.swapped_audio=False"]
    other.append(f"--config.evaluate.score_size={SCORE}")
    for flags, mean, said in (
        ([], -1.4, None),
        (other, -1.4, "config.model.audio_mean = -1.4 as in the checkpoint, not 0.0"),
        (
            ["--config.model.audio_mean=2.0"],
            2.0,
            "audio_mean = 2.0 by the command line, trained -1.4",
        ),
    ):
        used = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "make_task", lambda c, used=used: used.append(c) or a_task(c))
            assert evaluation.main([*run, *flags]) == 0
        assert used[0].model.audio_mean == mean
        report = max((tmp_path / "out" / "evaluation").glob("*/report.json"), key=os.path.getmtime)
        notes = json.loads(report.read_text())["notes"]
        assert (
            any(said in note for note in notes)
            if said
            else not any("audio_mean" in n for n in notes)
        )


def test_a_report_is_named_after_what_was_scored(job, tmp_path):
    """Another dataset or configuration has another folder; data_dir and figures do not matter."""
    config, weights, _ = job
    config.evaluate.swapped_audio = True
    evaluate_test_split(config, weights, tmp_path / "out")
    (first,) = (tmp_path / "out" / "evaluation").iterdir()
    assert (first / "counts_swapped_audio.npz").exists()
    config.data.data_dir, config.evaluate.num_pictures = "/elsewhere", 0
    config.evaluate.batch_size, config.data.num_workers = 1, 0
    (first / "stale").touch()
    evaluate_test_split(config, weights, tmp_path / "out")
    assert list((tmp_path / "out" / "evaluation").iterdir()) == [first]
    assert not (first / "stale").exists() and not (first / "pictures").exists()
    config.evaluate.swapped_audio = False
    evaluate_test_split(config, weights, tmp_path / "out")
    config.data.dataset = "avsbench_ms3"
    evaluate_test_split(config, weights, tmp_path / "out")
    names = {path.name.rpartition("_")[0] for path in (tmp_path / "out" / "evaluation").iterdir()}
    assert names == {f"converted_avsbench_{name}_test_raw" for name in ("s4", "ms3")}
    assert len(list((tmp_path / "out" / "evaluation").iterdir())) == 3


# ---- the report ----


def test_report_renders_the_same_numbers_three_ways():
    report = Report(
        facts={"step": 7},
        scores={
            "true_audio": {
                "stream": {"mIoU": 0.84321, "f_beta": 0.9},
                "davis": {"J": 0.7, "f_boundary": 0.65, "J&F": 0.675},
            },
            "swapped_audio": {"stream": {"mIoU": 0.08, "f_beta": 0.2}},
        },
        notes=["a note"],
    )
    text, markdown = to_text(report), to_markdown(report)
    for rendering in (text, markdown):
        for word in ("84.32", "90.00", "8.00", "-76.32", "67.50", "a note", "step: 7"):
            assert word in rendering
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("condition"))
    for start, column, word in (
        ("true audio     stream", "mIoU %", "84.32"),
        ("true audio     davis", "J&F %", "67.50"),
        ("swapped audio  stream", "change", "-76.32"),
    ):
        row = next(line for line in lines if line.startswith(start))
        assert row.index(word) + len(word) == header.index(column) + len(column)
    cells = [line.count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert len(cells) == 5 and len(set(cells)) == 1
    assert json.loads(to_json(report))["scores"]["true_audio"]["stream"]["mIoU"] == 0.84321


def test_report_of_one_condition_names_none():
    scores = {"semantic(frames=real)": {"mIoU": 0.5, "f_beta": 0.25}}
    report = Report({"ground_truth": "drawn"}, {"predictions": scores})
    assert "| protocol | mIoU % | f_beta % |\n|---|---:|---:|" in to_markdown(report)
    assert "ground_truth: drawn" in to_text(report) and "predictions" not in to_text(report)

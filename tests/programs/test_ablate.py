"""Ablations: the statistics of known numbers, resuming, and refusing what cannot be compared."""

import csv
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time
import types
from typing import ClassVar

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from avs_jax.controls.false_motion import motion_controls
from avs_jax.results import ablation, metrics, refavs, statistics
from avs_jax.results.counts import FrameCounter, FrameCounts
from avs_jax.results.report import Report, write
from avs_jax.results.table import Table
from avs_jax.runtime.command_line import define_strings, parse
from avs_jax.spec import TRUE_AUDIO, InputError
from avs_jax.tasks import make_task
from configs import s4_vct
from scripts import ablate

FACTS = {"dataset": "avsbench_s4", "split": "test", "digest": "d", "weights": "raw", "clips": 4}
CLIPS = ("a", "b", "c", "d")


def a_run(variant, seed, number, facts=FACTS, spread=0.0, names=CLIPS):
    scores = number + spread * np.array([-1.0, 1, -1, 1])
    return ablation.Run(variant, seed, facts, number, names, scores)


def rows_of(differences, seeds=None):
    runs = [a_run("base", s, 0.5 + 0.01 * s) for s in range(len(differences))]
    runs += [
        a_run("new", s, 0.5 + 0.01 * s + d / 100, spread=0.1) for s, d in enumerate(differences)
    ]
    return ablation.make_rows(["base", "new", "none"], "base", runs)


@pytest.mark.parametrize(
    "differences, t, p, flip, floor",
    [
        ((0.8, 1.1, 0.5), 4.618802, 0.043817, 0.25, 0.25),
        ((0.8, 1.1, 0.5, 0.9, 0.4), 5.743514, 0.004554, 0.0625, 0.0625),
    ],
)
def test_known_statistics(differences, t, p, flip, floor):
    base, new, none = rows_of(differences)
    assert base.contrast is None and none.contrast is None and not none.numbers
    assert new.contrast.t == pytest.approx(t, abs=1e-6)
    assert new.contrast.p_t == pytest.approx(p, abs=1e-6) == new.p_holm
    assert (new.contrast.p_sign_flip, new.contrast.p_floor) == (flip, floor)
    mean = np.mean(differences) / 100
    assert new.contrast.clips_low < mean - 0.03 and new.contrast.clips_high > mean + 0.03
    text = ablation.cells(new)
    assert len(text) == len(ablation.HEADER) and text[2] == f"{100 * mean:+.2f}"
    assert ablation.cells(none)[1:] == [ablation.DASH] * (len(ablation.HEADER) - 1)


def test_only_seeds_that_both_have_are_compared():
    runs = [a_run("base", s, 0.5) for s in (0, 1)]
    runs += [a_run("new", s, 0.6 + s) for s in (1, 2)]
    rows = ablation.make_rows(["base", "new"], "base", runs)
    assert rows[1].contrast.num_runs == 1 and rows[1].contrast.difference == pytest.approx(1.1)
    assert list(rows[1].numbers) == [1, 2]
    assert ablation.cells(rows[1])[3] == ablation.DASH  # no interval from one seed


@pytest.mark.parametrize(
    "other, message",
    [
        (a_run("new", 0, 0.6, FACTS | {"split": "val"}), "split is 'val', but 'test' for base"),
        (a_run("new", 0, 0.6, names=("a", "b", "c", "e")), "scored on other clips than base"),
        (a_run("base", 1, 0.6, FACTS | {"digest": "e"}), "evaluation digest e, but d for another"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        ablation.make_rows(["base", "new"], "base", [a_run("base", 0, 0.5), other])


# ---- the program ----


def write_report(workdir, seed, quality):
    """A report of four clips of two frames; `quality` is the share of the object that is found."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((4, 2, 8, 8), np.uint8)
    labels[:, :, 2:6, 2:6] = 1
    pred = (labels * (rng.random(labels.shape) < quality)).astype(np.float32)
    counter = FrameCounter(2, {})
    valid = np.ones((4, 2), bool)
    frames = np.tile(np.arange(2), (4, 1))
    batch = {"labels": labels, "valid": valid, "supervised": valid, "frame_index": frames}
    counter.add(pred, batch | {"clip_id": list(CLIPS), "category": ["dog"] * 4})
    table = counter.result()
    folder = workdir / "evaluation" / "5_avsbench_s4_test_raw_12345678"
    folder.mkdir(parents=True)
    table.save(folder / "counts.npz")
    table.save(folder / "counts_late.npz")
    scores = metrics.all_protocols(table)
    write(Report(FACTS, {TRUE_AUDIO: scores, "late": scores}), folder)
    return metrics.all_protocols(table)["avsbench(batch=1)"]["mIoU"]


@pytest.fixture
def trainer(monkeypatch):
    """Replaces the training program; holds its calls and what it found."""
    calls, numbers, broken = [], {}, set()

    def train(command, stdout, **_):
        workdir = pathlib.Path(command[-1].removeprefix("--workdir="))
        calls.append((workdir.name, command[3:-1]))
        if workdir.name in broken:
            stdout.write(b"main: the disk is full\n")
            return types.SimpleNamespace(wait=lambda: 1)
        seed = int(command[-2].removeprefix("--config.seed="))
        numbers[workdir.name] = write_report(workdir, seed, 0.9 if "ama" in workdir.name else 0.5)
        return types.SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(ablate.subprocess, "Popen", train)
    found = types.SimpleNamespace(config=s4_vct.get_config("tiny"))
    monkeypatch.setattr(ablate, "Checkpoint", types.SimpleNamespace(find=lambda _: found))
    return types.SimpleNamespace(calls=calls, numbers=numbers, broken=broken)


def flags(output, *more):
    return [
        f"--output={output}",
        "--seeds=0,1,2",
        "--variant=vct --config=configs/s4_vct.py:demo",
        "--variant=ama --config=configs/s4_ama.py:demo --config.train.ema_decay=0.0",
        *more,
    ]


@pytest.mark.parametrize("while_submitting", [False, True])
def test_a_signal_stops_the_running_trainings(monkeypatch, tmp_path, capsys, while_submitting):
    terminated = threading.Event()
    submit = ablate.concurrent.futures.ThreadPoolExecutor.submit

    def submit_slowly(*args):
        future = submit(*args)
        time.sleep(5 * while_submitting)  # the signal ends it
        return future

    monkeypatch.setattr(ablate.concurrent.futures.ThreadPoolExecutor, "submit", submit_slowly)

    class Training:
        def __init__(self, command, **_):
            self.command = command

        def wait(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return 0 if terminated.wait(20) else -1

        def terminate(self):
            terminated.set()

    monkeypatch.setattr(ablate.subprocess, "Popen", Training)
    assert ablate.main(flags(tmp_path)) == 128 + signal.SIGTERM
    assert terminated.is_set()
    assert len(list(tmp_path.glob("*.log"))) == 1  # no other one was started
    assert capsys.readouterr().err.endswith("terminated; the same command resumes\n")


def test_trains_what_is_missing_and_compares(trainer, tmp_path, capsys):
    trainer.broken.add("ama-seed1")
    command = flags(tmp_path, "--config.train.steps=7")
    assert ablate.main(command) == 1
    captured = capsys.readouterr()
    assert "failed: ama-seed1: exit status 1" in captured.err and "disk is full" in captured.err
    assert [name for name, _ in trainer.calls][:3] == ["vct-seed0", "ama-seed0", "vct-seed1"]
    assert trainer.calls[1][1] == [
        "--config=configs/s4_ama.py:demo",
        "--config.train.ema_decay=0.0",
        "--config.train.steps=7",
        "--config.seed=0",
    ]
    trainer.broken.clear()
    trainer.calls.clear()
    assert ablate.main(command) == 0
    assert [name for name, _ in trainer.calls] == ["ama-seed1"]

    measure = "avsbench(batch=1)/mIoU"
    stored = json.loads((tmp_path / "numbers.json").read_text())[measure]
    assert stored["ama"] == {str(s): trainer.numbers[f"ama-seed{s}"] for s in range(3)}
    with open(tmp_path / "table.csv") as file:
        lines = list(csv.reader(file))
    assert [line[1] for line in lines] == ["variant", "vct", "ama"]
    gain = np.mean([stored["ama"][str(s)] - stored["vct"][str(s)] for s in range(3)])
    assert lines[2][3] == f"{100 * gain:+.2f}" and lines[2][-2:] == ["0.2500", "0.2500"]
    assert f"seed 2 {100 * stored['ama']['2']:.2f}" in (tmp_path / "table.md").read_text()
    assert r"\begin{tabular}" in (tmp_path / "table.tex").read_text()
    assert ablate.main([*command, "--train=no", "--condition=late"]) == 0
    for name in ("table.md", "table.csv", "table.tex", "numbers.json"):
        late = name.replace(".", "_late.")
        assert (tmp_path / late).read_text() == (tmp_path / name).read_text()


def test_a_stopped_training_and_a_leftover_are_no_results(trainer, tmp_path, capsys, monkeypatch):
    assert ablate.main(flags(tmp_path)) == 0
    (report,) = (tmp_path / "ama-seed1" / "evaluation").iterdir()
    report.rename(report.with_name(f"{report.name}.unfinished"))  # what kill -9 leaves

    def asked_to_stop(command, **_):
        return types.SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(ablate.subprocess, "Popen", asked_to_stop)
    capsys.readouterr()
    assert ablate.main(flags(tmp_path)) == 1
    err = capsys.readouterr().err
    assert "failed: ama-seed1: stopped without a report of split 'test'" in err
    assert "(2)" in (tmp_path / "table.md").read_text()


def test_a_mistake_in_the_flags_is_said_and_can_be_corrected(trainer, tmp_path, capsys):
    trainer.broken.update(f"{name}-seed{seed}" for name in ("vct", "ama") for seed in range(3))
    assert ablate.main(flags(tmp_path, "--config.train.stepz=3")) == 1
    captured = capsys.readouterr()
    assert "failed: vct-seed0: exit status 1" in captured.err and "the disk is full" in captured.err
    assert "no run has a report of split 'test'" in captured.err
    trainer.broken.clear()
    assert ablate.main(flags(tmp_path, "--config.train.steps=3")) == 0


def test_scores_of_clips_are_those_of_a_mean_over_clips(tmp_path):
    number = write_report(tmp_path, 3, 0.7)
    loaded = FrameCounts.load(ablate.find_report(tmp_path, "test") / "counts.npz")
    measure = "avsbench(batch=1)/mIoU"
    names, found = ablation.clip_scores(loaded, metrics.all_protocols, [measure])
    assert names == list(CLIPS) and found[measure].mean() == pytest.approx(number, abs=1e-12)
    alone = [
        metrics.all_protocols(loaded.take(rows))["avsbench(batch=1)"]["mIoU"]
        for rows in loaded.groups("clip_id")
    ]
    np.testing.assert_allclose(found[measure], alone, atol=1e-12)


class Answers(Table):
    schema: ClassVar = {"name": str}


def answers(right, known=None):
    """One row per item, and whether it was answered rightly."""
    names = [f"{i:03d}" for i in range(len(right))]
    known = np.ones(len(right), bool) if known is None else known
    columns = {"name": np.array(names), "right": np.array(right), "known": known}
    return Answers(columns)


def share_of_squares(table):
    """No mean over items: the square of the share of right answers among the known items."""
    right, known = table["right"], table["known"]
    value = None if not known.any() else float(right[known].mean() ** 2)
    return {"all": {"squared": value}}


@pytest.mark.parametrize("count", [60, 450])  # single items, and groups of three
def test_what_is_no_mean_over_clips_has_the_interval_of_its_bootstrap(count):
    rng = np.random.default_rng(0)
    better, worse = answers(rng.random(count) < 0.8), answers(rng.random(count) < 0.6)
    scores, numbers = [], []
    for table in (better, worse):
        names, found = ablation.clip_scores(table, share_of_squares, ["all/squared"])
        assert len(names) == count
        scores.append(found["all/squared"][None])
        numbers.append(share_of_squares(table)["all"]["squared"])
    assert scores[0].shape[1] == (60 if count == 60 else 150)
    found = statistics.compare(*scores, by_run=np.array([numbers[0] - numbers[1]]))
    weights = statistics.resample_weights(count, 4000, 1)[1:] / count
    resampled = (weights @ better["right"]) ** 2 - (weights @ worse["right"]) ** 2
    low, high = np.quantile(resampled, [0.025, 0.975])
    width = high - low
    assert (found.clips_low, found.clips_high) == pytest.approx((low, high), abs=0.1 * width)


def write_expressions(seed, num_clips=96):
    """Counts of clips of a frame; each is found at thresholds of its own, and a third are null."""
    rng = np.random.default_rng(seed)
    is_null = np.random.default_rng(0).random(num_clips) < 1 / 3
    labels = np.zeros((num_clips, 1, 8, 8), np.uint8)
    labels[~is_null, :, 2:6, 2:6] = 1
    level = rng.uniform(0.2, 0.9, (num_clips, 1, 1, 1))
    noise = rng.random(labels.shape) * rng.uniform(0.2, 0.7, (num_clips, 1, 1, 1))
    pred = np.where(labels == 1, level, noise).astype(np.float32)
    meter, valid = refavs.ExpressionMeter({}), np.ones((num_clips, 1), bool)
    batch = {"labels": labels, "valid": valid, "supervised": valid, "is_null": is_null}
    batch |= {"frame_index": np.zeros((num_clips, 1), int), "category": ["x"] * num_clips}
    meter.add({"pred": pred}, batch | {"clip_id": [f"{i:03d}" for i in range(num_clips)]})
    return meter.table()


def draw_clips(table, rng):
    """A resample of the clips, each drawn one under a name of its own."""
    found = table.take(rng.integers(0, len(table), len(table)))
    return FrameCounts({**found.columns, "clip_id": table["clip_id"]})


def of_referring(table):
    return {"referring": refavs.refavs(table.take(refavs.subsets(table)["referring"]))}


@pytest.mark.parametrize(
    "protocols, batches, measure",
    [
        (
            lambda table: {"avsbench(batch=4)": metrics.avsbench(table, 4)},
            metrics.batches,
            "avsbench(batch=4)/f_beta",
        ),
        (of_referring, refavs.batches, "referring/J&f_beta"),
        (lambda table: {"null": refavs.null(table)}, refavs.batches, "null/S(batch=4)"),
    ],
)
def test_what_is_scored_in_batches_has_the_interval_of_its_bootstrap(protocols, batches, measure):
    tables = [write_expressions(seed) for seed in (1, 2)]
    scores, numbers = [], []
    for table in tables:
        _, found = ablation.clip_scores(table, protocols, [measure], batches(table))
        scores.append(found[measure][None])
        numbers.append(ablation.flatten(protocols(table))[measure])
    found = statistics.compare(*scores, by_run=np.array([numbers[0] - numbers[1]]))
    resampled = []
    for seed in range(100):
        drawn = [draw_clips(table, np.random.default_rng(seed)) for table in tables]
        first, second = (ablation.flatten(protocols(table))[measure] for table in drawn)
        resampled.append(first - second)
    width = 2 * 1.96 * np.std(resampled)
    assert found.clips_high - found.clips_low == pytest.approx(width, rel=0.3)


def test_items_without_the_measure_and_too_few_items():
    known = np.arange(40) < 10
    table = answers(np.arange(40) % 2 == 0, known)
    _, found = ablation.clip_scores(table, share_of_squares, ["all/squared"])
    np.testing.assert_allclose(found["all/squared"][10:], 0.25)  # what they leave unchanged
    only = answers([True, False], np.array([True, False]))
    _, found = ablation.clip_scores(only, share_of_squares, ["all/squared"])
    assert np.isnan(found["all/squared"][0]) and found["all/squared"][1] == 1
    names, found = ablation.clip_scores(answers([True]), share_of_squares, ["all/squared"])
    assert names == ["000"] and np.isnan(found["all/squared"]).all()
    runs = [ablation.Run(v, 0, FACTS, 0.5, names, found["all/squared"]) for v in ("a", "b")]
    assert ablation.cells(ablation.make_rows(["a", "b"], "a", runs)[1])[4] == ablation.DASH


@pytest.mark.parametrize(
    "change, message",
    [
        (["--steps=3"], "--steps=3: unknown flag"),
        (["--variant=ama --config=configs/s4_ama.py"], "expected a new name"),
        (["--variant=x --config.seed=1"], "lacks --config=FILE"),
        (["--variant=x --config=f --steps=3"], "--steps=3 is not --config"),
        (["--seeds=1,1"], "--seeds=1,1: expected different whole numbers"),
        (["--seeds=a"], "--seeds=a: expected different"),
        ([f"--seeds={','.join(map(str, range(17)))}"], "joined by commas, 16 at most"),
        (["--baseline=y"], "--baseline=y: no such variant; there are vct, ama"),
        (["--jobs=0"], "--jobs=0: expected at least 1"),
        (["--measure=stream/IoU"], "no measure 'stream/IoU'; nearest: stream/mIoU"),
        (["--condition=silence"], "no condition 'silence'; there are true_audio, late"),
        (["--train=no", "--split=val"], "no run has a report of split 'val'"),
    ],
)
def test_bad_flags_are_named(trainer, tmp_path, capsys, change, message):
    assert ablate.main(flags(tmp_path, *change)) == 1
    assert message in capsys.readouterr().err


RECORDING_PYTHON = r"""#!/bin/sh
printf '%s\0' "$@" >>commands; printf '\n' >>commands
for flag; do
  case $flag in
    --workdir=*) workdir=${flag#*=} ;;
    --config.train.steps=*) steps=${flag#*=} ;;
  esac
done
[ -z "$workdir" ] || [ -n "$STOPPED" ] || mkdir -p "$workdir/checkpoints/$steps"
"""


@pytest.fixture
def study(tmp_path):
    """Runs a copy of a study with a Python that writes its arguments down."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "demo/s4_ama-seed0/evaluation").mkdir(parents=True)
    shutil.copytree(ablate.ROOT / "scripts/demos", tmp_path / "scripts/demos")
    (tmp_path / "scripts/environment.sh").write_text('extras=$1 venv=.; [ -z "$extras" ]')
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(RECORDING_PYTHON)
    python.chmod(0o755)

    def run(name, *flags, **variables):
        shutil.copy(ablate.ROOT / "scripts" / name, tmp_path / "scripts")
        done = subprocess.run(
            ["bash", f"scripts/{name}", *flags],
            cwd=tmp_path,
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        commands = (tmp_path / "commands").read_text().split("\0\n")[:-1]  # flags have lines, too
        return [command.split("\0") for command in commands]

    return run


@pytest.mark.parametrize(
    "kind, names",
    [
        ("still", ["vct", "ama", "ama_both"]),
        ("moving", ["vct", "ama", "sync"]),
        ("ordinary", ["vct", "ama", "sync", "robust"]),
    ],
)
def test_the_study_of_look_alikes_has_only_flags_that_exist(study, kind, names):
    commands = study("study_twins.sh", "--seeds=0,1", KINDS=kind)
    trains, *tables = (c[1:] for c in commands if c[0] == "scripts/ablate.py")
    args, overrides = ablate._parser().parse_known_args(trains)
    assert args.seeds == "0,1" and args.train == "yes"
    conditions = [ablate._parser().parse_known_args(flags)[0].condition for flags in tables]
    expected = {"still": ["late"], "moving": ["late", "scrambled_track"], "ordinary": []}
    assert conditions == expected[kind]
    found = ablate.read_variants(args.variant, overrides)
    assert list(found) == names
    (builds,) = [c for c in commands if c[0] == "scripts/build_dataset.py"]
    assert any(flag.startswith("--track_dir=") for flag in builds) == ("sync" in names)
    for name, flags in found.items():
        config = parse(["train", *flags], lambda values: None, "").config
        task = make_task(config)
        fresh = config.train.init_fresh
        assert any(re.fullmatch(rule, "ama/q_proj/kernel") for rule in fresh)
        assert config.train.steps == (1000 if kind == "still" else 500)
        assert ("motion_track" in task.rows.fields) == (name == "sync")
        assert config.data.track.window_seconds == (5 if name == "sync" else 2)
        at = {"ama": "queries", "robust": "queries", "ama_both": "both", "sync": "both"}
        assert config.model.fusion.get("at", "") == at.get(name, "")
        if kind == "ordinary":
            assert config.evaluate.audio == "silence,noise,offscreen"
            assert config.data.false_sounds.share == (0.3 if name == "robust" else 0)
        else:
            assert config.evaluate.audio == "late"
            assert motion_controls(config.evaluate.motion) == ["scrambled_track"]


def test_an_unknown_kind_of_study_is_named(study):
    with pytest.raises(AssertionError, match="choose from still, moving, ordinary"):
        study("study_twins.sh", KINDS="both")


def read_variants(commands):
    """The arguments of the first call of ablate.py in a study; variant -> configuration."""
    flags = next(c[1:] for c in commands if c[0] == "scripts/ablate.py")
    args, overrides = ablate._parser().parse_known_args(flags)
    found = ablate.read_variants(args.variant, overrides)
    return args, {
        name: parse(["train", *own], lambda values: None, "").config for name, own in found.items()
    }


def test_the_study_of_words_varies_the_attention_and_the_alignment(study):
    args, configs = read_variants(study("study_refer.sh", "--seeds=0,1"))
    assert args.seeds == "0,1" and args.split == "test_s" and args.output.endswith("refer/runs")
    names = ["no_cma", "one_token", "tokens", "levels"]
    assert list(configs) == [name + end for name in names for end in ("", "_plain")]
    varied = ("model.fusion.", "loss.align_weight")
    rest, fusions = [], {}
    for name, config in configs.items():
        task = make_task(config)  # raises where a part cannot be
        assert task.model.localizer["name"] == "text_to_pixel"  # without attention too
        assert list(task.model.stages()) == ([] if "no_cma" in name else ["fusion"])
        assert config.loss.align_weight == (0 if name.endswith("_plain") else 20)
        leaves = flatten_dict(config.to_dict(), sep=".")
        rest.append({key: x for key, x in leaves.items() if not key.startswith(varied)})
        fusions[name] = {key: x for key, x in leaves.items() if key.startswith(varied[0])}
    assert all(other == rest[0] for other in rest)
    assert rest[0]["train.steps"] == 400 and rest[0]["data.text.num_asked"] == 4
    assert all(fusions[name] == fusions[f"{name}_plain"] for name in names)
    one, several, everywhere = (fusions[name] for name in names[1:])
    # One key without a null key gives every cell the same; a gate of the localizer would not.
    assert one["model.fusion.mask_gate"] == "none" and not one["model.fusion.null_key"]
    assert one | {"model.fusion.text_pool": "tokens"} == several != one
    levels = ("res5", "res4", "res3", "res2")
    assert several | {"model.fusion.levels": levels} == everywhere
    assert several["model.fusion.levels"] == ("res2",)


def test_the_study_of_words_starts_as_the_demo_does(study):
    clips, build, looks, sounds, trains = study("study_refer.sh")
    root = "demo/study_refer"
    assert clips[0] == "scripts/make_clips.py" and f"--output={root}/clips" in clips
    assert build[0] == "scripts/build_dataset.py" and f"--data_dir={root}/tfds" in build
    define = functools.partial(define_strings, texts={"workdir": ""})
    runs = [parse(["train", *flags[2:]], define, "") for flags in (looks, sounds)]
    folders = [line.values.workdir for line in runs]
    assert folders == [f"{root}/words_{name}-seed0" for name in ("looks", "sounds")]
    starts = [line.config.train.init_from for line in runs]
    assert starts == ["demo/s4_ama-seed0", folders[0]]
    assert not any(line.config.loss.masks for line in runs)
    _, configs = read_variants([trains])
    config = configs["tokens"]
    assert config.train.init_from == folders[1] and config.loss.masks
    assert config.data.data_dir == runs[0].config.data.data_dir == f"{root}/tfds"
    assert config.train.init_fresh == config.train.init_dropped == ("cma/.*",)


def test_a_study_whose_stage_of_words_is_stopped_trains_no_variant(study):
    with pytest.raises(AssertionError, match="words_looks-seed0: stopped before its end"):
        study("study_refer.sh", STOPPED="yes")


def test_a_run_starts_from_that_of_its_seed(trainer, tmp_path):
    variant = "--variant=both --config=configs/s4_vct.py:demo --config.train.init_from=s4/{seed}"
    assert ablate.main([f"--output={tmp_path}", "--seeds=0,3", variant]) == 0
    starts = [command[1] for _, command in trainer.calls]
    assert starts == ["--config.train.init_from=s4/0", "--config.train.init_from=s4/3"]
    assert ablate.main([f"--output={tmp_path}", "--seeds=0,3", variant]) == 0
    assert len(trainer.calls) == 2


def test_another_variant_of_the_same_name_is_an_error(trainer, tmp_path, capsys):
    assert ablate.main(flags(tmp_path)) == 0
    assert ablate.main(flags(tmp_path, "--config.train.steps=9")) == 1
    assert "vct-seed0 was started with" in capsys.readouterr().err

"""The training program on a small model and clips in memory: stop, resume, refuse, report."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from avs_jax import evaluate as evaluation
from avs_jax import train as program
from avs_jax.data import pipeline
from avs_jax.plan import trace_step
from avs_jax.results.counts import FrameCounts
from avs_jax.runtime import optim, sharding
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.collectives import find_collectives
from avs_jax.runtime.evaluation import Evaluation
from avs_jax.runtime.hlo import Program
from avs_jax.runtime.interruption import NotFiniteError
from avs_jax.runtime.log import Log
from avs_jax.runtime.memory import StepBytes, compile_ahead
from avs_jax.runtime.run_checkpoints import STATE_FIELDS
from avs_jax.stopping import Terminated
from avs_jax.tasks import make_task
from tests import small
from tests.runtime.test_checkpoint import config_of_fc75a40_run


def clips_of(config, split):
    count, seed = {"train": (9, 0), "val": (3, 1), "test": (2, 2)}[split]
    return small.records(count, seed)


@pytest.fixture(autouse=True)
def clips_in_memory(monkeypatch):
    monkeypatch.setattr(program, "open_records", clips_of)
    monkeypatch.setattr(evaluation, "open_records", clips_of)


def small_config():
    """With everything on that a resumed run must take up again."""
    config = small.tiny_config()
    config.train.ema_decay = 0.9
    config.train.patience = 3
    config.model.fusion.update(attention_dropout=0.2, projection_dropout=0.2, map_dropout=0.2)
    config.evaluate.update(swapped_audio=False, num_pictures=0)
    return config


def stop_at(monkeypatch, step):
    """SIGTERM from outside, while the log line of a step is written."""
    progress = Log.progress

    def progress_and_stop(self, at, *args):
        progress(self, at, *args)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "progress", progress_and_stop)


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")

    def compile_and_keep(*args):
        compiled, used = compile_ahead(*args)
        (workdir / "step.hlo").write_text(compiled.as_text())
        return compiled, used

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "open_records", clips_of)
        patch.setattr(evaluation, "open_records", clips_of)
        patch.setattr(program, "compile_ahead", compile_and_keep)
        config = small_config()
        config.profile_steps = 2
        program.train(config, workdir)
    return workdir


def take_up(never_stopped, workdir, step):
    """A run that stands at a step of the whole one."""
    shutil.copytree(never_stopped / "checkpoints" / str(step), workdir / "checkpoints" / str(step))
    return workdir


def test_what_a_run_leaves(never_stopped):
    lines = read(never_stopped)
    steps = [line for line in lines if "total_loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    names = "loss_ce loss_mask loss_dice loss_proto lr lambda tau grad_norm clips_per_second"
    assert set(names.split()) <= set(steps[1])
    assert all(0 <= line["data_wait"] <= 1 for line in steps[1:])
    (validation,) = [line for line in lines if "val/stream/mIoU" in line]
    (average,) = [line for line in lines if "val_ema/stream/mIoU" in line]
    assert validation["step"] == average["step"] == 4
    assert sorted(p.name for p in (never_stopped / "checkpoints").iterdir()) == ["2", "4"]
    (events,) = (never_stopped / "tensorboard").glob("events.*")
    assert b"val/clip1_0" in events.read_bytes() and b"val_ema/clip1_0" in events.read_bytes()


def test_the_average_of_the_parameters_is_what_a_finished_run_gives(never_stopped):
    found = Checkpoint.find(never_stopped)
    assert found.available_weights == ("raw", "ema")
    raw, raw_stats = found.variables("raw")
    average, stats = found.variables()
    assert jax.tree.structure(average) == jax.tree.structure(raw)
    assert jax.tree.structure(stats) == jax.tree.structure(raw_stats)
    before, _ = Checkpoint.find(never_stopped / "checkpoints" / "2").variables("ema")
    assert np.abs(average["ama"]["q_proj"]["kernel"] - raw["ama"]["q_proj"]["kernel"]).max() > 0
    # d_4 = min(0.9, 5 / 14): the average moves towards the parameters and does not arrive.
    moved = np.abs(before["ama"]["temperature"] - average["ama"]["temperature"]).max()
    assert moved > 0
    saved = json.loads((never_stopped / "checkpoints" / "4" / "metrics" / "metrics").read_text())
    lines = {key: value for line in read(never_stopped) for key, value in line.items()}
    assert saved["mIoU"] == lines["val_ema/avsbench(batch=1)/mIoU"]
    assert saved["raw_mIoU"] == lines["val/avsbench(batch=1)/mIoU"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["last step", "reports"])
def test_sigterm_ends_the_reports_too(never_stopped, tmp_path, monkeypatch, capsys, when):
    take_up(never_stopped, tmp_path, 2)
    scored = []

    def score(*args, **kwargs):
        scored.append(args)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)  # an evaluation that takes long

    monkeypatch.setattr(program, "evaluate_split", score)
    if when == "last step":
        stop_at(monkeypatch, 3)  # is heard after step 4
        assert not program.train(small_config(), tmp_path)
        assert "asked to stop: all steps are done" in capsys.readouterr().err and not scored
        return
    with pytest.raises(Terminated):
        program.train(small_config(), tmp_path)
    assert len(scored) == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (tmp_path / "checkpoints" / "4").is_dir()


@pytest.mark.slow
def test_stopped_and_resumed_is_never_stopped_bit_for_bit(never_stopped, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        program.train(small_config(), tmp_path)
    logged = [line["step"] for line in read(tmp_path) if "total_loss" in line]
    assert logged == [1, 2, 3]  # the one under way is finished
    assert (tmp_path / "checkpoints" / "3").is_dir()
    program.train(small_config(), tmp_path)
    for name in STATE_FIELDS:
        a, b = (
            found.restore({name: jax.tree.map(_zeros, found.shapes[name])})
            for found in (
                Checkpoint.find(d / "checkpoints" / "4") for d in (never_stopped, tmp_path)
            )
        )
        jax.tree.map(np.testing.assert_array_equal, a, b)
    steps = [line for line in read(tmp_path) if "total_loss" in line]
    whole = [line for line in read(never_stopped) if "total_loss" in line]
    for line in steps + whole:
        line.pop("clips_per_second", None)
        line.pop("data_wait", None)
    assert steps == whole


def _zeros(x):
    return np.zeros(x.shape, x.dtype)


@pytest.mark.slow
def test_at_the_end_the_best_checkpoint_is_reported_on_both_splits(never_stopped, capsys):
    folder = never_stopped / "evaluation"
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    kinds = [(s, w) for s in ("test", "val") for w in ("ema", "raw")]
    assert [n.rpartition("_")[0] for n in names] == [f"4_avsbench_s4_{s}_{w}" for s, w in kinds]
    reports = {kind: folder / name / "report.json" for kind, name in zip(kinds, names, strict=True)}
    found = {kind: json.loads(path.read_text()) for kind, path in reports.items()}
    assert all((r["facts"]["split"], r["facts"]["weights"]) == k for k, r in found.items())
    assert [r["facts"]["clips"] for r in found.values()] == [2, 2, 3, 3]
    scores = found["val", "ema"]["scores"]
    lines = {key: value for line in read(never_stopped) for key, value in line.items()}
    assert scores["true_audio"]["stream"]["mIoU"] == pytest.approx(lines["val_ema/stream/mIoU"])

    # A finished run trains no more; a report that is missing is made up for.
    shutil.rmtree(reports["val", "raw"].parent)
    kept = reports["test", "raw"].stat()
    program.train(small_config(), never_stopped)
    assert "all steps are done" in capsys.readouterr().err
    assert reports["val", "raw"].exists()
    assert reports["test", "raw"].stat() == kept

    # A report of parameters that are there no more is replaced.
    found = json.loads(reports["test", "raw"].read_text())
    checksum = found["facts"].pop("checksum")
    old = json.dumps(found | {"facts": found["facts"] | {"checksum": "of a run before"}})
    reports["test", "raw"].write_text(old)
    program.train(small_config(), never_stopped)
    found = json.loads(reports["test", "raw"].read_text())
    assert found["facts"]["checksum"] == checksum == Checkpoint.find(never_stopped).checksum
    kept = reports["test", "raw"].stat()

    # A report of another configuration is another report.
    config = small_config()
    config.evaluate.moving_threshold = 0.3
    config.train.final_splits = ("test",)
    program.train(config, never_stopped)
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 6
    assert reports["test", "raw"].stat() == kept


@pytest.mark.slow
def test_a_run_of_fc75a40_evaluates_to_the_same_counts_and_resumes(
    golden_dir, tmp_path, monkeypatch
):
    """The code of that commit took the counts, on 8 devices and with the settings of conftest."""
    golden = golden_dir / "fc75a40"
    shutil.copytree(golden / "run", tmp_path / "run")
    run = Checkpoint.find(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "open_records", lambda config, split: small.records(8, 2))
        for weights in ("raw", "ema"):
            evaluation.evaluate_split(run.config, run, "test", weights, tmp_path / weights)
    for weights in ("raw", "ema"):
        (file,) = (tmp_path / weights).rglob("counts.npz")
        found = FrameCounts.load(file)
        for name, column in FrameCounts.load(golden / f"counts_{weights}.npz").columns.items():
            assert found[name].dtype == column.dtype, name
            assert found[name].tobytes() == column.tobytes(), name

    config = config_of_fc75a40_run()
    config.train.final_splits = ()
    assert program.train(config, tmp_path / "run")
    steps = [line for line in read(tmp_path / "run") if "total_loss" in line]
    assert [line["step"] for line in steps] == [3, 4]
    # Of that commit, too; gradients have got another rounding since.
    losses = [line["total_loss"] for line in steps]
    np.testing.assert_allclose(losses, [17.65252685546875, 17.028194427490234], rtol=1e-6)


@pytest.mark.slow
def test_early_stopping_comes_at_the_same_step_when_resumed(tmp_path, monkeypatch, capsys):
    """Also where the run is stopped at an evaluation, which is then left out and made up for."""
    scores = {1: 0.5, 2: 0.4, 3: 0.45, 4: 0.9}
    asked = []

    def evaluate(task, step, variables, loader, mesh, *, title, **_):
        asked.append(int(re.search(r"step (\d+)", title)[1]))
        return Evaluation(scores[asked[-1]], {})

    def make(config):
        return dataclasses.replace(
            make_task(config), validation=lambda score: {"stream": {"mIoU": score}}
        )

    monkeypatch.setattr(program, "evaluate", evaluate)
    monkeypatch.setattr(program, "make_task", make)
    config = small_config()
    config.train.update(eval_every=1, checkpoint_every=1, patience=2, final_splits=())
    config.train.ema_decay = 0.0
    program.train(config, tmp_path / "whole")
    assert asked == [1, 2, 3]  # the score of step 4 would have been better

    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        program.train(config, tmp_path / "resumed")
    assert asked == [1, 2, 3, 1]
    program.train(config, tmp_path / "resumed")
    assert asked == [1, 2, 3, 1, 2, 3]
    program.train(config, tmp_path / "resumed")  # over, and known to be
    assert asked == [1, 2, 3, 1, 2, 3]
    said = "stopped: 2 evaluations since step 1, whose score of 0.5000 is the best"
    assert capsys.readouterr().err.count(said) == 3
    histories = []
    for name in ("whole", "resumed"):
        folder = tmp_path / name / "checkpoints"
        assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]  # 1 is the best
        histories.append((folder / "3" / "validation" / "metadata").read_text())
        assert Checkpoint.find(tmp_path / name).name == "1"
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(never_stopped, tmp_path, monkeypatch):
    """From a good checkpoint, with a NaN in one sound of the next batch."""
    take_up(never_stopped, tmp_path, 2)
    item = pipeline.TrainBatches.__getitem__

    def broken(self, index):
        batch = item(self, index)
        batch["log_mel"] = batch["log_mel"] * np.float32("nan")
        return batch

    monkeypatch.setattr(pipeline.TrainBatches, "__getitem__", broken)
    with pytest.raises(NotFiniteError, match=r"step 3: .*checkpoints/2; terms: .*loss_ce"):
        program.train(small_config(), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_the_step_is_traced_for_tensorboard(never_stopped):
    """Of four steps the last two: there are no three to warm up before them."""
    (trace,) = (never_stopped / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"jit_step" in content and b"/host:CPU" in content


@pytest.mark.slow
def test_the_bytes_that_are_reported_are_those_of_the_plan(never_stopped):
    reported = {
        name.removeprefix("step_bytes/"): value
        for line in read(never_stopped)
        for name, value in line.items()
        if name.startswith("step_bytes/")
    }
    total = reported.pop("total")
    assert reported["temporaries"] > 0 and reported["shared"] > 0
    config = small_config()
    compiled = trace_step(config, sharding.make_mesh(config)).traced.lower().compile()
    assert StepBytes(**reported) == StepBytes.of(compiled) and total == StepBytes.of(compiled).total


def test_the_devices_exchange_gradients_statistics_and_norms_alone(never_stopped):
    """Whatever else is sent is an operation that XLA could not split over the rows."""
    found = find_collectives(Program.parse((never_stopped / "step.hlo").read_text()))
    assert {collective.kind for collective in found} == {"all-reduce"}
    assert all(collective.runs is not None for collective in found)
    params, batch_stats = Checkpoint.find(never_stopped).variables("raw")
    trainable, _ = optim.split_frozen(params, small_config().optim.frozen)
    gradients = sum(leaf.nbytes for leaf in trainable.values())
    statistics = sum(leaf.nbytes for leaf in jax.tree.leaves(batch_stats))  # mean and variance
    rest = sum(collective.runs * collective.bytes for collective in found) - gradients
    # The backward pass of batch statistics sums as much as the forward pass; norms are scalars.
    # Some parameters are used twice, and the embedding of levels is summed per token.
    assert 2 * statistics < rest <= 2 * statistics + 0.05 * gradients
    assert len(found) <= 16


@pytest.mark.slow
def test_a_second_start_compiles_nothing_again(never_stopped, tmp_path):
    """But for functions so small that compiling them takes no longer than reading a file."""
    events = []
    jax.monitoring.register_event_listener(listen := lambda name, **_: events.append(name))
    try:
        program.train(small_config(), take_up(never_stopped, tmp_path, 2))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert events.count("/jax/compilation_cache/cache_hits") >= 2  # training, validation
    assert "/jax/compilation_cache/cache_misses" not in events


@pytest.mark.slow
def test_the_step_takes_nothing_from_the_host_by_itself(never_stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "put_batch", lambda batch, mesh: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        program.train(small_config(), take_up(never_stopped, tmp_path, 2))


def test_another_configuration_in_the_same_directory(never_stopped, monkeypatch):
    config, seen = small_config(), []
    config.optim.clip_norm = 7.0

    def complete(config, stored):
        seen.append(stored.optim.clip_norm)
        return config

    monkeypatch.setattr(program, "complete_config", complete)
    with pytest.raises(ValueError, match=r"optim.clip_norm: 0.1 in the checkpoint, 7.0 now"):
        program.train(config, never_stopped)
    assert seen == [0.1]


def test_without_data_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.undo()
    config = small_config()
    config.data.data_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        program.train(config, tmp_path / "run")
    for part in (str(tmp_path), "avs-jax data build", "docs/data.md", "scripts/demo.sh"):
        assert part in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("batch_size", [3, 12])
def test_a_batch_that_does_not_fit_the_devices(tmp_path, batch_size):
    config = small_config()
    config.train.batch_size = batch_size
    with pytest.raises(ValueError, match=rf"batch_size={batch_size} is not divisible by 8 device"):
        program.train(config, tmp_path)

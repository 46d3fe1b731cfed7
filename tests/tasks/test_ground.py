"""Task `ground` through the programs: train, evaluate with controls and gates, predict, submit.

Records are those of the layout fixture, through the real builder; the model is `:tiny`.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from avs_jax import evaluate as evaluation
from avs_jax import predict
from avs_jax import train as program
from avs_jax.results.gate_log import read_gate_log
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.task import check_arrays
from avs_jax.tasks import make_task
from configs import qvh_custom, qvh_qd_detr
from tests import small
from tests.ground_fixture import copy_qvhighlights, read_records

pytestmark = pytest.mark.slow  # the training takes a minute


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = copy_qvhighlights(tmp_path_factory.mktemp("qvh") / "qvhighlights")
    return read_records(folder, "qvhighlights")


@pytest.fixture(scope="module")
def run(records, tmp_path_factory):
    """A finished training run with gates."""
    workdir = tmp_path_factory.mktemp("ground") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for module in (program, evaluation):
            patch.setattr(module, "open_records", lambda config, split: records)
        assert program.train(qvh_custom.get_config("tiny"), workdir)
    return workdir


def test_training_leaves_a_report_with_controls(run, records):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "total_loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {"loss_span", "loss_giou", "loss_label", "loss_saliency"} <= steps[0].keys()
    (folder,) = (path for path in (run / "evaluation").iterdir() if path.is_dir())
    report = json.loads((folder / "report.json").read_text())
    assert report["facts"]["queries"] == len(records)
    rows = make_task(qvh_custom.get_config("tiny")).rows
    cut = [rows.prepare(record)["cut_words"] > 0 for record in records]
    assert any(cut) and report["facts"]["queries cut to max_words"] == sum(cut)
    assert {"true_audio", "another_query", "another_sound", "silence"} == set(report["scores"])
    numbers = report["scores"]["true_audio"]["moments"]
    assert 0 <= numbers["mAP"] <= 1
    assert Checkpoint.find(run).measure == "mAP"


@pytest.mark.slow
def test_a_resumed_run_is_one_that_never_stopped(run, records, tmp_path, monkeypatch):
    for module in (program, evaluation):
        monkeypatch.setattr(module, "open_records", lambda config, split: records)
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert program.train(qvh_custom.get_config("tiny"), tmp_path / "run")

    def losses(workdir):
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["total_loss"]) for line in lines if "total_loss" in line]

    assert losses(tmp_path / "run") == losses(run)
    stored = [Checkpoint.find(folder).variables() for folder in (run, tmp_path / "run")]
    jax.tree.map(np.testing.assert_array_equal, *stored)


def test_gates_are_logged_where_asked_for(run, records, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "open_records", lambda config, split: records)
    flags = [f"--checkpoint={run}", f"--output={tmp_path}", "--config.evaluate.gates=2"]
    assert evaluation.main(["evaluate", *flags]) == 0
    (path,) = tmp_path.rglob("gate_logs_val_N2.jsonl")
    log = read_gate_log(path)
    assert [line["qid"] for line in log] == [str(record["qid"]) for record in records[:2]]
    assert set(log[0]["layer_gates"][0]) == {"gate_mha", "gate_ffn"}


def test_a_submission_scores_as_the_run_that_wrote_it(run, records, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "open_records", lambda config, split: records)
    flags = [f"--checkpoint={run}", f"--output={tmp_path}/a"]
    assert evaluation.main(["evaluate", *flags, f"--write_predictions={tmp_path}/files"]) == 0
    flags = ["--config=configs/qvh_custom.py:tiny", f"--output={tmp_path}/b"]
    flags.append(f"--predictions={tmp_path}/files/submission.jsonl")
    assert evaluation.main(["evaluate", *flags]) == 0
    a, b = (
        json.loads(next((tmp_path / name).rglob("report.json")).read_text())["scores"]
        for name in "ab"
    )
    assert b["predictions"] == a["true_audio"]


def test_arrays_in_and_out(run, records, tmp_path):
    config = Checkpoint.find(run).config
    task = make_task(config)
    rows = [task.rows.prepare(record) for record in records[:3]]
    names = ("video", "video_mask", "text", "text_mask", "audio")
    arrays = {name: np.stack([row[name] for row in rows]) for name in names}
    check_arrays(arrays, task.rows)
    np.savez(tmp_path / "in.npz", **arrays)
    flags = [f"--checkpoint={run}", f"--arrays={tmp_path}/in.npz", f"--output={tmp_path}/out.npz"]
    assert predict.main(["predict", *flags]) == 0
    out = dict(np.load(tmp_path / "out.npz"))
    assert out["pred_spans"].shape == (3, 5, 2) and out["pred_logits"].shape == (3, 5, 2)
    assert out["saliency_scores"].shape == (3, 75)
    assert out["gates/0/gate_mha"].shape == (3, 75, 16)


def test_mistakes_are_named(run, capsys):
    assert predict.main(["predict", f"--checkpoint={run}", "--video=x.mp4", "--output=y"]) == 1
    assert "x.mp4: no such file" in capsys.readouterr().err
    config = qvh_qd_detr.get_config("tiny")
    config.train.update(accumulate=2, batch_size=16)
    setup = small.train_setup(config)
    with pytest.raises(ValueError, match="task 'ground' compares the rows of a batch"):
        setup.make_train_step()
    config = qvh_qd_detr.get_config("tiny")
    config.evaluate.protocol = "coco"
    with pytest.raises(ValueError, match="protocol = 'coco': choose one of"):
        make_task(config)

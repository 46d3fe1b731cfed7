"""The evaluation of files of predictions, from the command line to the report."""

import json

import pytest

from avs_jax import evaluate as evaluation
from avs_jax.spec import InputError
from tests.ground_fixture import copy_qvhighlights, read_records
from tests.results.test_predictions import SCORE, a_config, random_predictions, records, write_all


class Source(list):
    """Records with the metadata that a builder leaves."""

    metadata = {"ground_truth": "drawn"}


@pytest.fixture
def source(monkeypatch):
    """Records that an evaluation opens."""
    clips = Source(records())
    monkeypatch.setattr(evaluation, "open_records", lambda config, split: clips)
    return clips


def test_report(source, tmp_path):
    config = a_config()
    write_all(config, source, random_predictions(config), tmp_path / "p")
    report = evaluation.evaluate_predictions(config, tmp_path / "p", "test", tmp_path / "out")
    assert report.facts["ground_truth"] == "drawn" and report.facts["frames"] == 10
    (folder,) = (tmp_path / "out" / "evaluation").glob("avsbench_s4_test_*")
    stored = json.loads((folder / "report.json").read_text())
    assert stored["scores"] == report.scores and report.notes == []


def test_another_method_does_not_replace_a_report(source, tmp_path):
    config, out = a_config(), tmp_path / "out"
    for name in ("p", "q"):
        write_all(config, source, random_predictions(config), tmp_path / name)
    evaluation.evaluate_predictions(config, tmp_path / "p", "test", out)
    evaluation.evaluate_predictions(config, tmp_path / "p", "test", out)
    with pytest.raises(InputError, match="the predictions .*/p, not of .*/q; choose another"):
        evaluation.evaluate_predictions(config, tmp_path / "q", "test", out)
    (report,) = out.rglob("report.json")
    assert json.loads(report.read_text())["facts"]["predictions"] == str(tmp_path / "p")


def test_refused_predictions_leave_nothing_behind(source, tmp_path):
    config = a_config()
    write_all(config, source, random_predictions(config), tmp_path)
    (tmp_path / "dog/clip.0/clip.0_1.npy").unlink()
    with pytest.raises(InputError, match="missing"):
        evaluation.evaluate_predictions(config, tmp_path, "test")
    assert not list(tmp_path.rglob("report.json"))


def test_command_line(source, tmp_path, capsys):
    config = a_config()
    write_all(config, source, random_predictions(config), tmp_path / "p")
    arguments = ["evaluate", "--config=configs/s4_vct.py", "--config.data.num_frames=3"]
    sizes = [f"--config.evaluate.score_size={SCORE}", "--config.data.pre_masks=False"]
    assert evaluation.main([*arguments, *sizes, f"--predictions={tmp_path}/p", "--split=val"]) == 0
    (folder,) = (tmp_path / "p" / "evaluation").glob("avsbench_s4_val_*")
    assert "boundary_iou" in (folder / "report.md").read_text()
    for flags, words in (
        ([], "either --checkpoint or --predictions"),
        (["--predictions=a", "--checkpoint=b"], "either --checkpoint or --predictions"),
        (["--predictions=a", "--write_predictions=b"], "--write_predictions"),
        ([f"--predictions={tmp_path}/nothing"], "no such folder"),
    ):
        assert evaluation.main([*arguments, *flags]) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluation.main(["evaluate", "--help"])
    assert "<category>/<clip>/<clip>_<number>" in capsys.readouterr().out


def test_a_file_of_predictions_has_its_report_beside_it(tmp_path, monkeypatch):
    folder = copy_qvhighlights(tmp_path / "qvhighlights")
    queries = read_records(folder, "qvhighlights")
    monkeypatch.setattr(evaluation, "open_records", lambda config, split: queries)
    names = [{"qid": int(q["qid"]), "query": q["query"], "vid": q["vid"]} for q in queries]
    rows = [name | {"pred_relevant_windows": [[0, 2, 0.9]]} for name in names]
    path = tmp_path / "submission.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["evaluate", "--config=configs/qvh_custom.py:tiny", f"--predictions={path}"]
    assert evaluation.main(flags) == 0 == evaluation.main(flags)
    (report,) = (tmp_path / "evaluation").glob("*/report.json")
    assert json.loads(report.read_text())["facts"]["predictions"] == str(path)


def test_recipes_with_false_sounds_score_predictions_too(source, tmp_path, capsys):
    flags = ["evaluate", "--config=configs/s4_ama_robust.py", f"--predictions={tmp_path}/nothing"]
    assert evaluation.main(flags) == 1
    assert "no such folder" in capsys.readouterr().err
    for asked in ("--audio=silence", "--config.evaluate.audio=silence"):
        assert evaluation.main([*flags, asked]) == 1
        assert "--audio needs --checkpoint" in capsys.readouterr().err

"""Reports of several runs and datasets in one table."""

import csv
import json

import pytest

from avs_jax.results.report import Report, write
from avs_jax.spec import InputError
from scripts import gather_reports
from tests.conftest import ROOT


def write_report(folder, dataset, split, j, s=None):
    scores = {"refavs": {"J": j, "f_beta(clip)": None}, "null": {"S": s}}
    silent = {"refavs": {"J": j / 2, "f_beta(clip)": 0.1}}
    facts = {"dataset": dataset, "split": split}
    write(Report(facts, {"true_audio": scores, "silence": silent}), folder)


@pytest.fixture
def stored(tmp_path):
    """Two runs on two splits of Ref-AVS, and one of them on MeViS."""
    write_report(tmp_path / "vct" / "evaluation" / "s", "refavs", "test_s", 0.5)
    write_report(tmp_path / "cma" / "evaluation" / "s", "refavs", "test_s", 0.625)
    write_report(tmp_path / "cma" / "evaluation" / "u", "refavs", "test_u", 0.25, 0.03)
    (tmp_path / "mevis").mkdir()
    numbers = {"per_expression": {"J": 41.5, "J&F": 45.25}}
    facts = {"set": "mevis", "split": "valid_u", "protocols": numbers}
    (tmp_path / "mevis" / "report.json").write_text(json.dumps(facts))
    return tmp_path


def gather(stored, *more):
    flags = [f"--output={stored}/out", f"--report=VCT={stored}/vct"]
    flags += [f"--report=CMA_1={stored}/cma", f"--report=CMA_1={stored}/mevis/report.json"]
    return gather_reports.main([*flags, *more])


def test_datasets_of_a_run_are_side_by_side(stored, capsys):
    assert gather(stored) == 0
    with open(stored / "out" / "table.csv", newline="") as file:
        header, vct, cma = csv.reader(file)
    assert header[:3] == ["run", "refavs test_s refavs J", "refavs test_s refavs f_beta(clip)"]
    assert dict(zip(header, vct, strict=True)) == dict.fromkeys(header, "") | {
        "run": "VCT", header[1]: "50.00", header[2]: "–",
    }  # fmt: skip
    row = dict(zip(header, cma, strict=True))
    assert row["refavs test_s refavs J"] == "62.50" and row["refavs test_u refavs J"] == "25.00"
    assert row["mevis valid_u per_expression J"] == "41.50"
    assert "| VCT | 50.00 | – |" in capsys.readouterr().out
    latex = (stored / "out" / "table.tex").read_text()
    assert r"CMA\_1 & 62.50" in latex and r"J\&F" in latex


def test_chosen_measures_and_conditions(stored):
    flags = ("--measure=refavs/J", "--measure=S", "--condition=silence", "--condition=true_audio")
    assert gather(stored, *flags) == 0
    lines = (stored / "out" / "table.csv").read_text().splitlines()
    header = "run,condition,refavs test_s refavs J,refavs test_s null S,"
    assert lines[0] == header + "refavs test_u refavs J,refavs test_u null S"
    assert lines[1:3] == ["VCT,true_audio,50.00,–,,", "VCT,silence,25.00,,,"]
    assert lines[3] == "CMA_1,true_audio,62.50,–,25.00,3.00"


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--measure=mIoU",), "--measure=mIoU: no report has it; nearest: "),
        (("--condition=true",), "nearest: true_audio"),
        (("--report=CMA_1=vct",), "two reports with refavs test_s refavs J"),
        (("--report=vct",), "expected NAME=PATH"),
        (("--report=A=out",), "holds no report.json"),
        (("--report=A=broken.json",), "broken.json: no report of an evaluation"),
    ],
)
def test_mistakes_are_named(stored, flags, said, capsys, monkeypatch):
    monkeypatch.chdir(stored)
    (stored / "out").mkdir()
    (stored / "broken.json").write_text('{"facts": 3}')
    assert gather(stored, *flags) == 1
    assert said in capsys.readouterr().err


def test_stored_results_of_the_repository_are_reports():
    file = "docs/results/02_demo_s4_ama_seed0.json"
    (report,) = gather_reports.find_reports(f"S4={file}")
    assert report.dataset == "avsbench_s4 test"
    stored = json.loads((ROOT / file).read_text())["scores"]["true_audio"]["stream"]["mIoU"]
    assert 0.5 < stored < 1
    assert report.scores["true_audio"]["stream"]["mIoU"] == pytest.approx(100 * stored)
    with pytest.raises(InputError, match="no report of an evaluation"):
        gather_reports.find_reports("S4=docs/results/01_agreement.json")

"""The page of results: tables in csv are stored and shown as they are; what is stored is sound."""

import json

import pytest

from avs_jax.results import ablation
from scripts import write_results

STORED = write_results.ROOT / "docs" / "results"

FLAGS = ["--name=9_x", "--title=A title", "--command=python x.py", "--machine=Two seeds"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.setattr(write_results, "ROOT", tmp_path)
    return tmp_path


def test_a_table_is_stored_and_shown(root):
    (root / "t.csv").write_text("measure,mean\nmIoU,1.00 ± 0.50\n", encoding="utf-8")
    assert write_results.main(["table", f"--csv={root}/t.csv", *FLAGS]) == 0
    stored = json.loads((root / "docs" / "results" / "9_x.json").read_text(encoding="utf-8"))
    assert stored["rows"] == [["mIoU", "1.00 ± 0.50"]] and stored["machine"] == "Two seeds"
    page = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert "\n- [A title](#a-title)\n\n## A title" in page
    assert page.endswith(
        "## A title\n\n    python x.py\n\nTwo seeds.\n\n| measure | mean |\n|---|---|\n"
        "| mIoU | 1.00 ± 0.50 |\n"
    )


@pytest.mark.parametrize("text", ["", "measure,mean\n"])
def test_a_table_without_rows_is_refused(root, capsys, text):
    (root / "t.csv").write_text(text)
    assert write_results.main(["table", f"--csv={root}/t.csv", *FLAGS]) == 1
    assert "t.csv" in capsys.readouterr().err and not list((root / "docs").rglob("*.json"))


def add(root, *protocols):
    scores = {"true_audio": {name: dict.fromkeys(m, 0.5) for name, m in protocols}}
    report = json.dumps({"facts": {"clips": 3}, "scores": scores})
    (root / "report.json").write_text(report, encoding="utf-8")
    return write_results.main(["add", f"--report={root}", *FLAGS[:-1]])


def test_reports_of_every_task_are_shown(root):
    names = ("J", "f_beta(batch=4)", "f_boundary")
    assert add(root, ("refavs", names), ("refavs(kind look)", "J"), ("null", "S")) == 0
    page = (root / "docs" / "results.md").read_text(encoding="utf-8")
    columns = [f"refavs {name}" for name in names] + ["refavs(kind look) J", "null S"]
    assert "| condition | " + " | ".join(f"{column}, %" for column in columns) + " |" in page
    assert "| true audio" + " | 50.00" * 5 + " |" in page
    for protocol, measure in (("tvsum(top 5)", "mAP"), ("look_alikes", "right_source")):
        assert add(root, (protocol, [measure])) == 0
        page = (root / "docs" / "results.md").read_text(encoding="utf-8")
        assert f"| condition | {protocol} {measure}, % |" in page


def test_a_report_without_a_protocol_of_the_page_is_refused(root, capsys):
    assert add(root, ("davis", "J")) == 1
    assert "shows none of its protocols, ['davis']" in capsys.readouterr().err
    assert not list((root / "docs").rglob("*.json"))


# ---- what is stored ----


def stored_percents(name, *where):
    """Numbers of a stored report, each at (condition, protocol, measure), in percent."""
    path = STORED / f"{name}_seed0.json"
    scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
    return [f"{100 * scores[c][protocol][measure]:.1f}" for c, protocol, measure in where]


def test_demos_in_the_table_of_the_readme_have_the_stored_numbers():
    conditions = ("true_audio", "swapped_audio", "audio_in_picture")
    demos = ("02_demo_s4_ama", "07_demo_s4_sam2", "04_demo_s4_tpavi_resnet50")
    iou = [(condition, "stream", "mIoU") for condition in conditions]
    ama, sam2, tpavi = (stored_percents(demo, *iou) for demo in demos)
    both = [f"{a} / {b}" for a, b in zip(sam2, tpavi, strict=True)]
    recall = [(condition, "moments", "R1@0.5") for condition in ("true_audio", "another_query")]
    recall += [(c, "moments(domain sound)", "R1@0.5") for c in ("true_audio", "silence")]
    found = stored_percents("08_demo_ground_generated", *recall)
    page = (write_results.ROOT / "README.md").read_text(encoding="utf-8")
    text = "| stream mIoU {}; with swapped sound {}; another object's sound {} |"
    assert text.format(*ama) in page and text.format(*both) in page
    text = (
        "| R1@0.5 {}; with another query {}; queries that only sound answers {}, without it: {} |"
    )
    assert text.format(*found) in page


def test_intervals_of_stored_ablations_contain_their_differences():
    tables = [json.loads(path.read_text(encoding="utf-8")) for path in STORED.glob("*.json")]
    tables = [table for table in tables if table.get("header") == ["measure", *ablation.HEADER]]
    rows = [dict(zip(t["header"], row, strict=True)) for t in tables for row in t["rows"]]
    rows = [row for row in rows if row["difference"]]  # all but the baselines
    assert rows
    for row in rows:
        seeds, clips = row["95 % over seeds"], row["95 % over clips"]
        assert (seeds == ablation.DASH) == (row["t"] == ablation.DASH), row
        for interval in {seeds, clips} - {ablation.DASH}:
            low, high = map(float, interval.split(" to "))
            assert low <= float(row["difference"]) <= high, row

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


# ---- what is stored ----


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

"""The page of results: tables in csv are stored and shown as they are."""

import json

import pytest

from scripts import write_results

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

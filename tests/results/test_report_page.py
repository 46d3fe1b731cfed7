"""report.html: tables, curves, figures and sounds in one file that needs no network."""

import json
import re

import numpy as np

from avs_jax.results import html_page, report_page
from avs_jax.results.report import Report

SCORES = {"cavp": {"mIoU": 0.5, "f_beta": None}}


def make_page(tmp_path, curves=None, sounds=None):
    found = Report({"config": "s4_ama", "dataset": "d<1>", "split": "test"}, {"true_audio": SCORES})
    figures = {"true_audio_clip & 1": np.zeros((4, 6, 3), np.uint8)}
    report_page.write_page(found, tmp_path, figures, sounds or {}, curves or {})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_everything_is_inside_the_page(tmp_path):
    text = make_page(
        tmp_path, {"loss": {"total": [(1, 2.0), (2, 1.0)]}}, {"true_audio_clip & 1": b"RIFF"}
    )
    assert "s4_ama, d&lt;1&gt;, test" in text and "<td>50.00</td>" in text
    assert "true_audio_clip &amp; 1" in text and "<polyline" in text
    sources = re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    assert len(sources) == 2 and all(source.startswith("data:") for source in sources)
    assert "http" not in text and "<script" not in text


def test_curves_are_the_loss_and_the_validation_of_one_protocol(tmp_path):
    lines = [
        {"step": 1, "total_loss": 3.0, "loss_ce": 1.0},
        {"step": 2, "total_loss": 2.0},
        {"step": 2, "val/cavp/mIoU": 0.25, "val/other/mIoU": 0.5, "val_ema/cavp/mIoU": 0.75},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "total')
    assert report_page.read_curves(path, "cavp") == {
        "loss": {"total_loss": [(1, 3.0), (2, 2.0)]},
        "validation, cavp": {"val mIoU": [(2, 0.25)], "val_ema mIoU": [(2, 0.75)]},
    }
    assert report_page.read_curves(tmp_path / "none.jsonl", "cavp") == {}


def test_a_chart_spans_its_points():
    text = html_page.chart("loss", {"a": [(0, 0.0), (10, 5.0), (20, np.nan)]})
    points = re.search(r'points="([^"]+)"', text)[1].split()
    (width, height), (left, right, above, below) = html_page.CHART, html_page.MARGINS
    assert points == [f"{left:.1f},{height - below:.1f}", f"{width - right:.1f},{above:.1f}"]
    assert html_page.chart("loss", {"a": []}) == ""


def test_a_long_line_is_thinned_and_keeps_its_ends():
    text = html_page.chart("loss", {"a": [(step, step % 7) for step in range(9000)]})
    assert len(re.search(r'points="([^"]+)"', text)[1].split()) == html_page.MAX_POINTS
    assert ">8999</text>" in text

"""Two runs side by side, with the model of three numbers of test_evaluate: B hears one category."""

import csv
import re

import numpy as np
import pytest

from avs_jax.results import failures, metrics
from avs_jax.results.counts import FrameCounts
from avs_jax.runtime.checkpoint import save_variables
from scripts import compare
from tests.programs import test_evaluate as cases
from tests.programs.test_evaluate import variables  # noqa: F401, a fixture


@pytest.fixture(scope="module")
def runs(tmp_path_factory, variables):  # noqa: F811
    root = tmp_path_factory.mktemp("runs")
    params = variables[0]
    for name, step in (("a", params["step"]), ("b", np.float32(1e6))):  # b: always the first
        save_variables(root / name, {"params": params | {"step": step}}, cases.a_config())
    return root


@pytest.fixture
def stubs(monkeypatch):
    monkeypatch.setattr(compare, "make_task", cases.a_task)
    monkeypatch.setattr(compare, "open_records", lambda config, split: cases.records())


def test_the_page_and_its_numbers_follow_from_the_stored_counts(runs, stubs, tmp_path, capsys):
    output = tmp_path / "out"
    flags = [f"--a={runs / 'a'}", f"--b={runs / 'b'}", f"--output={output}", "--count=2"]
    assert compare.main(flags) == 0
    text = capsys.readouterr().out
    page = (output / "compare.html").read_text()
    with open(output / "clips.csv") as file:
        lines = {row["clip"]: row for row in csv.DictReader(file)}
    assert len(lines) == cases.NUM_CLIPS
    for name in ("a", "b"):
        table = FrameCounts.load(output / f"counts_{name}.npz")
        found = failures.FailureCounts.load(output / f"failures_{name}.npz")
        tags = failures.tags(found)
        for clip, row in lines.items():
            own = table.take(table.clip_id == clip)
            want = metrics.avsbench(own, batch=1)["mIoU"]
            assert float(row[f"iou_{name}"]) == pytest.approx(want, abs=1e-12)
            assert row[f"tags_{name}"] == ";".join(tags[clip])
        counted = failures.count_tags(tags)
        summary = next(line for line in text.splitlines() if line.startswith(name.upper() + ":"))
        for tag, count in counted.items():
            assert f"{tag} {count}" in summary
        assert summary in page
    # Nothing moves in these clips. B is right where the first category sounds.
    assert all("still sounder" in row["tags_a"] for row in lines.values())
    gains = [float(row["iou_a"]) - float(row["iou_b"]) for row in lines.values()]
    assert gains == sorted(gains, reverse=True) and gains[0] > 0.5 and gains[-1] == 0
    shown = re.findall(r"<h3>(.*?)</h3>", page)
    assert shown == [*list(lines)[:2], *list(lines)[-2:]]
    assert page.count("<audio controls") == page.count("<img") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs nothing else
    (output / "compare.html").rename(output / "thesis.html")
    assert compare.main(flags) == 1
    assert "holds no earlier results (compare.html)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "a, b, titles",
    [
        ({}, {}, ["frame 0", "frame 2"]),
        (
            {"motion_weight": 1, "motion_gate": (0.5, 9, 1)},
            {},
            ["frame 0, gate 0.50", "frame 2, gate 1.00"],
        ),
        # The map of B has no gate, so A's gate would say nothing about it.
        ({"motion_weight": 1, "motion_gate": (0.5, 9, 1)}, {"motion_weight": 2}, None),
        (
            {"motion_weight": 1, "motion_gate": (0.5, 9, 1)},
            {"sync_evidence": 3, "sync_gate": (0.25, 9, 0), "sync_lag": (-2, 9, 3)},
            ["frame 0, gate 0.50\nsync 0.25, lag -2", "frame 2, gate 1.00\nsync 0.00, lag +3"],
        ),
    ],
)
def test_gates_and_lags_stand_above_the_frames_of_their_map(monkeypatch, a, b, titles):
    """The second of three frames is not valid."""
    maps = ("motion_weight", "sync_evidence")
    found = {
        side: {"pred": np.zeros((3, 4, 4))}
        | {
            name: np.full((3, 2, 2), value) if name in maps else np.float32(value)
            for name, value in scores.items()
        }
        for side, scores in (("a", a), ("b", b))
    }
    found["row"] = {
        "valid": np.array([True, False, True]),
        "frame_index": np.arange(3),
        "images": np.zeros((3, 8, 8, 3), np.uint8),
        "labels": np.zeros((3, 4, 4), np.uint8),
        "log_mel": np.zeros((3, 96, 64), np.float32),
    }
    drawn = {}
    monkeypatch.setattr(compare.visualize, "clip_picture", lambda *_, **more: drawn.update(more))
    compare._draw("clip", {"flow": np.zeros(0)}, found)
    assert drawn["titles"] == (titles or ["frame 0", "frame 2"])
    for name, row in zip(maps, ("motion_weight", "evidence"), strict=True):
        value = (a | b).get(name)
        assert (drawn[row] is None) == (value is None)
        assert value is None or (drawn[row] == value).all() and len(drawn[row]) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.evaluate.update(score_size=8), "config.evaluate.score_size is 16 in A and 8"),
        (lambda c: c.data.update(num_classes=71), "--b: only runs of the binary segmentation"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    runs,
    stubs,
    tmp_path,
    capsys,
    variables,  # noqa: F811
    change,
    message,
):
    config = cases.a_config()
    change(config)
    save_variables(tmp_path / "b", {"params": variables[0]}, config)
    flags = [f"--a={runs / 'a'}", f"--b={tmp_path / 'b'}", f"--output={tmp_path / 'out'}"]
    assert compare.main(flags) == 1 and message in capsys.readouterr().err
    assert compare.main([*flags, "--count=0"]) == 1
    assert "--count=0: expected at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

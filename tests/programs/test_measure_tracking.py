"""A long video takes no more memory than a short one, by scripts/measure_tracking.py."""

import csv

import pytest

from configs import sam2_tiny
from scripts import measure_tracking

ALLOWED_GROWTH = 8 << 20  # bytes; 400 more frames of 64 px hold 20 MB of maps alone


@pytest.mark.slow
def test_500_frames_take_constant_memory():
    sam2 = measure_tracking.random_sam2(sam2_tiny.get_config("tiny"))
    points = list(measure_tracking.measure(sam2, 500, 100))
    assert [point.frames for point in points] == [100, 200, 300, 400, 500]
    assert len({point.arrays for point in points}) == 1
    assert points[-1].resident - points[0].resident < ALLOWED_GROWTH
    assert sam2._jitted["follow"]._cache_size() == 1


@pytest.mark.slow
def test_through_the_command_line(tmp_path, capsys):
    argv = ["x", "--config=configs/sam2_tiny.py:tiny", "--frames=4", "--every=2"]
    assert measure_tracking.main([*argv, f"--csv={tmp_path}/t.csv"]) == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == measure_tracking.HEADER and [row[0] for row in rows] == ["2", "4"]
    assert rows[-1][0] in capsys.readouterr().out.splitlines()[-1]


def test_other_tasks_do_not_track(capsys):
    assert measure_tracking.main(["x", "--config=configs/s4_sam2.py:tiny"]) == 1
    assert "config.task = 'segment': expected 'track'" in capsys.readouterr().err

"""The log of a run that stops and resumes."""

import json

import numpy as np
import pytest

from avs_jax.runtime.log import Log


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_has_every_step_once(tmp_path):
    log = Log(tmp_path, total_steps=5, batch_size=2)
    for step in range(1, 5):
        log.scalars(step, {"total_loss": np.float32(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "tot')  # killed while writing
    log = Log(tmp_path, total_steps=5, batch_size=2, start_step=2)
    for step in range(3, 6):
        log.scalars(step, {"total_loss": 10 * step})
    log.close()
    assert [(r["step"], r["total_loss"]) for r in read(tmp_path)] == [
        (1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0),
    ]  # fmt: skip


def test_what_a_start_logs_at_its_first_step_replaces_what_the_last_one_did(tmp_path):
    """Each start logs the memory of its step; the losses and scores of that step stay."""
    scores = {"val/mIoU": 0.5}
    for start_step, size in ((0, 7), (2, 8), (2, 9)):
        log = Log(tmp_path, total_steps=3, batch_size=2, start_step=start_step)
        log.scalars(start_step, {"step_bytes/total": size, "step_bytes/shared": 1})
        for step in range(start_step + 1, 4):
            log.scalars(step, {"total_loss": step})
            if step == 2:
                log.scalars(step, scores)
        log.close()
    lines = read(tmp_path)
    assert [(r.pop("step"), *r.items()) for r in lines] == [
        (0, ("step_bytes/total", 7.0), ("step_bytes/shared", 1.0)),
        (1, ("total_loss", 1.0)),
        (2, ("total_loss", 2.0)),
        (2, *scores.items()),
        (2, ("step_bytes/total", 9.0), ("step_bytes/shared", 1.0)),
        (3, ("total_loss", 3.0)),
    ]


def test_progress_tells_terms_speed_and_time_left(tmp_path, capsys):
    log = Log(tmp_path, total_steps=140, batch_size=8)
    terms = {"loss_ce": 1.0, "loss_ce_0": 0.5, "loss_of_a_task": 2.0, "lr": 1.0}
    log.progress(1, terms | {"total_loss": 3.0}, None)
    log.progress(20, {"total_loss": 2.0}, 2.0)
    log.progress(40, {}, 4.0)  # running mean: 2.2 s for each of 100 steps
    log.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 1/140  total_loss 3.0000  loss_ce 1.0000  loss_of_a_task 2.0000",
        "step 20/140  total_loss 2.0000  4.00 clips/s  0:04:00 left",
        "step 40/140  2.00 clips/s  0:03:40 left",
    ]


def test_pictures_are_checked_and_written(tmp_path):
    log = Log(tmp_path, total_steps=1, batch_size=2)
    log.pictures(1, {"clip/0": np.zeros((8, 6, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"picture x: float32 \(8, 6\)"):
        log.pictures(1, {"x": np.zeros((8, 6), np.float32)})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"clip/0" in events.read_bytes()


def test_other_processes_write_nothing(tmp_path, capsys):
    log = Log(tmp_path, total_steps=1, batch_size=2, enabled=False)
    log.scalars(1, {"a": 1.0})
    log.progress(1, {}, 1.0)
    log.pictures(1, {})
    log.close()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err

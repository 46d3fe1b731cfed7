"""Ctrl-C and SIGTERM end a training in order: no traceback, process or shared memory is left."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from avs_jax.programs import build_dataset, make_clips
from tests.conftest import ROOT

# `python -m avs_jax.main` where Ctrl-C interrupts. Background jobs of a shell ignore it, and what
# they start does too.
START = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("avs_jax.main", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    sizes = ["--train=8", "--val=2", "--test=2", "--size=64", "--workers=1"]
    assert make_clips.main([f"--output={folder}/clips", *sizes]) == 0
    data = [f"--manual_dir={folder}/clips", f"--data_dir={folder}/tfds"]
    assert build_dataset.main(["--dataset=avsbench_s4", *data]) == 0
    return folder / "tfds"


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, to_all, status",
    [
        (signal.SIGINT, True, 130),  # Ctrl-C signals the group, workers too
        (signal.SIGTERM, False, 0),  # asked to stop: saves, and ends as planned
        (signal.SIGTERM, True, 0),  # as batch systems do
    ],
)
def test_a_training_with_workers(records, tmp_path, number, to_all, status):
    flags = [
        "--config=configs/s4_ama.py:tiny",
        f"--config.data.data_dir={records}",
        "--config.data.num_workers=2",
        "--config.train.steps=100000",
        "--config.train.eval_every=100000",
        f"--workdir={tmp_path}/run",
    ]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *flags],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        while not re.search(r"^step [5-9]/", log.read_text(), re.MULTILINE):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        assert len(members(process.pid)) >= 3  # two workers at least
        (os.killpg if to_all else os.kill)(process.pid, number)
        assert process.wait(120) == status, log.read_text()
        time.sleep(2)  # resource trackers end after their process
        text = log.read_text()
        assert "leaked" not in text and "Traceback" not in text and "resource_tracker" not in text
        assert members(process.pid) == []
    finally:
        for left in members(process.pid):
            os.kill(left, signal.SIGKILL)


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *rest = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[2]) == session and state not in "ZX":
            found.append(int(path.parent.name))
    return found

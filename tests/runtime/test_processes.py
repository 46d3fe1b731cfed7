"""Two processes on this machine: what they compute together, and what remains when one is killed.

The whole of training in several processes takes minutes: scripts/check_processes.py.
"""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from avs_jax.runtime import processes
from avs_jax.runtime.checksums import tree_checksums
from avs_jax.spec import InputError
from tests import process_worker
from tests.conftest import ROOT

SECONDS = 120  # until a process is taken for one that hangs; alone it takes five


def test_two_processes_of_which_one_is_killed(tmp_path):
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment = kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [sys.executable, process_worker.__file__, f"localhost:{port}", "2", str(i), tmp_path],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [worker.communicate(timeout=SECONDS)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()

    values = np.arange(process_worker.BATCH, dtype=np.float32)
    checksums = [(tmp_path / f"checksum{i}").read_text() for i in range(2)]
    assert checksums == [tree_checksums({"x": values})["x"]] * 2
    lock = json.loads((tmp_path / "seen_lock").read_text())
    assert (lock["pid"], lock["job"]) == (workers[0].pid, "test")
    assert not (tmp_path / ".lock").exists()
    assert [float(np.load(tmp_path / f"sum{i}.npy")) for i in range(2)] == [14.0, 14.0]
    process_worker.count_clips(range(process_worker.BATCH)).save(tmp_path / "alone.npz")
    alone = (tmp_path / "alone.npz").read_bytes()
    assert [(tmp_path / f"counts{i}.npz").read_bytes() for i in range(2)] == [alone] * 2
    assert workers[1].returncode == -9
    assert workers[0].returncode == 1
    assert "error: process 0 of 2: another process of this job has ended" in said[0]
    assert "Traceback" not in said[0]


@pytest.mark.parametrize(
    "flags, message",
    [
        ((None, 2, None), "--num_processes is for several processes and needs --coordinator"),
        (("host:1", 2, None), "--coordinator=host:1 needs --num_processes and --process_id"),
        (("host", 2, 0), "--coordinator='host': expected HOST:PORT or auto"),
        (("host:1", 2, 2), "--process_id=2 of --num_processes=2: expected 0 to 1"),
    ],
)
def test_flags_that_make_no_job(flags, message):
    with pytest.raises(ValueError, match=message), processes.distributed_job(*flags):
        pass


def test_one_process_needs_nothing_and_keeps_its_errors():
    with pytest.raises(KeyError), processes.distributed_job(None):
        raise KeyError("x")
    assert jax.process_count() == 1


def test_what_counts_as_a_peer_failure():
    loss = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    assert processes.is_peer_failure(loss)
    later = RuntimeError("x")
    later.__context__ = loss
    assert processes.is_peer_failure(later)
    assert not processes.is_peer_failure(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"))
    assert processes.is_peer_failure(ValueError("UNKNOWN: Gloo all-reduce failed"))
    assert not processes.is_peer_failure(InputError("--config.gloo"))
    assert processes._describe(KeyboardInterrupt(), ()) == "error: interrupted"

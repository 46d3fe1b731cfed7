"""The cases of scripts/benchmark.py can be built: their programs trace, for the smallest model."""

import argparse
import csv
import importlib
import pathlib

import jax
import pytest

from configs import s4_ama, sam2_tiny
from scripts import benchmark

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize(
    ("block", "mode"),
    [("swin", "train"), ("encoder", "train"), ("decoder", "train"), ("criterion", "train"),
     ("clip", "forward")],
)  # fmt: skip
def test_blocks_trace(monkeypatch, block, mode):
    assert trace(monkeypatch, "benchmark_jax", s4_ama.get_config("tiny"), block, mode)


@pytest.mark.slow
@pytest.mark.parametrize("block", ["sam2_encoder", "sam2_decoder", "sam2_memory"])
def test_blocks_of_sam2_trace(monkeypatch, block):
    config = sam2_tiny.get_config("tiny")
    assert trace(monkeypatch, "benchmark_jax_sam2", config, block, "forward")


def test_rows_say_what_they_are_of():
    """A table that scripts/write_results.py takes; tables of several configurations join."""
    result = {
        "case": "sam2_encoder forward",
        "seconds": {"jax": 0.25, "torch": 0.5},
        "bytes": {"jax": 3 * 2**29, "torch": 2**30},
        "frames": {"jax": 1, "torch": 1},
    }
    header, row = csv.reader(benchmark.to_csv([result], "sam2_tiny", 512).splitlines())
    found = dict(zip(header, row, strict=True))
    assert found["config"] == "sam2_tiny" and found["px"] == "512"
    assert (found["s, ours"], found["s, PyTorch"], found["ratio"]) == ("0.250", "0.500", "0.50")
    assert (found["GiB, ours"], found["GiB, PyTorch"]) == ("1.50", "1.00")
    assert "| sam2_encoder forward | 1 : 1 | 0.250 |" in benchmark.to_markdown([result])


def trace(monkeypatch, program, config, block, mode):
    """Shapes of what one of our cases computes."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ours, traced = importlib.import_module(program), []

    def record(function, arguments, frames):
        traced.append(jax.eval_shape(function, *arguments))

    monkeypatch.setattr(ours, "compiled_case", record)
    ours.BUILDERS[block](config, mode, argparse.Namespace(frames=1))
    return jax.tree.leaves(traced)

"""The cases of scripts/benchmark.py can be built: their programs trace, for the smallest model."""

import argparse
import importlib
import pathlib

import jax
import pytest

from configs import s4_ama, sam2_tiny

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


def trace(monkeypatch, program, config, block, mode):
    """Shapes of what one of our cases computes."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ours, traced = importlib.import_module(program), []

    def record(function, arguments, frames):
        traced.append(jax.eval_shape(function, *arguments))

    monkeypatch.setattr(ours, "compiled_case", record)
    ours.BUILDERS[block](config, mode, argparse.Namespace(frames=1))
    return jax.tree.leaves(traced)

"""The cases of scripts/benchmark.py can be built: their programs trace, for the smallest model."""

import argparse
import importlib
import pathlib

import jax
import pytest

from configs import s4_ama

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize(
    ("block", "mode"),
    [("swin", "train"), ("encoder", "train"), ("decoder", "train"), ("criterion", "train"),
     ("clip", "forward")],
)  # fmt: skip
def test_blocks_trace(monkeypatch, block, mode):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ours = importlib.import_module("benchmark_jax")
    traced = []

    def trace(function, arguments, frames):
        traced.append(jax.eval_shape(function, *arguments))

    monkeypatch.setattr(ours, "compiled_case", trace)
    ours.BUILDERS[block](s4_ama.get_config("tiny"), mode, argparse.Namespace(frames=1))
    assert jax.tree.leaves(traced)

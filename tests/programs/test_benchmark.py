"""The cases of scripts/benchmark.py can be built: their programs trace, for the smallest model."""

import argparse
import csv
import importlib
import json
import pathlib

import jax
import pytest

from configs import s4_ama, sam2_tiny
from scripts import benchmark

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
RESULT = {
    "case": "sam2_encoder forward",
    "seconds": {"jax": 0.25, "torch": 0.5},
    "bytes": {"jax": 3 * 2**29, "torch": 2**30},
    "frames": {"jax": 1, "torch": 1},
}
CPU_INFO = """processor\t: 0
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse4_2 ssse3 fma avx avx2 svm smep f16c avx512_bf16 amx_bf16

processor\t: 1
model name\t: AMD EPYC 7B13
"""


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
    header, row = csv.reader(benchmark.to_csv([RESULT], "sam2_tiny", 512).splitlines())
    found = dict(zip(header, row, strict=True))
    assert found["config"] == "sam2_tiny" and found["px"] == "512"
    assert (found["s, ours"], found["s, PyTorch"], found["ratio"]) == ("0.250", "0.500", "0.50")
    assert (found["GiB, ours"], found["GiB, PyTorch"]) == ("1.50", "1.00")
    assert "| sam2_encoder forward | 1 : 1 | 0.250 |" in benchmark.to_markdown([RESULT])


def test_tables_say_what_timings_depend_on(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPU_INFO)
    monkeypatch.setattr(benchmark, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(benchmark, "LIBRARIES", ("jax", "no_such_library"))
    monkeypatch.setattr(benchmark, "measure", lambda *_: RESULT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    flags = ["--config=configs/sam2_tiny.py:tiny", "--blocks=sam2_encoder"]
    assert benchmark.main(["benchmark.py", *flags, f"--output={tmp_path}/table.md"]) == 0
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["results"] == [RESULT]
    facts = stored["machine"]
    assert facts["processor"] == "AMD EPYC 7B13" and facts["cores"] >= facts["usable_cores"] >= 1
    vectors = ["sse4_2", "ssse3", "fma", "avx", "avx2", "f16c", "avx512_bf16", "amx_bf16"]
    assert facts["vector_flags"] == vectors
    assert facts["versions"] == {"jax": jax.__version__, "no_such_library": None}
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("| case |") and f"vector instructions: {' '.join(vectors)}\n" in text
    assert f"\n- jax {jax.__version__}, no_such_library absent\n" in text
    assert "OMP_NUM_THREADS = 1, XLA_FLAGS" in text
    header, *rows = csv.reader((tmp_path / "table.csv").read_text().splitlines())
    assert len(rows) == 1 and header[0] == "config"  # what scripts/write_results.py reads


def test_an_unknown_processor_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "CPU_INFO", tmp_path / "absent")
    facts = benchmark.machine_facts()
    assert facts["processor"] and facts["vector_flags"] is None
    assert "vector instructions: not known\n" in benchmark.facts_to_markdown(facts)


def trace(monkeypatch, program, config, block, mode):
    """Shapes of what one of our cases computes."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    ours, traced = importlib.import_module(program), []

    def record(function, arguments, frames):
        traced.append(jax.eval_shape(function, *arguments))

    monkeypatch.setattr(ours, "compiled_case", record)
    ours.BUILDERS[block](config, mode, argparse.Namespace(frames=1))
    return jax.tree.leaves(traced)

"""Time and memory compared with PyTorch, block by block, in one run on one machine.

  pip install -e .[benchmark]
  python scripts/benchmark.py --config=configs/s4_ama.py --output=benchmark.md
  python scripts/benchmark.py --config=configs/s4_ama.py --blocks=swin,criterion --repeats=5

Both sides of every block run in their own process and alternate repetitions, so that other load on
the machine affects both. The table shows the medians, without the first repetition, and their
ratio.

  swin         the backbone, forward, and forward and backward
  encoder      the deformable encoder of the pixel decoder, likewise
  decoder      PPQG and the transformer decoder with all predictions, likewise
  criterion    matching and losses of all predictions, with the gradient
  clip         the whole model on all frames of one clip, as in evaluation; of every host
  step         a training step on one clip, or on B clips with --clips=B; of every host
  raft_large, raft_small   optical flow of 384 x 384 px pairs, 12 iterations
  raft_large_rows          the same with our on-demand correlations, as used for large frames
  sam2_encoder, sam2_decoder, sam2_memory   of task track: image encoder; a click's masks; a tracked
               frame behind a full memory, without the encoder

The other side is PyTorch in eager mode: transformers' Swin and Mask2Former and torchvision's RAFT.
PPQG is written for it, from the same formulas. Its whole model has two Swins, channel gates, pixel
decoder, PPQG, transformer decoder, losses with SciPy's matching, and AdamW. It lacks VGGish, the
audio MLP and AMA, so it does less. In `step` it gets the frames of `data.train_frames`, or with
--original-frames all five, as in the original.

With --config.model.dtype=bfloat16, `clip` and `step` of PyTorch's VCT run under autocast to
bfloat16; TPAVI is compared in float32 only.
On a GPU, JAX multiplies float32 numbers in TF32 by default, and PyTorch does not. To compare like
with like, set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, or JAX_DEFAULT_MATMUL_PRECISION=highest.

For the host tpavi (--config=configs/s4_tpavi_resnet50.py), PyTorch's side is AVSBench's model with
VGGish. It multiplies keys and values first, as ours does; with --original_attention it builds the
matrix of all pairs of pixels, as the original does.

For task track (--config=configs/sam2_tiny.py), PyTorch's side is transformers' SAM2 of that size
with random weights. scripts/benchmark_sam2.sh measures all rows of docs/results.md in one run.

--output=PATH also writes the table as PATH.md, as PATH.csv for scripts/write_results.py, and every
timing as PATH.json. PATH.md and PATH.json also have what makes timings comparable: processor, its
vector instructions, cores, versions, and the variables that set threads and XLA's flags.

Memory: for ours, what XLA allocates for the compiled function (arguments, temporaries, output). For
PyTorch, the peak of its allocator on a GPU, and on a CPU the growth of the process's peak memory
since before the model was built. Both include parameters and, in `step`, the optimizer state.
"""

import contextlib
import csv
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence

import jax
from absl import flags

from avs_jax.files import write_atomically
from avs_jax.progress import tracked
from avs_jax.runtime.command_line import parse
from avs_jax.spec import InputError

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = {  # host, or the task where it has none -> ours, PyTorch's
    "vct": ("benchmark_jax.py", "benchmark_torch.py"),
    "tpavi": ("benchmark_jax.py", "benchmark_torch_tpavi.py"),
    "track": ("benchmark_jax_sam2.py", "benchmark_torch_sam2.py"),
}
BLOCKS = {
    "tpavi": ("clip", "step"),
    "track": ("sam2_encoder", "sam2_decoder", "sam2_memory"),
}
CASES = {  # block -> its measurements
    "swin": ("swin forward", "swin train"),
    "encoder": ("encoder forward", "encoder train"),
    "decoder": ("decoder forward", "decoder train"),
    "criterion": ("criterion train",),
    "clip": ("clip forward",),
    "step": ("step train",),
    "raft_large": ("raft_large forward",),
    "raft_large_rows": ("raft_large_rows forward",),
    "raft_small": ("raft_small forward",),
    "sam2_encoder": ("sam2_encoder forward",),
    "sam2_decoder": ("sam2_decoder forward",),
    "sam2_memory": ("sam2_memory forward",),
}
BLOCKS["vct"] = tuple(block for block in CASES if block not in BLOCKS["track"])
GIB = 2**30
CPU_INFO = pathlib.Path("/proc/cpuinfo")
VECTORS = r"(?:sse|ssse|avx|fma|f16c|amx|asimd|sve|neon)\w*"  # flags of x86 and ARM
LIBRARIES = ("jax", "jaxlib", "torch", "torchvision", "transformers")
VARIABLES = ("OMP_NUM_THREADS", "XLA_FLAGS")


class Side:
    """A process that has built one case and runs it on request."""

    def __init__(self, program: pathlib.Path, case: str, arguments: Sequence[str]):
        self._case = case
        self._process = subprocess.Popen(
            [sys.executable, str(program), f"--case={case}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()

    def run(self) -> float:
        """Runs one repetition; returns its seconds."""
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> int:
        """Ends the process; returns the bytes it needed."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("end\n")
            self._process.stdin.flush()
        found = self._read()["bytes"]
        self._process.wait()
        return found

    def _read(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        code = self._process.wait()
        raise InputError(f"{self._process.args[1]} {self._case}: ended with status {code}")


def measure(case: str, repeats: int, host: str, arguments: Sequence[str]) -> dict:
    """Both sides of one case: median seconds, bytes, and all timings."""
    programs = zip(("jax", "torch"), PROGRAMS[host], strict=True)
    sides = {name: Side(HERE / program, case, arguments) for name, program in programs}
    seconds = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            value = side.run()
            if repeat:  # the first compiles, or fills caches
                seconds[name].append(value)
    return {
        "case": case,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "bytes": {name: side.close() for name, side in sides.items()},
        "all_seconds": seconds,
        "device": {name: side.facts["device"] for name, side in sides.items()},
        "frames": {name: side.facts["frames"] for name, side in sides.items()},
    }


def machine_facts() -> dict:
    """What timings depend on besides the program; None for what is not known or not set.

    Returns:
      processor; vector_flags, those of its flags that name vector instructions, in its order;
      cores, of the machine, and usable_cores, of this process; versions by library; variables of
      the environment, as both sides get them.
    """
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    words = listed[1].split() if listed else None
    can_ask = hasattr(os, "sched_getaffinity")
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "vector_flags": words and [word for word in words if re.fullmatch(VECTORS, word)],
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if can_ask else None,
        "versions": {name: _version(name) for name in LIBRARIES},
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts_to_markdown(facts: dict) -> str:
    """A list of `machine_facts`, to stand below a table."""
    usable, flags_found = facts["usable_cores"], facts["vector_flags"]
    cores = f"{facts['cores']} cores" + ("" if usable is None else f", {usable} usable")
    vectors = "not known" if flags_found is None else " ".join(flags_found) or "none"
    versions = (f"{name} {value or 'absent'}" for name, value in facts["versions"].items())
    variables = (
        f"{name} {'not set' if value is None else f'= {value}'}"
        for name, value in facts["variables"].items()
    )
    lines = (
        f"{facts['processor']}, {cores}; vector instructions: {vectors}",
        ", ".join(versions),
        ", ".join(variables),
    )
    return "".join(f"- {line}\n" for line in lines)


def to_markdown(results: Sequence[dict]) -> str:
    lines = [
        "| case | frames, ours : PyTorch | s, ours | PyTorch | ratio | GiB, ours | PyTorch |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        frames = f"{result['frames']['jax']} : {result['frames']['torch']}"
        lines.append("| " + " | ".join([result["case"], frames, *_numbers(result)]) + " |")
    return "\n".join(lines) + "\n"


def to_csv(results: Sequence[dict], name: str, side: int) -> str:
    """The rows of a page of results: each says which configuration it is of, and its image size."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    times, sizes = ("s, ours", "s, PyTorch", "ratio"), ("GiB, ours", "GiB, PyTorch")
    writer.writerow(["config", "px", "case", *times, *sizes])
    for result in results:
        writer.writerow([name, side, result["case"], *_numbers(result)])
    return text.getvalue()


def _numbers(result: dict) -> list[str]:
    """Seconds of both sides, their ratio, GiB of both sides."""
    ours, other = (result["seconds"][side] for side in ("jax", "torch"))
    memory = [f"{result['bytes'][side] / GIB:.2f}" for side in ("jax", "torch")]
    return [f"{ours:.3f}", f"{other:.3f}", f"{ours / other:.2f}", *memory]


def _blocks(text: str | None, host: str) -> list[str]:
    if host not in PROGRAMS:
        raise InputError(f"config.host = {host!r}: PyTorch's side has {', '.join(PROGRAMS)}")
    choices = BLOCKS[host]
    blocks = text.split(",") if text else list(choices)
    for block in blocks:
        if block not in choices:
            raise InputError(
                f"--blocks={text}: host {host!r} has no block {block!r}; "
                f"choose of {', '.join(choices)}"
            )
    return blocks


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("blocks", None, "comma-separated; default: all", flag_values=values)
        flags.DEFINE_integer("repeats", 3, "counted runs", lower_bound=1, flag_values=values)
        flags.DEFINE_integer("frames", 1, "frames (pairs) of a block", 1, flag_values=values)
        flags.DEFINE_integer("clips", 1, "clips of `step`", lower_bound=1, flag_values=values)
        flags.DEFINE_bool(
            "original_frames", False, "PyTorch's `step` takes all frames", flag_values=values
        )
        flags.DEFINE_bool(
            "original_attention", False, "PyTorch's TPAVI builds the matrix", flag_values=values
        )
        flags.DEFINE_string("output", None, "also write PATH.md, .csv, .json", flag_values=values)

    try:
        config, values, _ = parse(argv, define, __doc__)
        host = config.get("host", config.task)
        blocks = _blocks(values.blocks, host)
        own = ("--blocks", "--repeats", "--output")
        arguments = [a for a in argv[1:] if not a.startswith(own)]
        # This process and both sides share a GPU, so none may reserve most of its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        arguments += [f"--device={jax.default_backend()}"]
        results = []
        cases = [case for block in blocks for case in CASES[block]]
        for case in tracked(cases, "cases", len(cases), "case"):
            results.append(measure(case, values.repeats, host, arguments))
            print(to_markdown(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    facts = machine_facts()
    text = f"{to_markdown(results)}\n{facts_to_markdown(facts)}"
    print(text, end="")
    if values.output:
        path = re.sub(r"\.(md|csv|json)$", "", values.output)
        write_atomically(f"{path}.md", text)
        write_atomically(f"{path}.csv", to_csv(results, config.name, config.data.image_size))
        content = {"machine": facts, "results": results}
        write_atomically(f"{path}.json", json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))

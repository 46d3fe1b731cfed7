"""The cost of a training step before a run, from compiling it without data.

  avs-jax plan --config=configs/s4_ama.py [--memory=24GiB] [--devices=8] [--gpu=rtx_4090]

The bytes are those planned by the compiler of this machine's devices, or with --gpu by that of a
GPU that this machine need not have (runtime/gpus.py); then the plan estimates the time of a step
from the compiled kernels (runtime/kernels.py). The largest batch comes from a line through
the bytes of two batch sizes, refined by compiling until it fits.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from avs_jax.runtime import gpus, optim, sharding
from avs_jax.runtime.collectives import describe_collectives, find_collectives
from avs_jax.runtime.command_line import CommandLine, exit_status, parse
from avs_jax.runtime.compilation_cache import announce_compilation, use_compilation_cache
from avs_jax.runtime.hlo import Program
from avs_jax.runtime.kernels import describe_kernels, find_kernels
from avs_jax.runtime.memory import GIB, StepBytes, count_flops, parse_bytes
from avs_jax.runtime.run_config import check_run_config
from avs_jax.runtime.setup import make_train_setup
from avs_jax.runtime.step import TrainState
from avs_jax.runtime.stored_config import flat_config
from avs_jax.stopping import run_as_program
from avs_jax.tasks import make_task

# Nothing compiled here ever runs. These options do not change how the CPU compiler plans memory.
NEVER_RUN = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
FLAGS = ("memory", "devices", "gpu")
TOLERANCE = 0.02  # fraction of the memory that the largest batch may leave free
MAX_GROWTH = 100  # factor between successive guesses
MAX_LINES = 6  # known sizes, after which the search bisects


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """The training step of a configuration, traced for its shapes."""

    state: TrainState  # ShapeDtypeStructs with shardings
    batch: dict[str, jax.ShapeDtypeStruct]  # likewise, of `config.train.batch_size` clips
    traced: Any  # `.jaxpr` is the program, `.lower().compile()` the function (state, batch, seed)


def trace_step(config: ConfigDict, mesh: Mesh) -> TracedStep:
    """Traces the step that `train` would run."""
    size = config.train.batch_size
    sharding.check_batch_size("config.train.batch_size", size, mesh, config.train.accumulate)
    task = make_task(config)
    setup = make_train_setup(task.model, task.loss, optim.make_optimizer, task, config, mesh)
    state, batch, seed = setup.step_shapes()
    return TracedStep(state, batch, setup.make_train_step().trace(state, batch, seed))


def plan(
    config: ConfigDict, memory: str | None = None, gpu: str | None = None, num_gpus: int = 1
) -> None:
    """Prints parameters per module, operations, bytes per device and the largest batch that fits.

    On several devices, also what they send to each other; for a GPU, also its kernels and the
    estimated time of a step (runtime/kernels.py).

    Args:
      memory: of a device, such as "24GiB"; None: what JAX may use of the device. If unknown, the
        largest batch is not searched.
      gpu: the kind in `gpus.GPUS` to plan for; None: JAX's devices.
    """
    check_run_config(config)
    devices = jax.devices() if gpu is None else gpus.compile_only_devices(gpu, num_gpus)
    if memory is not None:
        limit = parse_bytes(memory)
    elif gpu is not None:
        limit = gpus.GPUS[gpu].available
    else:
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    mesh = sharding.make_mesh(config, devices)
    step = trace_step(config, mesh)
    rows = config.train.batch_size
    shapes = ", ".join(f"{name} {x.shape[1:]}" for name, x in sorted(step.batch.items()))
    print(
        f"{config.name}: a step of {rows} row(s), {compute_dtypes(config.model)}, each "
        f"of {shapes}\n"
        f"{mesh.size} device(s) of kind {devices[0].device_kind}, mesh {dict(mesh.shape)}"
    )
    print(describe_parameters(step.state.params, config))
    flops = count_flops(step.traced.jaxpr.jaxpr)
    print(f"matrix products and convolutions: {flops / 1e12:.3f} TFLOP per step, {rows} row(s)")
    options = NEVER_RUN if jax.default_backend() == "cpu" else {}
    if gpu:
        options = gpus.COMPILATION
    start = time.monotonic()
    compiled = _compile(step, options)
    used = StepBytes.of(compiled)
    print(used, flush=True)
    if mesh.size > 1 or gpu is not None:
        print(_describe_program(compiled, mesh, gpu), flush=True)
    seconds = time.monotonic() - start
    if limit is None:
        return
    said = f"{limit / GIB:.2f} GiB per device"
    verdict = "this fits" if used.total <= limit else "this does not fit"
    print(
        f"{verdict} into {said}; looking for the largest batch that does, which usually takes 3 to "
        f"8 compilations of about {seconds:.0f} s",
        flush=True,
    )
    unit = mesh.size * config.train.accumulate
    known = {rows: used}

    def measure(batch_size: int) -> int:
        if batch_size not in known:
            other = config.copy_and_resolve_references()
            other.train.batch_size = batch_size
            # An automatic learning rate follows the batch size; memory does not depend on it.
            known[batch_size] = StepBytes.of(_compile(trace_step(other, mesh), options))
            print(f"batch of {batch_size}: {known[batch_size]}", flush=True)
        return known[batch_size].total

    size = largest_batch(measure, unit, limit)
    if size:
        print(f"largest batch within {said}: {size} rows, {size // mesh.size} per device")
    else:
        print(f"not even {unit} clip(s), one per device and micro-batch, fit into {said}")


def largest_batch(measure: Callable[[int], int], unit: int, limit: int) -> int:
    """The largest multiple of `unit` whose bytes `measure(batch size)` are within `limit`, or 0.

    Bytes grow almost linearly, so each guess comes from the line through the two known sizes
    nearest to the limit. If the line leaves the remaining interval, the search bisects. It stops
    at a size that leaves less than TOLERANCE of the limit free.
    """
    known = {n: measure(n * unit) for n in (1, 2)}
    while True:
        fits = max((n for n in known if known[n] <= limit), default=0)
        too_large = min((n for n in known if known[n] > limit), default=math.inf)
        if too_large - fits <= 1 or (fits and known[fits] >= (1 - TOLERANCE) * limit):
            return fits * unit
        low, high = sorted(sorted(known, key=lambda n: abs(known[n] - limit))[:2])
        slope = max(1, (known[high] - known[low]) / (high - low))
        line = min(int(low + (limit - known[low]) // slope), MAX_GROWTH * max(known))
        inside = fits < line < too_large and len(known) < MAX_LINES
        if not inside and too_large < math.inf:
            line = (fits + too_large) // 2
        guess = max(line, fits + 1)
        known[guess] = measure(guess * unit)


def compute_dtypes(model_config: ConfigDict) -> str:
    """The dtypes of compute, of the model and of parts that have their own, such as "float32"."""
    keys = flat_config(model_config).items()
    found = {value for key, value in keys if key.split(".")[-1] == "dtype"}
    return " and ".join(sorted(found)) or "float32"


def describe_parameters(params: Mapping[str, Any], config: ConfigDict) -> str:
    """One line per top-level module: number of values, frozen values, and MiB."""
    trainable, _ = optim.split_frozen(params, config.optim.frozen)
    rows = {}
    for path, leaf in optim.flatten(params).items():
        row = rows.setdefault(path.split("/")[0], np.zeros(3, np.int64))
        size = int(np.prod(leaf.shape))
        row += [size, size * (path not in trainable), size * leaf.dtype.itemsize]
    rows["all"] = sum(rows.values())
    width = max(len(name) for name in rows)
    lines = [f"{'parameters':<{width}} {'values':>13} {'frozen':>13} {'MiB':>9}"]
    lines += [
        f"{name:<{width}} {size:>13,} {frozen:>13,} {count / 2**20:>9.2f}"
        for name, (size, frozen, count) in rows.items()
    ]
    return "\n".join(lines)


def _describe_program(compiled: jax.stages.Compiled, mesh: Mesh, gpu: str | None) -> str:
    """What devices send each other, and the kernels of a GPU."""
    program, parts = Program.parse(compiled.as_text()), []
    if mesh.size > 1:
        parts.append(describe_collectives(find_collectives(program)))
    if gpu is not None:
        parts.append(describe_kernels(find_kernels(program), gpus.GPUS[gpu]))
    return "\n".join(parts)


def _compile(step: TracedStep, options: Mapping[str, Any]) -> jax.stages.Compiled:
    rows = next(iter(step.batch.values())).shape[0]
    announce_compilation(f"a step of {rows} row(s)", "1 to 3 minutes")
    start = time.monotonic()
    compiled = step.traced.lower().compile(compiler_options=dict(options))
    print(f"compiled in {time.monotonic() - start:.0f} s")
    return compiled


# ---- command line ----


def main(argv: Sequence[str]) -> int:
    """Plans; returns the exit status."""
    return exit_status(lambda: run(parse(argv, define_flags, __doc__)))


def run(line: CommandLine) -> None:
    """`main` after parsing, with exceptions."""
    values = line.values
    if values.gpu is not None:  # JAX cannot cache programs compiled without the device
        jax.config.update("jax_enable_compilation_cache", False)
    else:
        use_compilation_cache()
        if values.devices is not None:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", values.devices)
    plan(line.config, values.memory, values.gpu, values.devices or 1)


def define_flags(values: flags.FlagValues) -> None:
    """The flags in FLAGS."""
    text = "plan: memory of a device, such as 24GiB"
    flags.DEFINE_string("memory", None, text, flag_values=values)
    text = "plan: number of simulated devices"
    flags.DEFINE_integer("devices", None, text, lower_bound=1, flag_values=values)
    text = "plan: for GPUs of this kind, not CPUs"
    flags.DEFINE_enum("gpu", None, list(gpus.GPUS), text, flag_values=values)


if __name__ == "__main__":
    run_as_program(main, sys.argv)

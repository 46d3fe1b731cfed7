"""Cases of PyTorch for scripts/benchmark.py: how they run and how their memory is counted."""

import resource
from collections.abc import Callable

import torch
from absl import flags
from benchmark_worker import Case
from torch import nn


def make_case(
    build: Callable, values: flags.FlagValues, frames: int, dtype: str = "float32"
) -> Case:
    """A case that runs the result of `build(device)` and counts memory from before it.

    With another dtype than float32, it runs under autocast, as is usual in PyTorch.
    """
    device = "cuda" if values.device == "gpu" else "cpu"
    before = resident_peak()
    run = build(device)

    def run_all():
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            run()
        if device == "cuda":
            torch.cuda.synchronize()

    def count_bytes():
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resident_peak() - before

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return Case(run_all, count_bytes, name, frames)


def resident_peak() -> int:
    """The process's peak memory in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def module_run(module: nn.Module, mode: str, call: Callable) -> Callable:
    """Forward without gradients, or forward and backward of a mean square."""
    if mode == "forward":
        module.eval()
        return torch.no_grad()(lambda: call(module))

    def train():
        module.zero_grad(set_to_none=True)
        sum(x.square().mean() for x in call(module)).backward()

    return train

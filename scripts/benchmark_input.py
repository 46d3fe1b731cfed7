"""How fast the input pipeline is, and whether the training step waits for it.

  python scripts/benchmark_input.py --config=configs/s4_ama.py:demo [--workers=0,1,2] [--seconds=20]
      [--steps=30]

Measures CPU time per clip, which does not depend on other load. Then the pipeline alone, for each
number of loader processes (0: threads of the program itself): time to the first batch, clips per
second, and clips per second and process. Then the training step on one batch that stays on the
device, and on the pipeline's batches: seconds per step, and the fraction of the time that the
devices were idle, as logged in training (`data_wait`). --steps=0 skips the step. The first batches
of each pass, which are prefetched, do not count.
"""

import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from avs_jax.data.pipeline import Loader, TrainBatches
from avs_jax.data.records import open_records
from avs_jax.plan import trace_step
from avs_jax.runtime import sharding
from avs_jax.runtime.command_line import UsageError, exit_status, parse
from avs_jax.runtime.profile import DataWaitTimer
from avs_jax.tasks import make_task

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.measure_step import random_batch, random_state  # noqa: E402

WARM_UP = 3  # steps that are not timed


def with_workers(config: ConfigDict, num_workers: int) -> ConfigDict:
    """The configuration with another number of loader processes."""
    config = config.copy_and_resolve_references()
    config.data.num_workers = num_workers
    return config


def train_batches(config: ConfigDict) -> TrainBatches:
    """The batches of a training run in one process."""
    records, rows = open_records(config, "train"), make_task(config).rows
    return TrainBatches(records, rows, config.train.batch_size, config.seed)


def measure_processor(config: ConfigDict, seconds: float) -> float:
    """CPU seconds per clip, from its record to its batch."""
    size, batches, count = config.train.batch_size, train_batches(config), 0
    batches[0]
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        count += 1
        batches[count]
    return (time.process_time() - begun) / (count * size)


def measure_loader(config: ConfigDict, seconds: float) -> tuple[float, float]:
    """Seconds until the first batch, and clips per second after the prefetched batches."""
    size, begun = config.train.batch_size, time.monotonic()
    with Loader(train_batches(config), config.data.num_workers, config.data.prefetch) as loader:
        batches = iter(loader)
        next(batches)
        first = time.monotonic() - begun
        for _ in range(config.data.prefetch * max(1, config.data.num_workers)):
            next(batches)
        count, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            next(batches)
            count += 1
        return first, count * size / (time.monotonic() - begun)


def measure_step(step: Any, state: Any, batch: Any, steps: int) -> tuple[float, Any]:
    """The step alone: (seconds, state after it)."""
    for i in range(WARM_UP + steps):
        if i == WARM_UP:
            jax.block_until_ready(state)
            begun = time.monotonic()
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    return (time.monotonic() - begun) / steps, state


def measure_training(
    config: ConfigDict, step: Any, state: Any, mesh: Any, steps: int
) -> tuple[float, float, Any]:
    """The step on the pipeline's batches, with the host one step ahead as in training.

    Returns:
      (seconds per step, fraction of the time that the devices waited, state after it).
    """
    with Loader(train_batches(config), config.data.num_workers, config.data.prefetch) as loader:
        batches, metrics = DataWaitTimer(iter(loader)), None
        ready = config.data.prefetch * max(1, config.data.num_workers)
        for i in range(ready + steps):
            if i == ready:
                jax.block_until_ready(state)
                batches.take()
                begun = time.monotonic()
            batch = sharding.put_batch(batches.next(metrics), mesh)
            previous = metrics
            state, metrics = step(state, batch)
            jax.block_until_ready(previous)
        jax.block_until_ready(state)
        whole = time.monotonic() - begun
        return whole / steps, batches.take() / whole, state


def benchmark(config: ConfigDict, workers: Sequence[int], seconds: float, steps: int) -> None:
    """Measures and prints."""
    size = config.train.batch_size
    print(f"{config.name}, {len(open_records(config, 'train'))} clips, batches of {size}")
    cost = measure_processor(config, seconds / 2)
    print(f"one clip: {1000 * cost:.1f} ms of CPU time, {1 / cost:.1f} clips per second")
    print("loader processes   first batch, s   clips per second   of one process", flush=True)
    for count in workers:
        first, rate = measure_loader(with_workers(config, count), seconds)
        print(f"{count:16d} {first:16.1f} {rate:18.2f} {rate / max(1, count):16.2f}", flush=True)
    if not steps:
        return
    mesh = sharding.make_mesh(config)
    step = trace_step(config, mesh)
    compiled = step.traced.lower().compile()
    state, batch = random_state(step.state), sharding.put_batch(random_batch(config), mesh)
    seed = sharding.put_seed(config.seed, mesh)

    def train_step(state: Any, batch: Any) -> tuple[Any, Any]:
        return compiled(state, batch, seed)

    alone, state = measure_step(train_step, state, batch, steps)
    print(f"{mesh.size} device(s) of kind {jax.devices()[0].device_kind}")
    print("loader processes   seconds per step   clips per second   waiting for data")
    print(f"{'one batch':>16} {alone:18.3f} {size / alone:18.2f} {0:18.1%}", flush=True)
    for count in workers:
        taken, share, state = measure_training(
            with_workers(config, count), train_step, state, mesh, steps
        )
        print(f"{count:16d} {taken:18.3f} {size / taken:18.2f} {share:18.1%}", flush=True)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_list("workers", ["0", "1", "2"], "loader processes", flag_values=values)
        flags.DEFINE_float("seconds", 20.0, "to measure a loader", 0.1, flag_values=values)
        flags.DEFINE_integer("steps", 30, "to time; 0: none", lower_bound=0, flag_values=values)

    def run() -> None:
        config, values, _ = parse(argv, define, __doc__)
        if not all(text.isdigit() for text in values.workers):
            raise UsageError(f"--workers={','.join(values.workers)}: expected numbers")
        benchmark(config, [int(n) for n in values.workers], values.seconds, values.steps)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

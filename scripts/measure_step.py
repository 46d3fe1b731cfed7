"""Time and memory of the training step of a configuration, on random clips, without a dataset.

  python scripts/measure_step.py --config=configs/s4_ama.py --config.train.batch_size=1
      --config.data.train_frames=all --steps=3

Prints the bytes of the compiled step (arguments, temporaries), the compile time, the wall and CPU
time of each step, and the memory of the process: after compiling, after what the compiler freed was
given back as in training (not with --return_freed=False), and the peak of the steps alone. Images
and ground truth are noise; frames have ground truth if the configuration supervises them.
"""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from avs_jax.data.clip import ClipRows
from avs_jax.plan import trace_step
from avs_jax.runtime import sharding
from avs_jax.runtime.command_line import exit_status, parse
from avs_jax.runtime.memory import StepBytes
from avs_jax.runtime.process_memory import ProcessMemory, return_freed_memory
from avs_jax.runtime.step import TrainState
from avs_jax.task import stack_rows


def random_batch(config: ConfigDict, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch of noise; frames 0 .. num_supervised - 1 have every target."""
    rng = np.random.default_rng(seed)
    size = config.train.batch_size
    rows = ClipRows(config)
    batch = stack_rows([rows.empty(train=True) for _ in range(size)], rows.fields)
    num_frames = batch["valid"].shape[1]
    batch["frame_index"] = np.tile(np.arange(num_frames, dtype=np.int32), (size, 1))
    batch["valid"] = np.ones((size, num_frames), bool)
    batch["supervised"] = batch["frame_index"] < config.data.num_supervised
    batch["proto_valid"] = batch["frame_index"] == 0
    batch["proto_target"][..., :1] = 1  # there may be no prototype
    for field in ("images", "pre_masks"):
        if field in batch:
            batch[field] = rng.integers(0, 256, batch[field].shape, np.uint8)
    for field in ("log_mel", "motion"):
        if field in batch:
            batch[field] = rng.random(batch[field].shape, np.float32)
    batch["target_masks"] = rng.random(batch["target_masks"].shape) < 0.5
    batch["target_labels"] += np.arange(config.data.max_targets) % config.data.num_classes
    batch["target_valid"] = np.repeat(
        batch["supervised"][..., None], config.data.max_targets, axis=-1
    )
    return batch


def random_values(shapes: Any) -> Any:
    """Small random values for a tree of ShapeDtypeStructs, around 1 for norm scales and variances.

    This is faster than real initialization.
    """
    rng = np.random.default_rng(0)

    def value(path, leaf):
        center = float(path[-1].key in ("scale", "var"))
        return center + 0.02 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


def random_state(shapes: TrainState) -> TrainState:
    """A random state before the first step, on the devices, from shapes with shardings."""
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    names = ("params", "batch_stats", "ema")
    host = dataclasses.replace(host, **{k: random_values(getattr(shapes, k)) for k in names})
    return jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), host, shapes)


def reset_peak() -> None:
    """On Linux, makes the peak of this process start at what it holds now."""
    switch = pathlib.Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")


def measure(config: ConfigDict, steps: int, return_freed: bool) -> None:
    """Compiles the step, runs it `steps` times and prints the cost."""
    mesh = sharding.make_mesh(config)
    step = trace_step(config, mesh)
    clips, frames = step.batch["valid"].shape
    print(f"{config.name}: {clips} clip(s) of {frames} frame(s), {config.data.image_size} px")
    print(f"{mesh.size} device(s) of kind {jax.devices()[0].device_kind}")
    start = time.monotonic()
    compiled = step.traced.lower().compile()
    print(f"compilation {time.monotonic() - start:.1f} s")
    used = StepBytes.of(compiled)
    print(used)
    print(f"the process, compiled: {ProcessMemory.now()}")
    if return_freed:
        return_freed_memory()
        print(f"the process, freed memory given back: {ProcessMemory.now()}")
    reset_peak()
    state, batch = random_state(step.state), sharding.put_batch(random_batch(config), mesh)
    for i in range(steps):
        start, cpu = time.monotonic(), time.process_time()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        loss = metrics["total_loss"]
        print(f"step {i + 1}: {seconds:.2f} s, {cpu:.2f} s of CPU time, loss {loss:.4f}")
    if (ran := ProcessMemory.now()) is not None:
        factor = ran.peak / used.total
        print(f"the process, running: {ran}; the peak is {factor:.2f} times the step's bytes")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("steps", 3, "steps to run", lower_bound=1, flag_values=values)
        text = "give the compiler's freed memory back"
        flags.DEFINE_bool("return_freed", True, text, flag_values=values)

    def run() -> None:
        line = parse(argv, define, __doc__)
        measure(line.config, line.values.steps, line.values.return_freed)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

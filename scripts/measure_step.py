"""Time and memory of the training step of a configuration, on random clips, without a dataset.

  python scripts/measure_step.py --config=configs/s4_ama.py --config.train.batch_size=1
      --config.data.train_frames=all --steps=3

  python scripts/measure_step.py --config=configs/s4_sam2.py --config.train.batch_size=1
      [--cached_maps] [--csv=steps.csv]

Prints the bytes of the compiled step (arguments, temporaries), the compile time, the wall and CPU
time of each step, and the memory of the process: after compiling, after what the compiler freed was
given back as in training (not with --return_freed=False), and the peak of the steps alone. Images
and ground truth are noise; frames have ground truth if the configuration supervises them.

--cached_maps gives a model with a frozen image encoder the maps of that encoder, as with
config.data.trunk_features; it needs no weights and no folder. --csv appends a row to a table for
scripts/write_results.py.
"""

import contextlib
import csv
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from avs_jax.data.trunk_features import UNAUGMENTED, map_shapes, write_facts
from avs_jax.plan import trace_step
from avs_jax.runtime import sharding
from avs_jax.runtime.command_line import exit_status, parse
from avs_jax.runtime.memory import GIB, StepBytes
from avs_jax.runtime.process_memory import ProcessMemory, return_freed_memory
from avs_jax.runtime.step import TrainState
from avs_jax.spec import TRUNK_MAPS, InputError
from avs_jax.task import stack_rows
from avs_jax.tasks import make_task

HEADER = ("config", "px", "clips", "frames", "image encoder", "s per step", "GiB")


def random_batch(config: ConfigDict, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch of noise; frames 0 .. num_supervised - 1 have every target."""
    rng = np.random.default_rng(seed)
    size = config.train.batch_size
    rows = make_task(config).rows
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
    for field in ("log_mel", "motion", *TRUNK_MAPS):
        if field in batch:
            noise = rng.random(batch[field].shape, np.float32)
            batch[field] = noise.astype(batch[field].dtype)
    if "text_ids" in batch:
        batch["text_ids"] = rng.integers(3, 200, batch["text_ids"].shape, np.int32)
        batch["text_mask"] = np.ones_like(batch["text_mask"])
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


@contextlib.contextmanager
def with_cached_maps(config: ConfigDict) -> Iterator[ConfigDict]:
    """The configuration of a step whose batches hold the maps of the frozen image encoder."""
    if "trunk_features" not in config.data:
        raise InputError(f"--cached_maps: {config.name} has no config.data.trunk_features")
    config, size = config.copy_and_resolve_references(), config.data.image_size
    with tempfile.TemporaryDirectory() as folder:
        shapes = map_shapes(size, config.model.sam2.width)
        write_facts(pathlib.Path(folder), "random", size, shapes)
        config.data.trunk_features = folder
        config.data.augment.update(UNAUGMENTED | {"min_sizes": (size,)})
        yield config


def append_row(path: pathlib.Path, row: Sequence[Any]) -> None:
    """Adds a row to a table in csv, which it starts with its header."""
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, row] if is_new else [row])


def measure(config: ConfigDict, steps: int, return_freed: bool) -> tuple:
    """Compiles the step, runs it `steps` times and prints the cost.

    Returns:
      a row of HEADER; its time is the median of the steps.
    """
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
    seed = sharding.put_seed(config.seed, mesh)
    times = []
    for i in range(steps):
        start, cpu = time.monotonic(), time.process_time()
        state, metrics = compiled(state, batch, seed)
        jax.block_until_ready(state)
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        times.append(seconds)
        loss = metrics["total_loss"]
        print(f"step {i + 1}: {seconds:.2f} s, {cpu:.2f} s of CPU time, loss {loss:.4f}")
    if (ran := ProcessMemory.now()) is not None:
        factor = ran.peak / used.total
        print(f"the process, running: {ran}; the peak is {factor:.2f} times the step's bytes")
    encoder = "cached maps" if TRUNK_MAPS[0] in step.batch else "run"
    cost = f"{statistics.median(times):.2f}", f"{used.total / GIB:.2f}"
    return config.name, config.data.image_size, clips, frames, encoder, *cost


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("steps", 3, "steps to run", lower_bound=1, flag_values=values)
        text = "give the compiler's freed memory back"
        flags.DEFINE_bool("return_freed", True, text, flag_values=values)
        text = "the image encoder is not run; batches hold its maps"
        flags.DEFINE_bool("cached_maps", False, text, flag_values=values)
        flags.DEFINE_string("csv", None, "table that gets a row", flag_values=values)

    def run() -> None:
        line = parse(argv, define, __doc__)
        values = line.values
        cached = with_cached_maps if values.cached_maps else contextlib.nullcontext
        with cached(line.config) as config:
            row = measure(config, values.steps, values.return_freed)
        if values.csv:
            append_row(pathlib.Path(values.csv).expanduser(), row)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

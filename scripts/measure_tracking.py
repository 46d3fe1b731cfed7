"""Memory and time of tracking through a long video, which must not grow with its length.

  python scripts/measure_tracking.py --config=configs/sam2_tiny.py --config.data.image_size=256
      [--frames=500] [--every=100] [--csv=tracking.csv]

Tracks two objects with random weights through frames of noise, read one by one. Every --every
frames, it prints the memory that the process holds, the bytes of arrays on the device, and the
seconds per frame since the line before; the first includes compilation. --csv writes the lines as a
table for scripts/write_results.py.
"""

import csv
import functools
import io
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from avs_jax.data.prompts import Prompt  # noqa: E402
from avs_jax.files import write_atomically  # noqa: E402
from avs_jax.inference.sam2 import Sam2  # noqa: E402
from avs_jax.models import build_model  # noqa: E402
from avs_jax.models.sam2.model import SAM2  # noqa: E402
from avs_jax.runtime.command_line import exit_status, parse  # noqa: E402
from avs_jax.runtime.memory import MIB  # noqa: E402
from avs_jax.runtime.process_memory import ProcessMemory, return_freed_memory  # noqa: E402
from avs_jax.spec import InputError  # noqa: E402
from scripts.measure_step import random_values  # noqa: E402

FRAME_SIZE = (180, 320)
HEADER = ("frames", "process, MiB", "arrays, MiB", "s per frame")


class Point(NamedTuple):
    """What tracking holds after some frames, and what the frames since the point before took."""

    frames: int
    resident: int  # bytes
    arrays: int  # bytes
    seconds: float  # per frame


def random_sam2(config: ConfigDict) -> Sam2:
    """The model of a configuration of task `track` with random weights."""
    images = np.zeros((1, 64, 64, 3), np.float32)
    model = build_model(config.model, SAM2)
    init = functools.partial(model.init, jax.random.key(0), images, method="initialize")
    return Sam2(config, random_values(jax.eval_shape(init)["params"]))


def noise(count: int) -> Iterator[np.ndarray]:
    """Frames, made one by one."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (*FRAME_SIZE, 3), np.uint8)


def measure(sam2: Sam2, num_frames: int, every: int) -> Iterator[Point]:
    """Tracks a click and a box, and yields a point every so many frames."""
    prompts = {0: {"a": Prompt(points=[(90, 60)])}, 2: {"b": Prompt(box=(20, 30, 200, 150))}}
    start = time.monotonic()
    for frame in sam2.track(noise(num_frames), prompts, num_frames):
        if (frame.number + 1) % every == 0:
            seconds = (time.monotonic() - start) / every
            return_freed_memory()
            memory = ProcessMemory.now()
            if memory is None:
                raise InputError("this system does not say how much memory a process holds")
            arrays = sum(array.nbytes for array in jax.live_arrays())
            yield Point(frame.number + 1, memory.resident, arrays, seconds)
            start = time.monotonic()


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_integer("frames", 500, "length of the video", 1, flag_values=values)
        flags.DEFINE_integer("every", 100, "frames per line", 1, flag_values=values)
        flags.DEFINE_string("csv", None, "table to write", flag_values=values)

    def run() -> None:
        line = parse(argv, define, __doc__)
        if line.config.task != "track":
            raise InputError(f"config.task = {line.config.task!r}: expected 'track'")
        rows = [HEADER]
        print("  ".join(HEADER), flush=True)
        for point in measure(random_sam2(line.config), line.values.frames, line.values.every):
            sizes = (f"{size / MIB:.1f}" for size in (point.resident, point.arrays))
            rows.append((point.frames, *sizes, f"{point.seconds:.3f}"))
            print("  ".join(map(str, rows[-1])), flush=True)
        if line.values.csv:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            write_atomically(line.values.csv, text.getvalue())

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

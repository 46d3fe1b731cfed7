"""How fast `predict` is on a video, with decoding and writing beside the model and in sequence.

  python scripts/benchmark_predict.py --checkpoint=runs/s4_ama --output=DIR
      [--video=FILE | --seconds=600 --height=720] [--repeats=3]

Without --video, it writes one of moving squares with a tone to DIR/video.mp4. Two windows of it
compile the model. Then both ways take turns; each prints seconds per second of video and the peak
resident memory of the process in that pass, and all passes must write the same bytes.
"""

import hashlib
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from avs_jax.data.video import Video, probe
from avs_jax.data.video_output import OverlayWriter, write_cut
from avs_jax.inference import side_by_side
from avs_jax.inference.predictor import Predictor
from avs_jax.predict import make_predictor
from avs_jax.runtime.command_line import UsageError, exit_status, parse
from avs_jax.runtime.memory import GIB
from avs_jax.runtime.process_memory import ProcessMemory, return_freed_memory

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.measure_step import reset_peak  # noqa: E402

FPS, SAMPLE_RATE = 25, 44_100
WAYS = {"in sequence": 0, "side by side": side_by_side.NUM_WAITING}


def moving_squares(height: int, count: int) -> Iterator[np.ndarray]:
    """Frames of 16:9, one square that wanders over noise."""
    width = height * 16 // 9 // 2 * 2
    noise = np.random.default_rng(0).integers(0, 90, (height, width, 3), np.uint8)
    for k in range(count):
        frame = noise.copy()
        left = 3 * k % (width - height // 4)
        frame[height // 3 : height // 2, left : left + height // 4] = 230
        yield frame


def write_example(path: pathlib.Path, seconds: int, height: int) -> None:
    """A video with a tone, written frame by frame."""
    width = height * 16 // 9 // 2 * 2
    video = Video(path, 0.0, seconds, FPS, height, width, SAMPLE_RATE, 1, (0.0, seconds))
    with OverlayWriter(path, FPS, video) as writer:
        start = 0
        for frame in moving_squares(height, seconds * FPS):
            time_points = (start + np.arange(writer.num_wanted)) / SAMPLE_RATE
            tone = (9000 * np.sin(2 * np.pi * 440 * time_points)).astype(np.int16)
            start += len(tone)
            writer.add(frame, tone[:, None])


def digest(folder: pathlib.Path) -> str:
    """Of the names and bytes of all files."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def measure(predictor: Predictor, video: pathlib.Path, output: pathlib.Path, repeats: int) -> None:
    """Both ways in turn; prints each pass and the medians."""
    length = probe(video).num_seconds
    cut = output / "cut.mp4"
    write_cut(cut, video, 0.0, min(length, 2 * predictor.config.data.num_frames))
    predictor.task.predict_video(predictor, cut, output / "warm_up")
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    digests = set()
    for _, name in itertools.product(range(repeats), WAYS):
        side_by_side.NUM_WAITING = WAYS[name]
        return_freed_memory()
        reset_peak()
        start, cpu = time.monotonic(), time.process_time()
        predictor.task.predict_video(predictor, video, output / "result")
        seconds, cpu = time.monotonic() - start, time.process_time() - cpu
        rates[name].append(seconds / length)
        digests.add(digest(output / "result"))
        memory = ProcessMemory.now()
        peak = "" if memory is None else f", peak {memory.peak / GIB:.2f} GiB"
        print(
            f"{name}: {seconds / length:.3f} s per second of video, {cpu / length:.3f} s of CPU "
            f"time{peak}",
            flush=True,
        )
    medians = [statistics.median(values) for values in rates.values()]
    print(f"{length} s of video; medians {medians[0]:.3f} and {medians[1]:.3f}, ", end="")
    print(f"ratio {medians[1] / medians[0]:.2f}; {len(digests)} different result(s)")


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        for name, text in (
            ("checkpoint", "a run of task `segment`"),
            ("video", "frames and sound"),
            ("output", "folder to write"),
        ):
            flags.DEFINE_string(name, None, text, flag_values=values)
        for name, default, text in (
            ("seconds", 60, "of the generated video"),
            ("height", 720, "of its frames"),
            ("repeats", 3, "passes of each way"),
        ):
            flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)

    def run() -> None:
        line = parse(argv, define, __doc__, needs_config=False)
        values = line.values
        for name in ("checkpoint", "output"):
            if values[name].value is None:
                raise UsageError(f"--{name} is missing; --help lists the flags")
        output = pathlib.Path(values.output).expanduser()
        output.mkdir(parents=True, exist_ok=True)
        video = pathlib.Path(values.video or output / "video.mp4")
        if values.video is None:
            write_example(video, values.seconds, values.height)
        measure(make_predictor(line), video, output, values.repeats)

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv))

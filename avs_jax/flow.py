"""Optical flow of a dataset's frames, one file per frame, for the dataset's builder.

  avs-jax flow --dataset=s4 --root=Single-source --output=flow
      --model=raft_large --weights=checkpoints/raft_large [--source=video]
  avs-jax data build --dataset=avsbench_s4 --manual_dir=Single-source --flow_dir=flow
      --data_dir=DIR

It writes OUTPUT/s4/{split}/{category}/{name}/flow_{t:04d}.npy (ms3, avss: without category),
float16:

  RAFT        [H, W, 2], (u, v) in px of these frames, per second
  difference  [H, W], mean of |frame - previous| over RGB, divided by its maximum

Frames keep their size, or are squashed to --size px (avss: 384, for its clips are of many sizes).
Vectors are in px of the frames that are estimated, and readers scale them.

--source=frames: from frame t-1 to frame t, which are a second apart; file 0 is zeros.
--source=video: to the video frame that shows dataset frame t (second t + 15/16), from the video
frame just before it, divided by the time between them; file 0 is no exception.
--source=track: one file per clip instead, track.npy: the motion of the whole video on a grid of
24 x 24 cells, --rate times per second (data/motion_track.py), for models with synchrony. Frames are
squashed to --size px (96), and --model=lucas_kanade needs no weights. It needs a folder of its own:

  python -m avs_jax.flow --dataset=s4 --root=Single-source --output=tracks --source=track
      --model=lucas_kanade
  python scripts/build_dataset.py --dataset=avsbench_s4 --manual_dir=Single-source
      --track_dir=tracks --data_dir=DIR

Run it again to resume: a file counts only if it is whole, of the right shape and finite, and any
other is replaced.
OUTPUT/s4/flow.json says how the files were made; other settings need another folder. A clip that
cannot be read is skipped as a whole, and listed at the end.

Source of layout and direction: the motion input of VCT + AMA. Departures: vectors instead of
magnitudes divided by their maximum; flow within the video.
"""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from avs_jax.data import motion_track
from avs_jax.data.avsbench_folders import SETTINGS
from avs_jax.data.flow_files import (
    SETTINGS_FILE,
    Clip,
    FlowError,
    frame_files,
    is_whole,
    list_clips,
    read_settings,
    write_array,
)
from avs_jax.data.input_files import read_image
from avs_jax.data.motion import frame_difference
from avs_jax.data.motion_track import TRACK_FILE, is_whole_track, track_samples
from avs_jax.data.transforms import BILINEAR, resize
from avs_jax.data.video import read_pairs, read_timed_frames
from avs_jax.files import write_atomically
from avs_jax.flag_style import FlagParser
from avs_jax.inference.flow_estimator import FlowEstimator
from avs_jax.models.flow.raft import VARIANTS
from avs_jax.runtime.command_line import quiet_libraries
from avs_jax.runtime.lock import locked
from avs_jax.spec import InputError
from avs_jax.stopping import run_as_program

DIFFERENCE, TRACK = "difference", "track"
MODELS = (*sorted(VARIANTS), DIFFERENCE)
SOURCES = ("frames", "video", TRACK)
_SAY_EVERY = 5.0  # seconds
_READERS = 2  # threads that decode ahead


class Pair(NamedTuple):
    """Two frames uint8 [H, W, 3], `seconds` apart, whose flow belongs in `path`.

    Attributes:
      first: None where no frame comes before; then nothing moves.
    """

    path: pathlib.Path
    first: np.ndarray | None
    second: np.ndarray
    seconds: float


Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two [N, H, W, 3] -> [N, H, W (, 2)]


def read_clip(
    clip: Clip, folder: pathlib.Path, source: str, has_vectors: bool, side: int | None
) -> list[Pair]:
    """The pairs of a clip whose files in `folder` do not exist or cannot be read.

    Args:
      side: px that frames are squashed to; None keeps them.

    Raises:
      InputError: a file of the clip cannot be read, or the frames differ in size.
    """
    files = frame_files(clip.frames)
    width, height = original = read_image(files[0])[1].size
    size = (height, width) if side is None else (side, side)
    shape = (*size, 2) if has_vectors else size
    paths = [folder / f"flow_{t:04d}.npy" for t in range(len(files))]
    missing = [t for t, path in enumerate(paths) if not is_whole(path, shape)]
    if not missing:
        return []
    if source == "video":
        pairs = [
            (*(resize(x, size, BILINEAR) for x in (before, frame)), seconds)
            for before, frame, seconds in read_pairs(clip.video, len(files))
        ]
    else:
        frames = [resize(_read_frame(path, original), size, BILINEAR) for path in files]
        pairs = [(frames[t - 1] if t else None, frames[t], 1.0) for t in range(len(files))]
    return [Pair(paths[t], *pairs[t]) for t in missing]


def _read_frame(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    _, image = read_image(path)
    if image.size != size:
        raise FlowError(f"{path}: {image.size} px, frame 1 is {size}")
    return np.asarray(image.convert("RGB"))


# ---- doing it ----


class Outcome(NamedTuple):
    """What a run did."""

    written: int  # files
    kept: int  # clips that were complete before
    failed: list[str]  # a line per clip


def make_flow(
    clips: Sequence[Clip],
    output: pathlib.Path,
    source: str,
    estimate: Estimate,
    has_vectors: bool,
    batch_size: int,
    say: Callable[[str], None],
    side: int | None = None,
) -> Outcome:
    """Writes what is missing of the flow of clips, in batches across them.

    Args:
      output: the dataset's folder in the flow root.
      estimate: two uint8 [batch_size, H, W, 3] to flow [batch_size, H, W, 2] in px, or to
        magnitudes [batch_size, H, W] where not `has_vectors`.
      say: takes lines of progress.
      side: px that frames are squashed to; None keeps them.
    """
    failed: dict[str, str] = {}
    writer = _Writer(output, estimate, has_vectors, batch_size, failed)
    progress, kept = _Progress(len(clips), say), 0

    def read(clip: Clip) -> list[Pair]:
        return read_clip(clip, output / clip.folder, source, has_vectors, side)

    for number, (clip, result) in enumerate(_ahead(read, clips), start=1):
        try:
            pairs = result()
        # Decoders answer damaged files with many kinds of exceptions; none ends the run.
        except Exception as error:
            failed[str(clip.folder)] = str(error) or type(error).__name__
            pairs = []
        else:
            kept += not pairs
        if pairs:
            progress.start()
        for pair in pairs:
            writer.add(pair)
        progress.show(number, writer.num_written, kept)
    writer.flush()
    progress.show(len(clips), writer.num_written, kept, is_last=True)
    failures = [f"{name}: {reason}" for name, reason in failed.items()]
    return Outcome(writer.num_written, kept, failures)


def make_tracks(
    clips: Sequence[Clip],
    output: pathlib.Path,
    estimate: Estimate,
    rate: float,
    batch_size: int,
    say: Callable[[str], None],
    side: int,
) -> Outcome:
    """Writes the missing motion tracks of clips, `rate` samples per second; else as `make_flow`."""
    failed: list[str] = []
    progress, written, kept = _Progress(len(clips), say), 0, 0

    def read(clip: Clip) -> np.ndarray | None:
        count = round(len(frame_files(clip.frames)) * rate)
        if is_whole_track(output / clip.folder / TRACK_FILE, count):
            return None
        frames = read_timed_frames(clip.video, motion_track.least_interval(rate))
        return np.stack([*track_samples(frames, estimate, rate, count, side, batch_size)])

    progress.start()
    for number, (clip, result) in enumerate(_ahead(read, clips), start=1):
        try:
            track = result()
            if track is None:
                kept += 1
            else:
                write_array(output / clip.folder / TRACK_FILE, track)
                written += 1
        # Decoders answer damaged files with many kinds of exceptions; none ends the run.
        except Exception as error:
            failed.append(f"{clip.folder}: {error or type(error).__name__}")
        progress.show(number, written, kept)
    progress.show(len(clips), written, kept, is_last=True)
    return Outcome(written, kept, failed)


class _Writer:
    """Estimates and writes the flow of pairs, in batches of pairs of one size.

    Attributes:
      num_written: files.
    """

    def __init__(
        self,
        output: pathlib.Path,
        estimate: Estimate,
        has_vectors: bool,
        batch_size: int,
        failed: dict[str, str],
    ):
        """`failed`: takes clip -> reason where flow cannot be stored."""
        self._output, self._estimate, self._failed = output, estimate, failed
        self._has_vectors, self._batch_size = has_vectors, batch_size
        self._waiting: dict[tuple[int, ...], list[Pair]] = collections.defaultdict(list)
        self.num_written = 0

    def add(self, pair: Pair) -> None:
        """Takes a pair; its file is written when a batch is full, or by `flush`."""
        if pair.first is None:
            size = pair.second.shape[:2]
            self._write(pair.path, np.zeros((*size, 2) if self._has_vectors else size))
            return
        queue = self._waiting[pair.second.shape]
        queue.append(pair)
        if len(queue) == self._batch_size:
            self._finish(queue)

    def flush(self) -> None:
        """Writes what waits for a full batch."""
        for queue in self._waiting.values():
            if queue:
                self._finish(queue)

    def _finish(self, pairs: list[Pair]) -> None:
        padding = ((0, self._batch_size - len(pairs)), (0, 0), (0, 0), (0, 0))
        first = np.pad(np.stack([pair.first for pair in pairs]), padding)
        second = np.pad(np.stack([pair.second for pair in pairs]), padding)
        flow = self._estimate(first, second)[: len(pairs)]
        for pair, found in zip(pairs, flow, strict=True):
            per_second = found / np.float32(pair.seconds) if self._has_vectors else found
            self._write(pair.path, per_second)
        pairs.clear()

    def _write(self, path: pathlib.Path, flow: np.ndarray) -> None:
        try:
            write_array(path, flow)
        except FlowError as error:
            self._failed[str(path.parent.relative_to(self._output))] = str(error)
        else:
            self.num_written += 1


def _ahead(read: Callable, clips: Iterable[Clip]) -> Iterator[tuple[Clip, Callable]]:
    """(clip, () -> read(clip)) in order, read a few clips ahead in threads."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        queue: collections.deque = collections.deque()
        try:
            for clip in clips:
                queue.append((clip, pool.submit(read, clip)))
                if len(queue) > 2 * _READERS:
                    clip, future = queue.popleft()
                    yield clip, future.result
            while queue:
                clip, future = queue.popleft()
                yield clip, future.result
        finally:
            pool.shutdown(cancel_futures=True)


class _Progress:
    """A line every few seconds: clips, files, speed and the remaining time."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self._total, self._say = total, say
        self._shown, self._start = monotonic(), None

    def start(self) -> None:
        """The first clip that needs work."""
        self._start = self._start or monotonic()

    def show(self, done: int, written: int, kept: int, is_last: bool = False) -> None:
        now = monotonic()
        if now - self._shown < _SAY_EVERY and not is_last:
            return
        self._shown = now
        left, speed = "0:00:00" if done == self._total else "?", 0.0
        if self._start is not None and now > self._start and done > kept:
            speed = written / (now - self._start)
            seconds = int((now - self._start) / (done - kept) * (self._total - done))
            left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        self._say(
            f"clip {done}/{self._total} ({kept} were complete)  {written} files  "
            f"{speed:.2f} files/s  {left} left"
        )


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Frame difference of pairs: two uint8 [N, H, W, 3] -> float32 [N, H, W] in [0, 1]."""
    return np.stack([frame_difference(a, b) for a, b in zip(first, second, strict=True)])


def check_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Notes in a folder how its files are made, or compares with the note of an earlier run.

    Raises:
      InputError: they are made in another way; names what differs.
    """
    stored = read_settings(folder)
    if not stored:
        write_atomically(folder / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
        return
    differing = [
        f"{key} {stored.get(key)!r} there, {settings.get(key)!r} now"
        for key in sorted(stored.keys() | settings.keys())
        if stored.get(key) != settings.get(key)
    ]
    if differing:
        raise FlowError(
            f"{folder} holds flow made in another way ({'; '.join(differing)}): "
            "choose another --output"
        )


# ---- command line ----


def main(argv: Sequence[str] | None = None) -> int:
    """Makes flow; returns the exit status, 1 where a clip failed."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    try:
        outcome = run(args)
    except (InputError, OSError) as error:
        print(f"flow: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flow: interrupted; run it again to resume", file=sys.stderr)
        return 130
    print(
        f"{args.output}/{args.dataset}: {outcome.written} files written, "
        f"{outcome.kept} clips were complete, {len(outcome.failed)} failed"
    )
    for line in outcome.failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if outcome.failed else 0


def run(args: argparse.Namespace) -> Outcome:
    """`main`, with exceptions."""
    clips = list_clips(args.dataset, args.root, args.layout)
    if args.videos:
        videos = pathlib.Path(args.videos)
        clips = [clip._replace(video=videos / f"{clip.name}.mp4") for clip in clips]
    elif args.source != "frames" and any(clip.video is None for clip in clips):
        raise FlowError(
            f"{args.dataset} comes without videos: --source={args.source} needs --videos"
        )
    if args.size is not None and args.size < 1:
        raise FlowError(f"--size={args.size}: expected at least 1")
    is_track = args.source == TRACK
    known = motion_track.MODELS if is_track else MODELS
    if args.model not in known:
        raise FlowError(f"--model={args.model} with --source={args.source}: one of {known}")
    side = args.size or (motion_track.SIDE if is_track else SETTINGS[args.dataset].flow_side)
    needs_weights = args.model in VARIANTS
    if needs_weights == (args.weights is None):
        what = "needs" if needs_weights else "has no"
        raise FlowError(f"--model={args.model} {what} --weights (avs-jax convert --source=raft)")
    if args.batch_size < 1:
        raise FlowError(f"--batch_size={args.batch_size}: expected at least 1")
    settings = {"model": args.model, "source": args.source, "dataset": args.dataset}
    settings |= {} if side is None else {"size": side}
    estimate = motion_track.WITHOUT_WEIGHTS.get(args.model) if is_track else difference
    if needs_weights:
        estimate = FlowEstimator(
            args.model, args.weights, args.batch_size, args.iterations, args.dtype
        )
        settings |= {"iterations": args.iterations, "weights": estimate.fingerprint()}
        settings |= {"unit": "px per second", "dtype": args.dtype}
    if is_track:
        motion_track.check_rate("--rate", args.rate)
        settings |= {"rate": args.rate, "unit": "frame sizes per second"}
    output = pathlib.Path(args.output).expanduser() / args.dataset
    with locked(output, "flow"):
        check_settings(output, settings)
        if is_track:
            return make_tracks(clips, output, estimate, args.rate, args.batch_size, _say, side)
        return make_flow(
            clips, output, args.source, estimate, needs_weights, args.batch_size, _say, side
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> FlagParser:
    parser = FlagParser(prog="avs-jax flow", description=__doc__)

    def add(name, text, **options):
        parser.add_argument(f"--{name}", help=text, **options)

    add("dataset", "what is in the root", choices=sorted(SETTINGS), required=True)
    add("root", "folder of the dataset", required=True)
    add("output", "the flow root", required=True)
    add(
        "source",
        "frames a second apart, neighbors in the video, or all of the video",
        choices=SOURCES,
        default="frames",
    )
    models = sorted({*MODELS, *motion_track.MODELS})
    add("model", "estimator (%(default)s)", choices=models, default="raft_large")
    add("weights", "of RAFT, as convert_weights.py --source=raft writes them")
    add("layout", "of s4 and ms3: object224 or vct384, where the root holds both", default="")
    add("size", "squash frames to this many px per side first (avss: 384)", type=int)
    add("rate", "samples of a track per second (%(default)s)", type=float, default=25.0)
    add("videos", "folder of NAME.mp4, instead of the dataset's own")
    add("batch_size", "pairs at once (%(default)s)", type=int, default=4)
    add("iterations", "updates of RAFT's flow (%(default)s)", type=int, default=12)
    add("dtype", "of RAFT", choices=("float32", "bfloat16"), default="float32")
    return parser


if __name__ == "__main__":
    run_as_program(main)

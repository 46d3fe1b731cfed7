"""The flow of a dataset's clips: one file per frame, made in batches of pairs across clips.

avs_jax/flow.py describes the files. A file that is whole stays.
"""

import collections
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from avs_jax.data.flow_files import FlowClip, FlowError, frame_files, is_whole, write_array
from avs_jax.data.input_files import read_image
from avs_jax.data.motion import frame_difference
from avs_jax.data.transforms import BILINEAR, resize
from avs_jax.data.video import read_pairs
from avs_jax.inference.clip_jobs import Outcome, Progress, read_ahead

Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two [N, H, W, 3] -> [N, H, W (, 2)]


class Pair(NamedTuple):
    """Two frames uint8 [H, W, 3], `seconds` apart, whose flow belongs in `path`.

    Attributes:
      first: None where no frame comes before; then nothing moves.
    """

    path: pathlib.Path
    first: np.ndarray | None
    second: np.ndarray
    seconds: float


def read_clip(
    clip: FlowClip, folder: pathlib.Path, source: str, has_vectors: bool, side: int | None
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


def make_flow(
    clips: Sequence[FlowClip],
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
    progress, kept = Progress(len(clips), say), 0

    def read(clip: FlowClip) -> list[Pair]:
        return read_clip(clip, output / clip.folder, source, has_vectors, side)

    for number, (clip, result) in enumerate(read_ahead(read, clips), start=1):
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


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Frame difference of pairs: two uint8 [N, H, W, 3] -> float32 [N, H, W] in [0, 1]."""
    return np.stack([frame_difference(a, b) for a, b in zip(first, second, strict=True)])

"""Motion at the video's own rate: how each cell of a frame moves, many times per second.

A track is float16 [N, 24, 24, C]: sample k is the mean over [k, k + 1) / rate seconds of

  C = 2  the velocity (u, v), in widths and heights of the frame per second, of pairs of adjacent
         frames, without the camera's motion (the affine fit of motion.py), averaged over each cell
  C = 1  the change |frame - previous| / 255 per second, mean over RGB and over each cell; it still
         has the camera's motion

No sample is divided by its maximum, so quiet and violent motion differ. Samples after the end of
the video are 0. Frames that follow sooner than 0.6 / rate after the last one used are skipped, and
the velocity counts as constant between two frames, so any frame rate will do.

FLOW_ROOT/SETTING/.../NAME/track.npy holds the track of a clip, flow.json its rate.

Source: synchrony needs motion far above one frame per second; format and units are ours.
"""

import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from skimage.registration import optical_flow_ilk

from avs_jax.array_files import parse_npy
from avs_jax.data.input_files import read_bytes
from avs_jax.data.motion import camera_flow
from avs_jax.data.transforms import BILINEAR, resize
from avs_jax.ops.resampling import area_matrix
from avs_jax.spec import TRACK_CELLS, InputError

TRACK_FILE = "track.npy"
MODELS = ("difference", "lucas_kanade", "raft_large", "raft_small")
SIDE = 96  # px that frames are squashed to by default
MIN_RATE, MAX_RATE = 1.0, 60.0  # samples per second
_LEAST_INTERVAL = 0.6  # of a sample, between frames that are used
_RADIUS, _NUM_WARPS = 5, 2  # of Lucas-Kanade, px and iterations per level of its pyramid

# Two uint8 [N, H, W, 3] -> float [N, H, W, 2] (px) or [N, H, W] (a change).
Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def check_rate(name: str, rate: float) -> None:
    """Raises InputError for a rate that no track has."""
    if not isinstance(rate, (int, float)) or not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{name} = {rate!r}: expected {MIN_RATE:g} to {MAX_RATE:g} per second")


def least_interval(rate: float) -> float:
    """Seconds between frames below which a frame is skipped."""
    return _LEAST_INTERVAL / rate


def track_samples(
    frames: Iterable[tuple[float, np.ndarray]],
    estimate: Estimate,
    rate: float,
    num_samples: int,
    side: int = SIDE,
    batch_size: int = 4,
) -> Iterator[np.ndarray]:
    """The samples of a video, float16 [24, 24, C] each, exactly `num_samples`.

    Args:
      frames: (seconds since the first frame, uint8 RGB [H, W, 3]), in order.
      estimate: of the pairs of frames, which are squashed to `side` px.
      batch_size: pairs per call of `estimate`; the last batch is padded.
    """
    sums: dict[int, np.ndarray] = {}
    next_sample, empty = 0, np.zeros((TRACK_CELLS, TRACK_CELLS, 2), np.float32)
    for start, end, velocity in _velocities(frames, estimate, side, batch_size):
        empty = np.zeros_like(velocity)
        for sample in range(int(start * rate), min(int(np.ceil(end * rate)), num_samples)):
            overlap = min(end * rate, sample + 1) - max(start * rate, sample)
            if overlap > 0:
                sums[sample] = sums.get(sample, empty) + np.float32(overlap) * velocity
        while next_sample < min(int(end * rate), num_samples):
            yield sums.pop(next_sample, empty).astype(np.float16)
            next_sample += 1
        if next_sample == num_samples:
            return
    for sample in range(next_sample, num_samples):
        yield sums.get(sample, empty).astype(np.float16)


def _velocities(frames, estimate, side, batch_size):
    """(start, end, float32 [24, 24, C] per second) of adjacent frames, in order."""
    pool = area_matrix(side, TRACK_CELLS).astype(np.float32)
    before, waiting = None, []

    def finish():
        first, second = (
            np.stack([pair[k] for pair in waiting] + [waiting[0][k]] * (batch_size - len(waiting)))
            for k in (2, 3)
        )
        for (start, end, *_), flow in zip(waiting, estimate(first, second), strict=False):
            if flow.ndim == 3:
                flow = (flow - camera_flow(flow)) / np.float32(side)
            planes = flow.reshape(side, side, -1).transpose(2, 0, 1)
            pooled = (pool @ planes @ pool.T).transpose(1, 2, 0)
            yield start, end, (pooled / np.float32(end - start)).astype(np.float32)
        waiting.clear()

    for time, image in frames:
        small = resize(image, (side, side), BILINEAR)
        if before is not None:
            waiting.append((before[0], time, before[1], small))
            if len(waiting) == batch_size:
                yield from finish()
        before = time, small
    if waiting:
        yield from finish()


# ---- estimators that need no weights ----


def change(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean over RGB of |second - first| / 255: two uint8 [N, H, W, 3] -> float32 [N, H, W]."""
    difference = np.abs(second.astype(np.int16) - first)
    return difference.mean(axis=-1, dtype=np.float32) / np.float32(255)


def lucas_kanade(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Iterative Lucas-Kanade on a pyramid: two uint8 [N, H, W, 3] -> (u, v) in px [N, H, W, 2].

    Far cheaper than RAFT, and good enough for small motions of textured things.
    """
    gray = [x.astype(np.float32).mean(axis=-1) / np.float32(255) for x in (first, second)]
    flows = [
        np.stack(optical_flow_ilk(a, b, radius=_RADIUS, num_warp=_NUM_WARPS)[::-1], axis=-1)
        for a, b in zip(*gray, strict=True)
    ]
    return np.nan_to_num(np.stack(flows)).astype(np.float32)


WITHOUT_WEIGHTS: dict[str, Estimate] = {"difference": change, "lucas_kanade": lucas_kanade}


# ---- one file ----


def is_whole_track(path: pathlib.Path, num_samples: int) -> bool:
    """Whether a file holds a finite float16 track of so many samples."""
    try:
        return len(read_track(path)) == num_samples
    except InputError:
        return False


def read_track(path: pathlib.Path) -> np.ndarray:
    """A stored track, float16 [N, 24, 24, C].

    Raises:
      InputError: the file is missing, damaged, or holds anything but a finite track.
    """
    try:
        track = parse_npy(read_bytes(path))
    except InputError as error:
        text = str(error)
        raise error if text.startswith(f"{path}:") else InputError(f"{path}: {text}") from error
    is_track = track.ndim == 4 and track.shape[1:3] == (TRACK_CELLS,) * 2
    if not is_track or track.shape[3] not in (1, 2) or track.dtype != np.float16:
        raise InputError(
            f"{path}: {track.dtype} {track.shape}, expected float16 "
            f"[N, {TRACK_CELLS}, {TRACK_CELLS}, 1 or 2]"
        )
    if not np.isfinite(track).all():
        raise InputError(f"{path}: motion that is not finite")
    return track

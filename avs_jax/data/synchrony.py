"""What synchrony reads: how the cells of a frame move around its second, and how the sound goes.

Both are sequences of U = window_seconds * rate samples; sample k of a window covers the same time
in both. The window of frame t is centered on t + 15/16 s, and moved to lie within the clip.

  motion_track  float16 [U, 24, 24, 2], the record's track (motion_track.py) at config.data.track's
                rate, after the frame's augmentation: resized, cropped, flipped (u changes its sign)
                and padded with rest; in sides of the augmented image per second. A track of changes
                has (change, 0)
  sound_track   float32 [U, 16], of 8 mel bands: log(energy + 0.01), then its rise since the last
                10 ms, averaged over the sample; silence where the sound has ended

Without a stored track, both are 0.
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from avs_jax.data import audio, motion_track
from avs_jax.data.transforms import Augmentation
from avs_jax.spec import FRAME_OFFSET_SECONDS, SAMPLE_RATE, SOUND_BANDS, TRACK_CELLS, InputError
from avs_jax.task import Record

SOURCES = ("none", "stored")
MAX_SAMPLES = 1 << 10  # of a window


def check_config(config: Any) -> None:
    """Checks config.data.track; InputError names the key, its value and the choices."""
    for key, choices in {"source": SOURCES, "model": motion_track.MODELS}.items():
        if config[key] not in choices:
            raise InputError(f"config.data.track.{key} is {config[key]!r}, expected {choices}")
    motion_track.check_rate("config.data.track.rate", config.rate)
    seconds = config.window_seconds
    if not isinstance(seconds, (int, float)) or not 0 < seconds * config.rate <= MAX_SAMPLES:
        raise InputError(
            f"config.data.track.window_seconds is {seconds!r}: at a rate of {config.rate}, "
            f"expected more than 0 and at most {MAX_SAMPLES / config.rate:g}"
        )


def num_samples(config: Any) -> int:
    """R under config.data.track."""
    return max(1, round(config.window_seconds * config.rate))


class Windows:
    """The windows of one record.

    Args:
      record: see data/clip.py.
      config: data.track.
      num_frames: of the clip, one per second.
    """

    def __init__(self, record: Record, config: Any, num_frames: int):
        self._config, self._count = config, round(num_frames * config.rate)
        self._record = record
        track, rate = record.get("motion_track"), record.get("motion_track_rate")
        self._track = None if track is None or not np.size(track) else self._resample(track, rate)

    def of_frame(self, t: int, draw: Augmentation | None) -> dict[str, np.ndarray]:
        """motion_track and sound_track of frame t under an augmentation; {} without a track."""
        if self._track is None:
            return {}
        size = num_samples(self._config)
        first = round((t + FRAME_OFFSET_SECONDS) * self._config.rate - size / 2)
        first = max(0, min(first, self._count - size))
        moves = _pad(self._track[first : first + size], size)
        if draw is not None:
            moves = augment_track(moves, draw, has_vectors=self._has_vectors)
        if not self._has_vectors:
            moves = np.concatenate([moves, np.zeros_like(moves)], axis=-1)
        heard = self._sound[first : first + size]
        return {"motion_track": moves.astype(np.float16), "sound_track": heard}

    def _resample(self, track: Any, rate: Any) -> np.ndarray:
        track = np.asarray(track)
        cells = (TRACK_CELLS, TRACK_CELLS)
        if track.ndim != 4 or track.shape[1:3] != cells or track.shape[3] not in (1, 2):
            raise InputError(f"motion_track of shape {track.shape}, expected [N, 24, 24, 1 or 2]")
        if rate is None or not motion_track.MIN_RATE <= float(rate) <= motion_track.MAX_RATE:
            raise InputError(f"motion_track_rate is {rate!r}, expected samples per second")
        self._has_vectors = track.shape[3] == 2
        times = np.arange(len(track) + 1) / float(rate)
        weights = overlaps(times, self._config.rate, self._count)
        return np.einsum("kn,nyxc->kyxc", weights, track.astype(np.float32), optimize=True)

    @functools.cached_property
    def _sound(self) -> np.ndarray:
        rate, count = self._config.rate, max(self._count, num_samples(self._config))
        waveform = np.asarray(self._record["waveform"])
        sample_rate = int(self._record["sample_rate"])
        missing = math.ceil(count / rate * sample_rate) - len(waveform)
        if missing > 0:  # silence, whose log energy is far from 0
            waveform = np.pad(waveform, ((0, missing), *[(0, 0)] * (waveform.ndim - 1)))
        features = sound_features(waveform, sample_rate)
        step, window = audio.HOP / SAMPLE_RATE, audio.WINDOW / SAMPLE_RATE
        times = np.arange(len(features) + 1) * step + (window - step) / 2
        return overlaps(times, rate, count) @ features


def overlaps(times: np.ndarray, rate: float, count: int) -> np.ndarray:
    """Weights float32 [count, n] that average n intervals, with ends `times` [n + 1], over samples.

    Sample k covers [k, k + 1) / rate. The weights of one that nothing covers are 0.
    """
    edges = np.arange(count + 1) / rate
    starts = np.maximum(edges[:-1, None], times[None, :-1])
    ends = np.minimum(edges[1:, None], times[None, 1:])
    shared = np.maximum(ends - starts, 0)
    covered = shared.sum(axis=1, keepdims=True)
    return (shared / np.where(covered > 0, covered, 1)).astype(np.float32)


def sound_features(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Log energies of 8 mel bands and their positive differences, every 10 ms: float32 [n, 16]."""
    samples = audio.resample(audio.to_mono(waveform), sample_rate)
    if len(samples) < audio.WINDOW:
        return np.zeros((0, 2 * SOUND_BANDS), np.float32)
    frames = sliding_window_view(samples, audio.WINDOW)[:: audio.HOP]
    magnitude = np.abs(np.fft.rfft(frames * audio.hann_window(), audio.FFT_SIZE))
    mel = audio.to_mel(magnitude)
    energy = np.log(mel.reshape(len(mel), SOUND_BANDS, -1).mean(axis=2) + audio.LOG_OFFSET)
    rise = np.maximum(np.diff(energy, axis=0, prepend=energy[:1]), 0)
    return np.concatenate([energy, rise], axis=1).astype(np.float32)


def augment_track(track: np.ndarray, draw: Augmentation, has_vectors: bool) -> np.ndarray:
    """A track [R, g, g, C] through a clip's augmentation; every cell averages the area it covers.

    With `has_vectors`, (u, v) in frame sizes per second become sides of the augmented image per
    second, and a flip negates u.
    """
    (height, width), (top, left) = draw.resized, draw.crop_origin
    side = draw.output_size
    rows = cell_weights(side, top, draw.crop_size[0], height, is_flipped=False)
    columns = cell_weights(side, left, draw.crop_size[1], width, is_flipped=draw.flip)
    moved = np.einsum("yh,rhwc,xw->ryxc", rows, track, columns, optimize=True)
    if has_vectors:
        scale = np.array([-width if draw.flip else width, height], np.float32) / np.float32(side)
        moved = moved * scale
    return moved


def cell_weights(side: int, start: int, length: int, resized: int, is_flipped: bool) -> np.ndarray:
    """Weights float32 [g, g] of a frame's cells along one axis for the cells of its augmentation.

    The axis of `resized` px is cropped to [start, start + length), flipped, and padded to `side`.
    Padding has no weight.
    """
    edges = np.arange(TRACK_CELLS + 1) * (side / TRACK_CELLS)  # px of the result
    ends = start + length - edges if is_flipped else start + edges  # px of the resized frame
    low = np.clip(np.minimum(ends[:-1], ends[1:]), start, start + length)
    high = np.clip(np.maximum(ends[:-1], ends[1:]), start, start + length)
    cells = np.arange(TRACK_CELLS + 1) * (resized / TRACK_CELLS)
    shared = np.minimum(high[:, None], cells[None, 1:]) - np.maximum(low[:, None], cells[None, :-1])
    return (np.maximum(shared, 0) * (TRACK_CELLS / side)).astype(np.float32)


def _pad(sequence: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(sequence)
    return np.pad(sequence, [(0, missing), *[(0, 0)] * (sequence.ndim - 1)])

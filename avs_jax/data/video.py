"""Own videos: one frame per second and the sound of a file. video_output.py writes.

Second k of a video is shown by the frame at k + 15/16 s, or at another offset (the last frame where
the video ends earlier), found by time stamps, so a variable frame rate changes nothing. Time 0 is
the first frame; the sound is cut and padded to it. A last part of a second counts as a second if it
lasts a quarter of one.

Source: AVSBench's preprocessing takes frame int((k + 15/16) * fps); this is the same moment.
Ref-AVS's frames are the first of each second: offset 0.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import av
import numpy as np

from avs_jax.data.audio import MAX_RATE, MIN_RATE
from avs_jax.data.container import (
    STAMP_SECONDS,
    VideoError,
    decode,
    find_frames,
    find_streams,
    open_container,
    scan,
    time_of,
    upright,
)
from avs_jax.progress import tracked
from avs_jax.spec import FRAME_OFFSET_SECONDS

MIN_REST_SECONDS = 0.25  # a shorter rest after the last whole second is not shown
_JITTER_SECONDS = 0.02  # audio time stamps this close to the sample count are rounding
_Path = str | os.PathLike
W = TypeVar("W")  # a window, as a tuple


@dataclasses.dataclass(frozen=True)
class Video:
    """What a file holds.

    Attributes:
      start_time: of the first frame on the file's own clock, in seconds.
      duration: seconds from the first frame to the end of the last.
      fps: frames per second, on average.
      height, width: px as shown, after rotation.
      sample_rate: Hz of the sound.
      num_channels: of the sound as it is read: 1, or 2 (more are mixed down).
      sound_stamps: when the first and the last packet of the sound begin, on the file's own clock.
    """

    path: pathlib.Path
    start_time: float
    duration: float
    fps: float
    height: int
    width: int
    sample_rate: int
    num_channels: int
    sound_stamps: tuple[float, float]

    @property
    def num_seconds(self) -> int:
        """How many frames `read_windows` yields in all."""
        return _num_seconds(self.duration)


def _num_seconds(duration: float) -> int:
    whole = int(duration + 1e-6)
    return max(1, whole + (duration - whole >= MIN_REST_SECONDS))


class Span(NamedTuple):
    """When a file shows frames, in seconds on its own clock, and how many."""

    start: float
    end: float
    num_frames: int


def probe(path: _Path) -> Video:
    """Checks a file from end to end, decoding one frame only, and says what it holds.

    Raises:
      VideoError: no such file, not a video, truncated, without frames or without sound.
    """
    with open_container(path) as container:
        frames, sound = find_streams(path, container)
        packets = scan(path, container, frames, sound)
        sample_rate, num_channels = sound.codec_context.sample_rate, sound.codec_context.channels
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        reason = f"sound sampled at {sample_rate} Hz, expected {MIN_RATE} to {MAX_RATE}"
        raise VideoError(path, reason)
    frame = _first_frame(path)
    height, width, _ = upright(path, frame).shape
    duration = max(packets.end - time_of(path, frame), 0.0)
    return Video(
        path=pathlib.Path(path),
        start_time=time_of(path, frame),
        duration=duration,
        fps=packets.num_frames / duration if duration else 1.0,
        height=height,
        width=width,
        sample_rate=sample_rate,
        num_channels=min(2, num_channels),
        sound_stamps=packets.sound_stamps,
    )


def frame_span(path: _Path) -> Span:
    """Checks the frames of a file like `probe`; a file without sound will do."""
    with open_container(path) as container:
        packets = scan(path, container, find_frames(path, container))
    return Span(time_of(path, _first_frame(path)), packets.end, packets.num_frames)


def _first_frame(path: _Path) -> av.VideoFrame:
    with open_container(path) as container:
        frame = next(decode(path, container, find_frames(path, container)), None)
    if frame is None:
        raise VideoError(path, "no frame in it can be decoded")
    return frame


class Window(NamedTuple):
    """Some seconds of a video.

    Attributes:
      frames: uint8 RGB [t, H, W, 3] as shown, one per second.
      waveform: int16 [t * sample_rate, channels], silence where the video has no sound.
      start: second of the first frame.
      num_heard: samples up to the end of the sound.
      pairs: what `read_pairs` yields for these seconds; empty unless asked for.
    """

    frames: np.ndarray
    waveform: np.ndarray
    start: int
    num_heard: int
    pairs: list[tuple[np.ndarray, np.ndarray, float]]


def decode_windows(
    video: Video,
    num_frames: int,
    with_pairs: bool = False,
    offset: float = FRAME_OFFSET_SECONDS,
) -> Iterator[Window]:
    """Decodes a video once, window by window; the file was checked by `probe`.

    Memory holds one window and what the file interleaves, wherever the sound begins and ends.

    Args:
      num_frames: seconds of one window; the last one may be shorter.
      offset: of the frame of a second from its start, in seconds.

    Raises:
      VideoError: damage found while decoding.
    """
    if num_frames < 1:
        raise ValueError(f"windows of {num_frames} frames, expected at least 1")
    path, start = video.path, 0

    def window(picks: list[tuple], heard: np.ndarray) -> Window:
        sound = np.zeros((len(picks) * video.sample_rate, video.num_channels), np.int16)
        sound[: len(heard)] = heard
        pairs = [_pair(path, *pick) for pick in picks] if with_pairs else []
        return Window(_stack(video, picks, start), sound, start, len(heard), pairs)

    with open_container(path) as container:
        picker, track = _Picker(path, video.num_seconds, offset), SoundTrack(video)
        for frame in decode(path, container, *find_streams(path, container)):
            (picker if isinstance(frame, av.VideoFrame) else track).add(frame)
            samples = num_frames * video.sample_rate
            while len(picker.ready) >= num_frames and track.knows(samples):
                yield window(picker.take(num_frames), track.take(samples))
                start += num_frames
        picker.finish()
        while picks := picker.take(num_frames):
            yield window(picks, track.take(len(picks) * video.sample_rate))
            start += len(picks)


def tracked_windows(windows: Iterable[W], video: Video) -> Iterator[W]:
    """The windows of a video, each with its frames first; progress counts seconds."""
    name, count = video.path.name, video.num_seconds
    return tracked(windows, name, count, "second", size=lambda window: len(window[0]))


def read_windows(
    path: _Path, num_frames: int, offset: float = FRAME_OFFSET_SECONDS
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Reads a video window by window: (frames, waveform, start) of `decode_windows`.

    Raises:
      VideoError: as `probe`, or damage found while decoding.
    """
    for window in decode_windows(probe(path), num_frames, offset=offset):
        yield window.frames, window.waveform, window.start


def read_frames(path: _Path) -> Iterator[np.ndarray]:
    """Reads every frame, uint8 RGB [H, W, 3] as shown; a file without sound will do.

    Raises:
      VideoError: as `read_windows`.
    """
    return _of_one_size(path, _shown(path))


def read_timed_frames(path: _Path, least_interval: float) -> Iterator[tuple[float, np.ndarray]]:
    """Reads (seconds since the first frame, frame), frames as `read_frames`.

    Args:
      least_interval: seconds; frames that follow sooner after the last one read are skipped.

    Raises:
      VideoError: as `read_windows`.
    """
    times: list[float] = []

    def kept():
        for shown in _shown(path):
            time = time_of(path, shown)
            if not times or time - times[-1] >= least_interval:
                times.append(time)
                yield shown

    for frame in _of_one_size(path, kept()):
        yield times[-1] - times[0], frame


def _shown(path: _Path) -> Iterator[av.VideoFrame]:
    """The decoded frames of a file, which is checked from end to end first."""
    with open_container(path) as container:
        scan(path, container, find_frames(path, container))
    with open_container(path) as container:
        yield from decode(path, container, find_frames(path, container))


def _of_one_size(path: _Path, frames: Iterator[av.VideoFrame]) -> Iterator[np.ndarray]:
    size = None
    for number, shown in enumerate(frames):
        frame = upright(path, shown)
        if frame.shape != (size or frame.shape):
            raise VideoError(path, f"frames change their size in frame {number}")
        size = frame.shape
        yield frame


def read_pairs(
    path: _Path, num_seconds: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Reads the frame of each second (as `read_windows`) and the one shown just before it.

    A file without sound will do.

    Args:
      num_seconds: how many; the last frame stands for seconds beyond the end. None: as many as
        `read_windows` yields.

    Yields:
      (before, frame, interval): uint8 RGB [H, W, 3] as shown, and the seconds between the two. A
      second that is shown by the very first frame has it twice, 1 s apart.

    Raises:
      VideoError: as `read_windows`, or frames whose times do not grow.
    """
    if num_seconds is None:
        num_seconds = probe(path).num_seconds
    else:
        with open_container(path) as container:
            scan(path, container, find_frames(path, container))
    with open_container(path) as container:
        picker = _Picker(path, num_seconds)
        for frame in decode(path, container, find_frames(path, container)):
            picker.add(frame)
            for pick in picker.take(num_seconds):
                yield _pair(path, *pick)
            if picker.is_full:
                return
        picker.finish()
        for pick in picker.take(num_seconds):
            yield _pair(path, *pick)


def _pair(path: _Path, before, shown) -> tuple[np.ndarray, np.ndarray, float]:
    frame = upright(path, shown)
    if before is None:
        return frame, frame, 1.0
    interval = time_of(path, shown) - time_of(path, before)
    previous = upright(path, before)
    if interval <= 0 or previous.shape != frame.shape:
        raise VideoError(
            path,
            f"frames of {previous.shape} and {frame.shape} at {time_of(path, before):.3f} s and "
            f"{time_of(path, shown):.3f} s differ in size or order",
        )
    return previous, frame, interval


def _stack(video: Video, picks: list[tuple], start: int) -> np.ndarray:
    """The frames of seconds `start` and on, uint8 RGB [t, H, W, 3] as shown."""
    frames = [upright(video.path, shown) for _, shown in picks]
    for second, frame in enumerate(frames, start):
        if frame.shape[:2] != (video.height, video.width):
            size = f"{frame.shape[1]}x{frame.shape[0]} px"
            raise VideoError(video.path, f"frames change their size to {size} in second {second}")
    return np.stack(frames)


class _Picker:
    """Chooses the frame of each second from frames in the order they are shown.

    Attributes:
      ready: (frame before it or None, frame) of the seconds that nobody took yet.
    """

    def __init__(self, path: _Path, num_seconds: int, offset: float = FRAME_OFFSET_SECONDS):
        self.ready: list[tuple[av.VideoFrame | None, av.VideoFrame]] = []
        self._path, self._missing, self._offset = path, num_seconds, offset
        self._before = self._shown = self._next_moment = None

    @property
    def is_full(self) -> bool:
        """Whether every second has its frame."""
        return not self._missing

    def add(self, frame: av.VideoFrame) -> None:
        time = time_of(self._path, frame)
        if self._next_moment is None:
            self._next_moment = time + self._offset + STAMP_SECONDS
        while self._shown is not None and self._missing and time > self._next_moment:
            self._pick()
        self._before, self._shown = self._shown, frame

    def finish(self) -> None:
        """The last frame stands for the seconds that are left."""
        if self._shown is None:
            raise VideoError(self._path, "no frame in it can be decoded")
        while self._missing:
            self._pick()

    def take(self, count: int) -> list[tuple[av.VideoFrame | None, av.VideoFrame]]:
        """The next `count` picks, fewer where fewer are ready."""
        taken, self.ready = self.ready[:count], self.ready[count:]
        return taken

    def _pick(self) -> None:
        self.ready.append((self._before, self._shown))
        self._missing -= 1
        self._next_moment += 1


class SoundTrack:
    """The sound from time 0 on as int16 [n, channels]; gaps between time stamps are silence.

    It ends with the second in which the frames end: nothing reads more.
    """

    def __init__(self, video: Video):
        self.video = video
        self._resampler = av.AudioResampler(
            format="s16",
            layout="stereo" if video.num_channels == 2 else "mono",
            rate=video.sample_rate,
        )
        self._chunks: list[np.ndarray] = []
        self._end = 0  # sample after the last one added
        self._limit = (int(video.duration) + 1) * video.sample_rate
        self._last_stamp = -math.inf  # of the frames added, on the file's clock
        self.num_ready = 0

    def add(self, frame: av.AudioFrame) -> None:
        rate = self.video.sample_rate
        if frame.time is not None:
            self._last_stamp = max(self._last_stamp, frame.time)
        for part in self._resampler.resample(frame):
            samples = part.to_ndarray().reshape(-1, self.video.num_channels)
            position = self._end
            if part.pts is not None:
                stamp = round((float(part.pts * part.time_base) - self.video.start_time) * rate)
                if abs(stamp - self._end) > _JITTER_SECONDS * rate or not self._end:
                    position = stamp
            if position > self._end:
                silent = min(position, self._limit) - self._end
                self._append(np.zeros((silent, samples.shape[1]), np.int16))
            self._append(samples[max(0, self._end - position) : max(0, self._limit - position)])

    def _append(self, samples: np.ndarray) -> None:
        self._chunks.append(samples)
        self._end += len(samples)
        self.num_ready += len(samples)

    def knows(self, count: int) -> bool:
        """Whether the next `count` samples are ready, or as many as the sound still has.

        Until the sound begins, they are silence.
        """
        first, last = self.video.sound_stamps
        silent = first - _JITTER_SECONDS - self.video.start_time
        stop = self._end - self.num_ready + count
        if self._last_stamp == -math.inf and self._end < stop <= silent * self.video.sample_rate:
            self._append(np.zeros((stop - self._end, self.video.num_channels), np.int16))
        return self.num_ready >= count or self._last_stamp >= last - STAMP_SECONDS

    def take(self, count: int) -> np.ndarray:
        """The next `count` samples, fewer where the sound ends."""
        if not self._chunks:
            return np.zeros((0, self.video.num_channels), np.int16)
        samples = np.concatenate(self._chunks)
        self._chunks = [samples[count:]]
        self.num_ready = len(self._chunks[0])
        return samples[:count]

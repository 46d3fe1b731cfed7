"""Own videos out: frames with the sound of another file, cuts, and a video with another sound."""

import fractions
import math
import os
from collections.abc import Iterable, Iterator

import av
import numpy as np

from avs_jax.data.container import (
    STAMP_SECONDS,
    VideoError,
    decode,
    find_frames,
    find_streams,
    open_container,
    time_of,
    upright,
)
from avs_jax.data.video import SoundTrack, Video, frame_span, probe

MAX_FPS = 60.0
_Path = str | os.PathLike
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
_MP4_CODECS = ("h264", "hevc", "av1", "libdav1d", "vp9", "mpeg4")
_CHUNK = 1 << 14  # samples
_LAYOUTS = {1: "mono", 2: "stereo"}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


class OverlayWriter:
    """Writes frames and their sound as an mp4 (H.264, yuv420p; AAC), one frame at a time.

    A context manager; the file is complete where the block ends without an error.
    """

    def __init__(self, path: _Path, fps: float, video: Video):
        """Opens the file; `video` says what the sound is like."""
        self._path, self._video, self._output = path, video, None
        self._rate = fractions.Fraction(fps).limit_denominator(1000)
        self._streams = self._shape = None
        self._num_frames = self._num_samples = 0

    def __enter__(self) -> "OverlayWriter":
        self._output = av.open(os.path.abspath(self._path), "w", format="mp4")
        return self

    @property
    def num_wanted(self) -> int:
        """Samples that are missing up to the end of the next frame."""
        end = int((self._num_frames + 1) / self._rate * self._video.sample_rate)
        return end - self._num_samples

    def add(self, frame: np.ndarray, samples: np.ndarray) -> None:
        """Adds a frame and the sound up to its end.

        Args:
          frame: uint8 RGB [H, W, 3], of one size; an odd side grows by one repeated pixel.
          samples: int16 [n, channels], at most `num_wanted`.

        Raises:
          ValueError: a frame of the wrong type or shape.
        """
        shape, index = self._shape, self._num_frames
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != (shape or frame.shape):
            raise ValueError(f"overlay frame {index}: {frame.dtype} {frame.shape} after {shape}")
        if self._streams is None:
            self._shape = shape = frame.shape
            self._streams = _overlay_streams(self._output, self._video, self._rate, shape)
        stream, sound = self._streams
        even = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        image.pts, image.time_base = index, 1 / self._rate
        self._output.mux(stream.encode(image))
        self._num_frames += 1
        if len(samples):
            heard = _audio_frame(samples, self._video.sample_rate, self._num_samples)
            self._output.mux(sound.encode(heard))
            self._num_samples += len(samples)

    def __exit__(self, kind, error, traceback) -> None:
        with self._output:
            if kind is not None:
                return
            if self._streams is None:
                raise ValueError(f"{self._path}: no frames to write")
            for stream in self._streams:
                self._output.mux(stream.encode(None))


def write_overlay(
    path: _Path, frames: Iterable[np.ndarray], fps: float, source: _Path, start: float = 0.0
) -> None:
    """Writes frames with the sound of another file, as `OverlayWriter`.

    Args:
      fps: frames per second; the sound is cut where the frames end.
      source: the file whose sound is taken.
      start: where in the source the sound starts, in seconds from its first frame on.

    Raises:
      VideoError: `source` cannot be read. ValueError: no frames, or of wrong type or shape.
    """
    video = probe(source)
    with open_container(source) as container, OverlayWriter(path, fps, video) as writer:
        decoded = decode(source, container, find_streams(source, container)[1])
        track = SoundTrack(video)
        _take(track, decoded, round(start * video.sample_rate))
        for frame in frames:
            writer.add(frame, _take(track, decoded, writer.num_wanted))


def write_cut(path: _Path, source: _Path, start: float, end: float) -> None:
    """Writes a part of a video with its sound as an mp4, at the mean frame rate of the source.

    Args:
      source: of frames and sound.
      start, end: seconds from the first frame on, start < end.

    Raises:
      VideoError: `source` cannot be read.
    """
    fps = min(max(probe(source).fps, 1.0), MAX_FPS)
    write_overlay(path, _frames_at_rate(source, start, end, fps), fps, source, start)


def _frames_at_rate(path: _Path, start: float, end: float, fps: float) -> Iterator[np.ndarray]:
    """What is shown at start + k / fps: the last frame up to then, as uint8 RGB [H, W, 3]."""
    count, index = max(1, round((end - start) * fps)), 0
    with open_container(path) as container:
        shown = first = None
        for frame in decode(path, container, find_streams(path, container)[0]):
            time = time_of(path, frame)
            first = time if first is None else first
            while index < count and start + index / fps + STAMP_SECONDS < time - first:
                yield upright(path, shown)
                index += 1
            if index == count:
                return
            shown = frame
        for _ in range(index, count):
            yield upright(path, shown)


def _take(track: SoundTrack, decoded: Iterator[av.AudioFrame], count: int) -> np.ndarray:
    """The next samples of a sound that is decoded as needed, int16 [count or fewer, channels]."""
    while track.num_ready < count and (heard := next(decoded, None)) is not None:
        track.add(heard)
    return track.take(count)


def _overlay_streams(output, video: Video, rate: fractions.Fraction, shape: tuple[int, ...]):
    encoder = next(name for name in _ENCODERS if name in av.codecs_available)
    stream = output.add_stream(encoder, rate=rate)
    stream.height, stream.width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
    stream.pix_fmt = "yuv420p"
    if encoder == "libx264":
        stream.options = {"crf": "18", "preset": "veryfast"}
    return stream, _add_sound(output, video.sample_rate, video.num_channels)


def _audio_frame(samples: np.ndarray, sample_rate: int, position: int) -> av.AudioFrame:
    """int16 [n, channels] as a frame that starts at sample `position`."""
    packed = np.ascontiguousarray(samples).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=_LAYOUTS[samples.shape[1]])
    frame.sample_rate, frame.pts = sample_rate, position
    frame.time_base = fractions.Fraction(1, sample_rate)
    return frame


def _add_sound(output, sample_rate: int, num_channels: int):
    """Adds an AAC stream, at a rate that AAC has."""
    rate = sample_rate if sample_rate in _AAC_RATES else 48_000
    return output.add_stream("aac", rate=rate, layout=_LAYOUTS[num_channels])


def read_sound(path: _Path, max_seconds: float) -> tuple[np.ndarray, int]:
    """Reads the sound of any file with an audio stream.

    Args:
      max_seconds: what follows is not decoded.

    Returns:
      int16 [n, channels] with 1 or 2 channels; the sample rate in Hz.

    Raises:
      VideoError: no such file, or no sound that can be decoded.
    """
    with open_container(path) as container:
        if not container.streams.audio:
            raise VideoError(path, "no sound: the file has no audio stream")
        stream = container.streams.audio[0]
        num_channels, rate = min(2, stream.codec_context.channels), stream.codec_context.sample_rate
        resampler = av.AudioResampler(format="s16", layout=_LAYOUTS[num_channels], rate=rate)
        chunks, missing = [], math.ceil(max_seconds * rate)
        for frame in decode(path, container, stream):
            for part in resampler.resample(frame):
                chunks.append(part.to_ndarray().reshape(-1, num_channels)[:missing])
                missing -= len(chunks[-1])
            if not missing:
                break
    if not chunks:
        raise VideoError(path, "no sound: the audio stream is empty")
    return np.concatenate(chunks), rate


def write_with_sound(path: _Path, source: _Path, waveform: np.ndarray, sample_rate: int) -> None:
    """Copies a video with another sound (AAC), which is cut, or followed by silence.

    Args:
      source: of the frames, which are copied without decoding; it may have no sound.
      waveform: int16 [n, channels], 1 or 2 channels.

    Raises:
      VideoError: `source` cannot be read.
    """
    span, num_channels = frame_span(source), waveform.shape[1]
    sound = np.zeros((round((span.end - span.start) * sample_rate), num_channels), np.int16)
    sound[: len(waveform)] = waveform[: len(sound)]
    with open_container(source) as container:
        frames = find_frames(source, container)
        kind = "mp4" if frames.codec_context.name in _MP4_CODECS else "matroska"
        with av.open(os.path.abspath(path), "w", format=kind) as output:
            copied = output.add_stream_from_template(frames)
            encoded = _add_sound(output, sample_rate, num_channels)
            for packet in container.demux(frames):
                if packet.dts is not None:  # the last packet only flushes
                    packet.stream = copied
                    output.mux(packet)
            first = round(span.start * sample_rate)
            for start in range(0, len(sound), _CHUNK):
                chunk = sound[start : start + _CHUNK]
                output.mux(encoded.encode(_audio_frame(chunk, sample_rate, first + start)))
            output.mux(encoded.encode(None))

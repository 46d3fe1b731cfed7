"""A video file: its streams, whether it is whole, and its decoded frames in stored order.

Everything that is wrong with a file is a VideoError. `scan` reads every packet without decoding, so
truncation shows before any work starts; `decode` finds the rest. data/video.py cuts windows from
the frames, data/video_output.py writes.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import av
import av.error
import numpy as np

from avs_jax.label_images import MAX_PIXELS
from avs_jax.spec import InputError

MAX_SECONDS = 24 * 3600  # longer files are damaged time stamps
STAMP_SECONDS = 1e-3  # Matroska rounds time stamps to 1 ms
# Files that hold what they play. A playlist leads to other files, or waits for its end forever.
_FORMATS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi,mpegts,mpeg,ogg,flv,asf,wav,flac,mp3,aac"
_TRUNCATION_SECONDS = 0.25  # less missing than this is the slack of container formats
# Tags are in any encoding; from PyAV 19 on, that needs no option.
_ANY_TAGS = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
_Path = str | os.PathLike


class VideoError(InputError):
    """A file that is no usable video with sound; the message names the file and the reason."""

    def __init__(self, path: _Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def open_container(path: _Path):
    """An input container; VideoError says why there is none."""
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise VideoError(path, "no such file")
    if not os.path.getsize(path):
        raise VideoError(path, "the file is empty")
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
        # an absolute path: what precedes a colon in a relative one would be taken for a protocol
        return av.open(os.path.abspath(path), container_options=options, **_ANY_TAGS)
    except av.error.FFmpegError as error:
        try:
            with open(path, "rb") as file:
                is_mp4 = file.read(12)[4:8] == b"ftyp"
        except OSError as unreadable:
            raise VideoError(path, f"cannot be read ({unreadable.strerror})") from unreadable
        reason = "truncated: the index is missing" if is_mp4 else "not a video"
        raise VideoError(path, f"{reason} ({error.strerror})") from error


def find_streams(path: _Path, container) -> tuple:
    """The first video and the first audio stream."""
    frames = find_frames(path, container)
    if not container.streams.audio:
        raise VideoError(path, "no sound: the file has no audio stream, and the model needs one")
    return frames, _decodable(path, container.streams.audio[0])


def find_frames(path: _Path, container):
    """The first video stream that is no cover image."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        raise VideoError(path, "no frames: the file has no video stream")
    frames = _decodable(path, streams[0])
    _check_size(path, frames.width, frames.height)
    frames.thread_type = "AUTO"
    return frames


def _decodable(path: _Path, stream):
    if stream.codec_context is None:
        raise VideoError(path, f"no decoder for its {stream.type} stream")
    return stream


def _check_size(path: _Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise VideoError(path, f"frames of {width}x{height} px, expected 1 to {MAX_PIXELS} pixels")


class Packets(NamedTuple):
    """What the packets of a file say, in seconds on its own clock.

    Attributes:
      end: of the last frame.
      num_frames: packets of the video stream.
      sound_stamps: stamps of the first and the last packet of the sound; None without `sound`.
    """

    end: float
    num_frames: int
    sound_stamps: tuple[float, float] | None


def scan(path: _Path, container, frames, sound=None) -> Packets:
    """Reads every packet of the two streams; VideoError if the file is damaged or cut off."""
    streams = [frames] if sound is None else [frames, sound]
    ends, count = {stream.index: None for stream in streams}, 0
    first, heard = None, []
    try:
        for packet in container.demux(*streams):
            if packet.is_corrupt:
                raise VideoError(path, "truncated: its last packet is not complete")
            if packet.pts is None:
                continue
            start = float(packet.pts * packet.time_base)
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            ends[packet.stream.index] = max(end, ends[packet.stream.index] or end)
            if packet.stream.index == frames.index:
                count += 1
                first = start if first is None else min(first, start)
            else:
                heard = [min(start, *heard[:1]), max(start, *heard[1:])] if heard else [start] * 2
    except av.error.FFmpegError as error:
        raise VideoError(path, f"damaged ({error.strerror})") from error
    if first is None:
        raise VideoError(path, "no frames: the video stream is empty")
    if sound is not None and ends[sound.index] is None:
        raise VideoError(path, "no sound: the audio stream is empty")
    if ends[frames.index] - first > MAX_SECONDS:
        raise VideoError(path, f"time stamps from {first:.0f} s to {ends[frames.index]:.0f} s")
    if frames.duration:
        is_short = count < frames.frames or not frames.frames
        declared = float(frames.duration * frames.time_base)
        found = ends[frames.index] - first
    else:
        is_short = True
        declared = (container.duration or 0) / av.time_base
        found = max(ends.values())  # Matroska announces the end, not the length
    if is_short and declared - found > _TRUNCATION_SECONDS:
        raise VideoError(path, f"truncated: it announces {declared:.2f} s and holds {found:.2f} s")
    return Packets(ends[frames.index], count, tuple(heard) if heard else None)


def decode(path: _Path, container, *streams) -> Iterator:
    """Decoded frames of the streams as the file interleaves them."""
    time = 0.0
    try:
        for packet in container.demux(*streams):
            for frame in packet.decode():
                time = frame.time if frame.time is not None else time
                yield frame
    except av.error.FFmpegError as error:
        raise VideoError(path, f"damaged after {time:.2f} s ({error.strerror})") from error


def time_of(path: _Path, frame) -> float:
    if frame.time is None:
        raise VideoError(path, "its frames have no time stamps")
    return frame.time


def upright(path: _Path, frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as shown, uint8 RGB [H, W, 3]."""
    _check_size(path, frame.width, frame.height)
    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    return np.ascontiguousarray(turned)

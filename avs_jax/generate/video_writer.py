"""Writes frames and sound as an mp4 (h264 and aac), with PyAV."""

import os
from fractions import Fraction

import av
import numpy as np


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray,
    fps: float | Fraction,
    audio: np.ndarray | None = None,
    sample_rate: int = 16_000,
    stereo: bool = False,
    quality: int = 18,
) -> None:
    """Writes an mp4 of 8-bit RGB frames, with a sound track if `audio` is given.

    Args:
      path: of the file; the container is mp4 whatever the suffix.
      frames: uint8 [N, H, W, 3]; H and W even.
      audio: int16 [n], or [n, 2]; None: no sound track.
      stereo: whether a mono sound is written to two channels.
      quality: x264's constant rate factor; lower is better.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames: {frames.dtype} {frames.shape}, expected uint8 [N, H, W, 3]")
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"frames of {height} x {width} px: h264 requires even sides")
    with av.open(os.path.abspath(path), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(100_000)
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        # With B-frames x264's output differs from run to run on frames this small.
        video.options = {"crf": str(quality), "preset": "veryfast", "bf": "0"}
        if not _has_repeatable_tree(height, width):
            video.options |= {"x264-params": "mbtree=0"}
        video.thread_count = 1
        if audio is not None:
            samples = _to_channels(audio, stereo)
            sound = container.add_stream("aac", rate=sample_rate)
            sound.layout = "stereo" if samples.shape[1] == 2 else "mono"
            sound.bit_rate = 64_000 * samples.shape[1]
            sound.options = {"aac_coder": "fast"}
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            layout = sound.layout.name
            for start in range(0, len(samples), 1024):
                block = samples[start : start + 1024].reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
                frame.sample_rate, frame.pts = sample_rate, start
                frame.time_base = Fraction(1, sample_rate)
                container.mux(sound.encode(frame))
            container.mux(sound.encode())


def _has_repeatable_tree(height: int, width: int) -> bool:
    """Whether x264's macroblock tree gives the same bytes in every run.

    Its vector code handles 16 macroblocks (of 16 px) at a time. At other counts it reads past their
    end, and about one video in twenty differs.
    """
    return -(-height // 16) * -(-width // 16) % 16 == 0


def _to_channels(audio: np.ndarray, stereo: bool) -> np.ndarray:
    """int16 [n, 1] or [n, 2], contiguous."""
    samples = audio[:, None] if audio.ndim == 1 else audio
    if samples.ndim != 2 or samples.shape[1] not in (1, 2) or samples.dtype != np.int16:
        raise ValueError(f"audio: {audio.dtype} {audio.shape}, expected int16 [n] or [n, 2]")
    if stereo and samples.shape[1] == 1:
        samples = np.repeat(samples, 2, axis=1)
    return np.ascontiguousarray(samples)

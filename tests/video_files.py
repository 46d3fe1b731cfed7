"""Videos whose every frame shows its moment as a gray value, with a tone that tells the second."""

from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
TICKS = 90_000  # per second


def gray(seconds):
    """What a frame shown from this moment on is painted with: 4 gray levels per 1/16 s."""
    return int(seconds * 16 % 60) * 4 + 8


def write(
    path,
    times,
    rate=48_000,
    channels=2,
    rotation=0,
    sound_seconds=None,
    codecs=None,
    shift=0,
    title=None,
    sound_shift=0,
):
    """A file with frames at `times` (the last is the end) and a tone, louder every second."""
    vcodec, acodec = codecs or ("libx264", "aac")
    with av.open(str(path), "w") as container:
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream(vcodec, rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.bit_rate = 4_000_000
        if vcodec == "libx264":
            stream.options = {"crf": "10", "preset": "ultrafast", "tune": "zerolatency"}
        if rotation:
            stream.set_display_rotation(rotation)
        if rate:
            layout = "stereo" if channels == 2 else "mono"
            sound = container.add_stream(acodec, rate=rate, layout=layout)
        packets = []
        for time in times[:-1]:
            image = np.full((HEIGHT, WIDTH, 3), gray(time), np.uint8)
            image[: HEIGHT // 4, : WIDTH // 4] = 255  # upper left corner
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round((time + shift) * TICKS), Fraction(1, TICKS)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if rate:
            tone = level_steps(sound_seconds or float(times[-1]), rate)
            samples = np.repeat(tone[:, None], channels, axis=1)
            for start in range(0, len(samples), 1024):
                block = np.ascontiguousarray(samples[start : start + 1024]).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
                frame.sample_rate, frame.pts = rate, start + round((shift + sound_shift) * rate)
                frame.time_base = Fraction(1, rate)
                packets += sound.encode(frame)
            packets += sound.encode(None)
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path


def level_steps(seconds, rate):
    time = np.arange(int(seconds * rate)) / rate
    level = 1000 * (1 + np.floor(time) % 8)
    return (level * np.sin(2 * np.pi * 440 * time)).astype(np.int16)


def steady(seconds, fps=16):
    return [Fraction(k, fps) for k in range(int(seconds * fps) + 1)]

"""Files that are odd, damaged or no video at all: read, or refused with the reason."""

import errno
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from avs_jax.data import container
from avs_jax.data.container import VideoError
from avs_jax.data.video import SoundTrack, probe, read_pairs, read_windows
from avs_jax.generate.video_writer import write_video
from tests.video_files import HEIGHT, WIDTH, steady, write


def count_seconds(path):
    return sum(len(frames) for frames, _, _ in read_windows(path, 5))


def test_tags_in_another_encoding(tmp_path):
    """A title in Latin-1, which is not UTF-8."""
    path = write(tmp_path / "plain.mp4", steady(2), title="CAFEXXXX")
    data = path.read_bytes()
    assert data.count(b"CAFEXXXX") == 1
    path.write_bytes(data.replace(b"CAFEXXXX", b"Caf\xe9 M\xfcr"))
    assert probe(path).num_seconds == 2 and count_seconds(path) == 2
    assert len(list(read_pairs(path))) == 2


def test_frames_larger_than_memory_allows(tmp_path, monkeypatch):
    path = write(tmp_path / "in.mp4", steady(1))
    monkeypatch.setattr(container, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    for reading in (read_windows(path, 5), read_pairs(path, 1)):
        with pytest.raises(VideoError, match=f"frames of {WIDTH}x{HEIGHT} px, expected 1 to"):
            next(reading)


def test_unusable_files(tmp_path):
    def reason(path):
        with pytest.raises(VideoError) as error:
            list(read_windows(path, 5))
        assert str(path) in str(error.value)
        return error.value.reason

    whole = write(tmp_path / "whole.mp4", steady(3))
    silent = write(tmp_path / "silent.mp4", steady(1), rate=0)
    assert "no sound" in reason(silent)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert "truncated" in reason(cut)
    text = tmp_path / "text.mp4"
    text.write_text("This is not a video.\n" * 50)
    assert "not a video" in reason(text)
    (tmp_path / "empty.mp4").touch()
    assert "empty" in reason(tmp_path / "empty.mp4")
    assert "no such file" in reason(tmp_path / "missing.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "no such file" in reason(tmp_path / "pipe.mp4")
    only_sound = tmp_path / "sound.mp4"
    with av.open(str(only_sound), "w") as output:
        sound = output.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    assert "no frames" in reason(only_sound)


@pytest.mark.parametrize("keep", [0.4, 0.7, 0.9])
def test_truncated_with_the_index_in_front(tmp_path, keep):
    """Files for the web carry their index first: they open, and only their end is missing."""
    whole, front = write(tmp_path / "whole.mp4", steady(6)), tmp_path / "front.mp4"
    with (
        av.open(str(whole)) as source,
        av.open(str(front), "w", options={"movflags": "faststart"}) as output,
    ):
        copies = {s.index: output.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                output.mux(packet)
    assert count_seconds(front) == 6
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(front.read_bytes()[: int(front.stat().st_size * keep)])
    for readings in (read_windows(cut, 5), read_pairs(cut, 6), read_pairs(cut)):
        with pytest.raises(VideoError, match="truncated|damaged"):
            list(readings)
    assert len(list(read_pairs(front, 8))) == 8  # shorter than asked for is no damage


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "in.mp4", steady(1))

    def refused(*args, **kwargs):
        raise av.error.PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(container.av, "open", refused)
    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(VideoError, match="cannot be read .Permission denied"):
        probe(path)


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "webm", "avi", "ts", "flv", "3gp"])
def test_kinds_of_files(tmp_path, kind):
    codecs = ("libvpx", "libopus") if kind == "webm" else None
    path = write(tmp_path / f"a.{kind}", steady(2), codecs=codecs)
    assert count_seconds(path) == 2


def test_playlists_are_refused(tmp_path):
    """One without an end is read again and again, forever."""
    write(tmp_path / "part.ts", steady(2))
    path = tmp_path / "live.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\npart.ts\n")
    code = f"from avs_jax.data.container import open_container; open_container({str(path)!r})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert b"live.m3u8: not a video" in found.stderr


def write_pcm(path, rate, stamps):
    """Two seconds of frames, and 1,000 samples of sound at each of `stamps`, in seconds."""
    with av.open(str(path), "w") as output:
        frames = output.add_stream("libx264", rate=8)
        frames.width, frames.height, frames.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = output.add_stream("pcm_s16le", rate=rate, layout="mono")
        for _ in range(16):
            image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            output.mux(frames.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        output.mux(frames.encode(None))
        for stamp in stamps:
            heard = av.AudioFrame.from_ndarray(np.full((1, 1000), 99, np.int16), "s16", "mono")
            heard.sample_rate, heard.time_base = rate, Fraction(1, rate)
            heard.pts = round(stamp * rate)
            output.mux(sound.encode(heard))
        output.mux(sound.encode(None))
    return path


def test_sampling_rates_that_memory_does_not_allow(tmp_path):
    path = write_pcm(tmp_path / "fast.mkv", 1_000_000_000, [0])
    with pytest.raises(VideoError, match="sampled at 1000000000 Hz, expected 1000 to 384000"):
        probe(path)


def test_sound_long_after_the_frames(tmp_path):
    """What lies between is not filled in: it would be 2.3 GB."""
    path = write_pcm(tmp_path / "gap.mkv", 16_000, [0, 20 * 3600])
    facts = probe(path)
    track = SoundTrack(facts)
    with container.open_container(path) as file:
        for frame in container.decode(path, file, file.streams.audio[0]):
            track.add(frame)
    assert track.num_ready <= 3 * 16_000
    ((frames, waveform, _),) = read_windows(path, 5)
    assert len(frames) == 2 and len(waveform) == 2 * 16_000
    assert (waveform[:1000] == 99).all() and not waveform[1000:].any()


def test_names_that_a_shell_or_ffmpeg_would_read_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "2024-05-01T12:30:00.mp4", steady(2))
    for name in ("2024-05-01T12:30:00.mp4", "~/2024-05-01T12:30:00.mp4"):
        assert probe(name).num_seconds == 2 and count_seconds(name) == 2
    frames, sound = np.zeros((5, HEIGHT, WIDTH, 3), np.uint8), np.zeros(16_000, np.int16)
    write_video("take:1.mp4", frames, 5, sound)
    assert probe("take:1.mp4").num_seconds == 1

"""Reading videos by time stamps: every frame of these files shows its moment as a gray value."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from avs_jax.data import video, video_output
from avs_jax.data.container import VideoError
from avs_jax.generate import refer
from avs_jax.generate.setting import Options
from tests.video_files import HEIGHT, WIDTH, gray, level_steps, steady, write


def read(path, num_frames=5):
    windows = list(video.read_windows(path, num_frames))
    return windows, np.concatenate([frames for frames, _, _ in windows])


def check(path, times, num_seconds, num_frames=5):
    """One frame per second, the one on show at k + 15/16 s, and the sound of these seconds."""
    windows, frames = read(path, num_frames)
    assert [start for _, _, start in windows] == list(range(0, num_seconds, num_frames))
    assert frames.dtype == np.uint8 and len(frames) == num_seconds
    for second, frame in enumerate(frames):
        shown = [time for time in times[:-1] if time <= second + Fraction(15, 16)][-1]
        assert abs(frame[HEIGHT // 2 :].mean() - gray(shown)) < 1.9, f"second {second}"
    rate = video.probe(path).sample_rate
    for frames, waveform, _ in windows:
        assert waveform.dtype == np.int16 and len(waveform) == len(frames) * rate
    waveform = np.concatenate([waveform for _, waveform, _ in windows]).astype(float)
    return waveform, rate


def check_sound(waveform, rate, seconds):
    want = level_steps(seconds, rate)
    assert np.corrcoef(waveform[: len(want), 0], want)[0, 1] > 0.99  # so no shift either: 440 Hz
    assert np.abs(waveform[len(want) + rate // 50 :]).max(initial=0) < 200


def test_stereo_48_khz(tmp_path):
    path = write(tmp_path / "a.mp4", steady(2))
    facts = video.probe(path)
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)
    assert (facts.sample_rate, facts.num_channels, facts.num_seconds) == (48_000, 2, 2)
    assert facts.duration == pytest.approx(2, abs=0.05) and facts.fps == pytest.approx(16, abs=0.5)
    waveform, rate = check(path, steady(2), 2)
    assert waveform.shape[1] == 2
    check_sound(waveform, rate, 2)


def test_23_seconds_window_by_window(tmp_path):
    path = write(tmp_path / "long.mp4", steady(23), rate=16_000, channels=1)
    waveform, rate = check(path, steady(23), 23)
    check_sound(waveform, rate, 23)
    assert [len(frames) for frames, _, _ in read(path)[0]] == [5, 5, 5, 5, 3]


def test_variable_frame_rate(tmp_path):
    gaps = np.random.default_rng(0).choice([1, 2, 3, 9, 20], 400)
    times = [Fraction(int(t), 32) for t in np.concatenate([[0], np.cumsum(gaps)])]
    times = [t for t in times if t < 7] + [Fraction(7)]
    waveform, rate = check(write(tmp_path / "vfr.mp4", times), times, 7, num_frames=3)
    check_sound(waveform, rate, 7)


def test_rest_of_a_second_and_short_sound(tmp_path):
    path = write(tmp_path / "rest.mp4", steady(2.5), sound_seconds=1.5)
    waveform, rate = check(path, steady(2.5), 3)
    check_sound(waveform, rate, 1.5)  # silence after the sound's end
    assert len(read(write(tmp_path / "tiny.mp4", steady(2.125)))[1]) == 2
    assert len(read(write(tmp_path / "half.mp4", steady(0.5)))[1]) == 1


@pytest.mark.parametrize("container", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("begin, seconds", [(0, 1.5), (36.3, 3), (17, 2)])
def test_frames_do_not_wait_for_sound_that_does_not_come(
    tmp_path, monkeypatch, container, begin, seconds
):
    path = write(tmp_path / container, steady(40), sound_seconds=seconds, sound_shift=begin)
    waiting, add = [], video._Picker.add

    def watched(picker, frame):
        add(picker, frame)
        waiting.append(len(picker.ready))

    monkeypatch.setattr(video._Picker, "add", watched)
    waveform, rate = check(path, steady(40), 40, num_frames=2)
    assert max(waiting) <= 4
    ((_, whole, _),) = video.read_windows(path, 40)  # waits for everything
    np.testing.assert_array_equal(waveform, whole)
    start = np.flatnonzero(np.abs(waveform[:, 0]) > 50)[0]
    assert abs(start - begin * rate) < 1e-3 * rate  # mp4 rounds the start of a stream to 1 ms
    check_sound(waveform[max(0, start - 1) :], rate, seconds)


def test_time_0_is_the_first_frame(tmp_path):
    """Pictures and sound that start at 1.5 s on the file's clock (mkv keeps it)."""
    path = write(tmp_path / "late.mkv", steady(3), shift=1.5, codecs=("libx264", "aac"))
    assert video.probe(path).start_time == pytest.approx(1.5, abs=0.01)
    waveform, rate = check(path, steady(3), 3)
    check_sound(waveform, rate, 3)


def test_webm(tmp_path):
    path = write(tmp_path / "a.webm", steady(3), codecs=("libvpx", "libopus"))
    waveform, rate = check(path, steady(3), 3)
    check_sound(waveform, rate, 3)


@pytest.mark.parametrize("rotation, corner", [(90, "lower left"), (-90, "upper right")])
def test_portrait(tmp_path, rotation, corner):
    path = write(tmp_path / "portrait.mov", steady(1), rotation=rotation)
    facts = video.probe(path)
    assert (facts.width, facts.height) == (HEIGHT, WIDTH)
    frame = read(path)[1][0]
    assert frame.shape == (WIDTH, HEIGHT, 3)
    rows = slice(-WIDTH // 4 + 2, None) if "lower" in corner else slice(WIDTH // 4 - 2)
    columns = slice(HEIGHT // 4 - 2) if "left" in corner else slice(-HEIGHT // 4 + 2, None)
    assert frame[rows, columns].min() > 235


def test_offset_0_shows_the_frames_of_ref_avs(tmp_path):
    """Each is nearest to that of its own second, in a generated clip."""
    plan = refer.plan_refer(Options(seed=0, size=64), "test_s", 3)
    refer.write_refer(tmp_path, plan, Options(seed=0, size=64))
    folder = tmp_path / "media" / plan.name / "frames"
    stored = np.stack([np.asarray(Image.open(folder / f"{t}.jpg"), float) for t in range(10)])
    path = tmp_path / "videos" / f"{plan.name}.mp4"
    for num_frames in (10, 4):
        windows = video.read_windows(path, num_frames, offset=0.0)
        shown = np.concatenate([frames for frames, _, _ in windows]).astype(float)
        errors = np.abs(shown[:, None] - stored).mean((2, 3, 4))
        np.testing.assert_array_equal(errors.argmin(1), np.arange(10))


@pytest.mark.parametrize("rate, channels", [(48_000, 2), (16_000, 1)])
def test_overlay_keeps_the_sound(tmp_path, rate, channels):
    source = write(tmp_path / "in.mp4", steady(4), rate=rate, channels=channels)
    images = [np.full((31, 45, 3), 40 * k, np.uint8) for k in range(4)]  # odd sides
    video_output.write_overlay(tmp_path / "out.mp4", iter(images), 1, source)
    facts = video.probe(tmp_path / "out.mp4")
    assert (facts.width, facts.height, facts.num_seconds) == (46, 32, 4)
    assert (facts.sample_rate, facts.num_channels) == (rate, channels)
    windows, frames = read(tmp_path / "out.mp4")
    assert np.abs(frames.mean((1, 2, 3)) - [0, 40, 80, 120]).max() < 3
    check_sound(windows[0][1].astype(float), rate, 4)


def test_overlay_errors(tmp_path):
    source = write(tmp_path / "in.mp4", steady(1))
    with pytest.raises(ValueError, match="no frames"):
        video_output.write_overlay(tmp_path / "out.mp4", [], 1, source)
    with pytest.raises(ValueError, match="float"):
        video_output.write_overlay(tmp_path / "out.mp4", [np.zeros((4, 4, 3))], 1, source)


@pytest.mark.parametrize("start, end", [(1, 3), (0.5, 2.0), (2.0, 4.0)])
def test_a_cut_has_the_frames_and_the_sound_of_its_seconds(tmp_path, start, end):
    source = write(tmp_path / "in.mp4", steady(4), rate=16_000, channels=1)
    video_output.write_cut(tmp_path / "out.mp4", source, start, end)
    facts = video.probe(tmp_path / "out.mp4")
    assert facts.duration == pytest.approx(end - start, abs=0.1)
    assert facts.fps == pytest.approx(video.probe(source).fps, abs=0.5)
    (frames, waveform, _), *_ = video.read_windows(tmp_path / "out.mp4", 5)
    for second, frame in enumerate(frames):
        moment = start + second + 15 / 16
        if moment < end:
            # A frame is 4 gray levels; the mean rate of the source is not exactly 16.
            assert abs(frame[HEIGHT // 2 :].mean() - gray(moment)) < 6, second
    want = level_steps(4, 16_000)[round(16_000 * start) : round(16_000 * end)]
    got = waveform[: len(want), 0].astype(float)
    assert np.corrcoef(got, want[: len(got)])[0, 1] > 0.98


@pytest.mark.parametrize("codecs, shift", [(None, 0), (("libvpx", "libvorbis"), Fraction(1, 2))])
def test_another_sound(tmp_path, codecs, shift):
    name = "in.webm" if codecs else "in.mp4"
    source = write(tmp_path / name, steady(3), rate=None, codecs=codecs, shift=shift)
    assert video.frame_span(source).num_frames == len(steady(3)) - 1
    sound = level_steps(2, 16_000).astype(np.int16)[:, None]
    video_output.write_with_sound(tmp_path / "out", source, sound, 16_000)
    waveform, rate = check(tmp_path / "out", steady(3), 3)
    check_sound(waveform, rate, 2)


def test_sound_of_a_file(tmp_path):
    source = write(tmp_path / "in.mp4", steady(3), rate=16_000, channels=1)
    whole, rate = video_output.read_sound(source, 10)
    assert rate == 16_000 and whole.dtype == np.int16 and len(whole) > 2.9 * rate
    part, _ = video_output.read_sound(source, 1.5)
    np.testing.assert_array_equal(part, whole[: 3 * rate // 2])
    silent = write(tmp_path / "silent.mp4", steady(1), rate=None)
    with pytest.raises(VideoError, match="no sound"):
        video_output.read_sound(silent, 1)

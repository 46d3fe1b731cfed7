"""Motion tracks: what moves, how fast, in which cell and sample, whatever the frame rate."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from avs_jax.data.flow_files import write_array
from avs_jax.data.motion_track import (
    TRACK_FILE,
    change,
    is_whole_track,
    lucas_kanade,
    read_track,
    track_samples,
)
from avs_jax.spec import InputError

SIDE = 96


def texture(seed, height=SIDE, width=4 * SIDE):
    gray = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 2.0)
    return np.clip(127 + 60 * gray / gray.std(), 0, 255).astype(np.uint8)


def sliding(times, speed, camera=0.0):
    """The middle rows slide to the right by `speed` px per second, the others by `camera`."""
    world, band = texture(0), texture(1)
    for time in times:
        frame = np.empty((SIDE, SIDE, 3), np.uint8)
        for picture, velocity, rows in (
            (world, camera, slice(None)), (band, speed, slice(36, 60)),
        ):  # fmt: skip
            start = 2 * SIDE - round(velocity * time)
            frame[rows] = picture[rows, start : start + SIDE, None]
        yield time, frame


def track_of(frames, estimate, rate, count, **options):
    return np.stack([*track_samples(frames, estimate, rate, count, SIDE, **options)])


@pytest.mark.parametrize("fps, rate, step", [(24, 12.0, 24.0), (25, 25.0, 25.0), (10, 25.0, 20.0)])
def test_velocity_does_not_depend_on_the_rates(fps, rate, step):
    """One or two px per frame: `step` px per second, a fraction of the width per second."""
    times = np.arange(fps + 1) / fps
    track = track_of(sliding(times, step), lucas_kanade, rate, round(rate), batch_size=3)
    assert track.dtype == np.float16 and track.shape == (round(rate), 24, 24, 2)
    moving, still = track[:, 10:14, 3:-3], track[:, :5]
    np.testing.assert_allclose(np.median(moving[..., 0]), step / SIDE, rtol=0.1)
    assert np.abs(still).max() < 0.1 * step / SIDE
    assert np.abs(np.median(moving[..., 1])) < 0.02 * step / SIDE


def test_the_camera_is_removed_from_vectors():
    times = np.arange(13) / 24
    frames = sliding(times, speed=48.0, camera=24.0)
    track = track_of(frames, lucas_kanade, 12.0, 6).astype(np.float32)
    assert np.abs(np.median(track[:, :5, 3:-3, 0])) < 0.02
    np.testing.assert_allclose(np.median(track[:, 10:14, 3:-3, 0]), 24 / SIDE, rtol=0.15)


def test_samples_average_what_happens_in_them():
    """A flash between 0.5 s and 0.75 s, seen at 4 frames per second, in samples of 0.2 s."""
    frames = [(k / 4, np.full((SIDE, SIDE, 3), 51 * (k == 3), np.uint8)) for k in range(6)]
    track = track_of(frames, change, 5.0, 8)[..., 0].astype(np.float32)
    assert track.shape == (8, 24, 24)
    # 0.2 of the range within each quarter before and after 0.75 s: 0.8 per second
    np.testing.assert_allclose(track[:, 3, 7], [0, 0, 0.4, 0.8, 0.8, 0, 0, 0], atol=1e-3)
    assert np.ptp(track, axis=(1, 2)).max() < 1e-3


def test_batches_and_an_early_end_change_nothing():
    times = np.arange(20) / 24
    whole = track_of(sliding(times, 24.0), change, 12.0, 12)
    again = track_of(sliding(times, 24.0), change, 12.0, 12, batch_size=7)
    np.testing.assert_array_equal(whole, again)
    first = track_of(sliding(times, 24.0), change, 12.0, 4)
    np.testing.assert_array_equal(first, whole[:4])
    assert whole[8].any() and not whole[10:].any()  # the video ends at 19 / 24 s
    assert not track_of(sliding(times[:1], 0.0), change, 12.0, 3).any()


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / TRACK_FILE
    good = np.ones((10, 24, 24, 2), np.float16)
    write_array(path, good)
    np.testing.assert_array_equal(read_track(path), good)
    assert is_whole_track(path, 10) and not is_whole_track(path, 11)
    for wrong, message in (
        (good[:, :23], "expected float16"),
        (good.astype(np.float32), "expected float16"),
        (np.full_like(good, np.nan), "not finite"),
        (np.ones((10, 24, 24, 3), np.float16), "expected float16"),
    ):
        np.save(path, wrong)
        with pytest.raises(InputError, match=f"track.npy: .*{message}"):
            read_track(path)
        assert not is_whole_track(path, 10)
    path.write_bytes(b"no array")
    with pytest.raises(InputError, match="track.npy: no npy file"):
        read_track(path)

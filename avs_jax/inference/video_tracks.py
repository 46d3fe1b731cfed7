"""The motion track of an own video, window by window, as avs-jax flow --source=track stores it."""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from avs_jax.data.motion_track import WITHOUT_WEIGHTS, Estimate, least_interval, track_samples
from avs_jax.data.video import read_timed_frames
from avs_jax.inference.flow_estimator import FlowEstimator
from avs_jax.models.flow.raft import VARIANTS
from avs_jax.spec import UsageError


def make_track_estimator(config: Any, weights: str | os.PathLike | None) -> Estimate:
    """The estimator that config.data.track names; InputError if it needs weights."""
    model = config.data.track.model
    if model in WITHOUT_WEIGHTS:
        return WITHOUT_WEIGHTS[model]
    if weights is None:
        raise UsageError(f"config.data.track.model = {model!r} needs --flow_weights=DIR")
    return FlowEstimator(model, weights)


def needs_weights(config: Any) -> bool:
    """Whether the track's estimator reads weights."""
    return config.data.track.model in VARIANTS


def video_tracks(
    path: str | os.PathLike, config: Any, num_seconds: int, estimate: Estimate
) -> Iterator[np.ndarray]:
    """The track of each window of config.data.num_frames seconds: float16 [N, 24, 24, C].

    The last window has the samples of the seconds that are left.
    """
    rate, length = config.data.track.rate, config.data.num_frames
    frames = read_timed_frames(path, least_interval(rate))
    samples = track_samples(frames, estimate, rate, round(num_seconds * rate))
    for start in range(0, num_seconds, length):
        end = min(start + length, num_seconds)
        yield np.stack([*itertools.islice(samples, round(end * rate) - round(start * rate))])

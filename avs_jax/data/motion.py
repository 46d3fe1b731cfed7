"""Motion maps, from stored optical flow or from frame differences.

Map t belongs to the frames (t-1, t). Frame 0 has no predecessor: with first_frame = "next" it takes
map 1 (the motion from 0 to 1), unless its own flow is stored (estimated within the video); with
"zeros" it does not move. Maps from flow (u, v), in px per frame of one second:

  magnitude_max       sqrt(u^2 + v^2), divided by its maximum over the frame, then augmented
  magnitude_absolute  sqrt(u^2 + v^2) / scale, of vectors augmented with the image
  uv                  (u, v) / scale, likewise

Optionally, the camera motion, an affine function of position that fits most pixels, is subtracted
first.

Source: the motion input of VCT + AMA (per-frame maximum + 1e-6; frame difference without stored
flow; frame 0 zeros). Departures: "next", because S4 trains on frame 0 only and zeros would give
the motion branch no gradient; the absolute maps, because dividing by the maximum turns a still
frame into noise; camera compensation.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from avs_jax.data import transforms
from avs_jax.spec import InputError
from avs_jax.task import Record

FIRST_FRAME = ("next", "zeros")
SOURCES = ("none", "auto", "difference")
MAPS = ("magnitude_max", "magnitude_absolute", "uv")
MODELS = ("difference", "raft_large", "raft_small")
PAIRS = ("frames", "video")

_FIT_SIDE = 48  # points per side for fitting the camera motion
_MEDIAN_STEPS, _TUKEY_STEPS = 15, 15
_TUKEY = 4.685  # standard deviations beyond which a pixel has no weight
_RAYLEIGH_MEDIAN = 1.1774  # median length of a vector of two unit normals
_LEAST_SCALE = 0.02  # px; below, residuals are rounding


def check_config(config: Any) -> None:
    """Checks config.data.motion; InputError names the key, its value and the choices."""
    choices_of = {"source": SOURCES, "first_frame": FIRST_FRAME, "map": MAPS}
    choices_of |= {"model": MODELS, "pairs": PAIRS}
    for key, choices in choices_of.items():
        value = config.get(key)
        if value not in choices:
            raise InputError(f"config.data.motion.{key} is {value!r}, expected one of {choices}")
    scale = config.get("scale")
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise InputError(f"config.data.motion.scale is {scale!r}, expected more than 0")
    if config.source == "difference" and needs_vectors(config):
        raise InputError(
            f"config.data.motion.map = {config.map!r} with compensate_camera = "
            f"{config.compensate_camera} needs flow (u, v); source = 'difference' has none"
        )


def needs_vectors(config: Any) -> bool:
    """Whether config.data.motion needs flow (u, v) rather than magnitudes or differences."""
    return config.map != "magnitude_max" or config.compensate_camera


def num_channels(config: Any) -> int:
    return 2 if config.map == "uv" else 1


def map_index(frame: int, num_frames: int, first_frame: str) -> int | None:
    """The index of a frame's map, 1 to num_frames - 1, or None for zeros."""
    if first_frame not in FIRST_FRAME:
        raise InputError(
            f"config.data.motion.first_frame is {first_frame!r}, expected {FIRST_FRAME}"
        )
    if frame > 0:
        return frame
    return 1 if first_frame == "next" and num_frames > 1 else None


def before_augmentation(flow: np.ndarray, config: Any) -> np.ndarray:
    """Stored flow (u, v) [H, W, 2], or its magnitude [H, W, 1], as input of the augmentation.

    float32, strengths [H, W, 1] in [0, 1] for magnitude_max, else vectors [H, W, 2] in px.
    """
    _check_flow(flow)
    if needs_vectors(config) and flow.shape[-1] != 2:
        raise InputError(
            f"config.data.motion.map = {config.map!r} with compensate_camera = "
            f"{config.compensate_camera} needs flow (u, v), but magnitudes are stored: "
            "estimate the flow again (avs-jax flow)"
        )
    flow = flow.astype(np.float32)
    if config.compensate_camera:
        flow = flow - camera_flow(flow)
    return flow_strength(flow)[..., None] if config.map == "magnitude_max" else flow


def after_augmentation(motion: np.ndarray, config: Any) -> np.ndarray:
    """The augmented result of `before_augmentation` as model input [H, W, num_channels]."""
    if config.map == "magnitude_max":
        return motion
    scaled = motion / np.float32(config.scale)
    return scaled if config.map == "uv" else np.hypot(scaled[..., :1], scaled[..., 1:])


def frame_map(
    record: Record,
    frame: Callable[[int], np.ndarray],
    t: int,
    num_frames: int,
    config: Any,
) -> np.ndarray:
    """Motion of frame t of a record before any augmentation, float32 [H, W, 1 or 2].

    Args:
      record: with a flow, or none.
      frame: frame -> RGB, uint8 [H, W, 3].
      t, num_frames: the frame, of how many.
      config: config.data.motion.

    Raises:
      InputError: the flow is for another number of frames, or a map of vectors is asked for and
        no flow is stored.
    """
    flow = record.get("flow")
    is_stored = config.source == "auto" and flow is not None and np.size(flow) > 0
    if is_stored and len(flow) != num_frames:
        raise InputError(f"flow for {len(flow)} of {num_frames} frames")
    index = map_index(t, num_frames, config.first_frame)
    if t == 0 and is_stored and config.first_frame == "next" and _has_first_flow(record):
        index = 0
    if index is None:
        channels = 2 if config.map != "magnitude_max" else 1
        return np.zeros((*frame(t).shape[:2], channels), np.float32)
    if is_stored:
        return before_augmentation(np.asarray(flow[index]), config)
    if needs_vectors(config):
        raise InputError(
            f"no flow is stored, and config.data.motion.map = {config.map!r} with "
            f"compensate_camera = {config.compensate_camera} cannot do without: make it "
            "(avs-jax flow) and build the dataset with --flow_dir"
        )
    return frame_difference(frame(index - 1), frame(index))[..., None]


def _has_first_flow(record: Record) -> bool:
    """Whether frame 0 has a real flow; inferred from its values without the field."""
    stored = record.get("flow_has_first")
    return bool(np.any(record["flow"][0])) if stored is None else bool(stored)


def moving_pixels(motion_map: np.ndarray, size: int, threshold: float) -> np.ndarray:
    """Where the strength of a map [H, W, C], resized to `size` px, exceeds a threshold: [S, S]."""
    strength = np.linalg.norm(motion_map, axis=-1)
    return transforms.resize(strength, (size, size), transforms.BILINEAR) > threshold


def flow_strength(flow: np.ndarray) -> np.ndarray:
    """Flow (u, v) [H, W, 2] or its magnitude [H, W, 1], any float -> float32 [H, W] in [0, 1]."""
    _check_flow(flow)
    flow = flow.astype(np.float32)
    magnitude = np.hypot(flow[..., 0], flow[..., 1]) if flow.shape[-1] == 2 else flow[..., 0]
    return magnitude / (magnitude.max() + np.float32(1e-6))


def frame_difference(previous: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Mean over RGB of |frame - previous|, divided by its maximum; equal frames give exact zeros.

    Two uint8 [H, W, 3] -> float32 [H, W] in [0, 1].
    """
    total = np.abs(frame.astype(np.int16) - previous).sum(axis=-1, dtype=np.int32)
    peak = max(int(total.max()), 1)
    return total.astype(np.float32) / np.float32(peak)


def camera_flow(flow: np.ndarray) -> np.ndarray:
    """The affine motion that most pixels share (translation, rotation, zoom, shear): [H, W, 2].

    Iteratively reweighted least squares on a grid of points: first toward the geometric median of
    the residuals (weights 1 / r), which is robust to 30 % of outliers, then with Tukey's biweight
    (1 - (r / c s)^2)^2, which excludes them; s is estimated from the median of r.
    """
    height, width = flow.shape[:2]
    rows = np.linspace(-1, 1, height) if height > 1 else np.zeros(1)
    columns = np.linspace(-1, 1, width) if width > 1 else np.zeros(1)
    i = np.unique(np.linspace(0, height - 1, min(height, _FIT_SIDE)).round().astype(int))
    j = np.unique(np.linspace(0, width - 1, min(width, _FIT_SIDE)).round().astype(int))
    y, x = (axis.ravel() for axis in np.meshgrid(rows[i], columns[j], indexing="ij"))
    design = np.stack([np.ones_like(x), x, y], axis=-1)
    target = flow[np.ix_(i, j)].reshape(-1, 2).astype(np.float64)
    weight = np.ones(len(design))
    for step in range(_MEDIAN_STEPS + _TUKEY_STEPS):
        weighted = design * weight[:, None]
        moments = weighted.T @ design
        moments += np.eye(3) * (1e-9 * np.trace(moments))  # one row or column of pixels
        affine = np.linalg.solve(moments, weighted.T @ target)
        residual = np.hypot(*(target - design @ affine).T)
        spread = max(float(np.median(residual)) / _RAYLEIGH_MEDIAN, _LEAST_SCALE)
        if step < _MEDIAN_STEPS:
            weight = 1 / np.maximum(residual, 0.1 * spread)
        else:
            weight = np.square(np.maximum(1 - np.square(residual / (_TUKEY * spread)), 0))
    return (
        affine[0] + columns[None, :, None] * affine[1] + rows[:, None, None] * affine[2]
    ).astype(np.float32)


def _check_flow(flow: np.ndarray) -> None:
    if flow.ndim != 3 or flow.shape[-1] not in (1, 2):
        raise ValueError(f"flow: shape {flow.shape}, expected [H, W, 2] (u, v) or [H, W, 1]")

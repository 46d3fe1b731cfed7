"""Motion maps: how strongly each pixel moves, from stored flow or from the difference of frames.

Map t belongs to the pair (t-1, t); each map is divided by its own maximum. Frame 0 has no
predecessor: with first_frame = "next" it takes map 1 (the motion from 0 to 1), with "zeros" it
does not move.

Source: the motion input of VCT + AMA (per-frame maximum + 1e-6; frame difference where no flow is
stored; frame 0 zeros). Departure: "next", because S4 trains on frame 0 only and zeros would give
the motion branch no gradient.
"""

import numpy as np

FIRST_FRAME = ("next", "zeros")
SOURCES = ("none", "auto", "difference")


def map_index(frame: int, num_frames: int, first_frame: str) -> int | None:
    """The map that a frame takes, between 1 and num_frames - 1, or None for zeros."""
    if first_frame not in FIRST_FRAME:
        raise ValueError(
            f"config.data.motion.first_frame is {first_frame!r}, expected {FIRST_FRAME}"
        )
    if frame > 0:
        return frame
    return 1 if first_frame == "next" and num_frames > 1 else None


def flow_strength(flow: np.ndarray) -> np.ndarray:
    """Flow (u, v) [H, W, 2] or its magnitude [H, W, 1], any float -> float32 [H, W] in [0, 1]."""
    if flow.ndim != 3 or flow.shape[-1] not in (1, 2):
        raise ValueError(f"flow: shape {flow.shape}, expected [H, W, 2] (u, v) or [H, W, 1]")
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

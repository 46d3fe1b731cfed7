"""Resizing as a matrix: by area, or bilinearly with antialiasing as PIL and torch do.

With antialiasing, when shrinking, the triangle is as wide as a new pixel and its weights are
normalized. The center of pixel i of n is at (i + 1/2) / n of the row (`align_corners=False`).
"""

import numpy as np


def area_matrix(size: int, new_size: int) -> np.ndarray:
    """float64 [new_size, size]: averages a row of `size` pixels over the area of each new one."""
    edges, new_edges = np.arange(size + 1) / size, np.arange(new_size + 1) / new_size
    starts = np.maximum(new_edges[:-1, None], edges[None, :-1])
    ends = np.minimum(new_edges[1:, None], edges[None, 1:])
    return np.maximum(ends - starts, 0) * new_size


def antialiased_matrix(size: int, new_size: int) -> np.ndarray:
    """float64 [new_size, size]: resizes a row of `size` pixels."""
    scale = size / new_size
    position = (np.arange(new_size) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size)[None] - position[:, None]) / max(scale, 1.0)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)

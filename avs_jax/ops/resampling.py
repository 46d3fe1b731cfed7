"""Bilinear resizing with antialiasing as a matrix, as PIL and torch's `antialias=True` do.

When shrinking, the triangle is as wide as a new pixel and its weights are normalized. The center of
pixel i of n is at (i + 1/2) / n of the row (`align_corners=False`).
"""

import numpy as np


def antialiased_matrix(size: int, new_size: int) -> np.ndarray:
    """float64 [new_size, size]: resizes a row of `size` pixels."""
    scale = size / new_size
    position = (np.arange(new_size) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size)[None] - position[:, None]) / max(scale, 1.0)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)

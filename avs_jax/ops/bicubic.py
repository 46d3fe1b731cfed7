"""PyTorch's bicubic resize as a matrix: pixel centers at halves, a = -0.75, repeated borders.

There is no antialiasing. NumPy only: sizes are static.
"""

import numpy as np

SHARPNESS = -0.75  # PyTorch's a of the cubic convolution kernel


def bicubic_matrix(size: int, new_size: int) -> np.ndarray:
    """float64 [new_size, size]: resizes a row of `size` pixels by cubic convolution."""
    position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        pixel = np.clip(first + offset, 0, size - 1)
        weight = _cubic(np.abs(position - (first + offset)))
        np.add.at(matrix, (np.arange(new_size), pixel), weight)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """The kernel at distances from 0 to 2."""
    a = SHARPNESS
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)

"""Resizes Swin's tables of relative position biases from one window size to another.

A window of w x w tokens has (2 w - 1)^2 relative positions, so a table is an image of 2 w - 1
pixels per side with a channel per head. It is resized as in microsoft/Swin-Transformer, utils.py
(load_pretrained), and mmcv: PyTorch's bicubic interpolation with pixel centers at halves,
a = -0.75, repeated borders, and no antialiasing.
"""

import math
from collections.abc import Mapping

import numpy as np

from avs_jax.ops.bicubic import bicubic_matrix

SUFFIX = "relative_position_bias_table"


def resize_bias_tables(
    state_dict: Mapping[str, np.ndarray], window_size: int
) -> tuple[dict[str, np.ndarray], dict[int, int]]:
    """A state dict whose tables fit windows of `window_size`.

    Args:
      state_dict: name -> array; tables are [(2 w - 1)^2, G], named ...SUFFIX.
      window_size: tokens per side of the windows wanted.

    Returns:
      the state dict; window size -> number of tables resized from it. A table that fits no window
      is left to the rules, which compare shapes.
    """
    result, resized, want = dict(state_dict), {}, 2 * window_size - 1
    for name, table in state_dict.items():
        if not name.endswith(SUFFIX) or table.ndim != 2:
            continue
        side = math.isqrt(len(table))
        if side * side != len(table) or side % 2 == 0 or side == want:
            continue
        matrix = bicubic_matrix(side, want)
        image = table.astype(np.float64).reshape(side, side, -1)
        image = np.einsum("yi,xj,ijg->yxg", matrix, matrix, image, optimize=True)
        result[name] = image.reshape(want * want, -1).astype(table.dtype)
        window = (side + 1) // 2
        resized[window] = resized.get(window, 0) + 1
    return result, resized

"""Optical flow on the device: frame pairs of any size to vectors in px, compiled once per size.

Weights are a folder written by `avs-jax convert --source=raft`, which names its RAFT.
"""

import itertools
import os
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.data.transforms import BILINEAR, resize
from avs_jax.models.flow.raft import RAFT, STRIDE, VARIANTS, pad_to_stride
from avs_jax.runtime.checkpoint import Checkpoint
from avs_jax.runtime.optim import flatten
from avs_jax.spec import InputError, check_shape

# Memory limit for all-pairs correlations; larger frames use on-demand correlations.
ALL_PAIRS_BYTES = 2 << 30


class FlowEstimator:
    """RAFT with its weights; `batch_size` pairs per call of the model."""

    def __init__(
        self,
        model: str,
        weights: str | os.PathLike,
        batch_size: int = 4,
        num_iterations: int = 12,
        dtype: str = "float32",
    ):
        """Reads the weights; InputError if they are of another model."""
        if model not in VARIANTS:
            raise InputError(f"flow model {model!r}: choose one of {sorted(VARIANTS)}")
        checkpoint = Checkpoint.find(weights)
        params, batch_stats = checkpoint.variables()
        stored = checkpoint.config.get("name", "a model without a name")
        if stored != model:
            raise InputError(f"{weights} holds weights of {stored}, expected {model}")
        self.model, self.batch_size, self.num_iterations = model, batch_size, num_iterations
        self._dtype = dtype
        self._variables = jax.device_put({"params": params, "batch_stats": batch_stats})
        self._apply = jax.jit(self._estimate)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Flow from the first frames to the second: float32 [N, H, W, 2], (u, v) in px.

        Frames are uint8 RGB [N, H, W, 3] of any number and size. Edge padding extends the sides to
        multiples of 8 and at least 128 px.
        """
        sizes = check_shape("first", first, "N H W 3")
        check_shape("second", second, "N H W 3", **sizes)
        parts = []
        for start in range(0, sizes["N"], self.batch_size):
            pair = [x[start : start + self.batch_size] for x in (first, second)]
            count = len(pair[0])
            missing = ((0, self.batch_size - count), (0, 0), (0, 0), (0, 0))
            pair = [np.pad(x, missing) for x in pair]
            parts.append(np.asarray(self._apply(self._variables, *pair))[:count])
        return np.concatenate(parts)

    def fingerprint(self) -> str:
        """Eight hex digits that identify the weights."""
        code = 0
        for _, leaf in sorted(flatten(self._variables).items()):
            code = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), code)
        return f"{code:08x}"

    def _estimate(self, variables, first, second):
        n, height, width = first.shape[:3]
        (top, bottom), (left, right) = pad_to_stride(height, width)
        padding = ((0, 0), (top, bottom), (left, right), (0, 0))
        first, second = (jnp.pad(x, padding, mode="edge") for x in (first, second))
        cells = first.shape[1] * first.shape[2] // STRIDE**2
        needed = n * cells**2 * 4 * 4 / 3
        correlation = "all_pairs" if needed <= ALL_PAIRS_BYTES else "on_demand"
        model = RAFT(self.model, correlation, self._dtype)
        flow, _ = model.apply(variables, first, second, self.num_iterations)
        return flow[:, top : top + height, left : left + width]


def window_flow(
    estimator: Callable[..., np.ndarray], frames: np.ndarray, pairs: Iterator | None, side: int
) -> np.ndarray:
    """Flow of a window's frames, as avs_jax.flow stores it for datasets.

    Args:
      frames: uint8 [T, H, W, 3], one second apart.
      pairs: the video's `read_pairs`, positioned at the first of these frames; T are consumed.
        None: flow from each frame to the next, and zero for the first.

    Returns:
      float32 [T, side, side, 2], (u, v) in px per second.
    """

    def squash(images):
        return np.stack([resize(image, (side, side), BILINEAR) for image in images])

    if pairs is not None:
        before, shown, seconds = zip(*itertools.islice(pairs, len(frames)), strict=True)
        return estimator(squash(before), squash(shown)) / np.float32(seconds)[:, None, None, None]
    small = squash(frames)
    flow = np.zeros((len(frames), side, side, 2), np.float32)
    if len(frames) > 1:
        flow[1:] = estimator(small[:-1], small[1:])
    return flow

"""The TFDS feature of a zlib-coded array, which unpacks no more than an array of a record takes.

TFDS's own unpacks whatever a file holds: 1 MB of it can be 1 GB.
"""

import zlib
from typing import Any

import numpy as np
from tensorflow_datasets import features

MAX_BYTES = 1 << 28  # of an array; the flow of ten frames of 2560 x 1440 px has 147 MB


class Tensor(features.Tensor):
    """A zlib-coded array of a record."""

    def __init__(self, name: str, shape: tuple[int | None, ...], dtype: Any):
        """`name` is the field's, for messages."""
        super().__init__(shape=shape, dtype=dtype, encoding="zlib")
        self._name = name

    def decode_example_np(self, example_data: Any) -> np.ndarray:
        """The array of a parsed record; ValueError if it is damaged or too large."""
        packed, shape = example_data, [-1 if size is None else size for size in self.shape]
        if isinstance(example_data, dict):  # several axes vary: the record has their lengths
            packed, lengths = example_data["value"], example_data["shape"].tolist()
            if any(size not in (-1, found) for size, found in zip(shape, lengths, strict=True)):
                raise ValueError(f"{self._name} has shape {lengths}, expected {shape}")
            shape = lengths
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, MAX_BYTES)
        if not unpacker.eof:
            raise ValueError(f"{self._name} is cut off, or unpacks to more than {MAX_BYTES} bytes")
        return np.frombuffer(content, self.np_dtype).reshape(shape)

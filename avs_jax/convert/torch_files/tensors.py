"""Stand-ins for what a pickle may hold: storages, tensors and numpy arrays, described, not read."""

import dataclasses
import functools
from collections.abc import Callable

import ml_dtypes
import numpy as np

from avs_jax.convert import stored
from avs_jax.convert.stored import StoredArray, WeightsError

STORAGES = {"BFloat16Storage": np.dtype(ml_dtypes.bfloat16)} | {
    f"{name}Storage": stored.NUMERIC[kind]
    for name, kind in {
        "Double": "f8", "Float": "f4", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2",
        "Char": "i1", "Byte": "u1", "Bool": "b1",
    }.items()
}  # fmt: skip


class Sealed:
    """Base of what a pickle may hold but not alter: its BUILD opcode would set any attribute."""

    def __setstate__(self, state):
        raise WeightsError(f"the pickle alters a {type(self).__name__}")


@dataclasses.dataclass(frozen=True)
class Storage(Sealed):
    """A flat buffer of a PyTorch file: `size` elements, in the other byte order if swapped."""

    dtype: np.dtype
    key: str
    size: int
    is_swapped: bool
    read: Callable[["Storage"], bytes] = dataclasses.field(compare=False)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def load(self) -> bytes:
        return self.read(self)


class Tensor(Sealed):
    """A strided view of a storage; offset and strides count elements."""

    def __init__(self, storage, offset, shape, strides, *flags):
        self.view = storage, offset, shape, strides

    def declare(self) -> StoredArray:
        """Checks that the view lies within its storage."""
        storage, offset, shape, strides = self.view
        if not isinstance(storage, Storage) or not stored.are_sizes(offset):
            raise WeightsError("a tensor without a storage, or with an impossible offset")
        shape, nbytes = stored.check_shape(shape, storage.dtype.itemsize)
        strides, _ = stored.check_shape(strides, 0)
        if len(shape) != len(strides):
            raise WeightsError(f"impossible shape {shape} with strides {strides}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if nbytes and (last >= storage.size or nbytes > storage.nbytes):
            raise WeightsError(
                f"shape {shape} with strides {strides} does not fit its storage of {storage.size} "
                "elements"
            )

        def build(data: bytes) -> np.ndarray:
            if not nbytes:
                return np.empty(shape, storage.dtype)
            flat = np.frombuffer(data, storage.dtype)[offset:]
            steps = [s * flat.itemsize * (n > 1) for n, s in zip(shape, strides, strict=True)]
            array = np.array(np.lib.stride_tricks.as_strided(flat, shape, steps), order="C")
            return array.byteswap() if storage.is_swapped else array

        return StoredArray(nbytes, storage, build)


class PickledDtype:
    """Stands for numpy.dtype."""

    def __init__(self, kind, *flags):
        self.kind, self.order = kind, "<"

    def __setstate__(self, state):
        if any(field is not None for field in state[2:5]):
            raise WeightsError("a structured numpy dtype")
        self.order = ">" if state[1] == ">" else "<"

    def read(self) -> np.dtype:
        if type(self.kind) is not str or self.kind not in stored.NUMERIC:
            kind = repr(self.kind[:20]) if type(self.kind) is str else stored.describe(self.kind)
            raise WeightsError(f"numpy dtype {kind}: only booleans, integers and floats are read")
        return stored.NUMERIC[self.kind].newbyteorder(self.order)


class PickledArray:
    """Stands for numpy.ndarray; its state is (version, shape, dtype, is Fortran, data)."""

    def __init__(self, state=None):
        self.state = state

    __setstate__ = __init__

    def declare(self) -> StoredArray:
        """Checks that shape, dtype and data agree."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise WeightsError("a pickled numpy array without its state")
        _, shape, dtype, is_fortran, data = self.state
        if not isinstance(dtype, PickledDtype):
            raise WeightsError("a pickled numpy array without a dtype")
        if isinstance(data, str):  # written by Python 2
            data = encode_latin1(data)
        if not isinstance(data, bytes | bytearray):
            raise WeightsError("a pickled numpy array of Python objects")
        dtype, order = dtype.read(), "F" if is_fortran else "C"
        shape, nbytes = stored.check_shape(shape, dtype.itemsize, len(data))
        build = functools.partial(stored.array_from_bytes, dtype=dtype, shape=shape, order=order)
        return StoredArray(nbytes, stored.Source(0, lambda: data), build)


def encode_latin1(text: str) -> bytes:
    """Bytes that a pickle holds as text."""
    with stored.blame("bytes as text outside Latin-1", UnicodeEncodeError):
        return text.encode("latin1")

"""A pickle reader that knows tensors and plain numpy arrays, and refuses the rest by name.

A pickle is a program. It may only name the few globals of `SafeUnpickler.find_class`, all of which
are stand-ins defined here that record what to read; every other global is refused by its name,
before anything is called. Formats: torch/serialization.py and torch/_utils.py (PyTorch),
numpy/_core/src/multiarray/methods.c (`__setstate__` of arrays), Python's pickletools.
"""

import dataclasses
import io
import math
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from avs_jax.spec import InputError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a legacy torch file
_LEGACY_PROTOCOL = 1001
_TORCH_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
_NUMPY_KINDS = "b1 u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8".split()


class WeightsError(InputError):
    """A weight file that cannot be read; the message names the file and the reason."""


class DamagedPickle(WeightsError):
    """Bytes that are no complete pickle."""


def read_pickles(file: BinaryIO, size: int) -> Any:
    """A plain pickle, or PyTorch's legacy stream.

    The stream: magic, version, system, object, storage keys (five pickles), then the raw storages.
    """

    def refuse(storage: "Storage") -> bytes:
        raise WeightsError(f"a plain pickle refers to the outside storage {storage.key}")

    first = SafeUnpickler(file, refuse).load_checked()
    if not isinstance(first, int) or first != _LEGACY_MAGIC:
        return first
    version = SafeUnpickler(file, refuse).load_checked()
    system = SafeUnpickler(file, refuse).load_checked()
    if version != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise WeightsError(f"PyTorch's legacy format in version {version!r}, known is 1001")
    raw: dict[str, bytes] = {}
    order = "<" if system.get("little_endian", True) else ">"
    body = SafeUnpickler(file, lambda storage: raw[storage.key], order)
    found = body.load_checked()
    keys = SafeUnpickler(file, refuse).load_checked()
    if not isinstance(keys, list) or set(keys) != set(body.storages):
        raise WeightsError("damaged: the list of storages is not that of the tensors")
    for key in keys:
        storage = body.storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.size or count * storage.itemsize > size - file.tell():
            raise WeightsError(
                f"truncated or damaged: storage {key} should hold {storage.size} elements"
            )
        raw[key] = file.read(count * storage.itemsize)
    return found


class _Sealed:
    """Something a pickle may hold but not alter: its BUILD opcode would write any attribute."""

    def __setstate__(self, state):
        raise WeightsError(f"the pickle alters a {type(self).__name__}")


@dataclasses.dataclass(frozen=True)
class Storage(_Sealed):
    """A flat buffer of a torch file, read when a tensor of it is wanted."""

    dtype: str
    key: str
    size: int  # elements
    load: Callable[["Storage"], bytes]
    order: str

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == "bf16" else np.dtype(self.dtype).itemsize

    def read(self) -> np.ndarray:
        return array_from_bytes(
            self.load(self), self.dtype, (self.size,), f"storage {self.key}", order=self.order
        )


@dataclasses.dataclass(frozen=True)
class Tensor(_Sealed):
    """Recipe of a torch tensor: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        count = math.prod(self.shape)
        if count == 0:
            return self.storage.read()[:0].reshape(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if last >= self.storage.size or count > self.storage.size:
            raise WeightsError(
                f"shape {self.shape} with strides {self.strides} does not fit its storage of "
                f"{self.storage.size} elements"
            )
        flat = self.storage.read()
        strides = tuple(s * flat.itemsize for s in self.strides)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        return np.array(view, order="C")


class PickledArray:
    """Stand-in that takes the state a pickled numpy array sets on itself."""

    def __init__(self):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def read(self) -> np.ndarray:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise WeightsError("a pickled numpy array without its state")
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, PickledDtype):
            raise WeightsError("a pickled numpy array without a dtype")
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray):
            raise WeightsError("a pickled numpy array of Python objects")
        return array_from_bytes(bytes(data), dtype.read(), shape, "array", "F" if fortran else "C")


class PickledDtype:
    """Stand-in for numpy.dtype: plain booleans, integers and floats only."""

    def __init__(self, kind, *flags):
        self.kind = kind
        self.order = "<"

    def __setstate__(self, state):
        if any(field is not None for field in state[2:5]):
            raise WeightsError("a structured numpy dtype")
        self.order = ">" if state[1] == ">" else "<"

    def read(self) -> np.dtype:
        if self.kind not in _NUMPY_KINDS:
            raise WeightsError(
                f"numpy dtype {self.kind!r}: only booleans, integers and floats are read"
            )
        return np.dtype(self.kind).newbyteorder(self.order)


class _Dict(dict):
    """OrderedDict without the attributes (`_metadata`) that torch pickles with it."""

    def __setstate__(self, state):
        pass


class _Global(_Sealed):
    """A global that a pickle may name and call."""

    def __init__(self, call):
        self.call = call

    def __call__(self, *args):
        return self.call(*args)


class StorageType(_Global):
    """torch.FloatStorage and the like: called, it gives the dtype."""


class SafeUnpickler(pickle.Unpickler):
    """Knows tensors, storages, plain numpy arrays and dicts; refuses everything else by name."""

    def __init__(self, file, load, order="<"):
        super().__init__(file, encoding="latin1")  # as numpy arrays of Python 2 need
        self.storages: dict[str, Storage] = {}
        self._load_storage = load
        self._order = order

    def load_checked(self) -> Any:
        try:
            return self.load()
        except WeightsError:
            raise
        except Exception as error:  # a damaged pickle can raise nearly anything
            raise DamagedPickle(
                f"truncated or damaged pickle ({type(error).__name__}: {error})"
            ) from error

    def find_class(self, module: str, name: str) -> _Global:
        module = module.replace("numpy._core", "numpy.core")
        if module in ("torch", "torch.cuda") and name in _TORCH_STORAGES:
            return StorageType(lambda: _TORCH_STORAGES[name])
        known = {
            "collections.OrderedDict": _Dict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *flags: tensor,
            "torch.storage._load_from_bytes": self._storage_from_bytes,
            "numpy.ndarray": PickledArray,
            "numpy.dtype": PickledDtype,
            "numpy.core.multiarray._reconstruct": lambda *args: PickledArray(),
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "_codecs.encode": self._encode,
        }
        if f"{module}.{name}" not in known:
            raise WeightsError(
                f"the pickle names {module}.{name}, which plain tensors and arrays do not need: "
                "refused and not called; save the state dict alone, as .safetensors or .npz"
            )
        return _Global(known[f"{module}.{name}"])

    def persistent_load(self, pid) -> Storage:
        if (
            not isinstance(pid, tuple)
            or len(pid) not in (5, 6)
            or pid[0] != "storage"
            or not isinstance(pid[1], StorageType)
            or not are_sizes((pid[4],))
        ):
            raise WeightsError(f"unknown persistent id {pid!r}")
        if len(pid) == 6 and pid[5] is not None:
            raise WeightsError(
                "storages that are views of others (PyTorch before 0.4) are not read"
            )
        key = str(pid[2])
        storage = Storage(pid[1](), key, pid[4], self._load_storage, self._order)
        if self.storages.setdefault(key, storage) != storage:
            raise WeightsError(f"storage {key} is described in two ways")
        return storage

    @staticmethod
    def _tensor(storage, offset, shape, strides, *flags) -> Tensor:
        if not isinstance(storage, Storage) or not are_sizes((offset, *shape, *strides)):
            raise WeightsError("a tensor without a storage, or with an impossible shape")
        if len(shape) != len(strides):
            raise WeightsError(f"a tensor of impossible shape: {shape} with strides {strides}")
        return Tensor(storage, offset, tuple(shape), tuple(strides))

    @staticmethod
    def _storage_from_bytes(data) -> Storage:
        if data[:1] != b"\x80":
            raise WeightsError("a storage within the pickle that is not a legacy PyTorch stream")
        return read_pickles(io.BytesIO(data), len(data))

    @staticmethod
    def _scalar(dtype, data) -> PickledArray:
        array = PickledArray()
        array.state = (1, (), dtype, False, data)
        return array

    @staticmethod
    def _from_buffer(data, dtype, shape, order, *axes) -> PickledArray:
        array = PickledArray()
        array.state = (1, shape, dtype, order == "F", data)
        return array

    @staticmethod
    def _encode(text, encoding) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise WeightsError(f"bytes in the encoding {encoding!r}")
        return text.encode("latin1")


def are_sizes(values) -> bool:
    """Whether all are whole numbers >= 0."""
    return all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)


def array_from_bytes(data: bytes, dtype, shape, name: str, layout="C", order="<") -> np.ndarray:
    """An array of its own from raw bytes.

    Args:
      data: exactly the array's bytes.
      dtype: a numpy dtype or its name, or "bf16".
      shape: a list or tuple of sizes.
      name: for the error message.
      layout: "C" or "F".
      order: byte order, "<" or ">", where the dtype has none of its own.

    Raises:
      WeightsError: naming the array, if the number of bytes is not that of the shape.
    """
    if not isinstance(shape, list | tuple) or not are_sizes(shape):
        raise WeightsError(f"{name}: impossible shape {shape!r}")
    brain = isinstance(dtype, str) and dtype == "bf16"
    stored = np.dtype("u2" if brain else dtype)
    if stored.byteorder not in "<>":
        stored = stored.newbyteorder(order)
    want = math.prod(shape) * stored.itemsize
    if len(data) != want:
        raise WeightsError(f"{name}: {len(data)} bytes, shape {tuple(shape)} needs {want}")
    array = np.frombuffer(data, stored).reshape(shape, order=layout)
    array = array.astype(stored.newbyteorder("="), order="C")  # also makes it writable
    return array.view(ml_dtypes.bfloat16) if brain else array

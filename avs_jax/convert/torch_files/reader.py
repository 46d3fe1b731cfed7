"""Pickles, PyTorch's zip archive (since 1.6) and its legacy stream of pickles.

What they hold is returned with `Tensor` and `PickledArray` for tensors and arrays. The file stays
open while these are read.
"""

import io
import mmap
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from avs_jax.convert.archive import member_size, read_member
from avs_jax.convert.stored import WeightsError, are_sizes, check_shape
from avs_jax.convert.torch_files.tensors import (
    STORAGES,
    PickledArray,
    PickledDtype,
    Sealed,
    Storage,
    Tensor,
    encode_latin1,
)

File = mmap.mmap | io.BytesIO  # a plain file allocates whatever is asked of it
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a legacy stream
_LEGACY_PROTOCOL = 1001
_KEY_TYPES = (str, bytes, int, float, bool, type(None))
_MAX_PARTS = 16  # of a key that is a tuple, of a call's arguments
_MAX_SMALL_PICKLE = 1 << 20  # bytes that a compressed pickle may have in an archive of any size


class DamagedPickle(WeightsError):
    """Bytes that are no complete pickle."""


class _Dict(dict):
    """collections.OrderedDict without the attributes (`_metadata`) that PyTorch gives it."""

    def __setstate__(self, state):
        pass


class _Global(Sealed):
    """A global that a pickle may name: what its call does, or the dtype of a storage's type."""

    def __init__(self, value: Callable | np.dtype):
        self.value = value


class SafeUnpickler(pickle._Unpickler):
    """Knows tensors, storages, plain numpy arrays and dicts; refuses everything else by name.

    It extends the pure-Python unpickler, whose opcodes can be replaced and whose memo is a dict.

    Args:
      file: at the start of the pickle; it must not allocate what lies beyond its end.
      size: bytes of the whole file.
      read_storage: reads a storage outside the pickle; None: there are none.
      is_swapped: whether storages are in the other byte order.
    """

    def __init__(
        self,
        file: File,
        size: int,
        read_storage: Callable[[Storage], bytes] | None = None,
        is_swapped: bool = False,
    ):
        super().__init__(file, encoding="latin1")  # of arrays of Python 2
        self.storages: dict[str, Storage] = {}  # by key
        self._read_storage, self._is_swapped = read_storage, is_swapped
        self._allowance = size  # what calls may copy

    def load_checked(self) -> Any:
        try:
            return self.load()
        except (WeightsError, MemoryError):
            raise
        except Exception as error:  # a damaged pickle can raise nearly anything
            text = f"{type(error).__name__}: {error!s:.200}"
            raise DamagedPickle(f"truncated or damaged pickle ({text})") from error

    def find_class(self, module: str, name: str) -> _Global:
        module = module.replace("numpy._core", "numpy.core")
        if module in ("torch", "torch.cuda") and name in STORAGES:
            return _Global(STORAGES[name])
        known = {
            "collections.OrderedDict": self._ordered_dict,
            "torch.Size": lambda sizes: check_shape(sizes, 1)[0],
            "torch._utils._rebuild_tensor": Tensor,
            "torch._utils._rebuild_tensor_v2": Tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *flags: tensor,
            "torch.storage._load_from_bytes": self._storage_from_bytes,
            "numpy.ndarray": PickledArray,
            "numpy.dtype": PickledDtype,
            "numpy.core.multiarray._reconstruct": lambda *args: PickledArray(),
            "numpy.core.multiarray.scalar": lambda dtype, data: PickledArray(
                (1, (), dtype, False, data)
            ),
            "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order, *axes: PickledArray(
                (1, shape, dtype, order == "F", data)
            ),
            "_codecs.encode": self._encode,
        }
        if f"{module}.{name}" not in known:
            raise WeightsError(
                f"the pickle names {module}.{name}, which plain tensors and arrays do not need: "
                "refused and not called; save the state dict alone, as .safetensors or .npz"
            )
        return _Global(known[f"{module}.{name}"])

    def persistent_load(self, pid) -> Storage:
        """("storage", type, key, device, size[, view]) -> the storage; no views of storages."""
        is_known = isinstance(pid, tuple) and len(pid) >= 5 and pid[5:] in ((), (None,))
        if (
            not is_known
            or self._read_storage is None
            or pid[0] != "storage"
            or not isinstance(pid[1], _Global)
            or not isinstance(pid[1].value, np.dtype)
            or not isinstance(pid[2], str)
            or not are_sizes(pid[4])
        ):
            raise WeightsError("a persistent id that is not PyTorch's description of a storage")
        storage = Storage(pid[1].value, pid[2], pid[4], self._is_swapped, self._read_storage)
        known = self.storages.setdefault(storage.key, storage)
        if known != storage:
            raise WeightsError(f"storage {storage.key} is described in two ways")
        return known

    def _spend(self, copied):
        """Counts what a call copies: a short pickle could copy one object without end."""
        self._allowance -= len(copied)
        if self._allowance < 0:
            raise WeightsError("damaged: the pickle's calls copy more than the file holds")
        return copied

    def _ordered_dict(self, pairs=()) -> _Dict:
        check_keys(key for key, _ in self._spend(pairs))
        return _Dict(pairs)

    def _encode(self, text, encoding) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise WeightsError("bytes as text in another encoding than Latin-1")
        return encode_latin1(self._spend(text))

    def _storage_from_bytes(self, data) -> Storage:
        if data[:1] != b"\x80":
            raise WeightsError("a storage within the pickle that is not a legacy PyTorch stream")
        return read_pickles(io.BytesIO(self._spend(data)), len(data))

    def load_reduce(self):
        """Calls a global of `find_class`, and nothing else that is on the stack."""
        args = self.stack.pop()
        if not isinstance(self.stack[-1], _Global) or len(args) > _MAX_PARTS:
            raise WeightsError("damaged: the pickle calls something that is not a global")
        self.stack[-1] = self.stack[-1].value(*args)

    def load_bytearray8(self):
        """As the original, which allocates before it reads."""
        self.append(bytearray(self.read(*struct.unpack("<Q", self.read(8)))))

    dispatch = pickle._Unpickler.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def check_keys(keys) -> None:
    """Raises WeightsError unless all hash fast: plain values, or short flat tuples of them."""
    for key in keys:
        for part in key if type(key) is tuple and len(key) <= _MAX_PARTS else (key,):
            if type(part) not in _KEY_TYPES or (type(part) is int and part.bit_length() > 64):
                raise WeightsError(f"damaged: a {type(part).__name__} in a key of a dict or set")


def _checking_keys(load: Callable, keys: slice) -> Callable:
    """An opcode that first checks what it will hash."""

    def checked(self: SafeUnpickler) -> None:
        check_keys(self.stack[keys])
        load(self)

    return checked


# Opcodes that hash -> where on the stack; with _MARKED, it holds what follows the last mark.
_MARKED = slice(0, None, 2)
SafeUnpickler.dispatch |= {
    opcode[0]: _checking_keys(SafeUnpickler.dispatch[opcode[0]], keys)
    for opcode, keys in (
        (pickle.SETITEM, slice(-2, -1)),
        (pickle.SETITEMS, _MARKED),
        (pickle.DICT, _MARKED),
        (pickle.ADDITEMS, slice(None)),
        (pickle.FROZENSET, slice(None)),
    )
}


def read_pickles(file: File, size: int) -> Any:
    """A plain pickle, or PyTorch's legacy stream, of `size` bytes.

    The stream: magic, version, system, object, storage keys (five pickles), then for each storage
    its number of elements (int64) and its bytes.
    """
    first = SafeUnpickler(file, size).load_checked()
    if type(first) is not int or first != _LEGACY_MAGIC:
        return first
    version = SafeUnpickler(file, size).load_checked()
    system = SafeUnpickler(file, size).load_checked()
    if type(version) is not int or version != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise WeightsError(f"PyTorch's legacy format, but not its version {_LEGACY_PROTOCOL}")
    starts: dict[str, int] = {}

    def read_storage(storage: Storage) -> bytes:
        file.seek(starts[storage.key])
        return file.read(storage.nbytes)

    is_swapped = system.get("little_endian", True) != (sys.byteorder == "little")
    body = SafeUnpickler(file, size, read_storage, is_swapped)
    found = body.load_checked()
    keys = SafeUnpickler(file, size).load_checked()
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise WeightsError("damaged: the list of storages is not a list of names")
    if sorted(keys) != sorted(body.storages):
        raise WeightsError("damaged: the list of storages is not that of the tensors")
    for key in keys:
        storage = body.storages[key]
        count = int.from_bytes(file.read(8), "little", signed=True)
        starts[key] = file.tell()
        if count != storage.size or storage.nbytes > size - starts[key]:
            raise WeightsError(
                f"truncated or damaged: storage {key} should hold {storage.size} elements"
            )
        file.seek(storage.nbytes, os.SEEK_CUR)
    return found


def read_torch_zip(archive: zipfile.ZipFile, data_pickle: str, archive_size: int) -> Any:
    """PyTorch's archive: the member `data_pickle`, and one per storage in data/ beside it."""
    root = data_pickle.removesuffix("data.pkl")
    order = sys.byteorder
    if root + "byteorder" in archive.NameToInfo:
        size = member_size(archive, root + "byteorder", limit=16)
        order = read_member(archive, root + "byteorder", size).strip().decode("latin1")
    if order not in ("little", "big"):
        raise WeightsError(f"{root}byteorder is neither little nor big")

    def read_storage(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        size = member_size(archive, name)
        if size != storage.nbytes:
            raise WeightsError(f"storage {storage.key}: {size} bytes, needs {storage.nbytes}")
        return read_member(archive, name, size)

    size = member_size(archive, data_pickle, max(archive_size, _MAX_SMALL_PICKLE))
    file = io.BytesIO(read_member(archive, data_pickle, size))
    return SafeUnpickler(file, size, read_storage, order != sys.byteorder).load_checked()

"""Writes PyTorch's zip archive (since 1.6); `torch.load(path, weights_only=True)` reads it."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from avs_jax.convert.stored import WeightsError
from avs_jax.convert.torch_files.tensors import STORAGES

_ROOT = "archive"  # folder in the zip
_ALIGNMENT = 64  # bytes, of the storages, so that they can be mapped into memory
_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}


class _Global(NamedTuple):
    """A name that the reader imports; it does not have to exist here."""

    module: str
    name: str


class _Storage(NamedTuple):
    """A storage outside the pickle: what PyTorch calls its persistent id."""

    kind: _Global
    key: str
    size: int


class _Call(NamedTuple):
    """A call of a global; the result then gets items and attributes."""

    function: _Global
    args: tuple = ()
    items: Mapping[str, Any] = {}
    attributes: Mapping[str, Any] = {}


class _Pickler(pickle._Pickler):
    """The standard library's pickler in Python, which also writes the three classes above."""

    def save(self, value, save_persistent_id=True):
        if isinstance(value, _Global):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, _Call):
            self.save(value.function)
            self.save(value.args)
            self.write(pickle.REDUCE)
            self._batch_setitems(value.items.items())
            if value.attributes:
                self.save(value.attributes)
                self.write(pickle.BUILD)
        else:
            super().save(value, save_persistent_id)

    def persistent_id(self, value):
        is_storage = isinstance(value, _Storage)
        return ("storage", value.kind, value.key, "cpu", value.size) if is_storage else None


_ORDERED_DICT = _Global("collections", "OrderedDict")


def write_torch(
    file: BinaryIO, state_dict: Mapping[str, np.ndarray], versions: Mapping[str, int]
) -> None:
    """Writes {"model": state dict}, an OrderedDict whose `_metadata` holds the modules' versions.

    Raises:
      WeightsError: naming an array whose dtype PyTorch does not have.
    """
    tensors = {name: _tensor(str(i), name, x) for i, (name, x) in enumerate(state_dict.items())}
    metadata = {module: {"version": number} for module, number in versions.items()}
    attributes = {"_metadata": _Call(_ORDERED_DICT, (), metadata)} if metadata else {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        pickled = io.BytesIO()
        _Pickler(pickled, 2).dump({"model": _Call(_ORDERED_DICT, (), tensors, attributes)})
        _add(archive, "data.pkl", pickled.getvalue())
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(state_dict.values()):
            little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
            _add(archive, f"data/{key}", little_endian.tobytes())
        _add(archive, "version", b"3\n")


def _tensor(key: str, name: str, array: np.ndarray) -> _Call:
    kind = _STORAGE_NAMES.get(array.dtype.newbyteorder("="))
    if kind is None:
        raise WeightsError(f"{name}: {array.dtype} has no place in this format")
    storage = _Storage(_Global("torch", kind), key, array.size)
    strides = tuple(np.cumprod([1, *array.shape[:0:-1]])[::-1].tolist()) if array.ndim else ()
    requires_grad, hooks = False, _Call(_ORDERED_DICT)
    args = (storage, 0, array.shape, strides, requires_grad, hooks)
    return _Call(_Global("torch._utils", "_rebuild_tensor_v2"), args)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Adds a member whose data start at a multiple of _ALIGNMENT, padded as PyTorch does."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    start = archive.fp.tell() + 30 + len(info.filename) + 4  # header, name, field header
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(info, data)

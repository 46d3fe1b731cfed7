"""Writes state dicts as other programs read them, with numpy alone: the reverse of `reader`.

  torch        PyTorch's zip archive (torch/serialization.py, since 1.6), {"model": state dict} with
               the state dict's `_metadata`; `torch.load(path, weights_only=True)` reads it
  safetensors  8-byte length, JSON header, raw tensors (huggingface/safetensors README, "Format")
  npz          numpy's

Names keep their order. A file appears under its name only once it is complete.
"""

import contextlib
import errno
import json
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import numpy as np

from avs_jax.convert.pickles import WeightsError

_TORCH_STORAGES = {
    "f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage",
    "i4": "IntStorage", "i2": "ShortStorage", "i1": "CharStorage", "u1": "ByteStorage",
    "b1": "BoolStorage",
}  # fmt: skip
_SAFETENSORS = {
    "f8": "F64", "f4": "F32", "f2": "F16", "b1": "BOOL", "i8": "I64", "i4": "I32", "i2": "I16",
    "i1": "I8", "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8",
}  # fmt: skip
_ROOT = "archive"  # folder in PyTorch's zip
_ALIGNMENT = 64  # bytes, of its storages, so that they can be mapped into memory


def write_state_dict(
    path: str | os.PathLike,
    state_dict: Mapping[str, np.ndarray],
    file_format: str,
    versions: Mapping[str, int] | None = None,
) -> None:
    """Writes a state dict.

    Args:
      path: file to make; one of that name is replaced.
      state_dict: name -> array of a plain dtype; the order is kept.
      file_format: key of WRITERS.
      versions: module -> version, `_metadata` of the torch format; the others have no such thing.

    Raises:
      WeightsError: a dtype that the format does not have.
      OSError: the file cannot be written; where the disk is full, with the size that it needs.
    """
    size = sum(array.nbytes for array in state_dict.values())
    with atomic_file(path, size) as file:
        WRITERS[file_format](file, state_dict, versions or {})


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, size: int) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is complete, and is removed otherwise.

    Args:
      path: its name; the folder is made if need be.
      size: bytes it will have, about, for the message about a full disk.

    Raises:
      OSError: it cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"{path}: no space left on the disk for about {size / 1e6:,.0f} MB; nothing was written"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _write_npz(file: BinaryIO, state_dict: Mapping[str, np.ndarray], versions) -> None:
    np.savez(file, **state_dict)


def _write_safetensors(file: BinaryIO, state_dict: Mapping[str, np.ndarray], versions) -> None:
    kinds = {name: _kind(name, x, _SAFETENSORS) for name, x in state_dict.items()}
    # Wide elements first, so that every tensor is aligned to its element.
    order = sorted(state_dict, key=lambda name: -state_dict[name].itemsize)
    ends = np.cumsum([state_dict[name].nbytes for name in order]).tolist()
    spans = dict(zip(order, zip([0, *ends], ends, strict=False), strict=True))
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    for name, array in state_dict.items():
        offsets = list(spans[name])
        header[name] = {"dtype": kinds[name], "shape": array.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for name in order:
        file.write(_little_endian(state_dict[name]))


def _write_torch(
    file: BinaryIO, state_dict: Mapping[str, np.ndarray], versions: Mapping[str, int]
) -> None:
    stream = _TorchPickle()
    stream.dictionary({"model": lambda: stream.state_dict(state_dict, versions)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", stream.finish())
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(state_dict.values()):
            _add(archive, f"data/{key}", _little_endian(array))
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """A member whose data start at a multiple of _ALIGNMENT, padded as PyTorch does."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    start = archive.fp.tell() + 30 + len(info.filename) + 4  # header, name, field header
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(info, data)


class _TorchPickle:
    """The pickle (protocol 2) of tensors, opcode by opcode: nothing it names has to exist here."""

    def __init__(self):
        self._parts = [pickle.PROTO + b"\x02"]

    def finish(self) -> bytes:
        return b"".join([*self._parts, pickle.STOP])

    def state_dict(self, arrays: Mapping[str, np.ndarray], versions: Mapping[str, int]) -> None:
        """An OrderedDict of tensors with the attribute `_metadata`, as modules give it."""

        def version(number):
            self.dictionary({"version": lambda: self._integer(number)})

        self._ordered_dict()
        tensors = enumerate(arrays.items())
        self._items({n: (lambda k=k, n=n, x=x: self._tensor(k, n, x)) for k, (n, x) in tensors})
        if not versions:
            return

        def metadata():
            self._ordered_dict()
            self._items({name: lambda n=number: version(n) for name, number in versions.items()})

        self.dictionary({"_metadata": metadata})
        self._parts.append(pickle.BUILD)

    def dictionary(self, items: Mapping[str, Callable[[], None]]) -> None:
        """A dict; the values are calls that put one object each on the stream."""
        self._parts.append(pickle.EMPTY_DICT)
        self._items(items)

    def _items(self, items: Mapping[str, Callable[[], None]]) -> None:
        self._parts.append(pickle.MARK)
        for name, put in items.items():
            self._text(name)
            put()
        self._parts.append(pickle.SETITEMS)

    def _tensor(self, key: int, name: str, array: np.ndarray) -> None:
        strides = np.cumprod([1, *array.shape[:0:-1]])[::-1] if array.ndim else []
        self._global("torch._utils", "_rebuild_tensor_v2")
        self._parts.append(pickle.MARK)
        self._parts.append(pickle.MARK)  # its storage: kind, dtype, key, device, elements
        self._text("storage")
        self._global("torch", _kind(name, array, _TORCH_STORAGES))
        self._text(str(key))
        self._text("cpu")
        self._integer(array.size)
        self._parts.append(pickle.TUPLE + pickle.BINPERSID)
        self._integer(0)  # offset
        for sizes in (array.shape, strides):
            self._parts.append(pickle.MARK)
            for size in sizes:
                self._integer(int(size))
            self._parts.append(pickle.TUPLE)
        self._parts.append(pickle.NEWFALSE)  # requires_grad
        self._ordered_dict()  # backward hooks
        self._parts.append(pickle.TUPLE + pickle.REDUCE)

    def _ordered_dict(self) -> None:
        self._global("collections", "OrderedDict")
        self._parts.append(pickle.EMPTY_TUPLE + pickle.REDUCE)

    def _global(self, module: str, name: str) -> None:
        self._parts.append(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    def _text(self, text: str) -> None:
        data = text.encode()
        self._parts.append(pickle.BINUNICODE + struct.pack("<I", len(data)) + data)

    def _integer(self, number: int) -> None:
        if number < 2**31:
            self._parts.append(pickle.BININT + struct.pack("<i", number))
        else:
            self._parts.append(pickle.LONG1 + b"\x08" + struct.pack("<q", number))


WRITERS: dict[str, Callable[[BinaryIO, Mapping[str, np.ndarray], Mapping[str, int]], None]] = {
    "torch": _write_torch,
    "safetensors": _write_safetensors,
    "npz": _write_npz,
}


def _kind(name: str, array: np.ndarray, table: Mapping[str, str]) -> str:
    kind = array.dtype.str[1:]
    if kind not in table:
        raise WeightsError(f"{name}: {array.dtype} has no place in this format")
    return table[kind]


def _little_endian(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()

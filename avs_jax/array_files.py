"""npy and npz files that somebody else wrote, read without executing anything.

Every size that a header or directory declares is compared with what the file holds, or with a
limit, before memory of that size is allocated.
"""

import io
import math
import os
import threading
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from avs_jax.files import open_regular
from avs_jax.spec import InputError, first_line

NUMBERS = "biuf"  # kinds of dtypes: booleans, integers, floats
MAX_BYTES = 8 << 30  # of all arrays of an npz
_MAX_HEADER_BYTES = 1 << 16  # numpy writes 128
_MAX_AXIS = 1 << 40
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Before Python 3.11.8, the parser that numpy reads headers with breaks where two threads are in it.
_PARSER = threading.Lock()
# zipfile limits what these give per call; its other decompressors unpack without limit.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Header(NamedTuple):
    """What an npy file says about its array.

    Attributes:
      start: where the numbers begin, in bytes.
    """

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    start: int


def read_header(data: bytes) -> Header:
    """The header of an npy file.

    Args:
      data: the whole file, or more than its header.

    Raises:
      InputError: there is no header, or no array can have its shape.
    """
    file = io.BytesIO(data[:_MAX_HEADER_BYTES])
    try:
        with _PARSER:
            shape, is_fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    # numpy parses the header as Python text: damage raises nearly anything.
    except Exception as error:
        raise InputError(f"no npy file ({first_line(error)})") from error
    if not all(0 <= size <= _MAX_AXIS for size in shape):
        raise InputError(f"an impossible shape {str(shape)[:100]}")
    return Header(shape, is_fortran, dtype, file.tell())


def parse_npy(data: bytes, kinds: str = NUMBERS) -> np.ndarray:
    """The array of an npy file.

    Args:
      data: the whole file.
      kinds: of dtypes that are read.

    Raises:
      InputError: no npy file, damaged, or an array of another kind.
    """
    shape, is_fortran, dtype, start = read_header(data)
    if dtype.kind not in kinds:
        raise InputError(f"an array of {str(dtype)[:100]}, which is not read")
    declared = start + math.prod(shape) * dtype.itemsize
    if len(data) != declared:
        raise InputError(f"{len(data):,} bytes, its header declares {declared:,}")
    try:
        order = "F" if is_fortran else "C"
        return np.ndarray(shape, dtype, data, start, order=order).copy(order="K")
    except ValueError as error:  # too many axes, or an empty array that numpy cannot have
        raise InputError(f"an impossible shape {str(shape)[:100]} ({first_line(error)})") from error


def read_npz(
    path: str | os.PathLike | BinaryIO,
    max_size: int = MAX_BYTES,
    kinds: str = NUMBERS,
    advice: str = "",
) -> dict[str, np.ndarray]:
    """The arrays of an npz file.

    Args:
      path: of the file, or the file, opened for reading.
      max_size: bytes that the arrays may take.
      kinds: of dtypes that are read.
      advice: how to raise the limit, for the message.

    Raises:
      InputError: no npz file, damaged, too large, or with arrays of other kinds; names the file.
      OSError: it cannot be opened.
    """
    if isinstance(path, str | os.PathLike):
        with open_regular(path) as file:
            return read_npz(file, max_size, kinds, advice)
    name = getattr(path, "name", "the npz file")
    try:
        return _read_archive(path, max_size, kinds, advice)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    # zipfile and zlib answer damaged files with many kinds of exceptions.
    except Exception as error:
        raise InputError(f"{name}: no npz file, or damaged ({first_line(error)})") from error


def read_member(data: bytes, name: str, max_size: int) -> bytes:
    """A member of a zip archive.

    Raises:
      InputError: it is larger than max_size, or its compression is not read.
      Exception: of any kind, if the archive is damaged or has no such member.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = archive.getinfo(name)
        _check_member(info)
        if info.file_size > max_size:
            raise InputError(
                f"{name}: {info.file_size:,} bytes, more than the {max_size:,} allowed"
            )
        return _unpack(archive, info)


def _read_archive(file: BinaryIO, max_size: int, kinds: str, advice: str) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for info in members:
            _check_member(info)
        declared = sum(info.file_size for info in members)
        if declared > max_size:
            more = f"; {advice}" if advice else ""
            raise InputError(f"its arrays take {declared:,} bytes, more than {max_size:,}{more}")
        arrays: dict[str, Any] = {}
        for info in members:
            name = info.filename.removesuffix(".npy")
            if name in arrays:
                raise InputError(f"holds {name!r} twice")
            try:
                arrays[name] = parse_npy(_unpack(archive, info), kinds)
            except InputError as error:
                raise InputError(f"{name!r}: {error}") from error
        return arrays


def _check_member(info: zipfile.ZipInfo) -> None:
    if info.compress_type not in _COMPRESSIONS:
        raise InputError(f"{info.filename!r}: compression {info.compress_type} is not read")


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as member:
        data = member.read(info.file_size)
        if len(data) != info.file_size or member.read(1):
            raise InputError(f"{info.filename!r} is truncated")
    return data

"""Zip archives and .npz files; sizes are compared before anything is unpacked."""

import io
import math
import zipfile
from typing import BinaryIO

import numpy as np

from avs_jax.convert import stored
from avs_jax.convert.stored import StoredArray, WeightsError

# zipfile limits what these give per call; its other decompressors unpack without limit.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_NPY_HEADER = 1 << 16  # bytes; numpy writes 128
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Reads the directory of an archive."""
    # zipfile raises many kinds of exceptions for damaged fields; numpy's parser too, below.
    with stored.blame("truncated or damaged zip archive", Exception):
        archive = zipfile.ZipFile(file)
        if len(archive.NameToInfo) < len(archive.namelist()):
            raise WeightsError("a name occurs twice")
    return archive


def member_size(archive: zipfile.ZipFile, name: str, limit: float = math.inf) -> int:
    """The number of bytes that a member unpacks to, from the directory, at most `limit`."""
    if name not in archive.NameToInfo:
        raise WeightsError(f"damaged: {name} is missing in the archive")
    info = archive.NameToInfo[name]
    if info.compress_type not in _COMPRESSIONS:
        raise WeightsError(f"{name} in the archive: compression {info.compress_type} is not read")
    if info.file_size > limit:
        raise WeightsError(f"damaged: {name} unpacks to {info.file_size} bytes")
    return info.file_size


def read_member(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """The first `size` bytes of a member; if that is all of it, its checksum is compared."""
    with stored.blame(f"{name} in the archive is damaged", Exception):
        with archive.open(name) as member:
            data = member.read(size)
        if len(data) < size:
            raise WeightsError(f"truncated: {len(data)} bytes of {size}")
    return data


def read_npz(archive: zipfile.ZipFile) -> dict[str, StoredArray]:
    """Name -> array; reads the headers of the members only."""
    return {name.removesuffix(".npy"): _declare(archive, name) for name in archive.namelist()}


def _declare(archive: zipfile.ZipFile, name: str) -> StoredArray:
    size = member_size(archive, name)
    head = io.BytesIO(read_member(archive, name, min(size, _MAX_NPY_HEADER)))
    with stored.blame(f"{name} is not a .npy array", Exception):
        shape, is_fortran, dtype = _NPY_HEADERS[np.lib.format.read_magic(head)](head)
    start = head.tell()
    with stored.blame(name):
        if dtype.hasobject:
            raise WeightsError("holds pickled Python objects, which are not read")
        if dtype.newbyteorder("=") not in stored.NUMERIC.values():
            raise WeightsError(f"numpy dtype {dtype!s:.80}, neither boolean, integer nor float")
        shape, nbytes = stored.check_shape(shape, dtype.itemsize, size - start)
    order = "F" if is_fortran else "C"
    return StoredArray(
        nbytes,
        stored.Source(size, lambda: read_member(archive, name, size)),
        lambda data: stored.array_from_bytes(memoryview(data)[start:], dtype, shape, order),
    )

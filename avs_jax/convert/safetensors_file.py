"""safetensors files, through the library of that name.

The library checks a file as a whole. Two things are done here: errors that name the tensor, and the
order of the names, which the library does not keep.
"""

import functools
import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from avs_jax.convert import stored
from avs_jax.convert.stored import StoredArray, WeightsError

_MAX_HEADER = 100_000_000  # bytes, the library's limit
_DTYPES = {f"{kind[0].upper()}{8 * x.itemsize}": x for kind, x in stored.NUMERIC.items()}
_DTYPES |= {"BOOL": _DTYPES.pop("B8"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def read_safetensors(path: str | os.PathLike, file: BinaryIO, size: int) -> dict[str, StoredArray]:
    """Name -> array of a file of `size` bytes, open at its start; reads the header only."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER, size - 8):
        raise WeightsError(f"truncated or damaged: header of {length} bytes in a file of {size}")
    with stored.blame("damaged safetensors header", ValueError, RecursionError):
        header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise WeightsError("not a JSON object")
    header.pop("__metadata__", None)
    sizes = {}
    for name, entry in header.items():
        with stored.blame(f"safetensors entry {name}"):
            sizes[name] = _check_entry(entry, size - 8 - length)
    with stored.blame("damaged safetensors file", SafetensorError):
        library = safe_open(path, framework="numpy")
    result = {}
    for name, nbytes in sizes.items():  # the library's arrays own their memory
        source = stored.Source(0, functools.partial(library.get_tensor, name))
        result[name] = StoredArray(nbytes, source, np.asarray)
    return result


def _check_entry(entry: Any, size: int) -> int:
    """The bytes of a tensor, in a file that has `size` bytes for all."""
    try:
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"bad or unknown field ({error!r:.80})") from error
    if not stored.are_sizes(begin, end) or not begin <= end <= size:
        raise WeightsError(f"bytes {begin!s:.30} to {end!s:.30} lie outside the file")
    return stored.check_shape(shape, dtype.itemsize, end - begin)[1]


def write_safetensors(file: BinaryIO, state_dict: Mapping[str, np.ndarray], versions) -> None:
    """Writes a state dict; raises WeightsError naming an array of another dtype."""
    for name, array in state_dict.items():
        if array.dtype.newbyteorder("=") not in _DTYPES.values():
            raise WeightsError(f"{name}: {array.dtype} has no place in this format")
    dense = {name: np.asarray(array, order="C") for name, array in state_dict.items()}
    data = memoryview(save(dense, metadata={"format": "pt"}))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + length]))
    header = {name: header[name] for name in ("__metadata__", *state_dict)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write(data[:8])
    file.write(text.ljust(length))  # the same entries in our order are as long
    file.write(data[8 + length :])

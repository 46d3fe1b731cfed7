"""Reads weight files into {name: array}, and executes nothing that they say.

The content decides about the format, never the file's name:

  .npz           numeric arrays
  .safetensors   the safetensors library's format
  .pth, .pt      PyTorch's zip archive (since 1.6) and its legacy stream of pickles
  .pkl           a pickled dict of numpy arrays (detectron2's model zoo) or of PyTorch tensors
"""

import mmap
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from avs_jax.convert.archive import open_archive, read_npz
from avs_jax.convert.safetensors_file import read_safetensors
from avs_jax.convert.stored import StoredArray, WeightsError, blame, describe
from avs_jax.convert.torch_files.reader import DamagedPickle, read_pickles, read_torch_zip
from avs_jax.convert.torch_files.tensors import PickledArray, Tensor
from avs_jax.progress import tracked

MAX_SIZE = 16 << 30  # bytes of memory; the largest supported model takes 1.2 GB
_WRAPPERS = ("model", "state_dict")  # keys under which checkpoints keep the state dict


def read_state_dict(path: str | os.PathLike, max_size: int = MAX_SIZE) -> dict[str, np.ndarray]:
    """Reads a state dict from a .npz, .safetensors, .pth, .pt or .pkl file.

    Takes it out of a `model` or `state_dict` key, and removes a `module.` prefix that all names
    have. Dtypes are those of the file; bfloat16 is ml_dtypes'.

    Raises:
      WeightsError: not such a file, damaged, declaring more than `max_size` bytes of memory,
        holding something other than arrays, or a pickle that names other globals than those of
        plain tensors and arrays.
    """
    path = os.path.expanduser(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise WeightsError(f"{path}: is a folder, pipe or device, not a file")
    with blame(path, MemoryError), open(path, "rb") as file:
        return _read_arrays(_find_arrays(_parse(path, file)), max_size)


def _parse(path: str | os.PathLike, file: BinaryIO) -> Any:
    """The file's content, with `StoredArray`, `Tensor` and `PickledArray` for arrays."""
    head = file.read(512)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    text = head.lstrip().lower()
    if not head:
        raise WeightsError("the file is empty")
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise WeightsError("is a web page (HTML), not weights; the download link needs a login?")
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError("is a Git LFS pointer, not the weights it points to")
    if head.startswith(b"PK"):
        archive = open_archive(file)
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
        if len(pickles) == 1:
            return read_torch_zip(archive, pickles[0], size)
        if names and all(name.endswith(".npy") for name in names):
            return read_npz(archive)
        found = ", ".join(names[:3]) or "nothing"
        raise WeightsError(f"a zip archive, but neither .npz nor PyTorch's: holds {found}")
    if head[5:9] == b"\0\0\0{":  # a length below 2**40, then JSON
        return read_safetensors(path, file, size)
    try:
        return read_pickles(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), size)
    except DamagedPickle as error:
        if head[:1] == b"\x80":
            raise
        raise WeightsError(
            f"starts with {head[:8]!r}: none of npz, safetensors, PyTorch or pickle ({error})"
        ) from error


def _find_arrays(content: Any) -> dict[str, StoredArray]:
    """The state dict within a file's content; its arrays are checked but not read."""
    found, seen = content, set()
    while isinstance(found, dict):
        seen.add(id(found))
        inner = next((found[k] for k in _WRAPPERS if isinstance(found.get(k), dict)), None)
        if inner is None:
            break
        if id(inner) in seen:
            raise WeightsError("damaged: holds a dict within itself")
        found = inner
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"holds {describe(found)}, not a dict of name -> array")
    foreign = [name for name, value in found.items() if not _is_array(name, value)]
    if foreign:
        name = repr(foreign[0])[:100] if isinstance(foreign[0], str) else describe(foreign[0])
        raise WeightsError(
            f"{len(foreign)} of {len(found)} entries are not named arrays, "
            f"the first: {name} is {describe(found[foreign[0]])}"
        )
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    result = {}
    for name, value in found.items():
        with blame(name):
            result[name] = value.declare()
    return result


def _is_array(name: Any, value: Any) -> bool:
    is_name = isinstance(name, str) and name.isprintable()
    return is_name and isinstance(value, StoredArray | Tensor | PickledArray)


def _read_arrays(arrays: Mapping[str, StoredArray], max_size: int) -> dict[str, np.ndarray]:
    """Reads the arrays; those of one source together, so that each source is loaded once."""
    needed = sum(x.nbytes for x in arrays.values()) + max(x.source.nbytes for x in arrays.values())
    if needed > max_size:
        largest = max(arrays, key=lambda name: arrays[name].nbytes + arrays[name].source.nbytes)
        raise WeightsError(
            f"{largest} and {len(arrays) - 1} other arrays take {needed:,} bytes of memory, the "
            f"limit is {max_size:,}; --max_size raises it"
        )
    sharing: dict[int, list[str]] = {}
    for name, array in arrays.items():
        sharing.setdefault(id(array.source), []).append(name)
    result = {}
    for names in tracked(sharing.values(), "reading", len(arrays), "tensor", size=len):
        with blame(names[0], MemoryError):
            data = arrays[names[0]].source.load()
            result |= {name: arrays[name].build(data) for name in names}
    return {name: result[name] for name in arrays}

"""Reads foreign weight files into {name: array} with numpy alone; executes nothing that they say.

Formats, told apart by content and never by the file's ending:

  .npz           arrays only, pickled members refused
  .safetensors   8-byte length, JSON header, raw tensors (huggingface/safetensors README, "Format")
  .pth, .pt      PyTorch's zip archive (since 1.6) and its legacy stream of pickles
                 (torch/serialization.py)
  .pkl           pickled dict of numpy arrays (detectron2's model zoo) or of torch tensors, and one
                 bare tensor (AVSBench's audio_log_mel)

Pickles go through `pickles.SafeUnpickler`, which calls nothing that the file names.
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from avs_jax.convert.pickles import (
    DamagedPickle,
    PickledArray,
    SafeUnpickler,
    Storage,
    Tensor,
    WeightsError,
    are_sizes,
    array_from_bytes,
    read_pickles,
)

_MAX_HEADER = 100_000_000  # bytes of a safetensors header, the reference implementation's limit
_WRAPPERS = ("model", "state_dict")  # keys under which checkpoints keep the state dict

_SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bf16", "BOOL": "b1",
    "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1",
}  # fmt: skip


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict from a .npz, .safetensors, .pth, .pt or .pkl file.

    A `model` or `state_dict` key around it is opened, a `module.` prefix common to all names is
    removed, torch's `_metadata` is dropped. Dtypes are those of the file; bfloat16 is ml_dtypes'.

    Raises:
      WeightsError: not such a file, damaged, holding something other than arrays, or a pickle that
        names a global other than those of plain tensors and arrays.
      OSError: the file cannot be opened.
    """
    with _reading(path) as found:
        while isinstance(found, dict):
            inner = next((found[k] for k in _WRAPPERS if isinstance(found.get(k), dict)), None)
            if inner is None:
                break
            found = inner
        if not isinstance(found, dict) or not found:
            raise WeightsError(f"holds {_describe(found)}, not a dict of name -> array")
        foreign = [name for name, value in found.items() if not _is_array(name, value)]
        if foreign:
            raise WeightsError(
                f"{len(foreign)} of {len(found)} entries are not named arrays, "
                f"the first: {foreign[0]!r} is {_describe(found[foreign[0]])}"
            )
        if all(name.startswith("module.") for name in found):
            found = {name.removeprefix("module."): value for name, value in found.items()}
        return {name: _materialise(name, value) for name, value in found.items()}


def read_array(path: str | os.PathLike) -> np.ndarray:
    """Reads one bare tensor or array, such as AVSBench's log-mel pickles (float32 [5, 1, 96, 64]).

    Raises:
      WeightsError: as `read_state_dict`, or the file holds something other than one array.
    """
    with _reading(path) as found:
        if not _is_array("", found):
            raise WeightsError(f"holds {_describe(found)}, not one array")
        return _materialise("the array", found)


@contextlib.contextmanager
def _reading(path) -> Iterator[Any]:
    """The file's content, open: nested dicts and lists with arrays or their recipes as leaves."""
    with open(path, "rb") as file:
        try:
            yield _parse(file)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error


def _parse(file: BinaryIO) -> Any:
    head = file.read(512)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    text = head.lstrip().lower()
    if not head:
        raise WeightsError("the file is empty")
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise WeightsError(
            "is a web page (HTML), not weights: the download answered with a page, not the file"
        )
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError("is a Git LFS pointer, not the weights it points to")
    if head.startswith(b"PK"):
        return _read_zip(file)
    if head[5:9] == b"\0\0\0{":  # a length below 2**40, then JSON
        return _read_safetensors(file, size)
    try:
        return read_pickles(file, size)
    except DamagedPickle as error:
        if head[:1] == b"\x80":
            raise
        raise WeightsError(
            f"starts with {head[:8]!r}: none of npz, safetensors, PyTorch or pickle ({error})"
        ) from error


# ---- zip: npz and PyTorch since 1.6 ----


def _read_zip(file: BinaryIO) -> dict[str, Any]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"truncated or damaged: a zip archive without its directory ({error})"
        ) from error
    names = archive.namelist()
    pickles = [name for name in names if name.split("/")[-1] == "data.pkl"]
    if len(pickles) == 1:
        return _read_torch_zip(archive, pickles[0])
    if names and all(name.endswith(".npy") for name in names):
        return {info.filename[:-4]: _read_npy(archive, info) for info in archive.infolist()}
    raise WeightsError(
        f"a zip archive, but neither .npz nor PyTorch's: holds {', '.join(names[:3]) or 'nothing'}"
    )


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except Exception as error:  # zipfile, zlib and the operating system each raise their own
        raise WeightsError(f"{name} in the archive is missing or damaged ({error})") from error


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    data = io.BytesIO(_member(archive, info.filename))
    try:
        version = np.lib.format.read_magic(data)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(data)
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{info.filename} is not a .npy array ({error})") from error
    if dtype.hasobject:
        raise WeightsError(f"{info.filename} holds pickled Python objects, which are not read")
    return array_from_bytes(data.read(), dtype, shape, info.filename, "F" if fortran else "C")


def _read_torch_zip(archive: zipfile.ZipFile, data_pickle: str) -> Any:
    root = data_pickle.removesuffix("data.pkl")
    order = "<"
    if root + "byteorder" in archive.namelist():
        order = {b"little": "<", b"big": ">"}.get(_member(archive, root + "byteorder").strip(), "?")
    if order == "?":
        raise WeightsError(f"{root}byteorder is neither little nor big")

    def load(storage: "Storage") -> bytes:
        return _member(archive, f"{root}data/{storage.key}")

    return SafeUnpickler(io.BytesIO(_member(archive, data_pickle)), load, order).load_checked()


# ---- safetensors ----


def _read_safetensors(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    length = int.from_bytes(file.read(8), "little")
    if length > min(_MAX_HEADER, size - 8):
        raise WeightsError(
            f"truncated or damaged: header of {length} bytes in a file of {size} bytes"
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"safetensors header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise WeightsError("safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    spans, result = [], {}
    for name, entry in header.items():
        try:
            dtype, shape = _SAFETENSORS[entry["dtype"]], entry["shape"]
            begin, end = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f"safetensors entry {name}: bad or unknown field ({error!r})"
            ) from error
        if not are_sizes((begin, end, *shape)) or not begin <= end <= size - 8 - length:
            raise WeightsError(
                f"safetensors entry {name}: bytes {begin} to {end} lie outside the file"
            )
        spans.append((begin, end, name))
        file.seek(8 + length + begin)
        result[name] = array_from_bytes(file.read(end - begin), dtype, shape, name)
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise WeightsError(
                f"safetensors entry {name}: starts at byte {begin}, the one before ends at "
                f"{position}"
            )
        position = end
    if position != size - 8 - length:
        raise WeightsError(f"safetensors: {size - 8 - length - position} bytes belong to no tensor")
    return result


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _is_array(name, value) -> bool:
    return isinstance(name, str) and isinstance(value, np.ndarray | Tensor | PickledArray)


def _materialise(name, value) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    try:
        return value.read()
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error


def _describe(value) -> str:
    if isinstance(value, dict):
        return f"a dict with {len(value)} entries"
    if _is_array("", value):
        return "one array"
    return f"a {type(value).__name__}"

"""Writes state dicts as other programs read them, without those programs.

  torch        PyTorch's zip archive, {"model": state dict} with its `_metadata`
  safetensors  the safetensors library's; the header lists the tensors in our order
  npz          numpy's

Names keep their order. A file appears under its name only once it is complete.
"""

import os
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from avs_jax.convert.safetensors_file import write_safetensors
from avs_jax.convert.torch_files.writer import write_torch
from avs_jax.files import atomic_file


def write_state_dict(
    path: str | os.PathLike,
    state_dict: Mapping[str, np.ndarray],
    file_format: str,
    versions: Mapping[str, int] | None = None,
) -> None:
    """Writes a state dict, in its order; an existing file is replaced.

    Args:
      file_format: key of WRITERS.
      versions: module -> version, `_metadata` of the torch format; the others have no such thing.

    Raises:
      WeightsError: a dtype that the format does not have.
    """
    size = sum(array.nbytes for array in state_dict.values())
    with atomic_file(path, size) as file:
        WRITERS[file_format](file, state_dict, versions or {})


def _write_npz(file: BinaryIO, state_dict: Mapping[str, np.ndarray], versions) -> None:
    np.savez(file, **state_dict)


WRITERS: dict[str, Callable[[BinaryIO, Mapping[str, np.ndarray], Mapping[str, int]], None]] = {
    "torch": write_torch,
    "safetensors": write_safetensors,
    "npz": _write_npz,
}

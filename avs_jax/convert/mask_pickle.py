"""Reads a pickled mask_dict of a referring-video set, and executes nothing that it says.

The file is {annotation id: [RLE or None per frame]}, an RLE being {"size": [H, W], "counts": text}.
Whoever reads it later may print any part of it, so every part is checked here: a pickle may hold a
list within itself.
"""

import mmap
import os
import pathlib
from typing import Any

from avs_jax.convert.stored import WeightsError, blame, describe
from avs_jax.convert.torch_files.reader import read_pickles
from avs_jax.files import open_regular


def read_mask_pickle(path: pathlib.Path) -> dict[str, list[dict[str, Any] | None]]:
    """{annotation id: [RLE or None per frame]}, of a pickle.

    Raises:
      WeightsError: no pickle, damaged, one that names other globals than those of plain arrays, or
        something other than masks in it.
    """
    with blame(path, MemoryError), open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise WeightsError("the file is empty")
        found = read_pickles(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), size)
        if not isinstance(found, dict):
            raise WeightsError(f"holds {describe(found)}, not a dict of masks")
        checked: set[tuple[str, int]] = set()  # what a pickle names many times is looked at once
        for key, masks in found.items():
            if type(key) not in (str, int):
                raise WeightsError(f"{describe(key)} as an annotation id")
            _check_masks(masks, f"annotation {str(key)[:40]}", checked)
        masks = {str(key): value for key, value in found.items()}
        if len(masks) != len(found):
            raise WeightsError("an annotation id is there as a number and as text")
    return masks


def _check_masks(masks: Any, where: str, checked: set[tuple[str, int]]) -> None:
    if ("list", id(masks)) in checked:
        return
    checked.add(("list", id(masks)))
    if type(masks) is not list:
        raise WeightsError(f"{where}: {describe(masks)}, not a list of masks")
    for t, rle in enumerate(masks):
        if rle is None or ("RLE", id(rle)) in checked:
            continue
        checked.add(("RLE", id(rle)))
        size = rle.get("size") if isinstance(rle, dict) else None
        is_rle = (
            type(size) in (list, tuple)
            and [type(n) for n in size[:3]] == [int, int]
            and type(rle.get("counts")) in (str, bytes)
        )
        if not is_rle:
            raise WeightsError(f"{where}, frame {t}: {describe(rle)}, not an RLE")

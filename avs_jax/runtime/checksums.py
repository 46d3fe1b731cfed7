"""Checksums that tell whether a checkpoint still holds what was saved.

  array:  sum over r of (2 r + 1) * (sum over j of word[r, j])   mod 2^64

r is the index along axis 0. The words of a row are its bytes as 64-bit integers if the last axis is
a whole number of them, otherwise the bits of one element each. A sum does not depend on how devices
and processes share an array: each of them adds the shards that it holds, on any mesh. A change
within one word always changes the sum, because its difference times an odd number is not 0 mod
2^64; larger damage goes unnoticed with a probability of about 2^-64. The sum reads host memory
once, much faster than a disk.

JSON items have the CRC-32 of their canonical text.
"""

import concurrent.futures
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from avs_jax.spec import Array

MAX_THREADS = 8


def tree_checksums(tree: Any) -> dict[str, str]:
    """{path: checksum in hex} of all arrays of a tree.

    Every process of a job must call it if an array lies on the devices of several processes.
    """
    leaves = leaves_by_path(tree)
    arrays = [x if isinstance(x, jax.Array) else np.asarray(x) for x in leaves.values()]
    for array in arrays:
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    with concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        sums = np.fromiter(pool.map(_local_sum, arrays), np.uint64, len(arrays))
    is_shared = np.array([not getattr(x, "is_fully_addressable", True) for x in arrays], bool)
    if is_shared.any():
        # Without 64-bit types in JAX, a sum travels as two halves.
        halves = multihost_utils.process_allgather(sums[is_shared].view(np.uint32))
        sums[is_shared] = np.ascontiguousarray(halves).view(np.uint64).sum(0, dtype=np.uint64)
    return {name: f"{value:016x}" for name, value in zip(leaves, sums.tolist(), strict=True)}


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of any tree by path, "/"-separated."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def changed_arrays(tree: Any, checksums: Mapping[str, str]) -> list[str]:
    """Paths of the arrays of a tree whose checksum is not the recorded one."""
    return [path for path, x in tree_checksums(tree).items() if checksums.get(path) != x]


def json_checksum(value: Any) -> str:
    """CRC-32 of a JSON value, in hex, independent of the order of keys."""
    return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def _local_sum(array: Array) -> int:
    """The part of an array's sum that this process holds."""
    total = 0
    for origin, values in _local_shards(array):
        # Words must not depend on the sharding, so the shape of the whole array chooses their size.
        has_long_words = array.ndim > 1 and array.shape[-1] * values.itemsize % 8 == 0
        total += _shard_sum(origin, values, has_long_words)
    return total % 2**64


def _local_shards(array: Array) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """(index of the first element, values) of one copy of each shard."""
    if not isinstance(array, jax.Array):
        yield (0,) * array.ndim, array
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield tuple(axis.start or 0 for axis in shard.index), np.asarray(shard.data)


def _shard_sum(origin: tuple[int, ...], values: np.ndarray, has_long_words: bool) -> int:
    if not values.size:
        return 0
    words = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    if has_long_words:
        words = _long_words(origin[-1], words)
    if values.ndim > 1:
        words = words.reshape(len(words), -1).sum(-1, dtype=np.uint64)
    first_row = origin[0] if origin else 0
    rows = np.arange(first_row, first_row + len(words), dtype=np.uint64)
    return int((words.astype(np.uint64) * (2 * rows + 1)).sum(dtype=np.uint64))


def _long_words(first_column: int, words: np.ndarray) -> np.ndarray:
    """Packs the last axis into 64-bit words, or adds to them where a shard cuts through one."""
    bits, per_word = 8 * words.itemsize, 8 // words.itemsize
    if first_column % per_word == 0 and words.shape[-1] % per_word == 0:
        return words.view(np.uint64)
    places = np.arange(first_column, first_column + words.shape[-1]) % per_word
    return words.astype(np.uint64) << (bits * places).astype(np.uint64)

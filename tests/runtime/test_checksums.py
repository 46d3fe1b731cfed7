"""Checksums of arrays: the formula, any sharding, any change."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from avs_jax.runtime.checksums import changed_arrays, json_checksum, tree_checksums

rng = np.random.default_rng(0)


def by_hand(array):
    """The formula, word by word."""
    total = 0
    rows = [array.reshape(-1)] if array.ndim == 0 else list(array)
    for r, row in enumerate(rows):
        size = 8 if array.ndim > 1 and array.shape[-1] * array.itemsize % 8 == 0 else array.itemsize
        data = np.ascontiguousarray(row).tobytes()
        words = [data[i : i + size] for i in range(0, len(data), size)]
        total += (2 * r + 1) * sum(int.from_bytes(word, "little") for word in words)
    return f"{total % 2**64:016x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float64"])
@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (4, 5), (2, 3, 1, 8), (0, 3), (3, 1)])
def test_it_is_the_formula(shape, dtype):
    array = (rng.standard_normal(shape) * 100).astype(jax.numpy.dtype(dtype))
    assert tree_checksums({"a": [array]}) == {"a/0": by_hand(np.asarray(array))}
    if dtype != "float64":
        assert tree_checksums({"a": [jax.numpy.asarray(array)]}) == {"a/0": by_hand(array)}


@pytest.mark.parametrize(
    "spec", [(), ("x",), (None, "x"), (None, None, "x"), ("x", None, "y"), ("x", "y")]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_does_not_depend_on_the_mesh(spec, dtype):
    """Also where a shard has three columns and a word has elements of two shards."""
    array = rng.standard_normal((8, 4, 12)).astype(jax.numpy.dtype(dtype))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert tree_checksums(placed) == tree_checksums(array)


def test_every_bit_counts_and_so_does_the_order():
    array = rng.standard_normal((3, 4)).astype(np.float32)
    before = tree_checksums({"a": array, "b": array})
    for byte in range(array.nbytes):
        for bit in range(8):
            other = array.copy()
            other.reshape(-1).view(np.uint8)[byte] ^= 1 << bit
            assert changed_arrays({"a": array, "b": other}, before) == ["b"]
    assert changed_arrays({"a": array[::-1], "b": array}, before) == ["a"]
    assert changed_arrays({"a": array, "c": array}, before) == ["c"]  # not recorded


def test_json_has_no_order_of_keys():
    assert json_checksum({"a": 1, "b": [2.5]}) == json_checksum({"b": [2.5], "a": 1})
    assert json_checksum({"a": 1}) != json_checksum({"a": 2})

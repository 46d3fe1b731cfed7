"""npy and npz files from others: what they declare is compared with what they hold."""

import concurrent.futures
import gc
import io
import os
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from avs_jax.array_files import parse_npy, read_header, read_npz
from avs_jax.spec import InputError


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def header(text):
    text = text.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "empty": np.zeros((0, 4), np.float16),
    "scalar": np.array(True),
    "big_endian": np.arange(3, dtype=">i2"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_as_numpy_reads_them(name, tmp_path):
    array = ARRAYS[name]
    for version in ((1, 0), (2, 0)):
        found = parse_npy(npy(array, version=version))
        assert found.dtype == array.dtype and found.flags.writeable
        np.testing.assert_array_equal(found, array)
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npz")[name], array)


BAD = {
    "nothing": (b"", "no npy file"),
    "a huge array": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"),
                     "128 bytes, its header declares 4,398,046,511,232"),
    "a larger one": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2**70,)}"),
                     "no npy file"),
    "a negative size": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}"),
                        "an impossible shape (-1, -1)"),
    "an unfinished header": (header("{'descr': '<f4', 'shape': (("), "no npy file"),
    "objects": (npy(np.array([None]), allow_pickle=True), "an array of object, which is not read"),
    "fields": (npy(np.zeros(2, [("a", "f4")])), "which is not read"),
    "cut off": (npy(np.zeros(9))[:-1], "199 bytes, its header declares 200"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_arrays_that_are_refused(what):
    data, message = BAD[what]
    with pytest.raises(InputError) as error:
        parse_npy(data)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_too_many_axes():
    shape = str((0,) * 70).replace(" ", "")
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}"
    data = b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"
    with pytest.raises(InputError, match="an impossible shape"):
        parse_npy(data)


def test_an_archive_is_measured_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(1 << 24, np.uint8), b=np.ones(3))
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        read_npz(path, 1 << 20, advice="--max_size raises the limit")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 21
    expected = f"{path}: its arrays take 16,777,"
    assert str(error.value).startswith(expected) and "; --max_size raises" in str(error.value)
    assert len(read_npz(path, 1 << 25)["a"]) == 1 << 24


def test_archives_that_are_refused(tmp_path):
    path = tmp_path / "a.npz"

    def refused(message):
        with pytest.raises(InputError) as error:
            read_npz(path)
        assert str(error.value).startswith(f"{path}: ") and message in str(error.value)
        assert "\n" not in str(error.value)

    path.write_text("hello")
    refused("no npz file, or damaged (File is not a zip file)")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", npy(np.zeros(9)))
    refused("'x.npy': compression 14 is not read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(np.zeros(9)))
        archive.writestr("x", npy(np.zeros(9)))
    refused("holds 'x' twice")
    np.savez(path, x=np.zeros(9))
    path.write_bytes(path.read_bytes().replace(npy(np.zeros(9))[-72:], b"\1" * 72))
    refused("Bad CRC-32")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        read_npz(path)


def test_headers_are_read_in_threads():
    """Python up to 3.11.7 confuses two parsers where a collection of garbage switches threads."""
    data = io.BytesIO()
    np.save(data, np.zeros((3, 4)))

    def read(depth):
        if depth:
            return read(depth - 1)
        return [read_header(data.getvalue()).shape for _ in range(60)]

    def let_others_run(*_):
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.callbacks.append(let_others_run)
    gc.set_threshold(5)
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert all(set(x) == {(3, 4)} for x in pool.map(read, range(0, 160, 5)))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(let_others_run)

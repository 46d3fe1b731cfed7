"""The reader of weight files: npz, safetensors, and files that are something else.

Pickles and PyTorch's files are in test_torch_files.py.
"""

import io
import os
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from avs_jax.convert.reader import WeightsError, read_state_dict
from tests.weight_files import (
    ARRAYS,
    assert_arrays,
    npy_bytes,
    write_safetensors,
    write_safetensors_of,
    write_zip,
)

# ---- what is read ----


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    arrays = ARRAYS | {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    save(tmp_path / "w.npz", **arrays, big=np.arange(3, dtype=">f4"))
    assert_arrays(read_state_dict(tmp_path / "w.npz"), arrays | {"big": np.arange(3.0, dtype="f4")})


def test_safetensors(tmp_path):
    for metadata in (None, {"format": "pt"}):
        write_safetensors_of(tmp_path / "w.safetensors", ARRAYS, metadata)
        assert_arrays(read_state_dict(tmp_path / "w.safetensors"))
    reverse = dict(reversed(ARRAYS.items()))
    write_safetensors_of(tmp_path / "w.safetensors", reverse)
    assert_arrays(read_state_dict(tmp_path / "w.safetensors"), reverse)


def test_safetensors_in_bfloat16(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], np.float32)  # exact in bfloat16
    raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    entry = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    write_safetensors(tmp_path / "w.safetensors", entry, raw, {"format": "pt"})
    expected = {"x": values.astype(ml_dtypes.bfloat16)}
    assert_arrays(read_state_dict(tmp_path / "w.safetensors"), expected)


# ---- files that are something else ----


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"These are the weights, honestly.\n", "none of npz, safetensors, PyTorch or pickle"),
        (b"PK\3\4" + bytes(100), "truncated or damaged zip archive"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, reason):
    path = tmp_path / "vct.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"vct\.pth: .*({reason})"):
        read_state_dict(path)


def test_folders_pipes_and_devices_are_refused(tmp_path):
    """Opening a pipe would wait for a writer forever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", "/dev/zero"):
        with pytest.raises(WeightsError, match=f"{path}: is a folder, pipe or device"):
            read_state_dict(path)
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none")


# ---- zip and npz ----


def test_zip_of_something_else(tmp_path):
    write_zip(tmp_path / "w.pth", {"readme.txt": b"hello"})
    with pytest.raises(WeightsError, match=r"neither \.npz nor PyTorch's: holds readme\.txt"):
        read_state_dict(tmp_path / "w.pth")


def npy(header: str, data: bytes = b"", version=b"\1\0") -> bytes:
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode() + data


def header_of(shape, kind="'<f4'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    "content, reason",
    [
        (npy_bytes(np.array([{"a": 1}], object)), r"x\.npy: holds pickled Python objects"),
        (npy_bytes(np.array(["a", "b"])), r"x\.npy: numpy dtype <U1"),
        (npy_bytes(np.zeros(2, np.complex64)), r"x\.npy: numpy dtype complex64"),
        (npy_bytes(np.zeros(2, [("u", "f4")])), r"x\.npy: numpy dtype"),
        (npy(header_of("(2,)"), bytes(4)), r"x\.npy: 4 bytes, shape \(2,\) needs 8"),
        (npy(header_of("(2,)"), bytes(12)), r"x\.npy: 12 bytes, shape \(2,\) needs 8"),
        (npy(header_of("(2**40,)")), r"x\.npy is not a \.npy array"),
        (npy(header_of(f"({2**40}, {2**40}, 0)")), r"x\.npy: impossible shape"),
        (npy(header_of("(-1,)"), bytes(4)), r"x\.npy: impossible shape"),
        (npy(header_of(str((1,) * 70)), bytes(4)), r"x\.npy: impossible shape .*70 axes"),
        (npy(header_of("(1,)", "('<f4', (1000000,))"), bytes(4)), r"x\.npy: numpy dtype"),
        (npy("{'descr': '<f4', 'fortran"), r"x\.npy is not a \.npy array"),
        (npy("(" * 9000), r"x\.npy is not a \.npy array"),
        (npy(header_of("(1,)"), bytes(4), b"\3\0"), r"x\.npy is not a \.npy array"),
        (b"\x93NUMPY\2\0\xff\xff\xff\x7f", r"x\.npy is not a \.npy array"),
        (b"\x93NUM", r"x\.npy is not a \.npy array"),
        (b"", r"x\.npy is not a \.npy array"),
    ],
)
def test_members_that_are_no_numeric_arrays(tmp_path, content, reason):
    write_zip(tmp_path / "w.npz", {"fine.npy": npy_bytes(np.zeros(3)), "x.npy": content})
    with pytest.raises(WeightsError, match=rf"w\.npz: {reason}") as caught:
        read_state_dict(tmp_path / "w.npz")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_name_that_occurs_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        for content in (np.zeros(3), np.ones(3)):
            with pytest.warns(UserWarning) if content.any() else io.BytesIO():
                archive.writestr("x.npy", npy_bytes(content))
    with pytest.raises(WeightsError, match="a name occurs twice"):
        read_state_dict(tmp_path / "w.npz")


def test_a_flipped_byte_is_found(tmp_path):
    np.savez(tmp_path / "w.npz", x=np.arange(100.0))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    content[600] ^= 1
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.npz: x\.npy in the archive is damaged.*CRC"):
        read_state_dict(tmp_path / "w.npz")


def test_members_that_unpack_to_more_than_they_declare(tmp_path):
    """A gigabyte of zeros in a megabyte: neither unpacked nor taken for what the header says."""
    write_zip(tmp_path / "w.npz", {"x.npy": npy(header_of("(2,)")) + bytes(1 << 26)})
    with pytest.raises(WeightsError, match="x.npy: 67108864 bytes, shape .* needs 8"):
        read_state_dict(tmp_path / "w.npz")


def test_a_directory_that_lies(tmp_path):
    """The directory declares less than a member unpacks to: no more is unpacked."""
    declared, actual = npy(header_of("(2,)"), bytes(8)), npy(header_of("(2,)"), bytes(1 << 26))
    write_zip(tmp_path / "w.npz", {"x.npy": actual})
    content = (tmp_path / "w.npz").read_bytes()
    sizes = (struct.pack("<I", len(x)) for x in (actual, declared))
    (tmp_path / "w.npz").write_bytes(content.replace(*sizes))
    with pytest.raises(WeightsError, match=r"w\.npz: x\.npy in the archive is damaged"):
        read_state_dict(tmp_path / "w.npz")


def test_the_declared_size_has_a_limit(tmp_path):
    arrays = {"small": np.zeros(10), "large": np.zeros(1000), "middle": np.zeros(100)}
    for name, write, sources in (
        ("w.npz", lambda path: np.savez(path, **arrays), 8128),
        ("w.safetensors", lambda path: write_safetensors_of(path, arrays), 0),
    ):
        write(tmp_path / name)
        needed = 8880 + sources  # the arrays, and the largest member while it is unpacked
        assert len(read_state_dict(tmp_path / name, max_size=needed)) == 3
        with pytest.raises(
            WeightsError, match=rf"{name}: large and 2 other .*--max_size raises it"
        ):
            read_state_dict(tmp_path / name, max_size=needed - 1)


def test_too_little_memory(tmp_path, monkeypatch):
    np.savez(tmp_path / "w.npz", x=np.zeros(10))

    def fail(*args, **kwargs):
        raise MemoryError("Unable to allocate 3.0 GiB")

    for function in ("stored.array_from_bytes", "archive.zipfile.ZipExtFile.read"):
        with monkeypatch.context() as patch:
            patch.setattr(f"avs_jax.convert.{function}", fail)
            with pytest.raises(WeightsError, match=r"w\.npz: .*MemoryError: Unable.* 3.0 GiB") as e:
                read_state_dict(tmp_path / "w.npz")
            assert "damaged" not in str(e.value)


# ---- safetensors ----


@pytest.mark.parametrize(
    "entries, size, reason",
    [
        ({"x": ("F32", [2], [0, 8])}, 4, "x: bytes 0 to 8 lie outside"),
        ({"x": ("F32", [3], [0, 8])}, 8, "x: 8 bytes, shape .3,. needs 12"),
        ({"x": ("F32", [2], [0, 8]), "y": ("F32", [2], [4, 12])}, 12, "invalid offset.*y"),
        ({"x": ("F32", [1], [4, 8])}, 8, "invalid offset.*x"),
        ({"x": ("F32", [1], [0, 4])}, 8, "not fully covered"),
        ({"x": ("F32", [-1], [0, 4])}, 4, "x: impossible shape"),
        ({"x": ("X99", [1], [0, 4])}, 4, "x: bad or unknown field"),
        ({"x": ("C64", [1], [0, 8])}, 8, "x: bad or unknown field"),
        ({"x": ("F8_E4M3", [1], [0, 1])}, 1, "x: bad or unknown field"),
        ({"x": ("F32", [1], [0])}, 4, "x: bad or unknown field"),
        ({"x": ("F32", [1], None)}, 4, "x: bad or unknown field"),
        ({"x": ("F32", 5, [0, 8])}, 8, "x: impossible shape"),
        ({"x": ("F32", None, [0, 8])}, 8, "x: impossible shape"),
        ({"x": ("F32", [2**70, 0], [0, 0])}, 0, "x: impossible shape"),
        ({"x": ("F32", [2**40, 2**40, 0], [0, 0])}, 0, "x: impossible shape"),
        ({"x": ("F32", [1] * 70, [0, 4])}, 4, "x: impossible shape .*70 axes"),
        ({"x": ("F32", [2**62] * 1_000_000, [0, 4])}, 4, "x: impossible shape"),
        ({"x": ("F32", [1], [-4, 0])}, 4, "x: bytes -4 to 0 lie outside"),
        ({"x": ("F32", [1], [0, 10**400])}, 4, "x: bytes 0 to 1000.* lie outside"),
        ({"x\ny": ("F32", [1], [0, 4])}, 4, "'x.ny' is one array"),
    ],
)
def test_dishonest_safetensors(tmp_path, entries, size, reason):
    entries = {
        name: {"dtype": kind, "shape": shape, "data_offsets": span}
        for name, (kind, shape, span) in entries.items()
    }
    write_safetensors(tmp_path / "w.safetensors", entries, bytes(size))
    with pytest.raises(WeightsError, match=rf"w\.safetensors: .*{reason}") as caught:
        read_state_dict(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "header, reason",
    [
        ('{"x": 5}', "x: bad or unknown field"),
        ('{"x": {"dtype": "F32"}', "header.*JSON"),
        ('{"x": ' + "[" * 100_000, "header.*Recursion"),
        ('{"x": ' + "9" * 10_000 + "}", "header.*digits"),
        ('{"__metadata__": {"a": 1}, "x": 5}', "x: bad or unknown field"),
        ('{"\xff": 1}', "header.*(JSON|utf|codec)"),
    ],
)
def test_headers_that_are_no_description(tmp_path, header, reason):
    content = header.encode("latin1")
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(WeightsError, match=rf"w\.safetensors: .*{reason}") as caught:
        read_state_dict(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_safetensors_header_longer_than_the_file(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 1 << 30) + b'{"x": 1}')
    with pytest.raises(WeightsError, match="header of 1073741824 bytes"):
        read_state_dict(tmp_path / "w.safetensors")

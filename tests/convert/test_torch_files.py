"""PyTorch's files and pickles, read without PyTorch: what is read, and every guard.

Files are written byte by byte (tests/weight_files.py).
"""

import collections
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from avs_jax.convert.reader import WeightsError, read_state_dict
from tests.weight_files import (
    ARRAYS,
    Call,
    Storage,
    array_pickle,
    assert_arrays,
    dumps,
    legacy_bytes,
    tensors_of,
    torch_tensor,
    write_torch_legacy,
    write_torch_zip,
    write_zip,
)

# ---- what is read ----


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_legacy])
@pytest.mark.parametrize("wrap", ["", "model", "state_dict"])
def test_torch_files(tmp_path, write, wrap):
    tensors, storages = tensors_of(ARRAYS)
    write(tmp_path / "w.pth", {wrap: tensors, "iteration": 7} if wrap else tensors, storages)
    assert_arrays(read_state_dict(tmp_path / "w.pth"))


def test_compressed_torch_files(tmp_path):
    tensors, storages = tensors_of(ARRAYS)
    write_torch_zip(tmp_path / "w.pth", tensors, storages, zipfile.ZIP_DEFLATED)
    assert_arrays(read_state_dict(tmp_path / "w.pth"))


@pytest.mark.parametrize("as_state", [True, False])
def test_ordered_dict_with_metadata_and_module_prefix(tmp_path, as_state):
    tensors, storages = tensors_of({f"module.{name}": array for name, array in ARRAYS.items()})
    ordered = Call("collections", "OrderedDict", list(tensors.items()))
    ordered.state = {"_metadata": {"": {"version": 2}}} if as_state else None
    write_torch_zip(tmp_path / "w.pth", ordered, storages)
    assert_arrays(read_state_dict(tmp_path / "w.pth"))


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_legacy])
def test_parameters_and_views_of_shared_storages(tmp_path, write):
    base = np.arange(12, dtype=np.float32)
    storage = Storage("f4", "0", base.tobytes(), 12)
    other = Storage("f4", "1", (base + 20).tobytes(), 12)
    transposed = torch_tensor(storage, 0, (4, 3), (1, 4))
    tail = Call(
        "torch._utils", "_rebuild_parameter", torch_tensor(storage, 8, (2, 2), (2, 1)), True
    )
    tensors = {"t": transposed, "other": torch_tensor(other, 0, (12,), (1,)), "tail": tail}
    write(tmp_path / "w.pth", tensors, [storage, other])
    want = {"t": base.reshape(3, 4).T, "other": base + 20, "tail": base[8:].reshape(2, 2)}
    assert_arrays(read_state_dict(tmp_path / "w.pth"), want)


def test_bfloat16(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], np.float32)  # exact in bfloat16
    raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    storage = Storage("bf16", "0", raw, 3)
    write_torch_zip(tmp_path / "w.pth", {"x": torch_tensor(storage, 0, (3,), (1,))}, [storage])
    assert_arrays(read_state_dict(tmp_path / "w.pth"), {"x": values.astype(ml_dtypes.bfloat16)})


def test_big_endian_storages(tmp_path):
    values = np.array([1.0, -2.5, 3.0], np.float32)
    storage = Storage("f4", "0", values.astype(">f4").tobytes(), 3)
    pickled = dumps({"x": torch_tensor(storage, 0, (3,), (1,))})
    members = {"a/data.pkl": pickled, "a/byteorder": b"big", "a/data/0": storage.data}
    write_zip(tmp_path / "w.pth", members)
    assert_arrays(read_state_dict(tmp_path / "w.pth"), {"x": values})


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickled_numpy_arrays(tmp_path, protocol):
    """detectron2's model zoo: {"model": {name: array}, "__author__": ...}."""
    arrays = {**ARRAYS, "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    zoo = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(zoo, protocol=protocol))
    assert_arrays(read_state_dict(path), arrays)
    path.write_bytes(pickle.dumps(collections.OrderedDict(arrays), protocol=protocol))
    assert_arrays(read_state_dict(path), arrays)


def test_pickled_arrays_of_python_2_and_big_endian(tmp_path):
    body = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'>'\nNNNI-1\nI-1\nI0\ntb"
    data = repr(np.array([1.5, -3], ">f4").tobytes())[1:].encode()
    state = b"(I1\n(I2\nt" + dtype + b"I00\nS" + data + b"\ntb"
    (tmp_path / "w.pkl").write_bytes(b"(dS'x'\n" + body + state + b"s.")
    assert_arrays(read_state_dict(tmp_path / "w.pkl"), {"x": np.array([1.5, -3], np.float32)})


def test_tensors_pickled_without_torch_save(tmp_path):
    """pickle.dump(tensor): each storage is a legacy stream of its own within the pickle."""
    storage = Storage("f4", "7", np.arange(3, dtype=np.float32).tobytes(), 3)
    inner = Call("torch.storage", "_load_from_bytes", legacy_bytes(storage, [storage]))
    pickled = dumps({"x": torch_tensor(inner, 1, (2,), (1,))}, protocol=3)
    (tmp_path / "w.pkl").write_bytes(pickled)
    assert_arrays(read_state_dict(tmp_path / "w.pkl"), {"x": np.array([1, 2], np.float32)})


@pytest.mark.parametrize("legacy", [False, True])
def test_against_torch_itself(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}
    kwargs = {"_use_new_zipfile_serialization": False} if legacy else {}
    torch.save({"state_dict": tensors}, tmp_path / "w.pth", **kwargs)
    assert_arrays(read_state_dict(tmp_path / "w.pth"))


# ---- no code is executed ----


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, protocol):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"x": Exploit(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(WeightsError, match=r"w\.pkl: the pickle names posix\.mkdir"):
        read_state_dict(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_legacy])
def test_code_within_a_torch_file_is_refused_by_name(tmp_path, write):
    write(tmp_path / "w.pth", {"x": Call("builtins", "eval", "1 + 1")}, [])
    with pytest.raises(WeightsError, match=r"names builtins\.eval.*save the state dict alone"):
        read_state_dict(tmp_path / "w.pth")


def test_dotted_names_and_relatives_of_allowed_globals_are_refused(tmp_path):
    for module, name in (
        ("numpy", "ndarray.tofile"),
        ("numpy", "load"),
        ("torch", "load"),
        ("torch.storage", "FloatStorage"),
        ("collections", "OrderedDict.fromkeys"),
    ):
        (tmp_path / "w.pkl").write_bytes(dumps({"x": Call(module, name)}))
        with pytest.raises(WeightsError, match=f"names {module}.{name}"):
            read_state_dict(tmp_path / "w.pkl")


def test_a_pickle_cannot_alter_what_it_is_given(tmp_path):
    """BUILD writes attributes; strides changed after their check would read outside the storage."""
    storage = Storage("f4", "0", bytes(16), 4)
    tensor = torch_tensor(storage, 0, (4,), (1,))
    tensor.state = {"strides": (1 << 40,)}
    write_torch_zip(tmp_path / "w.pth", {"x": tensor}, [storage])
    with pytest.raises(WeightsError, match="alters a Tensor"):
        read_state_dict(tmp_path / "w.pth")


# ---- damaged and dishonest ----


@pytest.mark.parametrize(
    "offset, shape, strides",
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (4, 1)), (0, (1000,), (0,)), (0, (2, 2), (1,))],
)
def test_tensors_outside_their_storage(tmp_path, offset, shape, strides):
    storage = Storage("f4", "0", bytes(16), 4)
    tensor = torch_tensor(storage, offset, shape, strides)
    write_torch_zip(tmp_path / "w.pth", {"x": tensor}, [storage])
    with pytest.raises(WeightsError, match="x: .*does not fit|impossible shape"):
        read_state_dict(tmp_path / "w.pth")


def test_truncated_files(tmp_path):
    tensors, storages = tensors_of(ARRAYS)
    path = tmp_path / "w.pth"
    for write in (write_torch_zip, write_torch_legacy):
        write(path, tensors, storages)
        whole = path.read_bytes()
        for keep in (10, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:keep])
            with pytest.raises(WeightsError, match=r"w\.pth: .*(truncated|damaged)"):
                read_state_dict(path)
    storages[0].data = storages[0].data[:-4]
    write_torch_zip(path, tensors, storages)
    with pytest.raises(WeightsError, match=r"a\.weight: storage 0: 44 bytes.*needs 48"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (pickle.dumps([1, 2, 3]), "a list, not a dict"),
        (pickle.dumps({"x": np.array(["a", None], object)}), "x: .*(dtype 'O8'|Python objects)"),
        (pickle.dumps({"x": np.zeros(2), "lr": 0.1}), "1 of 2 entries.*'lr' is a float"),
        (pickle.dumps({"x": np.zeros(2, [("u", "f4")])}), "numpy dtype"),
        (pickle.dumps(np.zeros(2)), "holds one array, not a dict"),
        (pickle.dumps({"a\nb": np.zeros(2)}), r"'a\\nb'"),
        (array_pickle((1,), "\u0394\u0394\u0394\u0394"), "x: .*Latin-1"),
        (array_pickle((2**72, 0), b""), "x: impossible shape"),
        (array_pickle((2**40, 2**40, 0), b""), "x: impossible shape"),
        (array_pickle((1,) * 70, b"1234"), "x: impossible shape"),
        (array_pickle(5, b"1234"), "x: impossible shape"),
        (array_pickle((2,), b"1234"), "x: 4 bytes.*needs 8"),
    ],
)
def test_pickles_of_something_else(tmp_path, content, reason):
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\.pkl: (?s:.*)({reason})") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_legacy])
@pytest.mark.parametrize("shape", [(2**40, 2**40, 0), (0,) * 70, (2**70, 0)])
def test_empty_tensors_of_impossible_shapes(tmp_path, write, shape):
    storage = Storage("f4", "0", b"", 0)
    write(tmp_path / "w.pth", {"x": torch_tensor(storage, 0, shape, (0,) * len(shape))}, [storage])
    with pytest.raises(WeightsError, match="impossible shape"):
        read_state_dict(tmp_path / "w.pth")


# ---- no endless loop, no memory beyond what the file declares ----

LIMIT = 1 << 29  # of the child's address space; reading a few bytes needs a quarter of it
SECONDS = 20  # of the processor, per file
CHILD = f"""
import json, resource, signal, sys
from avs_jax.convert.reader import WeightsError, read_state_dict
resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))
for path in sys.argv[1:]:
    signal.setitimer(signal.ITIMER_PROF, {SECONDS})
    try:
        answer = list(read_state_dict(path))
    except WeightsError as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""


def read_in_child(*paths) -> list:
    """Per file the names or the error, read in a process with little memory and time."""
    command = [sys.executable, "-c", CHILD, *map(str, paths)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, f"{run.returncode} after {run.stdout[-300:]}, {run.stderr[-2000:]}"
    return [json.loads(line) for line in run.stdout.splitlines()]


def tuple_bomb(levels: int) -> bytes:
    """A tuple of two references to a tuple of two references to ...: 2^levels leaves."""
    return b")q\0" + b"0h\0h\0\x86q\0" * levels


def many_calls(data: bytes, call: bytes, count: int) -> bytes:
    """The same memoized object is given to a global again and again."""
    return (
        b"\x80\x02]" + data + b"q\0" + b"0" + call + b"q\1" + b"0(" + b"h\1h\0\x85R" * count + b"e."
    )


def nested_streams(levels: int) -> bytes:
    """A stream that holds a stream that holds a stream ..."""
    content = legacy_bytes([0], [])
    for _ in range(levels):
        call = Call("torch.storage", "_load_from_bytes", content)
        content = dumps(0x1950A86A20F9469CFC6C) + dumps(1001) + dumps({}) + dumps(call, protocol=3)
    return content


TEXT = b"X" + struct.pack("<I", 1 << 18) + b"a" * (1 << 18)
LIST = b"](" + b"K\1K\2\x86" * (1 << 16) + b"e"
STREAM = legacy_bytes([0] * (1 << 16), [])
BOMBS = {
    "itself": (b"\x80\x02}q\0X\x05\0\0\0modelh\0s.", "a dict within itself"),
    "ring": (
        b"\x80\x02}q\0X\x05\0\0\0model}q\1X\x0a\0\0\0state_dicth\0ss.",
        "a dict within itself",
    ),
    "memo": (b"\x80\x02}r\0\0\0\x08.", "holds a dict with 0 entries"),
    "memo_large": (b"\x80\x02}r\0\0\0\x40.", "holds a dict with 0 entries"),
    "long_text": (b"\x80\x02X\xff\xff\xff\xff.", "pickle (EOFError"),
    "long_bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b".", "pickle (EOFError"),
    "long_bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 32) + b".", "pickle (EOFError"),
    "long_frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 32) + b"N", "pickle (EOFError"),
    "tuple_as_key": (b"\x80\x02}" + tuple_bomb(60) + b"K\1s.", "in a key"),
    "tuple_in_dict": (b"\x80\x02(" + tuple_bomb(60) + b"K\1d.", "in a key"),
    "tuple_in_items": (b"\x80\x02}(" + tuple_bomb(60) + b"K\1u.", "in a key"),
    "tuple_in_set": (b"\x80\x04\x8f(" + tuple_bomb(60) + b"\x90.", "in a key"),
    "tuple_in_frozenset": (b"\x80\x04(" + tuple_bomb(60) + b"\x91.", "in a key"),
    "deep_key": (b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\1s.", "in a key"),
    "tuple_as_pair": (
        b"\x80\x02ccollections\nOrderedDict\n](" + tuple_bomb(60) + b"K\1\x86e\x85R.",
        "in a key",
    ),
    "tuple_as_id": (b"\x80\x02" + tuple_bomb(60) + b"Q.", "persistent id"),
    "tuple_as_storage_key": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" + tuple_bomb(60) + b"X\0\0\0\0K\1tQ.",
        "persistent id",
    ),
    "tuple_as_legacy_version": (
        dumps(0x1950A86A20F9469CFC6C) + b"\x80\x02" + tuple_bomb(60) + b"." + dumps({}),
        "legacy format",
    ),
    "tuple_as_legacy_key": (
        dumps(0x1950A86A20F9469CFC6C) + dumps(1001) + dumps({}) + dumps({})
        + b"\x80\x02](" + tuple_bomb(60) + b"e.",
        "list of storages",
    ),
    "tuple_as_dtype": (
        b"\x80\x02}X\1\0\0\0xcnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
        + tuple_bomb(60) + b"\x85RX\0\0\0\0\x86Rs.",
        "x: numpy dtype",
    ),
    "long_integer_as_size": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0aX\0\0\0\0\x8b"
        + struct.pack("<I", 4000) + b"\1" * 4000 + b"tQ.",
        "persistent id",
    ),
    "encodes": (
        many_calls(TEXT, b"c_codecs\nencode\n", 1 << 15).replace(
            b"h\0\x85R", b"h\0X\6\0\0\0latin1\x86R"
        ),
        "more than the file holds",
    ),
    "pairs": (
        many_calls(LIST, b"ccollections\nOrderedDict\n", 1 << 15),
        "more than the file holds",
    ),
    "sizes": (many_calls(LIST, b"ctorch\nSize\n", 1 << 15), "impossible shape"),
    "nested_streams": (nested_streams(2000), "RecursionError"),
    "streams": (
        many_calls(
            b"B" + struct.pack("<I", len(STREAM)) + STREAM,
            b"ctorch.storage\n_load_from_bytes\n", 1 << 15,
        ),
        "more than the file holds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(tmp_path, bomb):
    content, reason = BOMBS[bomb]
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    (error,) = read_in_child(path)
    assert error.startswith(f"{path}: ") and reason in error.removeprefix(str(path))
    assert "\n" not in error and len(error) < 500


def test_a_storage_larger_than_its_tensor_declares_is_not_unpacked(tmp_path):
    storage = Storage("f4", "0", bytes(8), 2)
    pickled = dumps({"x": torch_tensor(storage, 0, (2,), (1,))})
    write_zip(tmp_path / "w.pth", {"a/data.pkl": pickled, "a/data/0": 640 << 20})
    (error,) = read_in_child(tmp_path / "w.pth")
    assert "x: storage 0: 671088640 bytes, needs 8" in error


@pytest.mark.parametrize("name", ["data.pkl", "byteorder"])
def test_other_members_that_unpack_beyond_the_file(tmp_path, name):
    members = {"a/data.pkl": dumps({}), f"a/{name}": 64 << 20}
    write_zip(tmp_path / "w.pth", members)
    (error,) = read_in_child(tmp_path / "w.pth")
    assert f"a/{name} unpacks to 67108864 bytes" in error


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_limit_are_refused(tmp_path, compression):
    """Their decompressors, as zipfile drives them, give as much as they like."""
    tensors, storages = tensors_of(ARRAYS)
    write_torch_zip(tmp_path / "w.pth", tensors, storages, compression)
    with pytest.raises(WeightsError, match=r"archive/.*compression 1[24] is not read"):
        read_state_dict(tmp_path / "w.pth")


def test_many_views_of_a_storage_read_it_once(tmp_path):
    """Views of two storages of 64 MB in turn, 400 in all, take the time of two reads."""
    big = [Storage("f4", key, None, 16 << 20) for key in "01"]
    views = {f"x{i}": torch_tensor(big[i % 2], i, (1,), (1,)) for i in range(400)}
    members = {"a/data.pkl": dumps(views), "a/data/0": 64 << 20, "a/data/1": 64 << 20}
    write_zip(tmp_path / "w.pth", members)
    assert read_in_child(tmp_path / "w.pth") == [list(views)]


def test_the_declared_size_has_a_limit(tmp_path):
    storage = Storage("f4", "0", bytes(4000), 1000)
    views = {f"x{i}": torch_tensor(storage, 0, (1000,), (1,)) for i in range(10)}
    write_torch_zip(tmp_path / "w.pth", views, [storage])
    assert len(read_state_dict(tmp_path / "w.pth", max_size=44_000)) == 10
    with pytest.raises(WeightsError, match=r"w\.pth: .*x0.*--max_size"):
        read_state_dict(tmp_path / "w.pth", max_size=43_999)

"""The reader of foreign weights, on files written here byte by byte: no torch is needed.

The stand-ins below pickle themselves under torch's global names, as torch's own tensors do.
"""

import collections
import io
import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from avs_jax.convert.reader import WeightsError, read_array, read_state_dict

RNG = np.random.default_rng(3)
ARRAYS = {
    "a.weight": RNG.standard_normal((3, 4)).astype(np.float32),
    "a.bias": RNG.standard_normal(5),
    "b.half": RNG.standard_normal((2, 3)).astype(np.float16),
    "b.index": np.arange(6, dtype=np.int64).reshape(2, 3),
    "b.flag": np.array([True, False]),
    "c.scalar": np.float32(2.5).reshape(()),
}
STORAGES = {
    "f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage",
    "b1": "BoolStorage", "bf16": "BFloat16Storage",
}  # fmt: skip


class Global:
    """Pickles as a bare global name."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return self.name


class Call:
    """Pickles as a call of a global."""

    def __init__(self, module, name, *args, state=None):
        self.target, self.args, self.state = Global((module, name)), args, state

    def __reduce__(self):
        return self.target, self.args, self.state


class Storage:
    def __init__(self, kind, key, data, size):
        self.kind, self.key, self.data, self.size = kind, key, data, size


class TorchPickler(pickle._Pickler):
    """Python's own pickler, with torch's names for the stand-ins."""

    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            module, name = obj.name
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.target)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)

    def save_reduce(self, func, args, *rest, **kwargs):
        if func is Call:
            raise AssertionError("Call is written by save")
        super().save_reduce(func, args, *rest, **kwargs)

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            kind = Global(("torch", STORAGES[obj.kind]))
            return ("storage", kind, obj.key, "cpu", obj.size)
        return None


def dumps(obj, protocol=2) -> bytes:
    file = io.BytesIO()
    TorchPickler(file, protocol).dump(obj)
    return file.getvalue()


def torch_tensor(storage, offset, shape, strides):
    return Call(
        "torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False,
        Call("collections", "OrderedDict"),
    )  # fmt: skip


def tensors_of(arrays):
    """Stand-ins for torch tensors, each with a storage of its own, and those storages."""
    tensors, storages = {}, []
    for number, (name, array) in enumerate(arrays.items()):
        kind = array.dtype.str[1:]
        storage = Storage(kind, str(number), array.tobytes(), array.size)
        strides = tuple(s // array.itemsize for s in array.strides)
        tensors[name] = torch_tensor(storage, 0, array.shape, strides)
        storages.append(storage)
    return tensors, storages


def write_torch_zip(path, obj, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(obj))
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.data)
        archive.writestr("archive/version", "3\n")


def write_torch_legacy(path, obj, storages):
    head = dumps(0x1950A86A20F9469CFC6C) + dumps(1001) + dumps({"little_endian": True})
    body = head + dumps(obj) + dumps([storage.key for storage in storages])
    for storage in storages:
        body += struct.pack("<q", storage.size) + storage.data
    path.write_bytes(body)


def write_safetensors(path, entries, data, meta=None):
    header = dict(entries) if meta is None else {"__metadata__": meta, **entries}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def check(found, arrays=ARRAYS):
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array)
        found[name][...] = 0  # writable, and of its own


# ---- what is read ----


def test_npz(tmp_path):
    np.savez(tmp_path / "w.npz", **ARRAYS)
    check(read_state_dict(tmp_path / "w.npz"))


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_legacy])
@pytest.mark.parametrize("wrap", ["", "model", "state_dict"])
def test_torch_files(tmp_path, write, wrap):
    tensors, storages = tensors_of(ARRAYS)
    write(tmp_path / "w.pth", {wrap: tensors, "iteration": 7} if wrap else tensors, storages)
    check(read_state_dict(tmp_path / "w.pth"))


def test_ordered_dict_with_metadata_and_module_prefix(tmp_path):
    tensors, storages = tensors_of({f"module.{name}": array for name, array in ARRAYS.items()})
    ordered = Call("collections", "OrderedDict", list(tensors.items()))
    ordered.state = {"_metadata": {"": {"version": 2}}}
    write_torch_zip(tmp_path / "w.pth", ordered, storages)
    check(read_state_dict(tmp_path / "w.pth"))


def test_parameters_and_views_of_one_storage(tmp_path):
    base = np.arange(12, dtype=np.float32)
    storage = Storage("f4", "0", base.tobytes(), 12)
    transposed = torch_tensor(storage, 0, (4, 3), (1, 4))
    tail = Call(
        "torch._utils", "_rebuild_parameter", torch_tensor(storage, 8, (2, 2), (2, 1)), True
    )
    write_torch_zip(tmp_path / "w.pth", {"t": transposed, "tail": tail}, [storage])
    want = {"t": base.reshape(3, 4).T, "tail": base[8:].reshape(2, 2)}
    check(read_state_dict(tmp_path / "w.pth"), want)


def test_bfloat16(tmp_path):
    values = np.array([1.0, -2.5, 0.15625], np.float32)  # exact in bfloat16
    raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    values = values.astype(ml_dtypes.bfloat16)
    storage = Storage("bf16", "0", raw, 3)
    write_torch_zip(tmp_path / "w.pth", {"x": torch_tensor(storage, 0, (3,), (1,))}, [storage])
    check(read_state_dict(tmp_path / "w.pth"), {"x": values})
    entry = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    write_safetensors(tmp_path / "w.safetensors", entry, raw, {"format": "pt"})
    check(read_state_dict(tmp_path / "w.safetensors"), {"x": values})


def test_safetensors(tmp_path):
    kinds = {"f4": "F32", "f8": "F64", "f2": "F16", "i8": "I64", "b1": "BOOL"}
    entries, data = {}, b""
    for name, array in ARRAYS.items():
        span = [len(data), len(data) + array.nbytes]
        kind = kinds[array.dtype.str[1:]]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    write_safetensors(tmp_path / "w.safetensors", entries, data)
    check(read_state_dict(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickled_numpy_arrays(tmp_path, protocol):
    """detectron2's model zoo: {"model": {name: array}, "__author__": ...}."""
    arrays = {**ARRAYS, "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    zoo = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(zoo, protocol=protocol))
    check(read_state_dict(path), arrays)
    path.write_bytes(pickle.dumps(collections.OrderedDict(arrays), protocol=protocol))
    check(read_state_dict(path), arrays)


def test_pickled_arrays_of_python_2_and_big_endian(tmp_path):
    body = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'>'\nNNNI-1\nI-1\nI0\ntb"
    data = repr(np.array([1.5, -3], ">f4").tobytes())[1:].encode()
    state = b"(I1\n(I2\nt" + dtype + b"I00\nS" + data + b"\ntb"
    (tmp_path / "w.pkl").write_bytes(b"(dS'x'\n" + body + state + b"s.")
    check(read_state_dict(tmp_path / "w.pkl"), {"x": np.array([1.5, -3], np.float32)})


def test_log_mel_as_avsbench_ships_it(golden_dir):
    log_mel = read_array(golden_dir / "sample_audio_log_mel.pkl")
    assert log_mel.shape == (5, 1, 96, 64) and log_mel.dtype == np.float32
    assert np.isfinite(log_mel).all()
    assert np.isclose(log_mel.min(), np.log(0.01), atol=0.02)  # the front end's floor
    assert np.isclose(log_mel[0, 0, 0, 0], -3.7392278)


@pytest.mark.parametrize("legacy", [False, True])
def test_against_torch_itself(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}
    kwargs = {"_use_new_zipfile_serialization": False} if legacy else {}
    torch.save({"state_dict": tensors}, tmp_path / "w.pth", **kwargs)
    check(read_state_dict(tmp_path / "w.pth"))


# ---- what is refused ----


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
    with pytest.raises(WeightsError, match="storage 0: 44 bytes.*needs 48"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"These are the weights, honestly.\n", "none of npz, safetensors, PyTorch or pickle"),
        (pickle.dumps([1, 2, 3]), "a list, not a dict"),
        (pickle.dumps({"x": np.array(["a", None], object)}), "x: .*(dtype 'O8'|Python objects)"),
        (pickle.dumps({"x": np.zeros(2), "lr": 0.1}), "1 of 2 entries.*'lr' is a float"),
        (pickle.dumps({"x": np.zeros(2, [("u", "f4")])}), "numpy dtype"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, reason):
    path = tmp_path / "vct.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"vct\.pth: (?s:.*)({reason})"):
        read_state_dict(path)


def test_npz_with_pickled_objects(tmp_path):
    np.savez(tmp_path / "w.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(WeightsError, match=r"x\.npy holds pickled Python objects"):
        read_state_dict(tmp_path / "w.npz")


def test_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"neither \.npz nor PyTorch's: holds readme\.txt"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "entries, size, reason",
    [
        ({"x": ("F32", [2], [0, 8])}, 4, "x: bytes 0 to 8 lie outside"),
        ({"x": ("F32", [3], [0, 8])}, 8, "x: 8 bytes, shape .3,. needs 12"),
        ({"x": ("F32", [2], [0, 8]), "y": ("F32", [2], [4, 12])}, 12, "y: starts at byte 4"),
        ({"x": ("F32", [1], [4, 8])}, 8, "x: starts at byte 4"),
        ({"x": ("F32", [1], [0, 4])}, 8, "4 bytes belong to no tensor"),
        ({"x": ("F32", [-1], [0, 4])}, 4, "outside|impossible"),
        ({"x": ("X99", [1], [0, 4])}, 4, "bad or unknown field"),
    ],
)
def test_dishonest_safetensors(tmp_path, entries, size, reason):
    entries = {
        name: {"dtype": kind, "shape": shape, "data_offsets": span}
        for name, (kind, shape, span) in entries.items()
    }
    write_safetensors(tmp_path / "w.safetensors", entries, bytes(size))
    with pytest.raises(WeightsError, match=reason):
        read_state_dict(tmp_path / "w.safetensors")


def test_safetensors_header_longer_than_the_file(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 1 << 30) + b'{"x": 1}')
    with pytest.raises(WeightsError, match="header of 1073741824 bytes"):
        read_state_dict(tmp_path / "w.safetensors")


def test_one_array_where_a_dict_is_wanted_and_the_reverse(tmp_path, golden_dir):
    with pytest.raises(WeightsError, match="holds one array, not a dict"):
        read_state_dict(golden_dir / "sample_audio_log_mel.pkl")
    np.savez(tmp_path / "w.npz", **ARRAYS)
    with pytest.raises(WeightsError, match="holds a dict with 6 entries, not one array"):
        read_array(tmp_path / "w.npz")

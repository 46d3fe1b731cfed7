"""Writes weight files byte by byte: no PyTorch and none of the package's own writers are needed.

The stand-ins below pickle themselves under PyTorch's global names, as its tensors do.
"""

import io
import json
import pickle
import struct
import zipfile

import numpy as np

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
SAFETENSORS = {"f4": "F32", "f8": "F64", "f2": "F16", "i8": "I64", "b1": "BOOL"}


def assert_arrays(found, arrays=ARRAYS):
    """Same names in the same order, dtypes, shapes and values; each array owns its memory."""
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    for array in found.values():
        array[...] = 0
    for name, array in found.items():
        assert not array.any(), name
        array[...] = 1
        assert all(other is array or not other.any() for other in found.values()), name
        array[...] = 0


def assert_identical(found, expected):
    """Same names in the same order, same dtypes, shapes and bits."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


class Global:
    """Pickles as a bare global name."""

    def __init__(self, module, name):
        self.name = f"{module}\n{name}\n"


class Call:
    """Pickles as a call of a global."""

    def __init__(self, module, name, *args, state=None):
        self.target, self.args, self.state = Global(module, name), args, state


class Storage:
    def __init__(self, kind, key, data, size):
        self.kind, self.key, self.data, self.size = kind, key, data, size


class TorchPickler(pickle._Pickler):
    """Python's own pickler, with PyTorch's names for the stand-ins."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + obj.name.encode())
        elif isinstance(obj, Call):
            self.save(obj.target)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        if isinstance(obj, Storage):
            return ("storage", Global("torch", STORAGES[obj.kind]), obj.key, "cpu", obj.size)
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
    """Stand-ins for PyTorch tensors, each with a storage of its own, and those storages."""
    tensors, storages = {}, []
    for number, (name, array) in enumerate(arrays.items()):
        kind = array.dtype.str[1:]
        storage = Storage(kind, str(number), array.tobytes(), array.size)
        strides = tuple(s // array.itemsize for s in array.strides)
        tensors[name] = torch_tensor(storage, 0, array.shape, strides)
        storages.append(storage)
    return tensors, storages


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    """A zip archive; a number instead of content stands for so many zeros."""
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for name, content in members.items():
            if isinstance(content, bytes):
                archive.writestr(name, content)
                continue
            with archive.open(name, "w") as member:
                for _ in range(content >> 20):
                    member.write(bytes(1 << 20))


def write_torch_zip(path, obj, storages, compression=zipfile.ZIP_STORED):
    data = {f"archive/data/{storage.key}": storage.data for storage in storages}
    members = {"archive/data.pkl": dumps(obj), "archive/byteorder": b"little"}
    write_zip(path, members | data | {"archive/version": b"3\n"}, compression)


def legacy_bytes(obj, storages) -> bytes:
    head = dumps(0x1950A86A20F9469CFC6C) + dumps(1001) + dumps({"little_endian": True})
    body = head + dumps(obj) + dumps([storage.key for storage in storages])
    for storage in storages:
        body += struct.pack("<q", storage.size) + storage.data
    return body


def write_torch_legacy(path, obj, storages):
    path.write_bytes(legacy_bytes(obj, storages))


def write_safetensors(path, entries, data, metadata=None):
    header = dict(entries) if metadata is None else {"__metadata__": metadata, **entries}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_safetensors_of(path, arrays, metadata=None):
    entries, data = {}, b""
    for name, array in arrays.items():
        span = [len(data), len(data) + array.nbytes]
        kind = SAFETENSORS[array.dtype.str[1:]]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    write_safetensors(path, entries, data, metadata)


def npy_bytes(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def array_pickle(shape, data, kind="f4", name="x") -> bytes:
    """{name: numpy array} as numpy pickles it, with any shape and data."""
    dtype = Call("numpy", "dtype", kind, 0, 1, state=(3, "<", None, None, None, -1, -1, 0))
    array = Call("numpy.core.multiarray", "_reconstruct", Global("numpy", "ndarray"), (0,), "b")
    array.state = (1, shape, dtype, False, data)
    return dumps({name: array}, protocol=3)

"""The writers of weight files: what they write comes back bit for bit, or nothing is written."""

import json
import pickletools
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest

from avs_jax.convert.names import module_versions
from avs_jax.convert.reader import WeightsError, read_state_dict
from avs_jax.convert.writer import WRITERS, write_state_dict
from tests.weight_files import assert_identical


def arrays_of_all_kinds():
    rng = np.random.default_rng(0)
    return {
        "z.weight": rng.standard_normal((3, 4, 2), np.float32),
        "scalar": np.array(2.5, np.float32),
        "flags": np.array([True, False, True]),
        "index": np.arange(6).reshape(2, 3),
        "half": np.ones(3, np.float16),
        "nothing": np.zeros((0, 3), np.float32),
        "a.running_mean": np.asfortranarray(rng.standard_normal((2, 3))),
        "big_endian": np.arange(4, dtype=">f4"),
        'odd "name" \\ é': np.arange(3, dtype=np.uint8),
    }


def with_native_bytes(arrays):
    return arrays | {"big_endian": arrays["big_endian"].astype(np.float32)}


@pytest.mark.parametrize("file_format", WRITERS)
def test_files_come_back_as_they_were(tmp_path, file_format):
    arrays = arrays_of_all_kinds()
    path = tmp_path / "new" / "weights"
    write_state_dict(path, arrays, file_format, module_versions(list(arrays)))
    assert_identical(read_state_dict(path), with_native_bytes(arrays))
    assert [p.name for p in path.parent.iterdir()] == ["weights"]


@pytest.mark.parametrize("file_format", ["torch", "safetensors"])
def test_bfloat16_comes_back(tmp_path, file_format):
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16)}
    write_state_dict(tmp_path / "x", arrays, file_format)
    assert_identical(read_state_dict(tmp_path / "x"), arrays)


def test_torch_reads_what_we_write(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = arrays_of_all_kinds()
    write_state_dict(tmp_path / "x.pth", arrays, "torch", {"": 1, "a": 2})
    for mmap in (False, True):
        state = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mmap)["model"]
        assert state._metadata["a"] == {"version": 2}
        assert_identical({k: x.numpy() for k, x in state.items()}, with_native_bytes(arrays))


def test_the_torch_pickle_names_only_what_weights_only_allows(tmp_path):
    arrays = arrays_of_all_kinds()
    write_state_dict(tmp_path / "x.pth", arrays, "torch", {"": 1, "a": 2})
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        opcodes = list(pickletools.genops(archive.read("archive/data.pkl")))
        starts = [info.header_offset for info in archive.infolist()]
        for info, start in zip(archive.infolist(), starts, strict=True):
            archive.fp.seek(start + 26)
            lengths = np.frombuffer(archive.fp.read(4), "<u2")
            assert (start + 30 + lengths.sum()) % 64 == 0, info.filename
    assert opcodes[0][1] == 2  # the protocol of torch.save
    assert {arg for op, arg, _ in opcodes if op.name == "GLOBAL"} == {
        "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch BoolStorage",
        "torch ByteStorage", "torch DoubleStorage", "torch FloatStorage", "torch HalfStorage",
        "torch LongStorage",
    }  # fmt: skip


def test_safetensors_are_aligned_and_keep_the_order(tmp_path):
    path = tmp_path / "x.safetensors"
    write_state_dict(path, arrays_of_all_kinds(), "safetensors")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert list(header) == ["__metadata__", *arrays_of_all_kinds()] and length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    for entry in header.values():
        itemsize = int(re.sub(r"\D", "", entry["dtype"].replace("BOOL", "8"))) // 8
        assert entry["data_offsets"][0] % itemsize == 0


def test_a_dtype_that_a_format_lacks_is_named(tmp_path):
    arrays = {"fine": np.zeros(2), "odd": np.zeros(2, np.complex64)}
    for file_format in ("torch", "safetensors"):
        with pytest.raises(WeightsError, match="odd: complex64 has no place"):
            write_state_dict(tmp_path / "x", arrays, file_format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file_format", WRITERS)
def test_a_full_disk_is_one_message_and_leaves_the_old_file(tmp_path, monkeypatch, file_format):
    (tmp_path / "x").write_text("before")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, file_format, fail)
    with pytest.raises(OSError, match="x: no space left on the disk for about 8 MB"):
        write_state_dict(tmp_path / "x", {"a": np.zeros(1_000_000)}, file_format)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "before"
